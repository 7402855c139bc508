"""YAML as it is read here: plain values alone, 1e-3 a number, a key once, and nothing that costs more than its length."""

from __future__ import annotations

import re
from typing import Any

import yaml

from detector.errors import ConfigError

MAX_BYTES = 2**18  # of one file: a configuration is a page or two
MAX_ALIASES = 10  # YAML aliases multiply what they stand for
MAX_NODES = 20_000  # values and keys of one file
MAX_LENGTH = 10_000  # characters of one value: YAML's numbers to the base of 60 take quadratic time
MAX_DEPTH = 50  # nested lists and dictionaries: the parser takes quadratic time


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


def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML text. Raises ConfigError, with the name `source`, for invalid or excessive text."""
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
