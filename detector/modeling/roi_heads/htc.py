"""Hybrid Task Cascade (Chen et al. 2019, arXiv 1901.07518): boxes and masks refined in turn, beside a semantic branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.boxes import BoxCoder, DeltaWeight
from detector.modeling.layers import ConvNorm, caffe2_msra_
from detector.modeling.roi_heads.cascade import Cascade, refine
from detector.modeling.roi_heads.mask_branch import MaskBranch, of_class, with_masks
from detector.modeling.roi_heads.selection import DetectionSelection
from detector.modeling.roi_heads.semantic_head import FusedLevels, FusedPool, SemanticConvs
from detector.modeling.roi_heads.stage import RegionLoss, Regions, boxes_of, positives, to_rois
from detector.modeling.sampling import Sampling
from detector.records.geometry import Size
from detector.schema.ranges import IoU, Weight
from detector.schema.signatures import checked
from detector.structures import Batch, Detections, Proposals, Target


@checked
class HTC(Cascade):
    """Proposals -> detections with masks in as many stages as there are `ious`.

    The mask head of a stage learns from the boxes that the stage has just refined, sampled once more (sec. 3.1), and each
    mask head gets the features of the one before it (sec. 3.2). The detections have the masks of the last one.

    Args:
        pool: levels and regions -> pooled regions, shared by the stages.
        new_box_head: makes the box head of a stage.
        num_classes: K, without background.
        new_mask: makes the mask branch of a stage, which there must be.
        semantic_head: levels -> features of every pixel, which are added to those of all regions; None: no semantic branch.
        ious: of every stage, the IoU from which a region is positive.
        box_weights: of every stage, the weights of the coder.
        stage_weights: of every stage, the factor of its losses.
        sampling: how many regions of an image are learnt from.
        coder: how deltas describe a box; its weights must be left out, since `box_weights` gives those of each stage.
        loss: of classes and deltas, before `stage_weights`.
        selection: which classified regions become detections.
    """

    def __init__(
        self,
        pool: nn.Module,
        new_box_head: Callable[[], nn.Module],
        num_classes: int,
        *,
        new_mask: Callable[[], MaskBranch] | None = None,
        semantic_head: SemanticConvs | None = None,
        ious: Sequence[IoU] = (0.5, 0.6, 0.7),
        box_weights: Sequence[tuple[DeltaWeight, DeltaWeight, DeltaWeight, DeltaWeight]] = (
            (10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)
        ),
        stage_weights: Sequence[Weight] = (1, 0.5, 0.25),
        sampling: Sampling = Sampling(batch_per_image=512, positive_fraction=0.25),
        coder: BoxCoder = BoxCoder(),
        loss: RegionLoss = RegionLoss(),
        selection: DetectionSelection = DetectionSelection(score_threshold=0.001),
    ):  # fmt: skip
        super().__init__(
            pool, new_box_head, num_classes, ious=ious, box_weights=box_weights, stage_weights=stage_weights, resample=True,
            average="logits", scale_gradient=False, sampling=sampling, coder=coder, loss=loss, selection=selection,
            new_mask=new_mask, mask_heads="each",
        )  # fmt: skip
        if not self.masks or not all(hasattr(mask.head, "features") for mask in self.masks):
            raise ValueError(
                "a hybrid task cascade passes on the features of mask heads: add mask_head {type: conv_upsample}"
            )
        channels, width = self.masks[0].pool.channels, self.masks[0].head.deconv.in_channels
        self.flow = nn.ModuleList(ConvNorm(width, channels, 1) for _ in ious[1:])  # into each mask head but the first
        caffe2_msra_(self.flow)
        self.semantic_head = semantic_head
        if semantic_head is not None:
            self._add_semantics(semantic_head)

    def _add_semantics(self, head: SemanticConvs) -> None:
        """Every pool also reads the embedding, at the size of the mask heads'."""
        shape = (head.width, head.stride, self.masks[0].pool.size)
        self.pool = FusedPool(self.pool, *shape)
        for mask in self.masks:
            mask.pool = FusedPool(mask.pool, *shape)

    def losses(
        self, p: list[Tensor], proposals: list[Proposals], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """{"roi_class_1", "roi_box_1", "roi_mask_1", "roi_class_2", ...}, and "roi_semantic" where there is a semantic branch."""
        p, losses = self._semantics(p, batch, targets)
        boxes = boxes_of(proposals)
        alone = any(mask.alone for mask in self.masks)
        for number, stage in enumerate(self.stages, start=1):
            regions = stage.sample(boxes, targets)
            boxes = [r.boxes for r in regions]
            logits, deltas = stage(self.pool(p, to_rois(boxes)))
            losses[f"roi_class_{number}"], losses[f"roi_box_{number}"] = stage.losses(logits, deltas, regions, targets)
            boxes = self._next(refine(stage, deltas, boxes, batch.sizes), regions)
            again = positives(stage.sample(boxes, targets), self.num_classes, alone=alone)
            losses[f"roi_mask_{number}"] = self._mask_loss(number, p, again, batch, targets)
        return losses

    def detect(self, p: list[Tensor], proposals: Sequence[Proposals], batch: Batch) -> list[Detections]:
        """The final boxes of every image, best first, with masks."""
        return super().detect(self.fused(p), proposals, batch)

    def run(self, p: list[Tensor], boxes: list[Tensor], sizes: list[Size]) -> list[tuple[list[Tensor], Tensor, Tensor]]:
        """As in any cascade, from the fused levels."""
        return super().run(self.fused(p), boxes, sizes)

    def complete(self, p: list[Tensor], found: list[Detections], batch: Batch) -> list[Detections]:
        """The detections of every image, whose boxes are final, with the masks of the last head."""
        logits = self._mask_logits(len(self.masks), self.fused(p), [d.boxes for d in found])
        return with_masks(found, of_class(logits, torch.cat([d.labels for d in found])).sigmoid(), batch)

    def fused(self, p: list[Tensor]) -> list[Tensor]:
        """The levels with what the semantic branch says of them, if there is one."""
        if self.semantic_head is None or isinstance(p, FusedLevels):
            return p
        return FusedLevels(p, self.semantic_head.embed(self.semantic_head(p)))

    def _semantics(
        self, p: list[Tensor], batch: Batch, targets: list[Target]
    ) -> tuple[list[Tensor], dict[str, Tensor]]:  # fmt: skip
        """The fused levels, and the loss of the semantic branch, if there is one."""
        if self.semantic_head is None:
            return p, {}
        x = self.semantic_head(p)
        loss = self.semantic_head.loss(x, targets, batch.images.shape[-2:])
        return FusedLevels(p, self.semantic_head.embed(x)), {"roi_semantic": loss}

    def _mask_loss(
        self, number: int, p: list[Tensor], regions: list[Regions], batch: Batch, targets: list[Target]
    ) -> Tensor:
        """Of the stage with that number, from its positive regions."""
        logits = self._mask_logits(number, p, [r.boxes for r in regions])
        return self.masks[number - 1].loss(logits, regions, batch, targets) * self.stage_weights[number - 1]

    def _mask_logits(self, number: int, p: list[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """(R, K or 1, M, M) of the boxes (R_i, 4) of every image, after the features have passed `number` mask heads."""
        x = self.masks[0].read(p, boxes)
        last = self.masks[0].head.features(x)
        for mask, into in zip(self.masks[1:number], self.flow):
            last = mask.head.features(x + F.relu_(into(last)))
        return self.masks[number - 1].head.predict(last)
