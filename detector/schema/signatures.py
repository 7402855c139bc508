"""A signature as a schema: plain values (of YAML or of a caller) are compared with annotations and become arguments.

`parse_call` turns a section into the arguments of a call. A nested section whose annotation is a dataclass becomes that
dataclass; where the parameter has a default instance, the section changes that instance. Nothing here knows a detector.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import reprlib
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from detector.errors import ConfigError
from detector.schema.ranges import Range

Part = TypeVar("Part", bound=type)
WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "null"}
UNIONS = (Union, types.UnionType)
OPTION = re.compile(r"[a-z_.]+: ")  # a message that begins with the name of an option


class Mismatch(Exception):
    """A value that does not fit its annotation."""


class Call(NamedTuple):
    """A constructor and its checked keyword arguments; nothing is constructed yet."""

    constructor: Callable
    arguments: dict[str, Any]


def parameters_of(function: Callable) -> dict[str, inspect.Parameter]:
    """The named parameters of a call, their annotations resolved; a class that takes **options has its parent's, too.

    Raises ConfigError where they cannot be read.
    """
    try:
        return dict(_parameters_of(function))
    except (ValueError, TypeError, NameError) as error:
        raise ConfigError(f"the arguments of {function!r} cannot be read ({error})") from error


@functools.cache  # resolving annotations costs more than all else that reads a configuration
def _parameters_of(function: Callable) -> dict[str, inspect.Parameter]:
    every = inspect.signature(function).parameters.values()
    hints = get_type_hints(function.__init__ if inspect.isclass(function) else function, include_extras=True)
    named = (p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    own = {p.name: p.replace(annotation=hints.get(p.name, Any)) for p in named}
    takes_options = inspect.isclass(function) and any(p.kind is p.VAR_KEYWORD for p in every)
    parent = inspect.getmro(function)[1] if inspect.isclass(function) else object
    return _parameters_of(parent) | own if takes_options and parent is not object else own


def parse_call(
    function: Callable,
    section: Any,
    where: str,
    *,
    supplied: Sequence[str] = (),
    read: Sequence[str] = (),
    base: Any = None,
) -> dict[str, Any]:
    """The keyword arguments of `function` that a section gives, apart from the `supplied` ones that the program adds.

    `read` are keys of the section that the caller has taken out of it.
    `base` is an instance whose attributes stand for missing arguments. Raises ConfigError with the dotted path `where` for
    an unknown key, a missing or supplied argument, a wrong type, or a number out of range.
    """
    try:
        parameters = parameters_of(function)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    for name in supplied:
        if isinstance(section, Mapping) and name in section:
            raise ConfigError(f"{where}.{name}: the program sets this itself; remove the key")
    known = [name for name in parameters if name not in supplied]
    check_keys(section, known, where, read)
    arguments = {name: _argument(value, parameters[name], f"{where}.{name}", base) for name, value in section.items()}
    required = [n for n in known if parameters[n].default is inspect.Parameter.empty and base is None]
    missing = [name for name in required if name not in section]
    if missing:
        raise ConfigError(f"{where}.{missing[0]}: this key must be given")
    return arguments


def _argument(value: Any, parameter: inspect.Parameter, where: str, base: Any) -> Any:
    default = parameter.default if base is None else getattr(base, parameter.name)
    try:
        return convert(value, parameter.annotation, where, default)
    except Mismatch:
        raise ConfigError(f"{where}: expected {describe(parameter.annotation)}, got {short(value)}") from None


def check_keys(section: Any, known: Sequence[str], where: str, read: Sequence[str] = ()) -> None:
    """Raise ConfigError if `section` is no dictionary or has a key beyond `known`; names the nearest of these and of `read`."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}: expected a section of 'key: value' lines, got {short(section)}")
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(str(key), [*known, *read], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(sorted(known))}"
            raise ConfigError(f"{where}.{key}: unknown key; {hint}")


