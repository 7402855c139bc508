"""Configuration files as plain values: `_base_` files, merging, and `key.path=value` overrides.

A file may name `_base_` files (later ones win), relative to itself or, with `detector://`, among the files that come with
the package. Dictionaries merge, anything else replaces, and a section whose `type` changes starts afresh.
"""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detector.errors import ConfigError
from detector.schema.signatures import short
from detector.yaml_reader import MAX_BYTES, MAX_DEPTH, parse_yaml

SHIPPED = "detector://"  # prefix of configuration files that come with the package
Types = Mapping[str, str]  # dotted path of a section -> its type where it names none
NO_TYPES: Types = types.MappingProxyType({})
Rename = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]  # of what a file says, over what its bases say


def _as_it_is(section: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return section


class Layer(NamedTuple):
    """What one file, or the command line, itself sets."""

    source: str
    content: dict[str, Any]


def shipped_configs() -> Path:
    """The folder of configuration files: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def locate(name: str | Path) -> Path:
    """The path of a configuration file; `detector://NAME` is one of those that come with the package."""
    text = str(name)
    # Path("detector://x") has become "detector:/x"
    for prefix in (SHIPPED, SHIPPED[:-1]):
        if text.startswith(prefix):
            path = shipped_configs() / text.removeprefix(prefix)
            return path if path.suffix else path.with_name(f"{path.name}.yaml")
    return Path(name)


class Reader:
    """Reads files with their bases; every file once, since bases may share theirs.

    `default_types`, {"model.neck": "fpn", ...}, are the types of sections that name none. `rename` is applied to what each
    file says. `layers` lists what was read, the strongest last.
    """

    def __init__(self, default_types: Types = NO_TYPES, rename: Rename = _as_it_is):
        self.default_types, self.rename = default_types, rename
        self.layers: list[Layer] = []
        self._known: dict[Path, dict[str, Any]] = {}

    def read(self, path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """A file with its bases, then the overrides. Raises ConfigError for a missing or unreadable file."""
        return self.override(self._with_bases(locate(path), ()), overrides)

    def override(self, config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
        """The configuration with `key.path=value` changes. Raises ConfigError for one without '='."""
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals or not all(key.split(".")):
                raise ConfigError(f"{override!r}: an override has the form key.path=value")
            change = self.rename(_nested(key.split("."), parse_yaml(value, f"override {override!r}")), config)
            self.layers.append(Layer("command line", change))
            config = merge(config, change, self.default_types)
        return config

    def _with_bases(self, path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
        if path in self._known:
            return self._known[path]
        own = parse_yaml(_read_text(path, above), str(path))
        own = {} if own is None else own
        if not isinstance(own, dict):
            raise ConfigError(f"{path}: expected 'key: value' lines, found a {type(own).__name__}")
        bases = own.pop("_base_", [])
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise ConfigError(f"{path}: _base_: expected a file or a list of files, got {short(bases)}")
        config: dict[str, Any] = {}
        for base in bases:
            inherited = self._with_bases(path.parent / locate(base), (*above, _real(path)))
            config = merge(config, inherited, self.default_types)
        try:
            own = self.rename(own, config)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        self.layers.append(Layer(str(path), own))
        self._known[path] = merge(config, own, self.default_types)
        return self._known[path]


def _real(path: Path) -> Path:
    """Without links; unlike `Path.resolve`, circular links are no error here."""
    return Path(os.path.realpath(path))


def _read_text(path: Path, above: tuple[Path, ...]) -> str:
    named = f" (named by _base_ in {above[-1]}, to which it is relative)" if above else ""
    try:
        if _real(path) in above:
            raise ConfigError(f"{path}: _base_ files go in a circle")
        if len(above) > MAX_DEPTH:
            raise ConfigError(f"{path}: more than {MAX_DEPTH} _base_ files above each other")
        if not path.is_file():
            shipped = shipped_configs() / path.name
            hint = f"; {SHIPPED}{path.name} comes with the package" if shipped.is_file() and path != shipped else ""
            raise ConfigError(f"{path}: no such configuration file{named}{hint}")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, not a configuration file")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text, or an impossible file name
        raise ConfigError(f"{path}: cannot be read as a configuration file{named}: {error}") from error


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    return {keys[0]: _nested(keys[1:], value) if keys[1:] else value}


def merge(base: Any, own: Any, default_types: Types = NO_TYPES, where: str = "") -> Any:
    """`own` over `base`: dictionaries merge key by key unless `own` names another `type`; a text is short for a type.

    `where` is their dotted path: a `base` that names no type has the one in `default_types`.
    """
    if isinstance(base, str) and isinstance(own, dict):
        base = {"type": base}
    if not (isinstance(base, dict) and isinstance(own, dict)):
        return own
    if "type" in own and own["type"] != base.get("type", default_types.get(where, own["type"])):
        return own
    below = f"{where}." if where else ""
    return base | {key: merge(base.get(key), value, default_types, f"{below}{key}") for key, value in own.items()}
