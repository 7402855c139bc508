"""YAML configuration: a section is a call, and the called signature is its only schema.

A file may name `_base_` files (later ones win); dictionaries merge, anything else replaces, and a section whose `type`
changes starts afresh. Nothing here knows any detector: `check_call` compares a section with a signature, `resolve` finds
what its `type` names; `default_types`, {"model.neck": "fpn", ...}, are those of sections that name none.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from detector.errors import ConfigError

Call = tuple[Callable, dict[str, Any]]  # a constructor and its keyword arguments
Types = Mapping[str, str]  # dotted path of a section -> its type where it names none
NO_TYPES: Types = types.MappingProxyType({})
MAX_BYTES = 2**18  # of one file: a configuration is a page or two
MAX_ALIASES = 10  # YAML aliases multiply what they stand for: by forty at most if there are ten
MAX_NODES = 20_000  # values and keys of one file
MAX_LENGTH = 10_000  # of one of them: YAML's numbers to the base of 60 take the square of it
MAX_DEPTH = 50  # of lists and dictionaries within each other; the parser's time grows with its square


class Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 does, and refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise ConfigError(f"{self.name}, line {key.start_mark.line + 1}: the key {key.value!r} is given twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_config(path: str | Path, overrides: Sequence[str] = (), default_types: Types = NO_TYPES) -> dict[str, Any]:
    """A file with its bases, then `key.path=value` overrides; nothing is checked against signatures yet.

    Raises ConfigError for a missing or unreadable file, or a cycle of bases.
    """
    return apply_overrides(_read_with_bases(Path(path), (), default_types, {}), overrides, default_types)


def apply_overrides(
    config: dict[str, Any], overrides: Sequence[str], default_types: Types = NO_TYPES
) -> dict[str, Any]:
    """The configuration with `key.path=value` changes. Raises ConfigError for one without '='."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"{override!r}: an override has the form key.path=value")
        config = merge(config, _nested(key.split("."), _parse(value, f"override {override!r}")), default_types)
    return config


