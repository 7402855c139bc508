"""Transforms of training images and their objects, (image, target) -> (image, target).

All randomness comes from torch's global generator, which the loader seeds for every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from detector.records.geometry import Size
from detector.schema.ranges import Fraction, Range
from detector.schema.signatures import checked
from detector.structures import Target, image_size


def resized_size(h: int, w: int, short: int, long: int) -> tuple[int, int]:
    """The size (h, w) whose short side is `short`, or less where the long side would pass `long`."""
    factor = min(long / max(h, w), short / min(h, w))
    return max(1, int(h * factor + 0.5)), max(1, int(w * factor + 0.5))


Side = Annotated[int, Range(1, 10**6)]  # pixels


@checked
@dataclass
class Resize:
    """Antialiased bilinear scaling in the image's own aspect ratio."""

    short: Side | list[Side]
    """Short side in pixels, or several of which training draws one."""
    long: Side
    """The long side is at most this many pixels."""

    def __post_init__(self) -> None:
        if not self.sides:
            raise ValueError("short: at least one side is needed")

    @property
    def sides(self) -> list[int]:
        """The short sides, one or several."""
        return [self.short] if isinstance(self.short, int) else self.short

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        short = self.sides[int(torch.randint(len(self.sides), ()))]
        old = image_size(image)
        new = resized_size(*old, short, self.long)
        return _resized(image, new), target.resized(old, new)

    def resize_image(self, image: Tensor) -> Tensor:
        """Resize an image for evaluation, to the largest short side, without randomness."""
        return _resized(image, resized_size(*image_size(image), max(self.sides), self.long))

    def resize_within(self, image: Tensor, limit: Size) -> Tensor:
        """As `resize_image`, and smaller where the result would be larger than `limit`, (h, w)."""
        size = image_size(image)
        h, w = resized_size(*size, max(self.sides), self.long)
        factor = min(1.0, limit[0] / h, limit[1] / w)
        return _resized(image, (h, w) if factor == 1 else (max(1, round(h * factor)), max(1, round(w * factor))))

    def evaluation(self) -> Resize:
        """The resizing of evaluation: the largest short side."""
        return Resize(max(self.sides), self.long)


@checked
@dataclass(frozen=True)
class ImagePyramid:
    """The views of test-time augmentation: an image at several scales, and mirrored.

    The default is a short side of 400, 500, ... 1200 where evaluation has 800, as in Detectron2.
    """

    scales: Sequence[Annotated[float, Range(0.01, 100)]] = (0.5, 0.625, 0.75, 0.875, 1, 1.125, 1.25, 1.375, 1.5)
    """Factors of the size that evaluation uses."""
    flip: bool = True
    """Also use each scale mirrored."""

    def __post_init__(self) -> None:
        if not self.scales:
            raise ValueError("scales: at least one is needed")

    def resizes(self, evaluation: Resize) -> list[Resize]:
        """The resizing of each scale."""
        short, long = max(evaluation.sides), evaluation.long
        return [Resize(max(1, round(short * s)), max(1, round(long * s))) for s in self.scales]


@checked
@dataclass(frozen=True)
class HorizontalFlip:
    """Mirror left and right."""

    p: Fraction = 0.5
    """Probability that an image is mirrored."""

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        if torch.rand(()) >= self.p:
            return image, target
        return F.horizontal_flip(image), target.mirrored(image_size(image)[1])


@checked
@dataclass(frozen=True)
class VerticalFlip:
    """Mirror top and bottom."""

    p: Fraction = 0.5
    """Probability that an image is mirrored."""

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        if torch.rand(()) >= self.p:
            return image, target
        return F.vertical_flip(image), target.flipped(image_size(image)[0])


@checked
@dataclass
class ColorJitter:
    """Random brightness, contrast, saturation and hue."""

    brightness: Annotated[float, Range(0, 10)] = 0.0
    """A factor from [1 - x, 1 + x], not below 0."""
    contrast: Annotated[float, Range(0, 10)] = 0.0
    """A factor from [1 - x, 1 + x], not below 0."""
    saturation: Annotated[float, Range(0, 10)] = 0.0
    """A factor from [1 - x, 1 + x], not below 0."""
    hue: Annotated[float, Range(0, 0.5)] = 0.0
    """A shift by at most this part of the colour circle."""

    def __post_init__(self) -> None:
        self.jitter = v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        return self.jitter(image), target


@checked
@dataclass(frozen=True)
class LargeScaleJitter:
    """Scales by a random factor, then cuts a window (Ghiasi et al. 2021, arXiv 2012.07177, sec. 3).

    The paper pads what is smaller than the window; here the model pads.
    """

    size: Side
    """Sides of the window in pixels; factor 1 fits the image into it."""
    min_scale: Annotated[float, Range(0, 100, above=True)] = 0.1
    """Smallest factor that is drawn."""
    max_scale: Annotated[float, Range(0, 100, above=True)] = 2.0
    """Largest factor that is drawn."""

    def __post_init__(self) -> None:
        if self.min_scale > self.max_scale:
            raise ValueError(f"min_scale {self.min_scale} must not exceed max_scale {self.max_scale}")

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        scale = float(torch.empty(()).uniform_(self.min_scale, self.max_scale))
        factor = self.size * scale / max(image.shape[1:])
        h, w = (max(1, int(x * factor + 0.5)) for x in image.shape[1:])
        image, target = _resized(image, (h, w)), target.resized(image_size(image), (h, w))
        cut_h, cut_w = min(h, self.size), min(w, self.size)
        top, left = int(torch.randint(h - cut_h + 1, ())), int(torch.randint(w - cut_w + 1, ()))
        return F.crop(image, top, left, cut_h, cut_w), target.cropped((top, left, cut_h, cut_w))


class Compose:
    """Apply transforms in order, clip boxes to the image and drop boxes without area.

    `dropped` counts the dropped boxes. It is in shared memory, so that it includes the workers' boxes (concurrent writes
    may lose a count).
    """

    def __init__(self, transforms: Sequence[Callable[[Tensor, Target], tuple[Tensor, Target]]]) -> None:
        self.transforms = list(transforms)
        self.dropped = torch.zeros((), dtype=torch.int64).share_memory_()

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        for transform in self.transforms:
            image, target = transform(image, target)
        inside = target.clipped(image_size(image))
        self.dropped += len(target) - len(inside)
        return image, inside


def _resized(image: Tensor, size: Size) -> Tensor:
    """An image at a new size (h, w)."""
    # Channels last in memory, as decoded: torch is twice as fast there, and fails at 1 x 1 in the other layout.
    image = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return F.resize(image, list(size), antialias=True)
