"""Configuration files as plain values: `_base_` files, merging, and `key.path=value` overrides.

A file may name `_base_` files (later ones win), relative to itself or, with `detector://`, among the files that come with
the package. Dictionaries merge and anything else replaces. A section whose `type` changes keeps the keys that both types
have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from detector.errors import ConfigError
from detector.schema.signatures import short
from detector.yaml_reader import MAX_BYTES, MAX_DEPTH, parse_yaml

SHIPPED = "detector://"  # prefix of configuration files that come with the package
Rename = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]  # of what a file says, over what its bases say


def _as_it_is(section: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return section


@dataclass(frozen=True)
class Types:
    """What is known of the types of sections."""

    defaults: Mapping[str, str]
    """Dotted path of a section -> its type where it names none."""
    options: Callable[[str, str], Mapping[str, Any] | None]
    """Path and type -> the annotations of its keys; None if the type is not known."""

    def change(self, where: str, base: dict[str, Any], new: str) -> tuple[dict[str, Any], str]:
        """What another type keeps of a section, and a line about it ("" if there is nothing to say)."""
        old = base.get("type", self.defaults.get(where))
        given = {key: value for key, value in base.items() if key != "type"}
        before, after = self.options(where, str(old)), self.options(where, str(new))
        if before is None or after is None:
            lost = f"{where}: {new} instead of {old}; its keys are not known before it is imported, so none is kept"
            return {}, f"{lost} of {', '.join(given)}" if given else ""
        kept = {key: value for key, value in given.items() if key in after and after[key] == before.get(key)}
        parts = {
            "kept": [f"{key}={short(value)}" for key, value in kept.items()],
            "dropped": [key for key in given if key not in kept],
            "at their defaults": [key for key in after if key not in before],
        }
        said = "; ".join(f"{word}: {', '.join(names)}" for word, names in parts.items() if names)
        return kept, f"{where}: {new} instead of {old}; {said}" if given else ""


NO_TYPES = Types({}, lambda where, name: None)


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

    `rename` is applied to what each file says. `layers` lists what was read, the strongest last; `notes` are lines about
    sections whose type changed.
    """

    def __init__(self, types: Types = NO_TYPES, rename: Rename = _as_it_is):
        self.types, self.rename = types, rename
        self.layers: list[Layer] = []
        self.notes: list[str] = []
        self._known: dict[Path, dict[str, Any]] = {}

    def read(self, path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
        """A file with its bases, then the overrides. Raises ConfigError for a missing or unreadable file."""
        return self.override(self._with_bases(locate(path), ()), overrides)

    def read_content(self, content: Mapping[str, Any], overrides: Sequence[str] = ()) -> dict[str, Any]:
        """The same for the content of a file, whose bases are relative to the working folder."""
        return self.override(self._over_bases(dict(content), Path("configuration"), ()), overrides)

    def override(self, config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
        """The configuration with `key.path=value` changes. Raises ConfigError for one without '='."""
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals or not all(key.split(".")):
                raise ConfigError(f"{override!r}: an override has the form key.path=value")
            change = self.rename(_nested(key.split("."), parse_yaml(value, f"override {override!r}")), config)
            self.layers.append(Layer("command line", change))
            config = self._merge(config, change)
        return config

    def _merge(self, base: Any, own: Any) -> Any:
        return merge(base, own, self.types, note=self.notes.append)

    def _with_bases(self, path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
        if path in self._known:
            return self._known[path]
        own = parse_yaml(_read_text(path, above), str(path))
        own = {} if own is None else own
        if not isinstance(own, dict):
            raise ConfigError(f"{path}: expected 'key: value' lines, found a {type(own).__name__}")
        self._known[path] = self._over_bases(own, path, above)
        return self._known[path]

    def _over_bases(self, own: dict[str, Any], path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
        """What a file says over its bases."""
        bases = own.pop("_base_", [])
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise ConfigError(f"{path}: _base_: expected a file or a list of files, got {short(bases)}")
        config: dict[str, Any] = {}
        for base in bases:
            inherited = self._with_bases(path.parent / locate(base), (*above, _real(path)))
            config = self._merge(config, inherited)
        try:
            own = self.rename(own, config)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        self.layers.append(Layer(str(path), own))
        return self._merge(config, own)


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


def merge(
    base: Any, own: Any, types: Types = NO_TYPES, where: str = "", note: Callable[[str], object] = lambda line: None
) -> Any:
    """`own` over `base`: dictionaries merge key by key; a text is short for a type.

    Where `own` names another type, it takes over the keys of `base` that both types have; `note` gets a line about them.

    Args:
        base: a section, or a value.
        own: what changes it.
        types: what is known of types.
        where: dotted path of the section.
        note: called with a line for each section whose type changes.
    """
    if isinstance(base, str) and isinstance(own, dict):
        base = {"type": base}
    if isinstance(base, dict) and isinstance(own, str) and (where in types.defaults or "type" in base):
        own = {"type": own}
    if not (isinstance(base, dict) and isinstance(own, dict)):
        return own
    if "type" in own and own["type"] != base.get("type", types.defaults.get(where, own["type"])):
        base, line = types.change(where, base, own["type"])
        if line:
            note(line)
    below = f"{where}." if where else ""
    return base | {key: merge(base.get(key), value, types, f"{below}{key}", note) for key, value in own.items()}
