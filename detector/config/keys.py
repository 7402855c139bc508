"""Every key of a configuration: its type and range in words, its default, and the sentence that documents it."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, get_args

from detector.config.config import Config
from detector.data.settings import DATASETS, TRANSFORMS, DataSettings
from detector.errors import ConfigError
from detector.modeling.parts import MASK_POOL, PARTS
from detector.recipe import Recipe, Scoring
from detector.schema.docs import option_docs
from detector.schema.signatures import describe, parameters_of

REQUIRED = inspect.Parameter.empty
NUM_CLASSES = "Number of classes; null: counted in the training annotations."


@dataclass(frozen=True)
class Key:
    """One option of a section."""

    name: str
    """Below the path of its section: "matching.pos_iou"."""
    kind: str
    """Its type and range in words."""
    default: Any
    """REQUIRED where it must be given."""
    sentence: str
    """Its documentation."""


@dataclass(frozen=True)
class KeySection:
    """The keys of one type of a section."""

    path: str
    """Dotted: "model.neck"."""
    type: str | None
    """Value of the key `type`; None where there is no choice."""
    is_default: bool
    """Whether a section that names no type has this one."""
    summary: str
    """First line of the documentation."""
    keys: tuple[Key, ...]

    @property
    def title(self) -> str:
        """Path and type as a heading."""
        return self.path if self.type is None else f"{self.path} {{type: {self.type}}}"


def key_table(config: Config | None = None) -> list[KeySection]:
    """All sections with all their types or, with a configuration, with its types alone."""
    sections = [KeySection("model", None, True, "The detector.", (_num_classes(),))]
    for key, slot in PARTS.items():
        constructors: dict[str, Callable] = dict(slot.types)
        if config is not None:
            if key not in config.model.calls:
                continue
            constructor = config.model.calls[key].constructor
            constructors = {_name_of(constructor, slot.types): constructor}
        for name, constructor in constructors.items():
            choice = name if len(slot.types) > 1 or name not in slot.types else None
            first = constructor is next(iter(slot.types.values()))
            keys = tuple(_keys(constructor, slot.supplied))
            if key in ("roi_head.mask_pool", "roi_head.keypoint_pool") and config is None:
                keys = tuple(_as_box_pool(key) for key in keys)
            sections.append(KeySection(f"model.{key}", choice, first, _summary(constructor), keys))
    if config is None or config.data is not None:
        sections.append(
            KeySection("data", None, True, "The data set.", tuple(_keys(DataSettings, ("type",), _data_type())))
        )
    if config is None:
        for name, constructor in TRANSFORMS.items():
            keys = tuple(_keys(constructor))
            sections.append(KeySection("data.transforms[]", name, False, _summary(constructor), keys))
    sections += [
        KeySection(path, None, True, _summary(options), tuple(_keys(options)))
        for path, options in (("train", Recipe), ("evaluate", Scoring))
    ]
    return sections


def _as_box_pool(key: Key) -> Key:
    """An option of the pool of masks or keypoints, whose defaults are what the box head's pool is set to."""
    return dataclasses.replace(key, default=MASK_POOL.get(key.name, "as model.roi_head.pool"))


def _num_classes() -> Key:
    return Key("num_classes", "a whole number in 1..1000000 or null", None, NUM_CLASSES)


def _data_type() -> list[Key]:
    """The one key whose annotation, a callable, does not show its values."""
    kind = f"one of {', '.join(map(repr, DATASETS))} or a dotted path"
    return [Key("type", kind, next(iter(DATASETS)), option_docs(DataSettings)["type"])]


def _name_of(constructor: Callable, types: Mapping[str, Callable]) -> str:
    """The name of a type in its table, or the dotted path of a custom one."""
    names = [name for name, known in types.items() if known is constructor]
    return names[0] if names else f"{constructor.__module__}.{constructor.__qualname__}"


def _summary(constructor: Callable) -> str:
    """The first paragraph of a docstring on one line."""
    return " ".join((inspect.getdoc(constructor) or "").partition("\n\n")[0].split())