def _read_with_bases(
    path: Path, above: tuple[Path, ...], default_types: Types, known: dict[Path, dict[str, Any]]
) -> dict[str, Any]:
    """A file over its bases. Each is read once (`known`): bases that share theirs would else be read 2, 4, 8 ... times."""
    if path in known:
        return known[path]
    own = _parse(_read_text(path, above), str(path))
    own = {} if own is None else own
    if not isinstance(own, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found a {type(own).__name__}")
    bases = own.pop("_base_", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: _base_: expected a file or a list of files, got {_short(bases)}")
    config: dict[str, Any] = {}
    for base in bases:
        of_base = _read_with_bases(path.parent / base, (*above, _real(path)), default_types, known)
        config = merge(config, of_base, default_types)
    known[path] = merge(config, own, default_types)
    return known[path]


def _real(path: Path) -> Path:
    """Without links; unlike `Path.resolve`, one that leads in a circle is no error here."""
    return Path(os.path.realpath(path))


def _read_text(path: Path, above: tuple[Path, ...]) -> str:
    named = f" (named by _base_ in {above[-1]})" if above else ""
    try:
        if _real(path) in above:
            raise ConfigError(f"{path}: _base_ files go in a circle")
        if len(above) > MAX_DEPTH:
            raise ConfigError(f"{path}: more than {MAX_DEPTH} _base_ files above each other")
        if not path.is_file():
            raise ConfigError(f"{path}: no such configuration file{named}")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes, not a configuration file")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: bytes that are no text, or a name that no file can have
        raise ConfigError(f"{path}: cannot be read as a configuration file{named}: {error}") from error


def _parse(text: str, source: str) -> Any:
    try:
        _check_size(text, source)
        loader = Loader(text)
        loader.name, loader.deep_construct = source, True  # deep: a value that contains itself is an error
        return loader.get_single_data()
    except ConfigError:
        raise
    except Exception as error:  # the constructors of YAML's own tags raise anything: "!!int ''" is an IndexError
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error


def _check_size(text: str, source: str) -> None:
    """Refuse a text that would cost far more time or memory than its length."""
    aliases = depth = 0
    for nodes, event in enumerate(yaml.parse(text, Loader)):
        aliases += isinstance(event, yaml.AliasEvent)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        length = len(event.value) if isinstance(event, yaml.ScalarEvent) else 0
        if aliases > MAX_ALIASES or depth > MAX_DEPTH or nodes > MAX_NODES or length > MAX_LENGTH:
            most = f"{MAX_ALIASES} YAML aliases, {MAX_DEPTH} levels of nesting, {MAX_NODES} values, {MAX_LENGTH} characters"
            raise ConfigError(f"{source}: more than {most}: not a configuration")


def _nested(keys: list[str], value: Any) -> dict[str, Any]:
    return {keys[0]: _nested(keys[1:], value) if keys[1:] else value}


def merge(base: Any, own: Any, default_types: Types = NO_TYPES, where: str = "") -> Any:
    """`own` over `base`: dictionaries merge key by key unless `own` names another `type`; a text is short for a type.

    `where` is their dotted path: a `base` that names no type has the one that `default_types` says.
    """
    if isinstance(base, str) and isinstance(own, dict):
        base = {"type": base}
    if not (isinstance(base, dict) and isinstance(own, dict)):
        return own
    if "type" in own and own["type"] != base.get("type", default_types.get(where, own["type"])):
        return own
    below = f"{where}." if where else ""
    return base | {key: merge(base.get(key), value, default_types, f"{below}{key}") for key, value in own.items()}


def as_section(section: Any, where: str) -> dict[str, Any]:
    """A copy of a section; a text stands for one with that type and nothing else. Raises ConfigError for no section."""
    section = {"type": section} if isinstance(section, str) else section
    check_keys(section, list(section) if isinstance(section, Mapping) else (), where)
    return dict(section)


def resolve(section: Any, table: Mapping[str, type], where: str, *, supplied: Sequence[str] = (), trust: bool) -> Call:
    """The constructor that a section's `type` names (the first of `table` by default) and its checked arguments."""
    arguments = as_section(section, where)
    constructor = named(arguments.pop("type", next(iter(table))), table, where, trust=trust)
    check_call(constructor, arguments, where, supplied)
    return constructor, arguments


def named(name: Any, table: Mapping[str, type], where: str, *, trust: bool) -> Callable:
    """What a `type` names: an entry of `table`, or with `trust` the dotted path of your own."""
    if isinstance(name, str) and name in table:
        return table[name]
    if isinstance(name, str) and "." in name:
        return _import(name, where, trust)
    raise ConfigError(f"{where}.type: {name!r} is none of {', '.join(table)}, nor the dotted path of your own")


def _import(path: str, where: str, trust: bool) -> Callable:
    if not trust:
        raise ConfigError(f"{where}.type: this checkpoint wants to run code of yours, {path}; say --trust to allow it")
    module, _, name = path.rpartition(".")
    try:
        part = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: a path with an empty part
        raise ConfigError(f"{where}.type: {path} cannot be imported ({error}); is it on PYTHONPATH?") from error
    if not callable(part):
        raise ConfigError(f"{where}.type: {path} is neither a class nor a function")
    return part


def check_keys(section: Any, known: Sequence[str], where: str) -> None:
    """Raise ConfigError if `section` is no dictionary or has a key beyond `known`; names the nearest known key."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}: expected a section of 'key: value' lines, got {_short(section)}")
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}.{key}: unknown key; {hint}")


def parameters_of(function: Callable) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """The named parameters of a call and their types; a class that takes **options has those of its parent, too."""
    every = inspect.signature(function).parameters.values()
    named = {p.name: p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    hints = get_type_hints(function if inspect.isfunction(function) else function.__init__)
    if inspect.isclass(function) and function is not object and any(p.kind is p.VAR_KEYWORD for p in every):
        inherited, inherited_hints = parameters_of(function.__mro__[1])
        return inherited | named, inherited_hints | hints
    return named, hints


def check_call(function: Callable, section: Mapping[str, Any], where: str, supplied: Sequence[str] = ()) -> None:
    """Check that `function(**section)` fits the signature, apart from the `supplied` arguments that the program adds.

    Raises ConfigError with the dotted path for an unknown key, a missing argument, a wrong type, or a supplied argument.
    """
    try:
        parameters, hints = parameters_of(function)
    except (ValueError, TypeError, NameError) as error:
        raise ConfigError(f"{where}: the arguments of {function!r} cannot be read ({error})") from error
    for name in supplied:
        if isinstance(section, Mapping) and name in section:
            raise ConfigError(f"{where}.{name}: the program sets this itself; remove the key")
    known = [name for name in parameters if name not in supplied]
    check_keys(section, known, where)
    for name, value in section.items():
        if name in hints:
            _check_type(value, hints[name], f"{where}.{name}")
    missing = [n for n in known if parameters[n].default is inspect.Parameter.empty and n not in section]
    if missing:
        raise ConfigError(f"{where}.{missing[0]}: this key must be given")


def _check_type(value: Any, hint: Any, where: str) -> None:
    if not _fits(value, hint, where):
        raise ConfigError(f"{where}: expected {_name(hint)}, got {_short(value)}")


def _short(value: Any) -> str:
    """A value as a message shows it, with dots for what is too long."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 100
    return shown.repr(value)


def _fits(value: Any, hint: Any, where: str) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, option, where) for option in args)
    if origin is Literal:
        return value in args and type(value) in {type(a) for a in args}
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin in (list, tuple, Sequence):
        return _fits_list(value, origin, args, where)
    if hint in (bool, str):
        return isinstance(value, hint)
    if origin is dict:  # a section whose constructor is not known here
        return isinstance(value, dict)
    if inspect.isclass(hint) and isinstance(value, Mapping):  # a nested section
        check_call(hint, value, where)
        return True
    return False


def _fits_list(value: Any, origin: Any, args: tuple, where: str) -> bool:
    if not isinstance(value, list | tuple):
        return False
    if origin is tuple and Ellipsis not in args:
        return len(value) == len(args) and all(_fits(v, a, where) for v, a in zip(value, args))
    return all(_fits(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))


def _name(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_name(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple and Ellipsis not in args:
        return f"a list of {len(args)} ({', '.join(_name(a) for a in args)})"
    if origin in (list, tuple, Sequence):
        return f"a list of {_name(args[0])}"
    if origin is dict:
        return "a section"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(hint, "a section" if inspect.isclass(hint) else str(hint))
