"""The two-stage detector: Faster R-CNN (Ren et al. 2015) over any pyramid."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detector.modeling.preprocess import ImagePreprocessor
from detector.modeling.roi_heads.selection import DetectionSelection
from detector.modeling.shapes import may_look
from detector.protocols import ProposalGenerator, SecondStage
from detector.structures import Batch, Detections, Proposals, Target, check_fields, image_size

NO_TRACE = (
    "a detector cannot be traced or scripted by torch.jit, whose trace would keep one image's numbers of boxes: use `detector "
    "export CKPT --to onnx|openvino|pt2`, which checks its result"
)


class GeneralizedRCNN(nn.Module):
    """A pyramid of features, a first stage that proposes regions, a second one that classifies them.

    `target_fields` are the fields of a Target, beyond boxes and labels, that training reads (ModelConfig knows them).
    """

    preprocess: ImagePreprocessor
    rpn: ProposalGenerator
    roi_head: SecondStage

    def __init__(
        self, preprocess: ImagePreprocessor, pyramid: nn.Module, rpn: ProposalGenerator, roi_head: SecondStage, *,
        target_fields: Collection[str] = (),
    ):  # fmt: skip
        super().__init__()
        self.preprocess, self.pyramid, self.rpn, self.roi_head = preprocess, pyramid, rpn, roi_head
        self.target_fields = frozenset(target_fields)

    @property
    def needs_proposals(self) -> bool:
        """Whether proposals must come with the images."""
        return getattr(self.rpn, "needs_proposals", False)

    @property
    def reports_proposals(self) -> bool:
        """Whether the detections are proposals, of one class."""
        return getattr(self.roi_head, "reports_proposals", False)

    def forward(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target | Mapping[str, Tensor]] | None = None,
        *,
        proposals: Sequence[Proposals] | None = None,
    ) -> dict[str, Tensor] | list[Detections]:
        """uint8 RGB images (3, H, W) of any sizes -> detections; with targets: scalar losses by name.

        `proposals` of every image, in its pixels, are for a detector without an RPN; its targets may hold them, too.
        """
        if torch.jit.is_tracing():
            raise RuntimeError(NO_TRACE)
        return self.detect(images, proposals) if targets is None else self.losses(images, targets, proposals)

    def __prepare_scriptable__(self) -> None:
        """torch.jit.script asks for what it shall compile."""
        raise RuntimeError(NO_TRACE)

    def losses(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target | Mapping[str, Tensor]],
        proposals: Sequence[Proposals] | None = None,
    ) -> dict[str, Tensor]:
        """The losses of both stages, by name. Raises ValueError for a target that cannot be trained on."""
        checked = [Target.of(target) for target in targets]
        self._check(images, checked)
        on_device = [target.to(self._device()) for target in checked]
        batch = self.batch(images, [target.proposals for target in on_device] if proposals is None else proposals)
        p = self.pyramid(batch.images)
        regions, rpn_losses = self.rpn.losses(p, batch, on_device)
        if may_look(batch.images.device):
            regions = list(regions)
        return rpn_losses | self.roi_head.losses(p, regions, batch, on_device)

    @torch.no_grad()
    def detect(self, images: Sequence[Tensor], proposals: Sequence[Proposals] | None = None) -> list[Detections]:
        """Boxes in the pixels of the given images, best first, with the first stage's `proposals` of each image.

        Images share a batch only if padding takes them to one size: no image sees another.
        """
        self.preprocess.check(images)
        given = [None] * len(images) if proposals is None else proposals
        if len(given) != len(images):
            raise ValueError(f"{len(images)} images with the proposals of {len(given)}: give those of every image")
        found: dict[int, Detections] = {}
        for group in self._groups(images):
            batch = self.batch([images[i] for i in group], [given[i] for i in group])
            found |= zip(group, self.detect_batch(batch))
        return [found[i] for i in range(len(images))]

    @torch.no_grad()
    def complete(self, images: Sequence[Tensor], found: Sequence[Detections]) -> list[Detections]:
        """Detections in the pixels of the given images, with the masks and keypoints that the second stage finds in them."""
        head: Any = self.roi_head  # its method `complete` is optional
        completed: dict[int, Detections] = {}
        for group in self._groups(images):
            batch = self.batch([images[i] for i in group], [None] * len(group))
            bare = [replace(found[i].to(self._device()), masks=None, keypoints=None) for i in group]
            completed |= zip(group, head.complete(self.pyramid(batch.images), bare, batch))
        return [completed[i] for i in range(len(images))]

    def _groups(self, images: Sequence[Tensor]) -> list[list[int]]:
        """The images that padding takes to one size, for each of these sizes."""
        sizes = [self.preprocess.padded_size(image) for image in images]
        return [[i for i, s in enumerate(sizes) if s == size] for size in dict.fromkeys(sizes)]

    def detect_batch(self, batch: Batch) -> list[Detections]:
        """Both stages on a batch of preprocessed images."""
        p = self.pyramid(batch.images)
        regions = self.rpn.propose(p, batch)
        if may_look(batch.images.device):
            regions = list(regions)
        found = self.roi_head.detect(p, regions, batch)
        return [replace(d, proposals=r) for d, r in zip(found, regions)]

    def merge(self, views: Sequence[Detections]) -> Detections:
        """What was detected in several views of one image, in its pixels, as one (test-time augmentation)."""
        proposals = self.merge_proposals([view.proposals for view in views])
        if hasattr(self.roi_head, "merge"):
            return replace(self.roi_head.merge(views, proposals), proposals=proposals)
        return replace(DetectionSelection().merge(views), proposals=proposals)

    def merge_proposals(self, views: Sequence[Proposals | None]) -> Proposals | None:
        """The first stage's boxes in several views of one image, in its pixels, as those of one."""
        return self.rpn.merge(views) if hasattr(self.rpn, "merge") else views[0]

    def batch(self, images: Sequence[Tensor], proposals: Sequence[Proposals | None]) -> Batch:
        """Images that padding takes to one size, and the proposals that came with each of them, on the model's device."""
        device = self._device()
        batch = self.preprocess.batch(images, device, next(self.pyramid.parameters()).dtype)
        batch.proposals = [None if given is None else given.to(device) for given in proposals]
        return batch

    def _device(self) -> torch.device:
        return next(self.pyramid.parameters()).device

    def _check(self, images: Sequence[Tensor], targets: Sequence[Target]) -> None:
        """The last defence against NaN: on the host, before anything is sent to the device."""
        if len(images) == 0 or len(images) != len(targets):
            raise ValueError(f"{len(images)} images with {len(targets)} targets: give one target for each image")
        for i, target in enumerate(targets):
            boxes, labels = target.boxes, target.labels
            if labels.ndim != 1 or boxes.shape != (len(labels), 4):
                raise ValueError(f"target {i}: boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)} do not fit")
            if not (boxes.isfinite().all() and (boxes[:, 2:] > boxes[:, :2]).all()):
                raise ValueError(f"target {i}: a box is not finite or has no area; drop it before training")
            k = self.roi_head.num_classes
            if labels.is_floating_point() or not ((labels >= 0) & (labels < k)).all():
                raise ValueError(f"target {i}: labels must lie in 0..{k - 1} and be int64, not {labels.dtype}")
            if self.target_fields:
                check_fields(target, self.target_fields, image_size(images[i]), f"target {i}")
