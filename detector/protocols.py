"""The interfaces between parts, for the type checker and for the check of a user's own parts (`check_part`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from detector.errors import ConfigError
from detector.records.geometry import Size
from detector.schema.docs import option_docs
from detector.structures import Batch, Detections, Proposals, Target


class Preprocessor(Protocol):
    """uint8 RGB images of any sizes -> one normalised batch."""

    order: str
    """Colour order of the batch, rgb or bgr."""
    mean: Tensor
    """(3, 1, 1), subtracted from the colours."""
    std: Tensor
    """(3, 1, 1), by which they are divided."""

    def check(self, images: Sequence[Tensor]) -> None:
        """Raises ValueError for what is no image."""

    def padded_size(self, image: Tensor) -> Size:
        """(h, w) of an image in a batch."""

    def batch(self, images: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Batch:
        """The batch of these images."""


class Maps(Protocol):
    """What backbone, neck and pyramid say of the maps that they give."""

    channels: list[int]
    """Channels of each of its maps."""
    strides: list[int]
    """Pixels of the image between two cells of each of its maps."""


class Backbone(Maps, Protocol):
    """(N, 3, H, W) -> [C2..C5].

    Optional members are `missing_weights`, the reason why pretrained weights could not be downloaded, or None; and
    `check_input(preprocess)`, which raises ValueError if such weights need other input. Training asks for both.
    """

    def __call__(self, images: Tensor, /) -> list[Tensor]: ...


class Neck(Maps, Protocol):
    """[C2..C5] -> [P2..P6]; constructed with the backbone's `channels` and `strides`."""

    def __call__(self, c: list[Tensor], /) -> list[Tensor]: ...


class Pyramid(Maps, Protocol):
    """(N, 3, H, W) -> [P2..P6]; ordinarily a backbone and a neck."""

    def __call__(self, images: Tensor, /) -> list[Tensor]: ...


class Anchors(Protocol):
    """Levels and padded image size -> anchors (H*W*A, 4) of every level."""

    per_cell: int
    """How many anchors it makes for a cell."""

    def __call__(self, maps: list[Tensor], padded_size: Size, /) -> list[Tensor]: ...


class ProposalGenerator(Protocol):
    """The first stage. `needs_proposals` (default false): it takes proposals that come with the images."""

    def losses(self, p: list[Tensor], batch: Batch, targets: list[Target]) -> tuple[list[Proposals], dict[str, Tensor]]:
        """losses(p, batch, targets) gives the proposals of every image and the losses by name."""

    def propose(self, p: list[Tensor], batch: Batch) -> Sequence[Proposals]:
        """propose(p, batch) gives the proposals of every image."""


class Pool(Protocol):
    """Levels and regions (R, 5) -> pooled regions."""

    channels: int
    """Channels of a pooled region."""
    size: int
    """Cells of a pooled region along each side."""
    branches: int
    """Maps per region, ordinarily 1."""

    def __call__(self, p: list[Tensor], rois: Tensor, /) -> Any: ...


class BoxHead(Protocol):
    """Pooled regions -> vectors (R, width)."""

    width: int
    """Length of the feature vector per region."""

    def __call__(self, pooled: Any, /) -> Tensor: ...


class MaskHead(Protocol):
    """Pooled regions -> mask logits (R, K or 1, size, size)."""

    size: int
    """Cells of a mask along each side."""
    targets: Any
    """What the masks of positive regions are compared with, as MaskTargets."""

    def __call__(self, pooled: Any, /) -> Tensor: ...


class MaskIoUHead(Protocol):
    """Pooled regions and mask logits -> the IoU of each mask with its object, for each class (R, K)."""

    def __call__(self, pooled: Tensor, mask_logits: Tensor, /) -> Tensor: ...


class PointHead(Protocol):
    """Features and coarse mask logits at points -> mask logits, for each class (R, P, K)."""

    sampling: Any
    """The points of coarse masks that training learns from, as PointSampling."""
    subdivision: Any
    """How masks are refined in inference, as Subdivision."""

    def __call__(self, features: Tensor, coarse: Tensor, /) -> Tensor: ...


class SemanticHead(Protocol):
    """[P2..P6] -> features of every pixel."""

    width: int
    """Channels of its embedding."""
    stride: int
    """Of its embedding, in pixels."""

    def __call__(self, p: Sequence[Tensor], /) -> Tensor: ...


class KeypointHead(Protocol):
    """Pooled regions -> heat maps (R, J, M, M)."""

    keypoints: int
    """J."""

    def __call__(self, pooled: Tensor, /) -> Tensor: ...


class SecondStage(Protocol):
    """The RoI head. `reports_proposals` (default false): its detections are proposals of one class."""

    num_classes: int
    """Number of classes, without background."""

    def losses(
        self, p: list[Tensor], proposals: list[Proposals], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """losses(p, proposals, batch, targets) gives the losses by name."""

    def detect(self, p: list[Tensor], proposals: Sequence[Proposals], batch: Batch) -> list[Detections]:
        """detect(p, proposals, batch) gives the Detections of every image."""


class DataSet(Protocol):
    """The members that training and evaluation read of a data set; `dataset[i]` is (image, Target, image id).

    The target has what the model learns beside boxes: `outlines` of the objects (masks are drawn of them where images are
    loaded) or `masks` themselves, `keypoints`, `semantic`. A constructor that takes `fields` is told which of them.
    Optional members are `report` (a line about the contents), `class_table()` and `full_names()` (see data/describe.py),
    `objects()` (image and label of every object, for data.repeat_threshold), `proposals` (by image id) and `pose` (the names of
    keypoints, which the checkpoint then holds).
    """

    class_names: list[str]
    """The classes in the order of their labels."""
    category_ids: list[int]
    """The classes' ids in the annotation file."""
    image_ids: np.ndarray
    """The id of every image."""
    sizes: np.ndarray
    """(n, 2), height and width of every image."""
    annotation_file: Any
    """Path of the COCO file that it is scored by."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> tuple[Tensor, Target, int]: ...

    def image(self, i: int) -> Tensor:
        """image(i) is the i-th image, a uint8 tensor (3, H, W)."""


class Transform(Protocol):
    """(image, target) -> (image, target); draws from torch's generator alone."""

    def __call__(self, image: Tensor, target: Target, /) -> tuple[Tensor, Target]: ...


class Writer(Protocol):
    """Where the numbers of a training go."""

    def write(self, step: int, row: Mapping[str, float]) -> None:
        """The numbers of a step or an evaluation."""

    def close(self) -> None:
        """No more numbers come."""


def members(protocol: type) -> dict[str, str]:
    """Name -> meaning of the attributes and methods that a protocol asks for; special methods left out."""
    names = [name for kind in protocol.__mro__ for name in (*vars(kind).get("__annotations__", {}), *vars(kind))
             if kind not in (Protocol, object) and not name.startswith("_")]  # fmt: skip
    docs = option_docs(protocol)
    return {name: docs.get(name, "") for name in dict.fromkeys(names)}


def check_part(part: Any, protocol: type, where: str) -> None:
    """Raise ConfigError, with the key `where` of a user's own part, for the first member of `protocol` that it lacks."""
    for name, meaning in members(protocol).items():
        if not hasattr(part, name):
            raise ConfigError(f"{where}: {type(part).__name__} must have `{name}`: {meaning}")
