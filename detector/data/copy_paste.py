"""Simple copy-paste (Ghiasi et al. 2021, arXiv 2012.07177, sec. 3): objects of one training image on another.

Both images have passed the transforms, large-scale jitter among them. Nothing is blended, which the paper found as good.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from detector.data.semantic_maps import UNLABELLED
from detector.data.wrapped_dataset import WrappedDataset
from detector.protocols import DataSet
from detector.records.geometry import tight_boxes
from detector.records.keypoints import Keypoints
from detector.records.outlines import Outlines
from detector.schema.ranges import Fraction
from detector.schema.signatures import checked
from detector.structures import Target, image_size

GREY = 114  # of the canvas beyond a smaller image, about the mean colour


@checked
@dataclass(frozen=True)
class CopyPaste:
    """Each object of the other image is pasted or not by the toss of a coin."""

    p: Fraction = 1.0
    """Probability that an image gets objects of another."""

    def __call__(self, image: Tensor, target: Target, other: Tensor, objects: Target) -> tuple[Tensor, Target]:
        """An image with some objects of another one at the same place; both targets have `masks`.

        The canvas is large enough for both. What the pasted ones hide is cut from the masks of the others, whose boxes
        follow; those of which nothing is left go, and hidden keypoints are marked as such.
        """
        objects = objects[torch.rand(len(objects)) < 0.5]
        h, w = (max(sides) for sides in zip(image_size(image), image_size(other)))
        image, other = (_on_canvas(x, h, w, GREY) for x in (image, other))
        below, above = (replace(t, masks=_on_canvas(_masks(t), h, w, 0)) for t in (target, objects))
        cover = _masks(above).any(dim=0).bool()  # (h, w)
        joined = Target.joined([_hidden(below, cover), above])
        return torch.where(cover, other, image), replace(joined, semantic=_semantic(target, objects, cover))


class PastingDataset(WrappedDataset):
    """Another data set, whose samples have `masks`, with objects pasted.

    `fields` are those that the model reads: outlines and masks are left out otherwise.
    """

    def __init__(self, dataset: DataSet, copy_paste: CopyPaste, fields: Collection[str]) -> None:
        super().__init__(dataset)
        self.copy_paste, self.fields = copy_paste, frozenset(fields)

    def __getitem__(self, i: int) -> tuple[Tensor, Target, int]:
        image, target, image_id = self.dataset[i]
        if torch.rand(()) < self.copy_paste.p:
            other, objects, _ = self.dataset[int(torch.randint(len(self), ()))]
            image, target = self.copy_paste(image, target, other, objects)
        return image, target if "masks" in self.fields else replace(target, masks=None), image_id


def _masks(target: Target) -> Tensor:
    if target.masks is None:
        raise ValueError("copy_paste: the targets have no masks")
    return target.masks


def _semantic(target: Target, objects: Target, cover: Tensor) -> Tensor | None:
    if target.semantic is None or objects.semantic is None:
        return None
    h, w = image_size(cover)
    below, above = (_on_canvas(x, h, w, UNLABELLED) for x in (target.semantic, objects.semantic))
    return torch.where(cover, above, below)


def _on_canvas(x: Tensor, h: int, w: int, fill: int) -> Tensor:
    return F.pad(x, (0, w - x.shape[-1], 0, h - x.shape[-2]), value=fill)


def _hidden(target: Target, cover: Tensor) -> Target:
    """What can be seen of the objects of a target under a cover (h, w)."""
    masks = _masks(target)
    left = masks * ~cover
    changed = (left != masks).flatten(1).any(dim=1)
    boxes = torch.where(changed[:, None], tight_boxes(left), target.boxes)
    outlines, keypoints = target.outlines, target.keypoints
    if outlines is not None:
        order = torch.cat([(~changed).nonzero()[:, 0], changed.nonzero()[:, 0]]).argsort()
        outlines = Outlines.joined([outlines[~changed], Outlines.of_bitmaps(left[changed])])[order]
    if keypoints is not None:
        keypoints = _covered(keypoints, cover)
    seen = replace(target, masks=left, boxes=boxes, outlines=outlines, keypoints=keypoints)
    return seen[left.flatten(1).any(dim=1).bool()]


def _covered(keypoints: Keypoints, cover: Tensor) -> Keypoints:
    """Visible points under the cover (h, w) are labelled as hidden."""
    x, y = keypoints.points.long().unbind(dim=-1)
    h, w = cover.shape
    under = cover[y.clamp(0, h - 1), x.clamp(0, w - 1)]
    return replace(keypoints, visible=torch.where(under & (keypoints.visible == 2), 1, keypoints.visible))
