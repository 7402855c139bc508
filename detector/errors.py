"""What the user can mend. A script prints the message alone and leaves with exit status 2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

UNPRINTABLE = re.compile(
    "[\\0-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]"
)  # controls, ends of lines, halves of characters


class DetectorError(Exception):
    """Wrong input; the message names the file, key or id and says what to do."""

    def __str__(self) -> str:
        """On one line that can be printed, whatever the texts of a file hold that it quotes."""
        return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], super().__str__())

    exit_status = 2  # of a script


class ConfigError(DetectorError):
    """A configuration file, section or key."""


def check_range(section: str, low: float, high: float, **values: Any) -> None:
    """Raise ConfigError, with the key, for a number (or one of a list) outside of [low, high] or NaN; None passes."""
    for name, value in values.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if not numbers or not all(number is None or low <= number <= high for number in numbers):
            raise ConfigError(f"{section}.{name}: must lie in {low:g}..{high:g}, not {value}")


def check_attributes(key: str, part: Any, attributes: Mapping[str, str]) -> None:
    """Raise ConfigError, with the key of a part of the user's own, for the first of the attributes that it lacks.

    The values of `attributes` say what each means.
    """
    for name, meaning in attributes.items():
        if not hasattr(part, name):
            raise ConfigError(f"{key}: {type(part).__name__} must have the attribute `{name}`: {meaning}")


class DataError(DetectorError):
    """An image, an annotation or a split of a data set."""


class CheckpointError(DetectorError):
    """A file of weights."""


class Interrupted(Exception):
    """Asked to stop by a signal or a time limit; what had to be saved is saved."""

    def __init__(self, by: str, exit_status: int):
        super().__init__(by, exit_status)  # both, so that it can travel between processes
        self.by, self.exit_status = by, exit_status

    def __str__(self) -> str:
        return self.by
