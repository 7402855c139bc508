"""Test-time augmentation: the featurized image pyramid (fig. 1a of FPN, arXiv 1612.03144) for any detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from detector.data.dataset import data_settings
from detector.data.transforms import ImagePyramid, Resize
from detector.inference.predictor import Predictor
from detector.modeling.roi_heads.roi_head import RegionHead
from detector.modeling.rpn import RPN
from detector.structures import Detections, Proposals


class Augmented(Predictor):
    """A predictor that looks at every image several times: at each scale of `data.tta`, as it is and mirrored.

    Each view runs the whole detector, with its own suppression. Then the boxes of all views, in the pixels of the original
    image, are merged by one more NMS, hard and within a class (unless the detector's ignores classes), and the best
    `max_detections` are left. The views come one after the other, so memory is that of the largest.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        pyramid = ImagePyramid(**data_settings(self.config["data"]).tta) if "data" in self.config else ImagePyramid()
        self.prepare = partial(_resized, pyramid.resizes(self.resize))
        flips = (False, True) if pyramid.flip else (False,)
        self.views = [(scale, mirrored) for scale in range(len(pyramid.scales)) for mirrored in flips]
        head = next((m for m in self.model.roi_head.modules() if isinstance(m, RegionHead)), None)
        self.nms_iou, self.limit, self.joint = (0.5, 100, False) if head is None else (
            head.suppression["iou"], head.max_detections, head.class_agnostic_nms
        )  # fmt: skip

    def detect_with_proposals(
        self,
        images: Sequence[Sequence[Tensor]],
        sizes: Sequence[tuple[int, int]],
        proposals: Sequence[Proposals] | None = None,
    ) -> list[tuple[Detections, Proposals]]:
        """Of every image all scales (3, h, w); the rest as in Predictor."""
        seen: list[list[tuple[Detections, Proposals]]] = [[] for _ in sizes]
        for scale, mirrored in self.views:
            found = self._look([scales[scale] for scales in images], sizes, proposals, mirrored)
            for so_far, both in zip(seen, found):
                so_far.append(both)
        return [both[0] if len(both) == 1 else self._merge(*zip(*both)) for both in seen]

    def _look(
        self,
        view: list[Tensor],
        sizes: Sequence[tuple[int, int]],
        proposals: Sequence[Proposals] | None,
        mirrored: bool,
    ) -> list[tuple[Detections, Proposals]]:
        """Both stages' boxes in one view of every image; a mirrored one has mirrored proposals and gives mirrored boxes."""
        if not mirrored:
            return super().detect_with_proposals(view, sizes, proposals)
        given = None if proposals is None else [mirror(p, w) for p, (_, w) in zip(proposals, sizes)]
        both = super().detect_with_proposals([image.flip(-1) for image in view], sizes, given)
        return [(mirror(d, w), mirror(p, w)) for (d, p), (_, w) in zip(both, sizes)]

    def _merge(self, found: Sequence[Detections], regions: Sequence[Proposals]) -> tuple[Detections, Proposals]:
        """What the views of one image found, as one."""
        proposals = self._merge_proposals(regions)
        if self.is_rpn_alone:
            return replace(self.model.roi_head.report(proposals), class_names=self.label_names), proposals
        boxes, scores, labels = (torch.cat([getattr(d, x) for d in found]) for x in ("boxes", "scores", "labels"))
        group = torch.zeros_like(labels) if self.joint else labels
        best = batched_nms(boxes, scores, group, self.nms_iou)[: self.limit]
        return Detections(boxes[best], scores[best], labels[best], self.label_names), proposals

    def _merge_proposals(self, regions: Sequence[Proposals]) -> Proposals:
        """By the RPN's own rules; without one all views had the same proposals."""
        rpn = self.model.rpn
        if not isinstance(rpn, RPN):
            return regions[0]
        boxes, scores = torch.cat([r.boxes for r in regions]), torch.cat([r.scores for r in regions])
        order, wanted = scores.argsort(descending=True), rpn.post_nms[1]
        # a later box suppresses no earlier one, so the first are often enough
        for count in (4 * wanted, len(order)):
            first = order[:count]
            best = first[nms(boxes[first], scores[first], rpn.nms_iou)[:wanted]]
            if len(best) == wanted:
                break
        return Proposals(boxes[best], scores[best])


def _resized(resizes: Sequence[Resize], image: Tensor) -> list[Tensor]:
    """All scales of an image; what a loader's workers do."""
    return [resize.resize_image(image) for resize in resizes]


def mirror(found: Detections | Proposals, width: int) -> Detections | Proposals:
    """The boxes as they are where left becomes right in an image of that width."""
    x1, y1, x2, y2 = found.boxes.unbind(dim=-1)
    return replace(found, boxes=torch.stack([width - x2, y1, width - x1, y2], dim=-1))
