"""Packages that are not part of an installation without extras, and their talk."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

from detector.errors import ConfigError


def optional(module: str, extra: str) -> Any:
    """An optional package. Raises ConfigError if it is not installed."""
    try:
        with quiet():
            return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"needs {module}, which is not installed: pip install 'detector[{extra}]'") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' progress reports, and their warnings about their own code."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
