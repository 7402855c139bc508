"""The effective configuration: every option with its value and the file, or the command line, that set it."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.config.config import Config, config_reader, parse_config
from detector.config.inherit import SHIPPED, Layer, shipped_configs
from detector.config.keys import REQUIRED, KeySection, as_yaml, key_table, sentence

DEFAULT = "default"
MISSING = object()


@dataclass(frozen=True)
class Setting:
    """The value of one key, and its origin."""

    value: Any
    origin: str


class EffectiveConfig:
    """A configuration file with every default; `settings` are by dotted path.

    Args:
        path: of the file.
        overrides: `key.path=value` changes.
    """

    def __init__(self, path: str | Path, overrides: Sequence[str] = ()):
        reader = config_reader()
        self.config = parse_config(reader.read(path, overrides), trust=True, source=path)
        self.sections = key_table(self.config)
        self.settings = {key: Setting(value, _origin(key, self.config.raw, reader.layers))
                         for key, value in effective_options(self.config, self.sections).items()}  # fmt: skip

    def to_text(self, sections: Sequence[KeySection]) -> str:
        """Sections as lines "key  value  origin"."""
        blocks = []
        for section in sections:
            rows = [(key.name, self.settings[f"{section.path}.{key.name}"]) for key in section.keys]
            if section.type is not None:
                rows.insert(0, ("type", self.settings[f"{section.path}.type"]))
            lines = [f"  {name:<28}  {as_yaml(setting.value):<27}  {setting.origin}" for name, setting in rows]
            blocks += ["\n".join([section.path, *lines])] if lines else []
        return "\n\n".join(blocks)


def effective_options(config: Config, sections: Sequence[KeySection]) -> dict[str, Any]:
    """The values that a configuration gives to the keys of its sections, by their dotted paths."""
    options = {}
    for section in sections:
        if section.type is not None:
            options[f"{section.path}.type"] = section.type
        for key in section.keys:
            options[f"{section.path}.{key.name}"] = _value(config, section.path, key.name.split("."), key.default)
    return options


def _value(config: Config, section: str, names: Sequence[str], default: Any) -> Any:
    """The value of one option: constructed as the program uses it."""
    room, _, part = section.partition(".")
    if room == "model":
        given = config.model.calls[part].arguments if part else {"num_classes": config.model.num_classes}
        if names[0] not in given:
            return default
        value, names = given[names[0]], names[1:]
    else:
        value = getattr(config, room)
    for name in names:
        value = None if value is None else getattr(value, name)
    return value


def _origin(key: str, raw: Mapping[str, Any], layers: Sequence[Layer]) -> str:
    """The source of the strongest layer that sets a key which counts; DEFAULT if none does."""
    path = key.split(".")
    if _find(raw, path) is MISSING:
        return DEFAULT
    sources = [layer.source for layer in layers if _find(layer.content, path) is not MISSING]
    return _short_path(sources[-1]) if sources else DEFAULT


def _find(content: Any, path: Sequence[str]) -> Any:
    """The value at a path; a text in place of a section stands for its type."""
    for i, name in enumerate(path):
        if isinstance(content, str) and list(path[i:]) == ["type"]:
            return content
        if not isinstance(content, Mapping) or name not in content:
            return MISSING
        content = content[name]
    return content


def _short_path(source: str) -> str:
    """A file of the package with its prefix, another relative to the current folder if it lies in there."""
    real = os.path.realpath(source)
    shipped = os.path.realpath(shipped_configs())
    if real.startswith(os.path.realpath(".") + os.sep):
        return os.path.relpath(real, os.path.realpath("."))
    return SHIPPED + os.path.relpath(real, shipped) if real.startswith(shipped + os.sep) else source


def keys_to_text(sections: Sequence[KeySection], settings: Mapping[str, Setting] | None = None) -> str:
    """What each key means, at most 100 columns wide; `settings` adds the value that it has."""
    blocks = []
    for section in sections:
        default = "  (default)" if section.is_default and section.type else ""
        lines = [
            section.title + default,
            *textwrap.wrap(section.summary, 98, initial_indent="  ", subsequent_indent="  "),
        ]
        for key in section.keys:
            value = "must be given" if key.default is REQUIRED else f"default {as_yaml(key.default)}"
            setting = settings.get(f"{section.path}.{key.name}") if settings else None
            if setting is not None and setting.origin != DEFAULT:
                value += f"; {as_yaml(setting.value)} by {setting.origin}"
            lines += textwrap.wrap(f"{key.name}: {key.kind}; {value}", 98, initial_indent="  ", subsequent_indent="      ",
                                   break_long_words=False)  # fmt: skip
            lines += textwrap.wrap(sentence(key), 94, initial_indent="      ", subsequent_indent="      ")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
