"""An image with its trace and a question about it, which all that explains shares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detector.errors import DataError
from detector.inference.predictor import Predictor, to_original
from detector.insight.explain_facts import Asked, Box
from detector.insight.follow import Followed, follow_box, follow_detection
from detector.insight.trace import trace
from detector.modeling.boxes import box_iou
from detector.modeling.layers import log2_stride
from detector.structures import image_size


class Look:
    """An image with its trace, and what is asked about it.

    Args:
        predictor: the detector.
        image: the original, uint8 RGB (3, H, W).
        asked: the question.

    Raises DataError for a detection, a box or a class that there is not.
    """

    def __init__(self, predictor: Predictor, image: Tensor, asked: Asked):
        self.predictor, self.image = predictor, image
        self.model: Any = predictor.model
        self.names = predictor.label_names
        self.prepared = predictor.prepare(image)
        self.trace = trace(self.model, self.prepared)
        pyramid: Any = self.model.pyramid
        self.strides: list[int] = list(pyramid.strides)
        with torch.no_grad():
            self.p: list[Tensor] = pyramid(self.model.batch([self.prepared], [None]).images)
        if self.trace.anchors is None:
            raise ValueError("a detector without an RPN has no anchors to explain")
        self.anchors = self.trace.anchors
        (h, w), (height, width) = image_size(self.prepared), image_size(image)
        self.scale = (width / w, height / h)
        self.found = predictor.named(to_original(self.trace.detections, self.prepared, (height, width)))
        self.levels = [log2_stride(stride) for stride in self.strides]
        self.asked = self._completed(asked)
        box = self.asked.box
        self.box = None if box is None else self.anchors.boxes.new_tensor(box) / self.scales()
        if asked.detection is not None:  # as it is, not as it is printed
            self.box = self.trace.detections.boxes[asked.detection]
        self.followed = self._follow()

    def _completed(self, asked: Asked) -> Asked:
        """Checked, with the box and the name of a detection."""
        if asked.detection is None:
            self._check(asked)
            return asked
        count = len(self.found)
        if not 0 <= asked.detection < count:
            known = f"the predictor finds {count}, numbered from 0" if count else "the predictor finds nothing"
            raise DataError(
                f"detection {asked.detection}: there is none of this number; {known}; leave it out, to see why"
            )
        box = self.to_box(self.trace.detections.boxes[asked.detection])
        return replace(asked, box=box, name=self.found.names[asked.detection])

    def _check(self, asked: Asked) -> None:
        height, width = image_size(self.image)
        if asked.box is not None:
            x1, y1, x2, y2 = asked.box
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise DataError(
                    f"box {x1:g} {y1:g} {x2:g} {y2:g}: expected x1 < x2 and y1 < y2 within the image, which is {width} pixels "
                    f"wide and {height} high"
                )
        if asked.name is not None and asked.name not in self.names:
            raise DataError(f"class {asked.name!r}: the detector has no such class; it knows {', '.join(self.names)}")

    def _follow(self) -> Followed | None:
        if self.asked.detection is not None:
            return follow_detection(self.trace, self.asked.detection, self.asked.score)
        if self.box is None:
            return None
        label = None if self.asked.name is None else self.names.index(self.asked.name)
        return follow_box(self.trace, self.box, label, self.asked.score)

    def scales(self) -> Tensor:
        """(4,) pixels of the original per pixel of the trace, along x, y, x and y."""
        return self.anchors.boxes.new_tensor(self.scale * 2)

    def to_box(self, box: Tensor) -> Box:
        """A box (4,) of the trace in pixels of the original."""
        x1, y1, x2, y2 = (round(v, 1) for v in (box * self.scales()).nan_to_num().tolist())
        return x1, y1, x2, y2

    def iou(self, boxes: Tensor) -> Tensor:
        """(n, 4) -> (n,) with the asked box; 0 where none is asked for."""
        return boxes.new_zeros(len(boxes)) if self.box is None else box_iou(self.box[None], boxes)[0]
