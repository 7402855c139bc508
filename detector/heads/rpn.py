"""Region proposal network (Ren et al. 2015, arXiv 1506.01497, sec. 3.1), shared by all levels (FPN sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms

from detector.errors import ConfigError, check_range
from detector.geometry.anchors import AnchorGenerator, inside
from detector.geometry.boxes import clip_boxes, decode, encode, is_larger_than
from detector.layers import normal_, smooth_l1
from detector.matching.assign import IGNORE, assign_boxes
from detector.matching.sample import sample
from detector.structures import Batch, Proposals, Target


def flatten_level(x: Tensor, k: int) -> Tensor:
    """(N, A*K, H, W) -> (N, H*W*A, K) float32, the row order of `grid_anchors`."""
    n = len(x)
    return x.permute(0, 2, 3, 1).reshape(n, -1, k).float()  # (N, H, W, A*K) -> (N, H*W*A, K)


class RPN(nn.Module):
    """Levels -> proposals. `pre_nms` (of every level) and `post_nms` (of an image) are counts (in training, at test).

    `border`: leave anchors that cross the image border by more than so many pixels out of training (0 in Faster R-CNN,
    none left out by default, as in FPN). `beta` is the smooth-L1 corner of the box loss.
    """

    def __init__(
        self,
        channels: Sequence[int],
        anchors: AnchorGenerator,
        *,
        convs: int = 1,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (1000, 1000),
        nms_iou: float = 0.7,
        min_size: float = 0.0,
        batch_per_image: int = 256,
        positive_fraction: float = 0.5,
        pos_iou: float = 0.7,
        neg_iou: float = 0.3,
        border: float | None = None,
        beta: float = 1 / 9,
        objectness_weight: float = 1.0,
        box_weight: float = 1.0,
    ):
        super().__init__()
        if len(set(channels)) != 1:
            raise ConfigError(f"rpn: one head serves all levels, but they have {list(channels)} channels")
        check_range("model.rpn", 0, 1, nms_iou=nms_iou, positive_fraction=positive_fraction, pos_iou=pos_iou)
        check_range("model.rpn", 0, pos_iou, neg_iou=neg_iou)
        check_range("model.rpn", 0, 1e6, beta=beta, objectness_weight=objectness_weight, box_weight=box_weight)
        check_range("model.rpn", 1, 1e9, batch_per_image=batch_per_image, pre_nms=pre_nms, post_nms=post_nms)
        check_range("model.rpn", 0, 100, convs=convs)
        check_range("model.rpn", -1e6, 1e6, min_size=min_size, border=border)
        width = channels[0]
        self.conv = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(convs))
        self.objectness = nn.Conv2d(width, anchors.per_cell, 1)
        self.deltas = nn.Conv2d(width, 4 * anchors.per_cell, 1)
        for layer in [*self.conv, self.objectness, self.deltas]:
            normal_(layer, std=0.01)
        self.anchors = anchors
        self.pre_nms, self.post_nms, self.nms_iou, self.min_size = pre_nms, post_nms, nms_iou, min_size
        self.sampling = dict(num=batch_per_image, positive_fraction=positive_fraction)
        self.matching = dict(pos_iou=pos_iou, neg_iou=neg_iou, force_match="own")
        self.border, self.beta = border, beta
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
            boxes.append(decode(delta.gather(1, row[..., None].expand(-1, -1, 4)), anchor[row]))  # (N, k, 4)
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
        """Logits (N, P), deltas (N, P, 4), anchors (P, 4); both sums are divided by the number of sampled anchors."""
        objectness, box, count = logits.new_zeros(()), logits.new_zeros(()), 0
        for logit, delta, size, target in zip(logits, deltas, batch.sizes, targets):
            positive, negative, gt_index = self._sample(anchors, size, target)
            goal = encode(anchors[positive], target.boxes[gt_index[positive]])
            box = box + smooth_l1(delta[positive], goal, self.beta)
            objectness = objectness + F.softplus(-logit[positive]).sum() + F.softplus(logit[negative]).sum()
            count += len(positive) + len(negative)
        count = max(count, 1)
        return {
            "rpn_objectness": objectness * (self.objectness_weight / count),
            "rpn_box": box * (self.box_weight / count),
        }

    @torch.no_grad()
    def _sample(self, anchors: Tensor, size: tuple[int, int], target: Target) -> tuple[Tensor, Tensor, Tensor]:
        label, gt_index = assign_boxes(target.boxes, anchors, crowd=target.crowd, **self.matching)
        if self.border is not None:
            label[~inside(anchors, size, self.border)] = IGNORE
        return *sample(label, **self.sampling), gt_index
