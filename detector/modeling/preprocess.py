"""From uint8 RGB images to the batch that a backbone expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from detector.records.record import on_device
from detector.schema.ranges import Range, Width
from detector.schema.signatures import checked
from detector.structures import Batch

Colour = Annotated[float, Range(-1e6, 1e6)]
Spread = Annotated[float, Range(0, 1e6, above=True)]
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # R, G, B of torchvision's weights


def round_up(size: Sequence[int], divisor: int) -> tuple[int, int]:
    """(h, w), each side rounded up to a multiple of `divisor`."""
    h, w = (-(-side // divisor) * divisor for side in size)
    return h, w


@checked
class ImagePreprocessor:
    """Normalises uint8 RGB images and pads them to one batch.

    Args:
        order: colour order of the batch, that of the weights.
        mean: subtracted from the colours, in that order, on the scale 0..255.
        std: by which they are then divided.
        divisor: both sides of an image are padded to a multiple of this many pixels.
    """

    def __init__(
        self,
        *,
        order: Literal["rgb", "bgr"] = "rgb",
        mean: tuple[Colour, Colour, Colour] = IMAGENET_MEAN,
        std: tuple[Spread, Spread, Spread] = IMAGENET_STD,
        divisor: Width = 32,
    ):
        self.order, self.divisor = order, divisor
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]  # (3, 1, 1)

    def padded_size(self, image: Tensor) -> tuple[int, int]:
        """(h, w) of a (3, H, W) image, rounded up to the divisor."""
        return round_up(image.shape[-2:], self.divisor)

    def check(self, images: Sequence[Tensor]) -> None:
        """Raise ValueError for the first that is no uint8 RGB image (3, H, W)."""
        for i, image in enumerate(images):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise ValueError(
                    f"image {i}: expected a uint8 RGB tensor of shape (3, H, W), got {image.dtype} {tuple(image.shape)}"
                )

    def batch(self, images: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> Batch:
        """N uint8 RGB images (3, H, W) -> one normalised channels-last batch, zero where padded, right and below."""
        self.check(images)
        padded = [self.padded_size(image) for image in images]
        h, w = max(p[0] for p in padded), max(p[1] for p in padded)
        shape, layout = (len(images), 3, h, w), torch.channels_last
        out = torch.empty(shape, device=device, dtype=dtype, memory_format=layout).zero_()
        mean, std = (on_device(x, device) for x in (self.mean, self.std))
        for slot, image in zip(out, images):
            image = on_device(image, device)
            image = image.flip(0) if self.order == "bgr" else image
            slot[:, : image.shape[1], : image.shape[2]] = (image.float() - mean) / std
        return Batch(out, [(image.shape[1], image.shape[2]) for image in images])
