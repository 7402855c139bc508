"""Hard NMS on a GPU without waiting for it: two Triton kernels for all groups of all images.

torchvision's kernel ends in a list whose length the host has to learn; these end in a mask. Boxes are ranked by group, then by
score. `_overlaps` writes for every box a bit for each later one of its group that it suppresses if it is left, 64 bits a word.
`_leave` walks through the groups, 64 boxes at a time: a box is left if no bit says otherwise, and its words then say which later
ones are gone. So overlaps, groups and images are computed side by side, and only the walk is in order.

`detector.modeling.nms` imports this module where it runs on a GPU: it needs Triton, which PyTorch for CUDA brings on Linux. The
kernels are compiled with their first use, in some seconds, and kept in ~/.triton.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

OLDEST = (3, 6)  # earlier versions fuse a product and a sum, and round otherwise than the CPU
if tuple(map(int, triton.__version__.split(".")[:2])) < OLDEST:
    raise ImportError(f"Triton {triton.__version__} is older than {'.'.join(map(str, OLDEST))}")


@triton.jit
def _corners(boxes: tl.tensor, at: tl.tensor) -> tl.tensor:
    """x1, y1, x2, y2 (64,) each of the boxes `at` (64,)."""
    return (
        tl.load(boxes + 4 * at),
        tl.load(boxes + 4 * at + 1),
        tl.load(boxes + 4 * at + 2),
        tl.load(boxes + 4 * at + 3),
    )


@triton.jit
def _shared_side(a_low: tl.tensor, a_high: tl.tensor, b_low: tl.tensor, b_high: tl.tensor) -> tl.tensor:
    """The length shared by every pair of intervals: (64,), (64,) -> (64, 64)."""
    low, high = tl.maximum(a_low[:, None], b_low[None, :]), tl.minimum(a_high[:, None], b_high[None, :])
    return tl.maximum(high - low, 0.0)


@triton.jit(do_not_specialize=["count", "reach"])
def _overlaps(
    boxes: tl.tensor, order: tl.tensor, group: tl.tensor, iou: tl.tensor, words: tl.tensor, count: tl.tensor,
    reach: tl.tensor,
) -> None:  # fmt: skip
    """Bit j of words[n, d, i] (N, reach, blocks * 64): the box of rank i, if left, suppresses that of rank 64 (i // 64 + d) + j.

    A program for each d, each block of 64 ranks and each image. Boxes (N, count, 4), order and group (N, count).
    """
    ahead, block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    lane = tl.arange(0, 64)
    row, column = block * 64 + lane, (block + ahead) * 64 + lane
    a = image * count + tl.load(order + image * count + row, mask=row < count, other=0)
    b = image * count + tl.load(order + image * count + column, mask=column < count, other=0)
    of_a = tl.where(row < count, tl.load(group + a), -1)
    of_b = tl.where(column < count, tl.load(group + b), 2147483647)
    bits = tl.zeros((64,), tl.int64)
    if tl.min(of_b, axis=0) <= tl.max(of_a, axis=0):  # ranks are by group: otherwise no two are of one
        ax1, ay1, ax2, ay2 = _corners(boxes, a)
        bx1, by1, bx2, by2 = _corners(boxes, b)
        # the operations of torchvision's kernel for the CPU, in their order, each of them rounded
        shared = _shared_side(ax1, ax2, bx1, bx2) * _shared_side(ay1, ay2, by1, by2)
        union = ((ax2 - ax1) * (ay2 - ay1))[:, None] + ((bx2 - bx1) * (by2 - by1))[None, :] - shared
        if shared.dtype == tl.float32:
            overlap = tl.div_rn(shared, union)  # a plain division of float32 is not rounded to the nearest number
        else:
            overlap = shared / union
        suppressed = (overlap > tl.load(iou)) & (of_a[:, None] == of_b[None, :]) & (row[:, None] < column[None, :])
        bits = tl.sum(suppressed.to(tl.int64) << lane[None, :].to(tl.int64), axis=1)
    blocks = tl.cdiv(count, 64)
    tl.store(words + ((image * reach + ahead) * blocks + block) * 64 + lane, bits)


@triton.jit(do_not_specialize=["count", "reach"])
def _leave(
    words: tl.tensor, order: tl.tensor, group: tl.tensor, valid: tl.tensor, left: tl.tensor, count: tl.tensor,
    reach: tl.tensor, WIDTH: tl.constexpr,
) -> None:  # fmt: skip
    """Which of the `valid` (N, count) boxes are left (N, count), by their `words`; WIDTH is a power of two, at least `reach`.

    A program for each block of 64 ranks of each image: for the groups that begin in it, of which the last may go on behind it.
    """
    start, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane, ahead = tl.arange(0, 64), tl.arange(0, WIDTH)
    bit, first, blocks = lane.to(tl.int64), image * count, tl.cdiv(count, 64)
    before = tl.load(group + first + tl.load(order + first + start * 64 - 1, mask=start > 0, other=0))
    before = tl.where(start > 0, before, -1)  # a group of another program
    last = tl.full([], 2147483647, tl.int32)
    gone = tl.zeros((WIDTH,), tl.int64)  # bits of what is suppressed in the blocks start + 0, 1, ...
    passed = 0
    going = start >= 0
    while going:
        row = (start + passed) * 64 + lane
        box = first + tl.load(order + first + row, mask=row < count, other=0)
        of = tl.where(row < count, tl.load(group + box), -1)
        own = (of > before) & (of <= last)
        alive = tl.sum((own & (tl.load(valid + box) != 0)).to(tl.int64) << bit, axis=0)
        alive = alive & ~tl.sum(tl.where(ahead == passed, gone, 0), axis=0)
        word = words + (image * reach * blocks + start + passed) * 64
        for i in tl.static_range(64):
            alive = alive & ~(tl.load(word + i) & -((alive >> i) & 1))
        tl.store(left + box, ((alive >> bit) & 1).to(tl.int8), mask=own)
        last = tl.minimum(last, tl.max(of, axis=0))
        behind = (start + passed + 1) * 64
        following = tl.load(group + first + tl.load(order + first + behind, mask=behind < count, other=0))
        going = (behind < count) & (following == last) & (last > before)
        if going:
            step = ahead - passed
            later = (step > 0) & (step < reach)
            for i in tl.static_range(64):
                gone = gone | (tl.load(word + step * blocks * 64 + i, mask=later, other=0) & -((alive >> i) & 1))
        passed += 1


def greedy_nms(boxes: Tensor, scores: Tensor, valid: Tensor, group: Tensor, *, iou: float, largest: int) -> Tensor:
    """(N, R) bool: what greedy NMS leaves of the `valid` (N, R) boxes (N, R, 4) of N images, by their scores (N, R).

    Equal scores are in the order of rows. Boxes of different `group` (N, R), numbers from 0 on, do not see each other; no group
    of an image has more than `largest` boxes. IoUs are computed with the type of the boxes, float32 or float64.
    """
    images, count = valid.shape
    left = torch.empty_like(valid, memory_format=torch.contiguous_format)
    if not left.numel():
        return left
    order = torch.where(valid, scores, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    order = order.gather(1, group.gather(1, order).sort(dim=1, stable=True).indices)
    blocks = triton.cdiv(count, 64)
    reach = min(blocks, triton.cdiv(largest - 1, 64) + 1)  # blocks over which a group may extend
    words = torch.empty((images, reach, 64 * blocks), dtype=torch.int64, device=boxes.device)
    limit, width = boxes.new_full((), _rounded_down(iou, boxes.dtype)), max(32, triton.next_power_of_2(reach))
    boxes, group, valid = boxes.contiguous(), group.int().contiguous(), valid.contiguous().view(torch.int8)
    with torch.cuda.device_of(boxes):
        # without fusion of products and sums: a fused one is not rounded as on the CPU
        _overlaps[(reach, blocks, images)](boxes, order, group, limit, words, count, reach, enable_fp_fusion=False)
        _leave[(blocks, images)](
            words, order, group, valid, left.view(torch.int8), count, reach, WIDTH=width, num_warps=min(8, width // 32)
        )  # fmt: skip
    return left


def _rounded_down(iou: float, dtype: torch.dtype) -> float:
    """The greatest number of that type up to `iou`: what is above the one is above the other."""
    if dtype == torch.float64:
        return iou
    nearest = np.float32(iou)  # NumPy would compare it in float32
    return float(nearest if float(nearest) <= iou else np.nextafter(nearest, np.float32(-1)))
