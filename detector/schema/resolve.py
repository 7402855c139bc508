"""What the `type` of a section names: an entry of a table, or the dotted path of a user's own class or function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from detector.errors import ConfigError
from detector.schema.signatures import Call, check_keys, parse_call


def as_section(section: Any, where: str) -> dict[str, Any]:
    """A copy of a section; a text stands for one with that type alone. Raises ConfigError for what is no section."""
    section = {"type": section} if isinstance(section, str) else section
    check_keys(section, list(section) if isinstance(section, Mapping) else (), where)
    return dict(section)


def resolve(
    section: Any, types: Mapping[str, Callable], where: str, *, supplied: tuple[str, ...] = (), trust: bool
) -> Call:
    """The constructor that a section's `type` names (the first of `types` by default) and its checked arguments."""
    arguments = as_section(section, where)
    constructor = named(arguments.pop("type", next(iter(types))), types, where, trust=trust)
    return Call(constructor, parse_call(constructor, arguments, where, supplied=supplied, read=("type",)))


def named(name: Any, types: Mapping[str, Callable], where: str, *, trust: bool) -> Callable:
    """What a `type` names: an entry of `types` or, with `trust`, the dotted path of a user's own part."""
    if isinstance(name, str) and name in types:
        return types[name]
    if isinstance(name, str) and "." in name:
        return _import(name, where, trust)
    raise ConfigError(f"{where}.type: {name!r} is none of {', '.join(types)}, nor the dotted path of your own")


def _import(path: str, where: str, trust: bool) -> Callable:
    if not trust:
        raise ConfigError(f"{where}.type: the checkpoint refers to custom code, {path}; pass --trust to import it")
    module, _, name = path.rpartition(".")
    try:
        part = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:  # the last two: a path with an empty part
        raise ConfigError(f"{where}.type: {path} cannot be imported ({error}); is it on PYTHONPATH?") from error
    if not callable(part):
        raise ConfigError(f"{where}.type: {path} is neither a class nor a function")
    return part
