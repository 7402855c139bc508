"""Test-time augmentation: the featurized image pyramid (fig. 1a of FPN, arXiv 1612.03144) for any detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from detector.data.transforms import ImagePyramid, Resize
from detector.inference.predictor import Predictor, to_original
from detector.records.geometry import Size
from detector.records.keypoints import Keypoints
from detector.structures import Detections, Proposals, image_size


class TTAPredictor(Predictor):
    """A predictor that runs on several views of every image: each scale of `data.tta`, plain and mirrored.

    Each view runs the whole detector, with its own suppression. Then the boxes of all views, in the pixels of the original
    image, are merged by the detector's own selection, with hard NMS. Then every view gives masks of the merged boxes, whose
    mean is taken, as Detectron2 does. Each keypoint comes from the view that is surest of it: a plain one where the names of the
    keypoints are not known, which say what is left and right. Views run one after the other, so memory is that of the largest.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        pyramid = ImagePyramid() if self.config.data is None else self.config.data.tta
        self.prepare = partial(_resized, pyramid.resizes(self.resize))
        flips = (False, True) if pyramid.flip else (False,)
        self.views = [(scale, mirrored) for scale in range(len(pyramid.scales)) for mirrored in flips]

    def detect(
        self, images: Sequence[Sequence[Tensor]], sizes: Sequence[Size], proposals: Sequence[Proposals] | None = None
    ) -> list[Detections]:
        """Like Predictor.detect, with all scales (3, h, w) of every image."""
        views = [self._view([scales[scale] for scales in images], sizes, proposals, mirrored)
                 for scale, mirrored in self.views]  # fmt: skip
        if len(self.views) == 1:
            return [self.named(found) for found in views[0]]
        merged = [self.model.merge(of_image) for of_image in zip(*views)]
        if hasattr(self.model.roi_head, "complete") and any(
            d.masks is not None or d.keypoints is not None for d in merged
        ):
            shapes = [self._complete([scales[scale] for scales in images], sizes, merged, mirrored)
                      for scale, mirrored in self.views]  # fmt: skip
            merged = [self._with_shapes(found, of_image) for found, of_image in zip(merged, zip(*shapes))]
        return [self.named(found) for found in merged]

    def _view(
        self, images: list[Tensor], sizes: Sequence[Size], proposals: Sequence[Proposals] | None, mirrored: bool
    ) -> list[Detections]:
        """Detections in one view of every image; a mirrored view takes mirrored proposals, and its boxes are mirrored back."""
        if not mirrored:
            return super().detect(images, sizes, proposals)
        given = None if proposals is None else [p.mirrored(w) for p, (_, w) in zip(proposals, sizes)]
        found = super().detect([image.flip(-1) for image in images], sizes, given)
        return [d.mirrored(w) for d, (_, w) in zip(found, sizes)]

    def _complete(
        self, images: list[Tensor], sizes: Sequence[Size], merged: Sequence[Detections], mirrored: bool
    ) -> list[Detections]:
        """The merged detections of every image with masks and keypoints of one view, in the pixels of the original."""
        if mirrored:
            images, merged = [i.flip(-1) for i in images], [d.mirrored(w) for d, (_, w) in zip(merged, sizes)]
        there = [d.resized(size, image_size(image)) for d, image, size in zip(merged, images, sizes)]
        found = self.model.complete(images, there)
        back = [self.posed(to_original(d, image, size)) for d, image, size in zip(found, images, sizes)]
        return [d.mirrored(w) for d, (_, w) in zip(back, sizes)] if mirrored else back

    def _with_shapes(self, merged: Detections, views: Sequence[Detections]) -> Detections:
        """The merged detections with the mean of the masks, and the best of the keypoints, of all views."""
        masks = [view.masks.probabilities for view in views if view.masks is not None]
        if merged.masks is not None and masks:
            # not as one tensor: 18 views of 224 x 224 cells are large
            mean = reduce(torch.add, (view.float() for view in masks)) / len(masks)
            merged = replace(merged, masks=replace(merged.masks, probabilities=mean, boxes=merged.boxes).halved())
        fit = [view for view, (_, mirrored) in zip(views, self.views) if self.pose is not None or not mirrored]
        keypoints = [view.keypoints for view in fit if view.keypoints is not None]
        return replace(merged, keypoints=best_keypoints(keypoints)) if keypoints else merged


def best_keypoints(views: Sequence[Keypoints]) -> Keypoints:
    """Each keypoint as in the view where it has the highest score."""
    scores, best = torch.stack([view.scored()[..., 2] for view in views]).max(dim=0)  # (D, J) each
    points = torch.stack([view.points for view in views]).gather(0, best[None, ..., None].expand(1, -1, -1, 2))[0]
    return replace(views[0], points=points, scores=scores)


def _resized(resizes: Sequence[Resize], image: Tensor) -> list[Tensor]:
    """All scales of an image; runs in the loader's workers."""
    return [resize.resize_image(image) for resize in resizes]
