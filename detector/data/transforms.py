"""What happens to an image and its objects before training: each transform is (image, target) -> (image, target).

All randomness comes from torch's global generator, which the loader seeds for every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from detector.data.proposal_file import inside
from detector.errors import check_range
from detector.structures import Proposals, Target


def resized_size(h: int, w: int, short: int, long: int) -> tuple[int, int]:
    """The size (h, w) whose short side is `short`, or less where the long side would pass `long`."""
    factor = min(long / max(h, w), short / min(h, w))
    return max(1, int(h * factor + 0.5)), max(1, int(w * factor + 0.5))


class Resize:
    """Antialiased bilinear scaling to a short side drawn from `short`; the long side is at most `long`."""

    def __init__(self, short: int | list[int], long: int) -> None:
        self.short = [short] if isinstance(short, int) else list(short)
        self.long = long
        if not self.short or min(*self.short, long) < 1:
            raise ValueError(f"short {short}, long {long}: sides are whole numbers of pixels, at least 1")

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        short = self.short[int(torch.randint(len(self.short), ()))]
        return _apply(_resize, image, target, resized_size(*image.shape[1:], short, self.long))

    def resize_image(self, image: Tensor) -> Tensor:
        """An image alone, as evaluation wants it: to the largest short side, nothing drawn."""
        return _resize(image, resized_size(*image.shape[1:], max(self.short), self.long))

    def evaluation(self) -> Resize:
        """The same without chance: the largest short side."""
        return Resize(max(self.short), self.long)


class ImagePyramid:
    """An image at several `scales`, each a factor of the evaluation's size; with `flip`, left becomes right in one more.

    The default is a short side of 400, 500, ... 1200 where evaluation has 800, as in Detectron2's test-time augmentation.
    """

    def __init__(
        self, scales: Sequence[float] = (0.5, 0.625, 0.75, 0.875, 1, 1.125, 1.25, 1.375, 1.5), flip: bool = True
    ) -> None:
        check_range("data.tta", 0.01, 100, scales=scales)
        self.scales, self.flip = tuple(scales), flip

    def resizes(self, evaluation: Resize) -> list[Resize]:
        """How to make each scale."""
        short, long = max(evaluation.short), evaluation.long
        return [Resize(max(1, round(short * s)), max(1, round(long * s))) for s in self.scales]


class HorizontalFlip:
    """Left becomes right, with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        return _apply(F.horizontal_flip, image, target) if torch.rand(()) < self.p else (image, target)


class VerticalFlip:
    """Up becomes down, with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        self.p = p

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        return _apply(F.vertical_flip, image, target) if torch.rand(()) < self.p else (image, target)


class ColorJitter:
    """Brightness, contrast and saturation times a factor in [1 - x, 1 + x]; hue moved by up to that part of a turn."""

    def __init__(
        self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
    ) -> None:
        self.jitter = v2.ColorJitter(brightness, contrast, saturation, hue)

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        return self.jitter(image), target


class LargeScaleJitter:
    """Scale by a random factor, then cut a window of at most `size` x `size` (arXiv 2012.07177, sec. 3).

    Factor 1 fits the image into the window. The paper pads what is smaller than the window; here the model pads.
    """

    def __init__(self, size: int, min_scale: float = 0.1, max_scale: float = 2.0) -> None:
        self.size, self.min_scale, self.max_scale = size, min_scale, max_scale
        if size < 1 or not 0 < min_scale <= max_scale:
            raise ValueError(f"size {size} must be at least 1, and 0 < min_scale {min_scale} <= max_scale {max_scale}")

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        scale = float(torch.empty(()).uniform_(self.min_scale, self.max_scale))
        factor = self.size * scale / max(image.shape[1:])
        size = [max(1, int(x * factor + 0.5)) for x in image.shape[1:]]
        image, target = _apply(_resize, image, target, size)
        window = [min(x, self.size) for x in size]  # (h, w)
        corner = [int(torch.randint(x - cut + 1, ())) for x, cut in zip(size, window)]  # (top, left)
        return _apply(F.crop, image, target, *corner, *window)


class Compose:
    """One transform after the other; then boxes are clipped to the image and those left without area dropped.

    `dropped` counts the boxes lost in this way. It lies in shared memory, so that the workers' losses are seen here too
    (two that write at once may lose a count).
    """

    def __init__(self, transforms: list[Callable[[Tensor, Target], tuple[Tensor, Target]]]) -> None:
        self.transforms = list(transforms)
        self.dropped = torch.zeros((), dtype=torch.int64).share_memory_()

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        for transform in self.transforms:
            image, target = transform(image, target)
        boxes, solid = _clip(target.boxes, image)
        crowd, real = _clip(target.crowd, image)
        self.dropped += (~solid).sum()
        proposals = None if target.proposals is None else inside(target.proposals, *image.shape[1:])
        return image, Target(boxes[solid], target.labels[solid], crowd[real], proposals)


def _clip(boxes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes (G, 4) inside of the image, and which of them (G,) have an area."""
    h, w = image.shape[1:]
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor([w, h, w, h]))
    return inside, (inside[:, 2:] > inside[:, :2]).all(dim=1)


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """An image, or its boxes, at a new size (h, w)."""
    if not isinstance(x, tv_tensors.BoundingBoxes):
        # Channels last in memory, as decoded: torch is twice as fast there, and elsewhere it fails to make 1 x 1.
        x = x.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    return F.resize(x, list(size), antialias=True)


def _apply(operation: Callable[..., Tensor], image: Tensor, target: Target, *args: Any) -> tuple[Tensor, Target]:
    """One operation of torchvision, done alike to the image, the boxes, the crowd regions and the proposals."""
    given = target.proposals
    boxes = [target.boxes, target.crowd] if given is None else [target.boxes, target.crowd, given.boxes]
    canvas = tuple(image.shape[1:])  # (h, w)
    boxes = [tv_tensors.BoundingBoxes(x, format="XYXY", canvas_size=canvas) for x in boxes]
    image, objects, crowd, *proposed = (operation(x, *args).as_subclass(Tensor) for x in (image, *boxes))
    return image, Target(objects, target.labels, crowd, None if given is None else Proposals(*proposed, given.scores))
