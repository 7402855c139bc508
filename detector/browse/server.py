"""The server of the page: on this machine alone, read only; images have numbers, and no request names a path."""

from __future__ import annotations

import errno
import json
import re
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from detector.browse.gallery import Gallery, choice_of
from detector.errors import ConfigError, DetectorError
from detector.insight.page import STYLE

ADDRESS = "127.0.0.1"
HOSTS = {ADDRESS, "localhost"}  # other names of this machine may be a foreign page's (DNS rebinding)
FOLDER = Path(__file__).parent
FILES = {
    "/": (FOLDER / "page.html", "text/html"),
    "/page.css": (FOLDER / "page.css", "text/css"),
    "/page.js": (FOLDER / "page.js", "text/javascript"),
    "/report.css": (STYLE, "text/css"),
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
TEXT, JSON = "text/plain", "application/json"
Answer = tuple[int, str, bytes]  # status, type, content


class BrowseServer(ThreadingHTTPServer):
    """Listens from its construction on; `gallery` is set before `serve_forever`.

    Args:
        port: 0 takes a free one.

    Raises ConfigError for a port that cannot be had.
    """

    daemon_threads = True
    gallery: Gallery

    def __init__(self, port: int):
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            reason = "another program has it" if error.errno == errno.EADDRINUSE else error.strerror
            raise ConfigError(f"--port {port}: cannot be opened ({reason}); --port 0 takes a free one") from error

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that no longer waits for an answer is no fault."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def answer(self, target: str) -> Answer:
        """What a path with its query asks for."""
        try:
            address = urlsplit(target)
            if address.path in FILES:
                path, kind = FILES[address.path]
                return HTTPStatus.OK, kind, path.read_bytes()
            if address.path == "/data.json":
                return _as_json(self.gallery.start())
            if address.path == "/list.json":
                query = dict(parse_qsl(address.query, strict_parsing=bool(address.query)))
                chosen, kind, order = choice_of(query, len(self.gallery.runs[0].names))
                return _as_json(self.gallery.listed(chosen, kind, order))
            if asked := re.fullmatch(r"/image/([0-9]{1,9})\.(json|jpg)", address.path):
                return self._image(int(asked[1]), asked[2])
        except ValueError as error:
            return HTTPStatus.BAD_REQUEST, TEXT, f"{error}\n".encode()
        return HTTPStatus.NOT_FOUND, TEXT, b"there is no such page\n"

    def _image(self, number: int, form: str) -> Answer:
        if number >= len(self.gallery):
            return HTTPStatus.NOT_FOUND, TEXT, f"there are {len(self.gallery)} images\n".encode()
        if form == "json":
            return _as_json(self.gallery.image(number))
        try:
            return HTTPStatus.OK, "image/jpeg", self.gallery.picture(number)
        except DetectorError as error:
            return HTTPStatus.GONE, TEXT, f"{error}\n".encode()


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD; http.server answers any other method with 501."""

    server: BrowseServer
    server_version, sys_version = "detector", ""
    timeout = 30

    def do_GET(self) -> None:
        self._send(whole=True)

    def do_HEAD(self) -> None:
        self._send(whole=False)

    def _send(self, whole: bool) -> None:
        status, kind, content = (
            self.server.answer(self.path)
            if self._is_own()
            else (HTTPStatus.FORBIDDEN, TEXT, b"open the address that the command printed\n")
        )
        self.send_response(status)
        self.send_header("Content-Type", kind if kind == "image/jpeg" else f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if whole:
            self.wfile.write(content)

    def _is_own(self) -> bool:
        """Whether the request was made to this machine by its own name; the port may be another, of a tunnel."""
        try:
            return urlsplit(f"//{self.headers.get('Host', '')}").hostname in HOSTS
        except ValueError:
            return False

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are no news."""


def _as_json(content: Any) -> Answer:
    return HTTPStatus.OK, JSON, json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
