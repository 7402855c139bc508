"""Inputs made to hurt: a few in `make test`, thousands in `make torture`, each there within some seconds."""

import functools
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.errors import DetectorError

QUICK, SECONDS = 60, 5


def tries(long: int) -> pytest.MarkDecorator:
    """A test with a parameter `tries`: QUICK, and `long` in the torture."""
    many = pytest.param(long, marks=pytest.mark.torture)
    return pytest.mark.parametrize("tries", [QUICK, many], ids=["quick", "torture"])


def fuzz(tries: int, check: Callable[..., None], **strategies: st.SearchStrategy) -> None:
    """`check` on so many examples; in the torture none may take longer than SECONDS."""
    check = check if tries <= QUICK else _watched(check)
    settings(max_examples=tries)(given(**strategies)(check))()


def _watched(check: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(check)
    def watched(**values: Any) -> None:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            check(**values)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return watched


@pytest.fixture(autouse=True)
def watchdog(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What takes too long fails (imported by the tests that fuzz)."""

    def bite(*_: object) -> None:
        raise AssertionError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, bite)
    yield
    signal.signal(signal.SIGALRM, before)


def outcome(call: Callable[[], Any]) -> Any:
    """What the call gives, or None where it is refused: by a DetectorError of one line that can be printed."""
    try:
        return call()
    except DetectorError as error:
        assert str(error) and len(str(error).splitlines()) == 1, str(error)
        str(error).encode()
        return None


def grown(call: Callable[[], Any]) -> float:
    """The most MiB of memory that the call takes beyond what is taken now (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        pytest.skip("this system does not tell")
    before = _peak()
    call()
    return _peak() - before


def _peak() -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The content with some bytes changed, a piece cut out or put in twice, or its end missing."""

    @st.composite
    def damage(draw: st.DrawFn) -> bytes:
        data = bytearray(content)
        place = st.integers(0, len(content) - 1)
        kind = draw(st.sampled_from(["flip", "flip", "head", "cut", "end", "twice"]))
        if kind in ("flip", "head"):  # most of what a decoder trusts is at the head
            where = place if kind == "flip" else st.integers(0, min(len(content), 200) - 1)
            for i in draw(st.lists(where, min_size=1, max_size=8)):
                data[i] = draw(st.integers(0, 255))
            return bytes(data)
        start, length = draw(place), draw(st.integers(1, 200))
        before, piece, after = data[:start], data[start : start + length], data[start:]
        return bytes({"cut": before + after[length:], "end": before, "twice": before + piece + after}[kind])

    return damage()


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**31, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf")])
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["", "\0", "\ud800", "\n", "\x1b[2J", "1", "../x", "é"]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
