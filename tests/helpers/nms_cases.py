"""Boxes for NMS: what random ones show, and what only borders show. On the CPU, torchvision says what is left."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torchvision
from torch import Tensor


class Case(NamedTuple):
    """N images with R boxes each."""

    boxes: Tensor  # (N, R, 4)
    scores: Tensor  # (N, R)
    valid: Tensor  # (N, R) bool
    group: Tensor  # (N, R)
    iou: float

    @property
    def largest(self) -> int:
        """Boxes of the largest group of an image."""
        counts = [of_image.bincount().max() for of_image in self.group if len(of_image)]
        return int(max(counts, default=1))

    def expected(self) -> Tensor:
        """(N, R) bool: what torchvision leaves on the CPU, of one group after the other."""
        left = torch.zeros_like(self.valid)
        for keep, boxes, scores, valid, group in zip(left, *self[:4]):
            for g in group.unique():
                rows = torch.where((group == g) & valid)[0]
                keep[rows[torchvision.ops.nms(boxes[rows], scores[rows].to(boxes), self.iou)]] = True
        return left

    def found(self, device: torch.device | str) -> Tensor:
        """The same by the kernels of nms_triton.py, on that device; on the CPU, Triton has to interpret them."""
        from detector.modeling.nms_triton import greedy_nms

        given = (x.to(device) for x in self[:4])
        return greedy_nms(*given, iou=self.iou, largest=self.largest).cpu()


def random_case(images: int, count: int, groups: int, iou: float, *, dtype: torch.dtype = torch.float32) -> Case:
    """Boxes around some objects; a tenth is invalid, among them boxes of NaN, and many scores are equal."""
    objects = 1 + count // 4
    corner, side = torch.rand(images, objects, 2) * 300, torch.rand(images, objects, 2) * 80 + 10
    which = torch.randint(0, objects, (images, count))
    boxes = torch.cat([corner, corner + side], dim=2).gather(1, which[..., None].expand(-1, -1, 4))
    boxes = (boxes + 2 * torch.randn(images, count, 4)).to(dtype)
    valid = (torch.rand(images, count) > 0.1) & (boxes[..., 2:] > boxes[..., :2]).all(dim=2)
    boxes = torch.where(valid[..., None] | (torch.rand(images, count, 1) > 0.5), boxes, torch.nan)
    group = torch.where(torch.rand(images, count) > 0.2, which % groups, torch.randint(0, groups, (images, count)))
    return Case(boxes, (torch.rand(images, count) * 50).round() / 50, valid, group, iou)


def row_of(boxes: Tensor, iou: float, *, group: Tensor | None = None) -> Case:
    """One image with these boxes, best first."""
    count = len(boxes)
    group = torch.zeros(count, dtype=torch.int64) if group is None else group
    return Case(
        boxes[None], torch.arange(count, 0, -1.0)[None], torch.ones(1, count, dtype=torch.bool), group[None], iou
    )


def chain(count: int) -> Tensor:
    """Boxes (count, 4), each of which has an IoU of 9/11 with the next and 8/12 with the one after it."""
    x = torch.arange(count, dtype=torch.float32)[:, None]
    return torch.cat([x, torch.zeros_like(x), x + 10, torch.full_like(x, 10)], dim=1)


def borders() -> Iterator[Case]:
    """Cases whose truth is a matter of one bit, at the borders of blocks of 64 and at the threshold."""
    for count in (1, 2, 63, 64, 65, 128, 129, 200):
        yield row_of(chain(count), 0.7)  # every second one is left, because what is gone suppresses nothing
        yield row_of(chain(1).expand(count, 4).clone(), 0.7)  # one is left
    for sizes in ((1, 64, 63, 70, 1, 1), (130, 3), (2, 200, 60), (63, 2, 64, 1)):  # groups that begin and end anywhere
        group = torch.cat([torch.full((size,), 3 * g) for g, size in enumerate(sizes)])
        yield row_of(chain(len(group)), 0.7, group=group[torch.randperm(len(group))])
    part = torch.tensor(
        [[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 20, 10, 30], [0, 20, 10, 23], [0, 40, 10, 50], [0, 40, 10, 47]]
    )
    for iou in (
        0.5,
        0.3,
        0.7,
    ):  # an IoU that equals it: 5, 3 and 7 of 10 rows; 0.3 and 0.7 are no numbers of either type
        for dtype in (torch.float32, torch.float64):
            yield row_of(part.to(dtype), iou)
    for images, count in ((1, 0), (0, 5), (3, 1)):
        yield random_case(images, count, 2, 0.5)
