"""The `train` section of a configuration: how long, how fast, on what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from detector.errors import ConfigError


@dataclass
class Recipe:
    """A training recipe.

    `lr` is meant for `lr_batch` images a step: SGD's is scaled linearly to `batch_size` (Goyal et al. 2017), AdamW's is taken
    as it is. `milestones` are epochs at which a "steps" schedule divides the rate by ten; "cosine" falls to zero.
    `warmup_steps` climb linearly from `lr * warmup_factor`. `clip_norm` bounds the L2 norm of all gradients.
    `accumulate`: take a step's images in so many parts, one after the other, for want of memory. `ema`: score and keep the
    average of the weights with this decay (0.9998, say). `compile`: the pyramid by torch.compile. `deterministic`: the same
    bits in every run, as far as torch knows how. `evaluate_every` and `save_seconds` say how often (epochs, seconds) val is
    scored and `last.pth` written; after `patience` scores in a row without a better one, or after `time_limit` minutes of
    one run, the training ends.
    """

    epochs: int = 12
    batch_size: int = 16
    lr: float = 0.02
    lr_batch: int = 16
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    norm_weight_decay: float | None = None  # as `weight_decay` unless given
    schedule: Literal["steps", "cosine"] = "steps"
    milestones: list[float] = field(default_factory=lambda: [8, 11])
    warmup_steps: int = 500
    warmup_factor: float = 0.001
    clip_norm: float | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    accumulate: int = 1
    ema: float | None = None
    compile: bool = False
    deterministic: bool = False
    seed: int = 0
    device: str = "auto"
    evaluate_every: int = 1
    save_seconds: float = 15.0
    patience: int | None = None
    time_limit: float | None = None

    def __post_init__(self):
        for name in ("epochs", "batch_size", "lr_batch", "accumulate", "evaluate_every", "patience"):
            if getattr(self, name) is not None and not 1 <= getattr(self, name) <= 2**31:
                raise ConfigError(f"train.{name}: must be at least 1 (and at most 2^31), not {getattr(self, name)}")
        numbers = "lr momentum weight_decay norm_weight_decay warmup_steps warmup_factor save_seconds"
        for name in numbers.split():
            if not 0 <= (getattr(self, name) or 0) <= 1e9:
                raise ConfigError(
                    f"train.{name}: must be a number of at least 0 (and at most 1e9), not {getattr(self, name)}"
                )
        if not all(0 < milestone <= 1e9 for milestone in self.milestones):
            raise ConfigError(f"train.milestones: must be epochs above 0, not {self.milestones}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ConfigError(f"train.clip_norm: must be above 0, or null for no clipping, not {self.clip_norm}")
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"train.accumulate: {self.accumulate} parts of the {self.batch_size} images of train.batch_size; lower it"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ConfigError(f"train.ema: must lie between 0 and 1, or be null for no average, not {self.ema}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ConfigError(f"train.time_limit: must be minutes above 0, or null for no limit, not {self.time_limit}")
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"train.seed: must lie in 0..2^63-1, not {self.seed}")

    def scaled_lr(self) -> float:
        """The learning rate of a step with `batch_size` images."""
        return self.lr * self.batch_size / self.lr_batch if self.optimizer == "sgd" else self.lr
