"""Suppression of boxes by better ones: hard, and soft (Bodla et al. 2017, arXiv 1704.04503).

No shape depends on the data: all rows stay, some of them are `valid`. What torchvision's kernel keeps, a list of unknown
length, becomes a mask at once. On a GPU the host waits for that list; a kernel of this project (nms_triton.py) has none, and is
used where Triton works. Elsewhere torchvision's kernel finds the same, at the price of the waits.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torchvision
from torch import Tensor

from detector.modeling.boxes import box_iou
from detector.modeling.shapes import constants, is_portable

log = logging.getLogger("detector")

PROBED = 300  # boxes on which a new kernel is tried
GRID = 16  # columns in which groups are laid out for other engines


def nms(boxes: Tensor, scores: Tensor, iou: float, group: Tensor | None = None) -> Tensor:
    """Indices of what hard NMS leaves of boxes (R, 4) with scores (R,), best first; equal scores in the order of rows.

    Boxes of different `group` (R,) do not see each other: they are moved apart. In float64 no digit is lost by it; other engines
    have float32 alone, and a place in a grid keeps the numbers small (80 classes in 1333 pixels: to 0.002 pixels).
    """
    if group is not None and len(boxes):
        span = boxes.max() + 1
        if is_portable():
            boxes = boxes + torch.stack([group % GRID, group // GRID] * 2, dim=1) * span
        else:
            boxes = boxes.double() + (group * span)[:, None]
    return torchvision.ops.nms(boxes, scores.to(boxes), iou)


def left_by_nms(boxes: Tensor, scores: Tensor, valid: Tensor, iou: float, group: Tensor | None = None) -> Tensor:
    """(R,) bool: those of the `valid` (R,) boxes (R, 4) with scores (R,) that `nms` leaves; coordinates are at least 0."""
    greedy_nms = _kernel_without_waits(boxes)
    if greedy_nms is not None:
        typed = boxes.float() if group is None else boxes.double()  # as `nms` computes
        group = torch.zeros_like(valid, dtype=torch.int32) if group is None else group
        return greedy_nms(typed[None], scores[None], valid[None], group[None], iou=iou, largest=len(boxes))[0]
    # Two boxes outside the image come first. The invalid ones lie where the first does, which suppresses them, so that they cost
    # next to nothing. There are two because torchvision tells a compiler that at least two boxes are kept.
    outside = constants([-2, -2, -1, -1, -4, -4, -3, -3], boxes).view(2, 4)
    boxes = torch.cat([outside, torch.where(valid[:, None], boxes, outside[0])])
    scores = torch.cat([scores.new_full((2,), torch.inf), torch.where(valid, scores, torch.inf)])
    group = None if group is None else torch.cat([group.new_zeros(2), group * valid])
    kept = nms(boxes, scores, iou, group)
    return torch.zeros_like(scores, dtype=torch.bool).index_fill(0, kept, True)[2:] & valid


def left_in_levels(boxes: Tensor, scores: Tensor, valid: Tensor, levels: Sequence[int], iou: float) -> Tensor:
    """(N, P) bool: of N images what `left_by_nms` leaves of each level, `levels` rows of each one after those of another."""
    greedy_nms = _kernel_without_waits(boxes)
    if greedy_nms is not None:
        level = [valid.new_full((count,), i, dtype=torch.int32) for i, count in enumerate(levels)]
        group = torch.cat(level).expand(valid.shape)
        return greedy_nms(boxes.float(), scores, valid, group, iou=iou, largest=max(levels))
    images = zip(boxes, scores, valid)
    of_images = [zip(b.split(levels), s.split(levels), v.split(levels)) for b, s, v in images]
    return torch.stack([torch.cat([left_by_nms(b, s, v, iou) for b, s, v in parts]) for parts in of_images])


def _kernel_without_waits(boxes: Tensor) -> Callable[..., Tensor] | None:
    """`greedy_nms` where it runs; None on a CPU, in a compiled or exported graph, or without Triton."""
    if boxes.device.type != "cuda" or torch.compiler.is_compiling() or is_portable():
        return None
    return _compiled_kernel(boxes.device)


@functools.cache
def _compiled_kernel(device: torch.device) -> Callable[..., Tensor] | None:
    """`greedy_nms` if Triton can compile it for this GPU, which needs a C compiler, too; None is logged with the reason.

    It must leave what torchvision leaves on the CPU of some boxes, once: compilers and GPUs are many.
    """
    try:
        from detector.modeling.nms_triton import greedy_nms

        corner = torch.rand(PROBED, 2, generator=torch.Generator().manual_seed(0)) * 100
        boxes, scores = torch.cat([corner, corner.flip(0) + 100], dim=1), corner[:, 0]
        want = torch.zeros(PROBED, dtype=torch.bool).index_fill(0, torchvision.ops.nms(boxes, scores, 0.7), True)
        given = boxes[None].to(device), scores[None].to(device), torch.ones_like(want[None], device=device)
        left = greedy_nms(*given, torch.zeros_like(given[2], dtype=torch.int32), iou=0.7, largest=PROBED)
        if not torch.equal(left[0].cpu(), want):
            raise RuntimeError("it leaves other boxes than torchvision")
    except Exception as error:  # of Triton, of the compiler that it calls, of the driver
        reason = " ".join(str(error).split())[:200]
        log.warning(
            "NMS waits for the GPU, because Triton's kernel does not work here (%s: %s); what is found is the same. It needs the "
            "package triton, 3.6 or newer, and a C compiler",
            type(error).__name__, reason,
        )  # fmt: skip
        return None
    return greedy_nms


def best_rows(scores: Tensor, wanted: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Indices of the `limit` rows with the best scores among the `wanted` ones, and whether each is one; others come last.

    (..., R), (..., R) bool -> (..., limit) both. Equal scores stay in the order of rows.
    """
    ranked = torch.where(wanted, scores, -torch.inf)
    if is_portable():  # the engines' TopK keeps this order; they have no sort
        order = ranked.topk(min(limit, ranked.shape[-1]), dim=-1).indices
    else:
        order = ranked.sort(dim=-1, descending=True, stable=True).indices[..., :limit]
    return order, wanted.gather(-1, order)


