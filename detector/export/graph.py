"""The detector as one graph of fixed shapes, from a padded batch of pixels to rows of detections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from detector.modeling.rcnn import GeneralizedRCNN
from detector.modeling.shapes import fixed_shapes
from detector.records.geometry import Size
from detector.structures import Batch

NO_OBJECT = -1  # label of a row that holds nothing
INPUTS = ("images", "sizes")


class DetectionGraph(nn.Module):
    """What an exported file computes: normalisation, both stages, masks within their boxes, heat maps of keypoints.

    What is left to the program around it: resizing, pasting masks, reading heat maps.

    Args:
        model: a detector in eval mode.
        portable: use only operators that other engines have.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: GeneralizedRCNN, *, portable: bool):
        super().__init__()
        self.model, self.portable = model, portable
        # torch.onnx would find the name `mean` twice
        self.register_buffer("pixel_mean", model.preprocess.mean.clone())
        self.register_buffer("pixel_std", model.preprocess.std.clone())

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """The values of `find`, in its order."""
        return tuple(self.find(images, sizes).values())

    def find(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """uint8 RGB images (N, 3, H, W), padded right and below, and their int64 sizes (N, 2) -> the outputs, D rows an image.

        Boxes (N, D, 4) are in pixels of the images, scores (N, D), labels (N, D), NO_OBJECT where a row holds nothing. Masks
        (N, D, M, M) are probabilities within the boxes, mask_scores (N, D), heat_maps (N, D, J, M, M) logits within the boxes.
        """
        batch = self._batch(images, sizes)
        head: Any = self.model.roi_head  # an export needs more of it than its protocol names
        with fixed_shapes(portable=self.portable):
            p = self.model.pyramid(batch.images)
            found = head.find(p, self.model.rpn.propose(p, batch), batch)
            labels = torch.where(found.valid, found.rows.labels, NO_OBJECT)
            shapes = self._shapes(head, p, found.whole(), batch)
        return {"boxes": found.rows.boxes, "scores": found.rows.scores, "labels": labels, **shapes}

    def _shapes(self, head: Any, p: list[Tensor], rows: list, batch: Batch) -> dict[str, Tensor]:
        """Masks and heat maps of N images with D rows each, where there are branches for them."""
        values: dict[str, Tensor] = {}
        keypoint = getattr(head, "keypoint", None)
        complete = head.masked if hasattr(head, "masked") else getattr(head, "complete", None)
        if complete is not None:
            rows = complete(p, rows, batch)
        if rows[0].masks is not None:
            values["masks"] = torch.stack([d.masks.probabilities for d in rows])
            if rows[0].masks.scores is not None:
                values["mask_scores"] = torch.stack([d.masks.scores for d in rows])
        if keypoint is not None:
            values["heat_maps"] = keypoint.heat_maps(p, [d.boxes for d in rows]).unflatten(0, (len(rows), -1))
        return values

    def _batch(self, images: Tensor, sizes: Tensor) -> Batch:
        """As `ImagePreprocessor.batch`: normalised, zero where padded."""
        x = images.flip(1) if self.model.preprocess.order == "bgr" else images
        x = (x.float() - self.pixel_mean) / self.pixel_std
        h, w = (torch.arange(side, device=images.device) for side in images.shape[-2:])
        inside = (h[:, None] < sizes[:, 0, None, None]) & (w < sizes[:, 1, None, None])  # (N, H, W)
        x = torch.where(inside[:, None], x, 0).to(next(self.model.parameters()).dtype)
        pairs: Any = [size.unbind() for size in sizes.unbind()]  # of tensors, which `clip_boxes` takes
        return Batch(x, pairs)


def padded(images: list[Tensor], size: Size) -> tuple[Tensor, Tensor]:
    """uint8 RGB images (3, h, w) -> what a graph for (H, W) takes: one batch, and the sizes."""
    batch = torch.zeros(len(images), 3, *size, dtype=torch.uint8)
    for slot, image in zip(batch, images):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return batch, torch.tensor([image.shape[1:] for image in images])