def convert(value: Any, hint: Any, where: str = "", default: Any = None) -> Any:
    """The value as its annotation describes it: nested sections constructed, lists for tuples made tuples.

    Raises Mismatch for another type or a number out of range, ConfigError for what is wrong inside a nested section.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _in_ranges(convert(value, args[0], where, default), args[1:])
    if origin in UNIONS:
        return _first_option(value, args, where, default)
    if origin is Literal:
        return _if(value in args and type(value) in {type(a) for a in args}, value)
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return _items(value, origin, args, where)
    if hint is float:
        return _if(isinstance(value, int | float) and not isinstance(value, bool), value)
    if hint is int:
        return _if(isinstance(value, int) and not isinstance(value, bool), value)
    if hint in (bool, str):
        return _if(isinstance(value, hint), value)
    if hint is None or hint is type(None):
        return _if(value is None, value)
    if origin is dict:  # a section whose constructor is not known here
        return _if(isinstance(value, dict), value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return construct(hint, value, where, default if isinstance(default, hint) else None)
    return _if(hint is Any or (inspect.isclass(hint) and isinstance(value, hint)), value)


def construct(kind: type, section: Mapping[str, Any], where: str, base: Any = None) -> Any:
    """The dataclass of a section; with `base`, that instance changed by the section."""
    arguments = parse_call(kind, section, where, base=base)
    with prefixed(where):
        return kind(**arguments) if base is None else dataclasses.replace(base, **arguments)


class prefixed:
    """Within this context a ValueError of a constructor becomes a ConfigError that begins with the dotted path."""

    def __init__(self, where: str):
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ValueError):
            joint = "." if OPTION.match(str(error)) else ": "
            raise ConfigError(f"{self.where}{joint}{error}") from error


def _if(fits: bool, value: Any) -> Any:
    if not fits:
        raise Mismatch
    return value


def _in_ranges(value: Any, extras: Sequence[Any]) -> Any:
    for allowed in extras:
        if isinstance(allowed, Range) and isinstance(value, int | float) and value not in allowed:
            raise Mismatch
    return value


def _first_option(value: Any, options: Sequence[Any], where: str, default: Any) -> Any:
    for option in options:
        try:
            return convert(value, option, where, default)
        except Mismatch:
            continue
    raise Mismatch


def _items(value: Any, origin: Any, args: tuple, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise Mismatch
    if origin is tuple and Ellipsis not in args:
        if len(value) != len(args):
            raise Mismatch
        return tuple(convert(item, arg) for item, arg in zip(value, args))
    items = [convert(item, args[0], f"{where}[{i}]") for i, item in enumerate(value)]
    return tuple(items) if origin is tuple else items


def describe(hint: Any) -> str:
    """What an annotation allows, in words: "a number in 0..1 or null"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return " ".join([describe(args[0]), *(str(extra) for extra in args[1:] if isinstance(extra, Range))])
    if origin in UNIONS:
        return " or ".join(describe(a) for a in args)
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if origin is tuple and Ellipsis not in args:
        kinds = [describe(a) for a in args]
        return (
            f"a list of {len(args)} ({', '.join(kinds)})"
            if len(set(kinds)) > 1
            else f"a list of {len(args)}, each {kinds[0]}"
        )
    if origin in (list, tuple) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"a list, each {describe(args[0])}"
    if origin is dict or (inspect.isclass(hint) and hint not in WORDS):
        return "a section"
    return WORDS.get(hint, str(hint))


def short(value: Any) -> str:
    """A value as a message shows it, with dots for what is too long."""
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 100
    return shown.repr(value)


def checked(part: Part) -> Part:
    """Class decorator: the constructor raises ValueError for an argument that its range leaves out."""
    initialise: Callable = getattr(part, "__init__")  # noqa: B009  # of a type that is not known here
    signature = inspect.signature(initialise)

    @functools.wraps(initialise)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        hints = _ranged_hints(initialise)
        for name, value in signature.bind(self, *args, **kwargs).arguments.items():
            if name in hints:
                try:
                    convert(value, hints[name])
                except Mismatch:
                    wanted = describe(hints[name])
                    raise ValueError(f"{part.__name__}: {name}: expected {wanted}, got {short(value)}") from None
        initialise(self, *args, **kwargs)

    setattr(part, "__init__", __init__)  # noqa: B010
    return part


@functools.cache
def _ranged_hints(function: Callable) -> dict[str, Any]:
    """The annotations of a function that state a range."""
    return {name: hint for name, hint in get_type_hints(function, include_extras=True).items() if _states_range(hint)}


def _states_range(hint: Any) -> bool:
    return isinstance(hint, Range) or any(map(_states_range, get_args(hint)))
