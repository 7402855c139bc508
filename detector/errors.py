"""Errors that the user can fix. A command prints the message alone and exits with status 2."""

from __future__ import annotations

import re

# control characters, line separators, lone surrogates
UNPRINTABLE = re.compile("[\\0-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")


class DetectorError(Exception):
    """Wrong input; the message names the file, key or id and says what to do."""

    exit_status = 2  # of a command

    def __str__(self) -> str:
        """One printable line, whatever texts of a file the message quotes."""
        return UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], super().__str__())


class ConfigError(DetectorError):
    """A configuration file, section or key."""


class DataError(DetectorError):
    """An image, an annotation or a split of a data set."""


class CheckpointError(DetectorError):
    """A file of weights."""


class Interrupted(Exception):
    """Stopped by a signal or a time limit; the checkpoint is saved."""

    def __init__(self, by: str, exit_status: int):
        super().__init__(by, exit_status)  # both, so that it can travel between processes
        self.by, self.exit_status = by, exit_status

    def __str__(self) -> str:
        return self.by
