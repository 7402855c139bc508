"""Region proposal network (Ren et al. 2015, arXiv 1506.01497, sec. 3.1), shared by all levels (FPN sec. 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.anchors import AnchorGenerator, inside_border, inside_padding
from detector.modeling.boxes import BoxCoder, clip_boxes, is_larger_than
from detector.modeling.convolution import Conv2d, at_patches, patches_at
from detector.modeling.layers import normal_
from detector.modeling.matching import IGNORE, Matching
from detector.modeling.nms import best_rows, left_in_levels, nms
from detector.modeling.padded import Padded
from detector.modeling.preprocess import round_up
from detector.modeling.rpn_loss import AnchorSample, RPNLoss
from detector.modeling.sampling import Sample, Sampling
from detector.modeling.shapes import may_look
from detector.records.geometry import Size
from detector.schema.ranges import Count, Fraction, Range, Width
from detector.schema.signatures import checked
from detector.structures import Batch, Proposals, Target

Pixels = Annotated[float, Range(-1e6, 1e6)]


def flatten_level(x: Tensor, k: int) -> Tensor:
    """(N, A*K, H, W) -> (N, H*W*A, K) float32, the row order of `grid_anchors`."""
    n = len(x)
    return x.permute(0, 2, 3, 1).reshape(n, -1, k).float()  # (N, H, W, A*K) -> (N, H*W*A, K)


@checked
@dataclass(frozen=True)
class ProposalSelection:
    """Which decoded anchors become proposals: the best of every level, without those that better ones overlap."""

    pre_nms: tuple[Count, Count] = (2000, 1000)
    """Anchors per level that NMS sees, best first: in training, at test time."""
    post_nms: tuple[Count, Count] = (1000, 1000)
    """Proposals per image that remain: in training, at test time."""
    nms_iou: Fraction = 0.7
    """A box with a larger IoU with a better one of its level is suppressed."""
    min_size: Pixels = 0.0
    """Boxes with a shorter side, in pixels, are dropped."""
    rank: Literal["logit", "sigmoid_in_nms", "sigmoid"] = "logit"
    """What ranks boxes: the logit; the logit before NMS and its float32 sigmoid in NMS (torchvision); or the sigmoid in both
    (MMDetection). The sigmoid of logits above 17 is 1, so these boxes tie: the first comes first, in MMDetection that which its
    sort puts first."""

    def best_of_level(self, logits: Tensor, *, training: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (N, P) of one level -> scores, logits and rows of the anchors that NMS sees, (N, k) each."""
        k = min(self.pre_nms[0 if training else 1], logits.shape[1])
        if self.rank != "sigmoid":
            best, row = logits.topk(k, dim=1)
            return best, best, row
        # the operation decides the order of ties: MMDetection sorts a whole level, without `stable`, only if it has to
        scores = logits.sigmoid()
        if k < scores.shape[1]:
            row = scores.sort(dim=1, descending=True).indices[:, :k]
        else:
            row = torch.arange(k, device=scores.device).expand(len(scores), -1)
        return scores.gather(1, row), logits.gather(1, row), row

    def __call__(
        self, scores: Tensor, logits: Tensor, boxes: Tensor, levels: Sequence[int], sizes: Sequence[Size], *, training: bool
    ) -> Padded[Proposals]:  # fmt: skip
        """The proposals of N images of these (h, w) `sizes`, best first.

        Scores (N, P), logits (N, P) and boxes (N, P, 4) have the rows of one level after those of another, `levels` of each.
        """
        boxes, _, row, valid = self.choose(scores, logits, boxes, levels, sizes, training=training)
        boxes = torch.where(valid[..., None], boxes.gather(1, row[..., None].expand(-1, -1, 4)), 0)
        return Padded(Proposals(boxes, logits.gather(1, row)), valid)

    def choose(
        self, scores: Tensor, logits: Tensor, boxes: Tensor, levels: Sequence[int], sizes: Sequence[Size], *, training: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """Clipped boxes (N, P, 4), what NMS leaves (N, P) bool, the rows (N, R) of the proposals, and which are valid."""
        finite = logits.isfinite() & boxes.isfinite().all(dim=-1)
        boxes = torch.stack([clip_boxes(b, size) for b, size in zip(boxes, sizes)])
        valid = finite & is_larger_than(boxes, self.min_size)
        if self.rank == "sigmoid":
            scores = _as_ranks(torch.where(valid, scores, -torch.inf))
        left = left_in_levels(boxes, scores, valid, levels, self.nms_iou)
        if self.rank == "sigmoid_in_nms" and may_look(scores.device):
            scores = torch.stack([_as_torchvision_ranks(*of_image) for of_image in zip(scores, left, valid)])
        row, valid = best_rows(scores, left, self.post_nms[0 if training else 1])
        return boxes, left, row, valid

    def merge(self, views: Sequence[Proposals]) -> Proposals:
        """The proposals of several views of one image, in its pixels, as those of one."""
        together = Proposals.joined(views)
        order, wanted = together.scores.argsort(descending=True), self.post_nms[1]
        # a later box suppresses no earlier one, so the first rows are often enough
        for count in (4 * wanted, len(order)):
            first = order[:count]
            best = first[nms(together.boxes[first], together.scores[first], self.nms_iou)[:wanted]]
            if len(best) == wanted:
                break
        return together[best]


def _as_ranks(scores: Tensor) -> Tensor:
    """Scores (N, P) as numbers that differ, P for the best: a sort that is not stable decides about equal ones."""
    order = scores.sort(dim=1, descending=True).indices
    ranks = torch.arange(scores.shape[1], 0, -1.0, device=scores.device, dtype=scores.dtype)
    return torch.zeros_like(scores).scatter(1, order, ranks.expand_as(scores))


def _as_torchvision_ranks(scores: Tensor, left: Tensor, valid: Tensor) -> Tensor:
    """Scores (P,) as ranks, the best highest, of what NMS has left: of more than 1000 boxes torchvision sorts these alone."""
    kept = torch.where(left)[0]
    order = scores[kept].sort(descending=True, stable=int(valid.sum()) <= 1000).indices
    return torch.zeros_like(scores).index_copy(0, kept[order], torch.arange(len(kept), 0, -1.0).to(scores))


@checked
class RPN(nn.Module):
    """Levels -> proposals.

    Args:
        channels: of every level; all must be equal, because the levels share the head.
        anchors: the boxes that the deltas refine.
        convs: 3x3 convolutions before objectness and deltas.
        width: channels of these convolutions; null: those of the levels.
        matching: which anchors are positive and negative.
        sampling: which of them training learns from.
        coder: how deltas describe a box relative to its anchor.
        selection: which boxes become proposals.
        loss: of objectness and deltas.
        allowed_border: pixels by which an anchor may cross the image border and still be trained; null: any number, as in
            FPN (0 in Faster R-CNN).
        padded_to: train only anchors centred inside the image with its sides rounded up to a multiple of this (MMDetection);
            null: all.
    """

    needs_proposals = False

    def __init__(
        self,
        channels: Sequence[int],
        anchors: AnchorGenerator,
        *,
        convs: Annotated[int, Range(0, 100)] = 1,
        width: Width | None = None,
        matching: Matching = Matching(pos_iou=0.7, neg_iou=0.3, low_quality="keep_best_gt"),
        sampling: Sampling = Sampling(batch_per_image=256, positive_fraction=0.5),
        coder: BoxCoder = BoxCoder(),
        selection: ProposalSelection = ProposalSelection(),
        loss: RPNLoss = RPNLoss(),
        allowed_border: Pixels | None = None,
        padded_to: Width | None = None,
    ):
        super().__init__()
        if len(set(channels)) != 1:
            raise ValueError(f"one head serves all levels, but they have {list(channels)} channels")
        widths = [channels[0]] + [width or channels[0]] * convs
        self.conv = nn.ModuleList(Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.objectness = Conv2d(widths[-1], anchors.per_cell, 1)
        self.deltas = Conv2d(widths[-1], 4 * anchors.per_cell, 1)
        for layer in [*self.conv, self.objectness, self.deltas]:
            normal_(layer, std=0.01)
        self.anchors, self.coder = anchors, coder
        self.matching, self.sampling, self.selection, self.loss = matching, sampling, selection, loss
        self.allowed_border, self.padded_to = allowed_border, padded_to

    def losses(
        self, p: list[Tensor], batch: Batch, targets: list[Target]
    ) -> tuple[Padded[Proposals], dict[str, Tensor]]:
        """Proposals of every image as in training, and {"rpn_objectness", "rpn_box"}."""
        p = self.trunk(p)
        anchors = self.anchors(p, batch.images.shape[-2:])
        every = torch.cat(anchors)
        samples = [self.sample(every, size, target) for size, target in zip(batch.sizes, targets)]
        count = self.loss.count(samples, self.sampling.batch_per_image, training=self.training)
        logits, deltas = self.predict_at(p, [sample.chosen.rows for sample in samples])
        objectness, box = self.loss(logits, deltas, every, samples, self.coder, count)
        with torch.no_grad():
            proposals = self.propose_from(*self.predict(p), anchors, batch.sizes, training=True)
        return proposals, {"rpn_objectness": objectness, "rpn_box": box}

    def propose(self, p: list[Tensor], batch: Batch) -> Padded[Proposals]:
        """Proposals of every image as at test time; the shapes depend on that of the batch alone."""
        logits, deltas = self.head(p)
        anchors = self.anchors(p, batch.images.shape[-2:])
        return self.propose_from(logits, deltas, anchors, batch.sizes, training=False)

    def head(self, p: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level: objectness logits (N, H*W*A) and deltas (N, H*W*A, 4)."""
        return self.predict(self.trunk(p))

    def trunk(self, p: list[Tensor]) -> list[Tensor]:
        """The levels after all convolutions but the last."""
        for conv in self.conv[:-1]:
            p = [F.relu_(conv(x)) for x in p]
        return p

    def predict(self, p: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """What the last convolution and the predictors make of the trunk's levels."""
        logits, deltas = [], []
        for x in p:
            for conv in self.conv[-1:]:
                x = F.relu_(conv(x))
            logits.append(flatten_level(self.objectness(x), 1)[..., 0])
            deltas.append(flatten_level(self.deltas(x), 4))
        return logits, deltas

    def predict_at(self, p: list[Tensor], rows: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Logits (S,) and deltas (S, 4) of the anchors `rows` (S,) of every image, which count through all levels.

        They are those of `predict`. Training needs no others: all other gradients are 0.
        """
        counts, row = [len(r) for r in rows], torch.cat(list(rows))
        image = torch.cat([torch.full_like(r, i) for i, r in enumerate(rows)])
        x = patches_at(p, image, row // self.anchors.per_cell, side=3 if len(self.conv) else 1)
        for conv in self.conv[-1:]:
            x = F.relu_(at_patches(conv, x))
        chosen = torch.arange(len(row), device=row.device), row % self.anchors.per_cell
        logits, deltas = at_patches(self.objectness, x).float(), at_patches(self.deltas, x).float()
        return logits[chosen].split(counts), deltas.unflatten(1, (-1, 4))[chosen].split(counts)

    def merge(self, views: Sequence[Proposals]) -> Proposals:
        """The proposals of several views of one image as those of one (test-time augmentation)."""
        return self.selection.merge(views)

    @torch.no_grad()
    def propose_from(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], sizes: list[Size], *, training: bool
    ) -> Padded[Proposals]:
        """The best anchors of every level, and only those, are decoded; then `selection`."""
        score, logit, box, rows = self.candidates(logits, deltas, anchors, training=training)
        return self.selection(score, logit, box, [row.shape[1] for row in rows], sizes, training=training)

    def candidates(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], *, training: bool
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:  # fmt: skip
        """What NMS sees: scores (N, P), logits (N, P), boxes (N, P, 4), and per level the rows (N, k) of its anchors."""
        scores, kept, boxes, rows = [], [], [], []
        for logit, delta, anchor in zip(logits, deltas, anchors):
            if isinstance(logit.shape[1], torch.SymInt):
                # an export for images of any size takes `pre_nms` rows of every level, however small it is
                room = self.selection.pre_nms[0 if training else 1]
                logit = F.pad(logit, (0, room), value=-torch.inf)
                delta, anchor = F.pad(delta, (0, 0, 0, room)), F.pad(anchor, (0, 0, 0, room))
            logit = torch.where(logit.isfinite(), logit, -torch.inf)  # topk would take NaN for the best
            best, logit, row = self.selection.best_of_level(logit, training=training)  # (N, k)
            scores.append(best)
            kept.append(logit)
            rows.append(row)
            delta = delta.gather(1, row[..., None].expand(-1, -1, 4))
            boxes.append(self.coder.decode(delta, anchor[row]))  # (N, k, 4)
        score, logit, box = (torch.cat(parts, dim=1) for parts in (scores, kept, boxes))
        return logit.sigmoid() if self.selection.rank == "sigmoid_in_nms" else score, logit, box, rows

    @torch.no_grad()
    def sample(self, anchors: Tensor, size: Size, target: Target) -> AnchorSample:
        """What training learns from the anchors (P, 4) of an image."""
        valid = self._valid_anchors(anchors, size)
        # an object's best anchor is the best of the valid ones: the others touch nothing
        label, gt_index = self.matching(target.boxes, torch.where(valid[:, None], anchors, 0), target.crowd)
        index, label, slots = self.sampling(torch.where(valid, label, IGNORE))
        slots = slots if len(target) else 0
        return AnchorSample(Sample(index, label, slots), target.boxes[gt_index[index[:slots]]])

    def _valid_anchors(self, anchors: Tensor, size: Size) -> Tensor:
        """(P, 4) -> (P,) bool: anchors near enough to the image to be trained."""
        valid = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
        if self.allowed_border is not None:
            valid &= inside_border(anchors, size, self.allowed_border)
        if self.padded_to is not None:
            valid &= inside_padding(anchors, round_up(size, self.padded_to))
        return valid
