"""How the values of a field follow their image when it is resized, mirrored, flipped, cropped or placed in a larger one.

A kind is a class with a function for each of the five; sizes are (h, w), and a window is (top, left, h, w).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # (h, w)
Window = tuple[int, int, int, int]  # (top, left, h, w)


class Rows:
    """Values that geometry does not change: scores, labels, tags."""

    @staticmethod
    def resized(x: Tensor, old: Size, new: Size) -> Tensor:
        return x

    @staticmethod
    def mirrored(x: Tensor, width: int) -> Tensor:
        return x

    @staticmethod
    def flipped(x: Tensor, height: int) -> Tensor:
        return x

    @staticmethod
    def cropped(x: Tensor, window: Window) -> Tensor:
        return x

    @staticmethod
    def placed(x: Tensor, window: Window, size: Size) -> Tensor:
        return x


class Boxes(Rows):
    """(n, 4) xyxy in pixels of the image."""

    @staticmethod
    def resized(x: Tensor, old: Size, new: Size) -> Tensor:
        return x * torch.tensor([new[1] / old[1], new[0] / old[0]] * 2).to(x.device)

    @staticmethod
    def mirrored(x: Tensor, width: int) -> Tensor:
        x1, y1, x2, y2 = x.unbind(dim=-1)
        return torch.stack([width - x2, y1, width - x1, y2], dim=-1)

    @staticmethod
    def flipped(x: Tensor, height: int) -> Tensor:
        x1, y1, x2, y2 = x.unbind(dim=-1)
        return torch.stack([x1, height - y2, x2, height - y1], dim=-1)

    @staticmethod
    def cropped(x: Tensor, window: Window) -> Tensor:
        top, left, h, w = window
        moved = x - torch.tensor([left, top] * 2).to(x)
        return moved.clamp(min=0).minimum(torch.tensor([w, h] * 2).to(x))

    @staticmethod
    def placed(x: Tensor, window: Window, size: Size) -> Tensor:
        return x + torch.tensor([window[1], window[0]] * 2).to(x)


class Points(Rows):
    """(n, J, 2) x, y in pixels of the image. Points outside a window keep their coordinates."""

    @staticmethod
    def resized(x: Tensor, old: Size, new: Size) -> Tensor:
        return torch.stack([x[..., 0] * (new[1] / old[1]), x[..., 1] * (new[0] / old[0])], dim=-1)

    @staticmethod
    def mirrored(x: Tensor, width: int) -> Tensor:
        return torch.stack([width - x[..., 0], x[..., 1]], dim=-1)

    @staticmethod
    def flipped(x: Tensor, height: int) -> Tensor:
        return torch.stack([x[..., 0], height - x[..., 1]], dim=-1)

    @staticmethod
    def cropped(x: Tensor, window: Window) -> Tensor:
        return x - torch.tensor([window[1], window[0]]).to(x)

    @staticmethod
    def placed(x: Tensor, window: Window, size: Size) -> Tensor:
        return x + torch.tensor([window[1], window[0]]).to(x)


class Bitmaps(Rows):
    """(n, h, w) or (h, w) uint8, a value for each pixel of the image."""

    @staticmethod
    def resized(x: Tensor, old: Size, new: Size) -> Tensor:
        if 0 in x.shape or tuple(x.shape[-2:]) == tuple(new):
            return x.new_zeros(*x.shape[:-2], *new) if 0 in x.shape else x
        planes = x if x.ndim == 3 else x[None]
        resized = F.interpolate(planes[None], size=tuple(new), mode="nearest")[0]
        return resized.view(*x.shape[:-2], *new)

    @staticmethod
    def mirrored(x: Tensor, width: int) -> Tensor:
        return x.flip(-1)

    @staticmethod
    def flipped(x: Tensor, height: int) -> Tensor:
        return x.flip(-2)

    @staticmethod
    def cropped(x: Tensor, window: Window) -> Tensor:
        top, left, h, w = window
        return x[..., top : top + h, left : left + w]

    @staticmethod
    def placed(x: Tensor, window: Window, size: Size) -> Tensor:
        top, left, h, w = window
        return F.pad(x, (left, size[1] - left - w, top, size[0] - top - h))


def tight_boxes(bitmaps: Tensor) -> Tensor:
    """The box of what is set in each bitmap: (n, h, w) -> (n, 4) float32 xyxy, zeros where nothing is."""
    boxes = torch.zeros(len(bitmaps), 4, device=bitmaps.device)
    for box, bitmap in zip(boxes, bitmaps):
        rows, columns = bitmap.any(dim=1).nonzero()[:, 0], bitmap.any(dim=0).nonzero()[:, 0]
        if len(rows):
            box[:] = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    return boxes
