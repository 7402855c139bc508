"""Weights of a training that diverged."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

log = logging.getLogger("detector")

AGAIN = "train again with a lower train.lr, or with train.clip_norm=10"


def warn_of_divergence(model: nn.Module, path: str | Path) -> None:
    """Log a warning where weights are not finite: such a detector finds nothing, or nonsense, without a fault."""
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        log.warning(
            "%s: the weights are not finite (%s and %d more), and what is found means nothing: the training diverged; %s",
            path, broken[0], len(broken) - 1, AGAIN,
        )  # fmt: skip
