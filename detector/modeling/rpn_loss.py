"""The losses of the region proposal network, on the anchors that training samples (Ren et al. 2015, arXiv 1506.01497, eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from detector import distributed
from detector.modeling.boxes import BoxCoder
from detector.modeling.layers import at_least, only, smooth_l1
from detector.modeling.matching import IGNORE, POSITIVE
from detector.modeling.sampling import Sample
from detector.schema.ranges import Weight
from detector.schema.signatures import checked


class AnchorSample(NamedTuple):
    """The anchors of an image that training learns from."""

    chosen: Sample
    matched_gt_boxes: Tensor  # (chosen.slots, 4) the positives' regression targets


@checked
@dataclass(frozen=True)
class RPNLoss:
    """Binary cross-entropy of the objectness and smooth L1 of the deltas (Faster R-CNN, eq. 1), by one normalizer."""

    normalizer: Literal["num_sampled", "batch_size", "num_sampled_min1"] = "num_sampled"
    """What both sums are divided by: the sampled anchors; images times `batch_per_image` (Detectron2); or the sampled
    anchors, where none of a kind in an image count as one (MMDetection)."""
    beta: Weight = 1 / 9
    """Corner of smooth L1; 0 is L1."""
    objectness_weight: Weight = 1.0
    """Factor of the objectness loss."""
    box_weight: Weight = 1.0
    """Factor of the box loss."""

    def __call__(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Tensor,
        samples: Sequence[AnchorSample],
        coder: BoxCoder,
        count: float | Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Objectness and box loss, both divided by `count`.

        Of every image the logits (S,) and deltas (S, 4) of its sampled anchors, which are rows of `anchors` (P, 4).
        """
        objectness, box = anchors.new_zeros(()), anchors.new_zeros(())
        for logit, delta, ((index, label, slots), gt_boxes) in zip(logits, deltas, samples):
            positive, found = label == POSITIVE, delta[:slots]
            wanted = coder.encode(anchors[index[:slots]], gt_boxes)
            box = box + smooth_l1(found, only(positive[:slots], wanted, found), self.beta)
            each = F.softplus(torch.where(positive, -logit, logit))
            objectness = objectness + torch.where(label == IGNORE, 0, each).sum()
        return objectness * (self.objectness_weight / count), box * (self.box_weight / count)

    def count(self, samples: Sequence[AnchorSample], batch_per_image: int, *, training: bool) -> float | Tensor:
        """The normalizer of a batch, of all processes together in training."""
        if self.normalizer == "batch_size":
            return len(samples) * batch_per_image
        least = 1 if self.normalizer == "num_sampled_min1" else 0
        count = sum(at_least(kind, least) for s in samples for kind in s.chosen.counts())
        return distributed.global_normalizer(count) if training else at_least(count, 1)
