"""The sections `train` and `evaluate` of a configuration."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from detector.schema.ranges import Range
from detector.schema.signatures import checked

Number = Annotated[int, Range(1, 2**31)]
Positive = Annotated[float, Range(0, 1e9, above=True)]
AtLeast0 = Annotated[float, Range(0, 1e9)]


@checked
@dataclass(frozen=True)
class Recipe:
    """A training recipe."""

    epochs: Number = 12
    """Passes over the training images."""
    batch_size: Number = 16
    """Images per step, of all processes together."""
    lr: AtLeast0 = 0.02
    """Learning rate for `lr_batch` images per step: SGD's is scaled linearly to `batch_size` (Goyal et al. 2017), AdamW's is
    not scaled."""
    lr_batch: Number = 16
    """Images per step that `lr` is meant for."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    momentum: AtLeast0 = 0.9
    """Momentum of SGD."""
    weight_decay: AtLeast0 = 1e-4
    """Factor of the L2 penalty (SGD) or of the decoupled decay (AdamW) of the weights."""
    norm_weight_decay: AtLeast0 | None = None
    """Decay of the weights of normalisation layers; null: `weight_decay`."""
    schedule: Literal["steps", "cosine"] = "steps"
    """The learning rate falls by ten at each milestone, or as half a cosine to zero."""
    milestones: list[Positive] = field(default_factory=lambda: [2 / 3, 11 / 12])
    """Where a steps schedule divides the learning rate by ten: epochs or, below 1, fractions of the training."""
    warmup_steps: Annotated[int, Range(0, 10**9)] | None = None
    """Steps over which the learning rate rises linearly from `warmup_factor`, at most a third of the training; null: 500, at most
    a tenth of the training."""
    warmup_factor: AtLeast0 = 0.001
    """Share of the learning rate at which the warm-up begins."""
    clip_norm: Positive | None = None
    """Bound of the L2 norm of all gradients; null: none."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Number format of the network; boxes and losses stay in float32. auto: bfloat16 where the processor or GPU has instructions
    for it, else float32."""
    accumulate: Number = 1
    """Parts in which the images of a step are processed one after the other, to save memory."""
    ema: Annotated[float, Range(0, 1, above=True, below=True)] | None = None
    """Evaluate and keep the exponential moving average of the weights with this decay, for instance 0.9998; null: none."""
    compile: bool = False
    """Compile the pyramid by torch.compile."""
    deterministic: bool = False
    """The same bits in every run, as far as PyTorch has deterministic kernels."""
    seed: Annotated[int, Range(0, 2**63, below=True)] = 0
    """Seed of initial weights, order of the images and augmentation."""
    device: str = "auto"
    """Device to train on: cpu, cuda, cuda:1, ...; auto: a GPU if there is one."""
    evaluate_every: Number = 1
    """Epochs between two evaluations on val; the last epoch is always evaluated."""
    save_seconds: AtLeast0 | None = None
    """Seconds between two writes of `last.pth`; null: 15, or more where writing would take over 2 % of the time."""
    best: Literal[
        "auto", "AP", "AP50", "AP75", "AR100", "segm/AP", "segm/AP50", "segm/AP75", "boundary/AP", "keypoints/AP",
        "keypoints/AP50", "keypoints/AP75",
    ] = "auto"  # fmt: skip
    """Score that selects `best.pth`, a column of metrics.csv. auto: that of the finest thing that the model finds: AP of
    keypoints, else of masks, else of boxes; AR1000 of an RPN alone."""
    patience: Number | None = None
    """Stop after this many evaluations without a better score; null: never."""
    report: bool = True
    """Write `report.html` into the folder of the run: at each evaluation and, with one more pass over val, at the end."""
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = field(default_factory=list)
    """Tools that also get the numbers of metrics.csv, pictures and curves of val, as files in the folder of the run. Each is a
    package to install."""
    time_limit: Positive | None = None
    """Minutes after which a run saves and stops; null: none."""

    def __post_init__(self) -> None:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate: {self.accumulate} parts of a batch_size of {self.batch_size} images; lower it"
            )

    def scaled_lr(self) -> float:
        """The learning rate of a step with `batch_size` images."""
        return self.lr * self.batch_size / self.lr_batch if self.optimizer == "sgd" else self.lr


Limits = tuple[Number, Number, Number]
# what is scored beside boxes -> the field of detections that has it; the finest first
FIELD_OF = {"keypoints": "keypoints", "segm": "masks", "boundary": "masks"}


@checked
@dataclass(frozen=True)
class Scoring:
    """How detections are scored in addition to COCO's standard metrics, which are always computed."""

    max_detections: Limits = (1, 10, 100)
    """Three rising numbers of detections per image and class, best first, that count; COCO's are 1, 10 and 100. A detector
    must also find that many: `model.roi_head.selection.max_detections`."""
    clip: bool = False
    """Clip the annotated boxes to their image and leave out those without area, as training does."""
    keypoint_sigmas: list[Positive] | None = None
    """How exactly each keypoint can be marked, relative to the size of its object; null: COCO's for 17 keypoints of a person,
    their mean 0.067 for each of any other number."""
    shapes: list[Literal["segm", "boundary", "keypoints"]] = field(
        default_factory=lambda: ["segm", "boundary", "keypoints"]
    )
    """What is scored beside boxes of what the detector finds, in evaluations during a training, too: masks, their boundaries
    (which take about as long again), keypoints. []: boxes alone, for annotations that have nothing else."""

    def other_boxes(self) -> bool:
        """Whether boxes are scored otherwise than by COCO's rules."""
        return replace(self, keypoint_sigmas=None, shapes=Scoring().shapes) != Scoring()

    def fields(self, found: Collection[str]) -> set[str]:
        """The fields, masks and keypoints, that are scored of those that a model learns or finds."""
        known = {"masks" if name == "outlines" else name for name in found}
        return {FIELD_OF[title] for title in self.shapes} & known

    def __post_init__(self) -> None:
        if list(self.max_detections) != sorted(set(self.max_detections)):
            raise ValueError(f"max_detections: expected three rising numbers, got {list(self.max_detections)}")
