"""Region proposal network (Ren et al. 2015, arXiv 1506.01497, sec. 3.1), shared by all levels (FPN sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from detector import distributed
from detector.errors import ConfigError, check_range
from detector.modeling.anchors import AnchorGenerator, centred_inside, inside
from detector.modeling.boxes import clip_boxes, decode, encode, is_larger_than
from detector.modeling.layers import normal_, smooth_l1
from detector.modeling.matching import LEAST_IOU, ForceMatch, assign_boxes
from detector.modeling.preprocess import round_up
from detector.modeling.sampling import sample
from detector.structures import Batch, Proposals, Target


def flatten_level(x: Tensor, k: int) -> Tensor:
    """(N, A*K, H, W) -> (N, H*W*A, K) float32, the row order of `grid_anchors`."""
    n = len(x)
    return x.permute(0, 2, 3, 1).reshape(n, -1, k).float()  # (N, H, W, A*K) -> (N, H*W*A, K)


class RPN(nn.Module):
    """Levels -> proposals. `pre_nms` (of every level) and `post_nms` (of an image) are counts (in training, at test).

    `width`: of the convolutions, by default that of the levels. `border`: leave anchors that cross the image border by more
    than so many pixels out of training (0 in Faster R-CNN, none left out by default, as in FPN). `padded_to`: leave anchors
    out that lie where other images of the batch are larger, i.e. beyond this image with its sides rounded up to such a
    multiple (mmdetection). `clamp_both` bounds how much an anchor may shrink, too (mmdetection). `beta` is the smooth-L1
    corner of the box loss. The losses are divided by the number of anchors "sampled"; of those "wanted", images times
    `batch_per_image` (Detectron2); or of those sampled where none of a kind in an image count as one, "at_least_one"
    (mmdetection). `force_match`, `min_force_iou`: see `matching.assign`.
    """

    def __init__(
        self,
        channels: Sequence[int],
        anchors: AnchorGenerator,
        *,
        convs: int = 1,
        width: int | None = None,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (1000, 1000),
        nms_iou: float = 0.7,
        min_size: float = 0.0,
        clamp_both: bool = False,
        batch_per_image: int = 256,
        positive_fraction: float = 0.5,
        pos_iou: float = 0.7,
        neg_iou: float = 0.3,
        force_match: ForceMatch = "own",
        min_force_iou: float = 0.0,
        border: float | None = None,
        padded_to: int | None = None,
        normaliser: Literal["sampled", "wanted", "at_least_one"] = "sampled",
        beta: float = 1 / 9,
        objectness_weight: float = 1.0,
        box_weight: float = 1.0,
    ):
        super().__init__()
        if len(set(channels)) != 1:
            raise ConfigError(f"model.rpn: one head serves all levels, but they have {list(channels)} channels")
        check_range(
            "model.rpn", 0, 1, nms_iou=nms_iou, positive_fraction=positive_fraction, min_force_iou=min_force_iou
        )
        check_range("model.rpn", LEAST_IOU, 1, pos_iou=pos_iou)
        check_range("model.rpn", LEAST_IOU, pos_iou, neg_iou=neg_iou)
        check_range("model.rpn", 0, 1e6, beta=beta, objectness_weight=objectness_weight, box_weight=box_weight)
        check_range("model.rpn", 1, 1e9, batch_per_image=batch_per_image, pre_nms=pre_nms, post_nms=post_nms)
        check_range("model.rpn", 0, 100, convs=convs)
        check_range("model.rpn", 1, 1e5, width=width, padded_to=padded_to)
        check_range("model.rpn", -1e6, 1e6, min_size=min_size, border=border)
        widths = [channels[0]] + [width or channels[0]] * convs
        self.conv = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.objectness = nn.Conv2d(widths[-1], anchors.per_cell, 1)
        self.deltas = nn.Conv2d(widths[-1], 4 * anchors.per_cell, 1)
        for layer in [*self.conv, self.objectness, self.deltas]:
            normal_(layer, std=0.01)
        self.anchors = anchors
        self.pre_nms, self.post_nms, self.nms_iou, self.min_size = pre_nms, post_nms, nms_iou, min_size
        self.clamp_both = clamp_both
        self.sampling = dict(num=batch_per_image, positive_fraction=positive_fraction)
        self.matching = dict(pos_iou=pos_iou, neg_iou=neg_iou, force_match=force_match, min_force_iou=min_force_iou)
        self.border, self.padded_to, self.normaliser, self.beta = border, padded_to, normaliser, beta
        self.objectness_weight, self.box_weight = objectness_weight, box_weight

    def losses(self, p: list[Tensor], batch: Batch, targets: list[Target]) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Proposals of every image as in training, and {"rpn_objectness", "rpn_box"}."""
        logits, deltas = self.head(p)
        anchors = self.anchors(p, batch.images.shape[-2:])
        losses = self._losses(torch.cat(logits, dim=1), torch.cat(deltas, dim=1), torch.cat(anchors), batch, targets)
        return self._proposals(logits, deltas, anchors, batch.sizes, training=True), losses

    def propose(self, p: list[Tensor], batch: Batch) -> list[Proposals]:
        """Proposals of every image as at test time."""
        logits, deltas = self.head(p)
        anchors = self.anchors(p, batch.images.shape[-2:])
        return self._proposals(logits, deltas, anchors, batch.sizes, training=False)

    def head(self, p: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level: objectness logits (N, H*W*A) and deltas (N, H*W*A, 4)."""
        logits, deltas = [], []
        for x in p:
            for conv in self.conv:
                x = F.relu_(conv(x))
            logits.append(flatten_level(self.objectness(x), 1)[..., 0])
            deltas.append(flatten_level(self.deltas(x), 4))
        return logits, deltas

    @torch.no_grad()
    def _proposals(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], sizes: list[tuple[int, int]], *,
        training: bool,
    ) -> list[Proposals]:  # fmt: skip
        """The best anchors of every level, and only those, become boxes."""
        k, keep = (counts[0 if training else 1] for counts in (self.pre_nms, self.post_nms))
        scores, boxes, levels = [], [], []
        for level, (logit, delta, anchor) in enumerate(zip(logits, deltas, anchors)):
            logit = torch.where(logit.isfinite(), logit, -torch.inf)  # topk would take NaN for the best
            score, row = logit.topk(min(k, logit.shape[1]), dim=1)  # (N, k)
            scores.append(score)
            delta = delta.gather(1, row[..., None].expand(-1, -1, 4))
            boxes.append(decode(delta, anchor[row], clamp_both=self.clamp_both))  # (N, k, 4)
            levels.append(torch.full_like(row[0], level))
        score, box, level = torch.cat(scores, dim=1), torch.cat(boxes, dim=1), torch.cat(levels)
        return [self._select(s, b, level, size, keep) for s, b, size in zip(score, box, sizes)]

    def _select(self, score: Tensor, box: Tensor, level: Tensor, size: tuple[int, int], keep: int) -> Proposals:
        """Candidates (k,), (k, 4) of one image -> at most `keep` proposals; NMS works within a level."""
        finite = score.isfinite() & box.isfinite().all(dim=-1)
        box = clip_boxes(box, size)
        valid = torch.where(finite & is_larger_than(box, self.min_size))[0]
        score, box, level = score[valid], box[valid], level[valid]
        best = batched_nms(box, score, level, self.nms_iou)[:keep]
        return Proposals(box[best], score[best])

    def _losses(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """Logits (N, P), deltas (N, P, 4), anchors (P, 4); both sums are divided by the same number of anchors."""
        objectness, box, counts = logits.new_zeros(()), logits.new_zeros(()), []
        for logit, delta, size, target in zip(logits, deltas, batch.sizes, targets):
            positive, negative, goals = self._sample(anchors, size, target)
            box = box + smooth_l1(delta[positive], encode(anchors[positive], goals), self.beta)
            objectness = objectness + F.softplus(-logit[positive]).sum() + F.softplus(logit[negative]).sum()
            counts += [len(positive), len(negative)]
        count = self._count(counts)
        return {
            "rpn_objectness": objectness * (self.objectness_weight / count),
            "rpn_box": box * (self.box_weight / count),
        }

    def _count(self, sampled: list[int]) -> float:
        """What the losses are divided by; `sampled`: positives and negatives of every image."""
        if self.normaliser == "wanted":
            return len(sampled) // 2 * self.sampling["num"]
        count = sum(max(c, 1) for c in sampled) if self.normaliser == "at_least_one" else sum(sampled)
        return distributed.share_of_all(count) if self.training else max(count, 1)

    @torch.no_grad()
    def _sample(self, anchors: Tensor, size: tuple[int, int], target: Target) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the sampled positives and negatives among the anchors (P, 4) of an image, and the positives' objects."""
        able = torch.where(self._may_train(anchors, size))[0]  # an object's best anchor is the best of these
        label, gt_index = assign_boxes(target.boxes, anchors[able], crowd=target.crowd, **self.matching)
        positive, negative = sample(label, **self.sampling)
        return able[positive], able[negative], target.boxes[gt_index[positive]]

    def _may_train(self, anchors: Tensor, size: tuple[int, int]) -> Tensor:
        """(P, 4) -> (P,) bool: near enough to the image."""
        able = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        if self.border is not None:
            able &= inside(anchors, size, self.border)
        if self.padded_to is not None:
            able &= centred_inside(anchors, round_up(size, self.padded_to))
        return able
