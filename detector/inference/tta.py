"""Test-time augmentation: the featurized image pyramid (fig. 1a of FPN, arXiv 1612.03144) for any detector."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor

from detector.data.transforms import ImagePyramid, Resize
from detector.inference.predictor import Predictor
from detector.records.geometry import Size
from detector.structures import Detections, Proposals


class TTAPredictor(Predictor):
    """A predictor that runs on several views of every image: each scale of `data.tta`, plain and mirrored.

    Each view runs the whole detector, with its own suppression. Then the boxes of all views, in the pixels of the original
    image, are merged by the detector's own selection, with hard NMS. Views run one after the other, so memory is that of
    the largest.
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
        merged = [self.model.merge(of_image) if len(of_image) > 1 else of_image[0] for of_image in zip(*views)]
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


def _resized(resizes: Sequence[Resize], image: Tensor) -> list[Tensor]:
    """All scales of an image; runs in the loader's workers."""
    return [resize.resize_image(image) for resize in resizes]