def suppress(
    boxes: Tensor,
    scores: Tensor,
    group: Tensor,
    valid: Tensor,
    *,
    kind: Literal["hard", "linear", "gaussian"],
    iou: float,
    min_score: float,
    limit: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The `limit` best of the `valid` (R,) boxes (R, 4) with scores (R,): their indices, scores, and whether each is one.

    All three (limit,), or (R,) if that is less, best first. Boxes of different `group` (R,) do not see each other. Soft: see
    `soft_nms`, to which alone `min_score` belongs.
    """
    if kind == "hard":
        index, left = best_rows(scores, left_by_nms(boxes, scores, valid, iou, group), limit)
        return index, scores[index], left
    boxes, scores = torch.where(valid[:, None], boxes, 0), torch.where(valid, scores, -1)
    return soft_nms(boxes, scores, group, kind=kind, iou=iou, min_score=min_score, limit=limit)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    group: Tensor,
    *,
    kind: Literal["linear", "gaussian"],
    iou: float,
    min_score: float,
    limit: int,
    sigma: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best box is taken, what overlaps it by o loses score, again and again: as `suppress`.

    "linear": times 1 - o where o >= `iou`; "gaussian": times exp(-o^2 / sigma) (paper, sec. 3, eq. 3). A box whose score has
    fallen below `min_score` is gone. Scores only fall, so the first `limit` that are taken are the best.
    """
    left, taken, kept = scores, [group.new_zeros(0, dtype=torch.int64)], [scores[:0]]
    for _ in range(min(limit, len(scores))):
        best = left.argmax(dim=0, keepdim=True)  # (1,)
        taken.append(best)
        kept.append(left[best])
        overlap = box_iou(boxes[best], boxes)[0] * (group == group[best])  # (R,)
        linear = torch.where(overlap >= iou, 1 - overlap, 1.0)
        left = left * (linear if kind == "linear" else torch.exp(-(overlap**2) / sigma))
        left = left.index_fill(0, best, -1)  # never again: below every score, and so after any decay
    score = torch.cat(kept)
    return torch.cat(taken), score, score >= min_score