def _keys(
    constructor: Callable,
    supplied: Sequence[str] = (),
    more: Sequence[Key] = (),
    defaults: Any = REQUIRED,
    prefix: str = "",
) -> Iterator[Key]:
    """The options of a constructor, those of groups by dotted names; `defaults` is an instance that overrides defaults."""
    yield from more
    docs = option_docs(constructor)
    factories = _factories(constructor)
    for name, parameter in parameters_of(constructor).items():
        if name in supplied:
            continue
        default = factories[name]() if name in factories else parameter.default
        default = default if defaults in (REQUIRED, None) else getattr(defaults, name)
        group = group_of(parameter.annotation)
        if group is not None:
            yield from _keys(group, defaults=default, prefix=f"{prefix}{name}.")
        else:
            yield Key(f"{prefix}{name}", _kind(parameter.annotation), default, docs.get(name, ""))


def _factories(constructor: Callable) -> dict[str, Callable]:
    """The default factories of a dataclass by the names of its fields."""
    fields = dataclasses.fields(constructor) if dataclasses.is_dataclass(constructor) else ()
    return {f.name: f.default_factory for f in fields if f.default_factory is not dataclasses.MISSING}


def group_of(hint: Any) -> type | None:
    """The dataclass of a nested section, perhaps optional."""
    options = [arg for arg in (hint, *get_args(hint)) if inspect.isclass(arg) and dataclasses.is_dataclass(arg)]
    return options[0] if options and hint in (options[0], Optional[options[0]]) else None  # noqa: UP045


def _kind(hint: Any) -> str:
    """As a message would say it; a list of transforms is one of sections."""
    return "a list, each a section with a `type`" if hint == list[Callable] else describe(hint)


def keys_below(sections: Sequence[KeySection], path: str) -> list[KeySection]:
    """The keys at and below a dotted path. Raises ConfigError, with the nearest path, where there are none."""
    found = []
    for section in sections:
        keys = [key for key in section.keys if _is_below(f"{section.path}.{key.name}", path)]
        if keys:
            found.append(dataclasses.replace(section, keys=tuple(keys)))
    if not found:
        known = {section.path for section in sections}
        known |= {f"{section.path}.{key.name}" for section in sections for key in section.keys}
        near = difflib.get_close_matches(path, sorted(known), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see detector config --keys"
        raise ConfigError(f"--keys {path}: no such section or key; {hint}")
    return found


def _is_below(key: str, path: str) -> bool:
    return not path or f"{key}.".startswith(f"{path}.") or key.startswith(f"{path}[")


def as_yaml(value: Any) -> str:
    """A value as a configuration writes it, on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {as_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, float):
        return f"{value:.6g}"
    for types in (TRANSFORMS, DATASETS):
        for name, known in types.items():
            if value is known or (inspect.isclass(known) and isinstance(value, known)):
                return name
    return str(value) if isinstance(value, str | int) else _name_of(value, {})


def keys_to_markdown(sections: Sequence[KeySection]) -> str:
    """The content of docs/keys.md."""
    lines = [
        "# Keys of a configuration\n",
        "Made by `detector config --markdown`; a test keeps it current. `detector config --keys model.rpn` prints a part.\n",
    ]
    for section in sections:
        default = " (default)" if section.is_default and section.type else ""
        lines.append(f"## `{section.title}`{default}\n\n{section.summary}\n")
        if section.keys:
            lines.append("| key | value | default | meaning |\n|---|---|---|---|")
            lines += [f"| {' | '.join(_cells(key))} |" for key in section.keys]
            lines.append("")
    return "\n".join(lines)


def sentence(key: Key) -> str:
    """The documentation of a key; an `Args:` line begins with a small letter."""
    return key.sentence[:1].upper() + key.sentence[1:]


def _cells(key: Key) -> list[str]:
    default = "must be given" if key.default is REQUIRED else f"`{as_yaml(key.default)}`"
    return [f"`{key.name}`", key.kind.replace("|", r"\|"), default, sentence(key).replace("|", r"\|")]
