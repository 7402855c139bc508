"""Cascade R-CNN (Cai & Vasconcelos 2018, arXiv 1712.00726): each stage refines the boxes of the one before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from detector.modeling.boxes import BoxCoder, DeltaWeight, clip_boxes, is_larger_than
from detector.modeling.matching import Matching
from detector.modeling.padded import Padded
from detector.modeling.roi_heads.mask_branch import MaskBranch, with_masks
from detector.modeling.roi_heads.roi_head import select
from detector.modeling.roi_heads.selection import DetectionSelection
from detector.modeling.roi_heads.stage import EMPTY, RegionLoss, Regions, Stage, boxes_of, positives, to_rois
from detector.modeling.sampling import Sampling
from detector.modeling.shapes import may_look
from detector.records.geometry import Size
from detector.schema.ranges import IoU, Weight
from detector.schema.signatures import checked
from detector.structures import Batch, Detections, Proposals, Target


@checked
class Cascade(nn.Module):
    """Proposals -> detections in as many stages as there are `ious`, each with class-agnostic deltas.

    The defaults are Detectron2's. MMDetection sets `resample`, averages logits, and does not scale gradients.

    Args:
        pool: levels and regions -> pooled regions, shared by the stages.
        new_box_head: makes the box head of a stage.
        num_classes: K, without background.
        ious: of every stage, the IoU from which a region is positive.
        box_weights: of every stage, the weights of the coder.
        stage_weights: of every stage, the factor of its losses.
        resample: later stages draw a new sample, ground truth appended, instead of learning from all refined boxes.
        average: whether the detections' scores are the mean of the stages' scores or come from the mean of their logits.
        scale_gradient: each stage sends 1 / stages of its gradient to the pyramid.
        sampling: how many regions of an image are learnt from.
        coder: how deltas describe a box; its weights must be left out, since `box_weights` gives those of each stage.
        loss: of classes and deltas, before `stage_weights`.
        selection: which classified regions become detections.
        new_mask: makes a branch that gives every detection a mask; None: boxes alone.
        mask_heads: one, which learns from the first stage's regions (Detectron2), or one for each stage, which learns from
            that stage's, weighted by `stage_weights`; the detections get the mean of their masks (MMDetection).
    """

    reports_proposals = False
    stages: Sequence[Stage]

    def __init__(
        self,
        pool: nn.Module,
        new_box_head: Callable[[], nn.Module],
        num_classes: int,
        *,
        ious: Sequence[IoU] = (0.5, 0.6, 0.7),
        box_weights: Sequence[tuple[DeltaWeight, DeltaWeight, DeltaWeight, DeltaWeight]] = (
            (10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)
        ),
        stage_weights: Sequence[Weight] = (1, 1, 1),
        resample: bool = False,
        average: Literal["scores", "logits"] = "scores",
        scale_gradient: bool = True,
        sampling: Sampling = Sampling(batch_per_image=512, positive_fraction=0.25),
        coder: BoxCoder = BoxCoder(),
        loss: RegionLoss = RegionLoss(),
        selection: DetectionSelection = DetectionSelection(),
        new_mask: Callable[[], MaskBranch] | None = None,
        mask_heads: Literal["one", "each"] = "one",
    ):  # fmt: skip
        super().__init__()
        if coder.weights != BoxCoder().weights:
            raise ValueError(
                f"coder.weights: {list(coder.weights)}; a cascade has weights for each stage: set box_weights"
            )
        if not ious or not len(ious) == len(box_weights) == len(stage_weights):
            raise ValueError(
                f"{len(ious)} ious, {len(box_weights)} box_weights and {len(stage_weights)} stage_weights; a cascade needs one "
                "of each for every stage, and at least one stage"
            )
        self.pool, self.num_classes, self.selection = pool, num_classes, selection
        stages = (
            Stage(
                new_box_head(), num_classes, class_agnostic=True, matching=Matching(pos_iou=iou), sampling=sampling,
                coder=replace(coder, weights=weights),
                loss=replace(loss, class_weight=factor * loss.class_weight, box_weight=factor * loss.box_weight),
            )
            for iou, weights, factor in zip(ious, box_weights, stage_weights)
        )  # fmt: skip
        self.stages = cast("Sequence[Stage]", nn.ModuleList(stages))
        self.resample, self.average, self.scale_gradient = resample, average, scale_gradient
        count = 0 if new_mask is None else len(ious) if mask_heads == "each" else 1
        self.masks = cast("Sequence[MaskBranch]", nn.ModuleList(new_mask() for _ in range(count) if new_mask))
        self.mask_heads, self.stage_weights = mask_heads, stage_weights

    def losses(
        self, p: list[Tensor], proposals: list[Proposals], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """{"roi_class_1", "roi_box_1", "roi_class_2", ...}, each divided by its stage's number of regions.

        With masks, also "roi_mask", or "roi_mask_1" and so on where each stage has its own.
        """
        whole = p
        p = [_scaled(x, 1 / len(self.stages)) for x in p] if self.scale_gradient else p
        boxes, losses = boxes_of(proposals), {}
        for number, stage in enumerate(self.stages, start=1):
            regions = stage.sample(boxes, targets, use_all=number > 1 and not self.resample)
            boxes = [r.boxes for r in regions]
            logits, deltas = stage(self.pool(p, to_rois(boxes)))
            losses[f"roi_class_{number}"], losses[f"roi_box_{number}"] = stage.losses(logits, deltas, regions, targets)
            if number <= len(self.masks):
                losses |= self._mask_losses(number, whole, regions, batch, targets)
            boxes = self._next(refine(stage, deltas, boxes, batch.sizes), regions)
        return losses

    def detect(self, p: list[Tensor], proposals: Sequence[Proposals], batch: Batch) -> list[Detections]:
        """The final boxes of every image, best first, with masks where there are branches."""
        return self.complete(p, list(self.find(p, Padded.of(proposals), batch)), batch)

    def find(self, p: list[Tensor], proposals: Padded[Proposals], batch: Batch) -> Padded[Detections]:
        """The final boxes of every image, best first: those of the last stage, with the average score of all.

        The shapes depend on those of the arguments alone.
        """
        boxes, outputs, deltas = zip(*self.run(p, list(proposals.rows.boxes), batch.sizes))
        last, coder = torch.stack(boxes[-1]), self.stages[-1].coder
        return select(self.scores(outputs), deltas[-1], last, proposals.valid, batch.sizes, coder, self.selection)

    def complete(self, p: list[Tensor], found: list[Detections], batch: Batch) -> list[Detections]:
        """The detections of every image, whose boxes are final, with the mean of all heads' masks, where there are any."""
        if not self.masks:
            return found
        boxes, labels = [d.boxes for d in found], torch.cat([d.labels for d in found])
        every = torch.stack([mask.probabilities(mask.read(p, boxes), labels) for mask in self.masks])
        return with_masks(found, every.mean(dim=0), batch)

    def _mask_losses(
        self, number: int, p: list[Tensor], regions: list[Regions], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:  # fmt: skip
        """Of the stage with that number."""
        mask = self.masks[number - 1]
        of_objects = positives(regions, self.num_classes, alone=mask.alone)
        losses = mask.losses(mask.read(p, [r.boxes for r in of_objects]), of_objects, batch, targets)
        if self.mask_heads == "one":
            return losses
        return {f"{name}_{number}": loss * self.stage_weights[number - 1] for name, loss in losses.items()}

    def run(self, p: list[Tensor], boxes: list[Tensor], sizes: list[Size]) -> list[tuple[list[Tensor], Tensor, Tensor]]:
        """Of every stage, its input boxes (R_i, 4) of every image, its logits (R, K+1) and its deltas (R, 1, 4)."""
        out = []
        for stage in self.stages:
            logits, deltas = stage(self.pool(p, to_rois(boxes)))
            out.append((boxes, logits, deltas))
            boxes = refine(stage, deltas, boxes, sizes)
        return out

    def scores(self, outputs: Sequence[Tensor]) -> Tensor:
        """The class scores (R, K) of the regions whose logits (R, K+1) after each stage are those of `run`."""
        logits = torch.stack(list(outputs))  # (stages, R, K + 1)
        scores = logits.mean(dim=0).softmax(dim=-1) if self.average == "logits" else logits.softmax(dim=-1).mean(dim=0)
        return scores[:, :-1]

    def merge(self, views: Sequence[Detections], proposals: Proposals) -> Detections:
        """The detections of several views of one image as those of one (test-time augmentation)."""
        return self.selection.merge(views)

    def _next(self, boxes: list[Tensor], regions: list[Regions]) -> list[Tensor]:
        """Which refined boxes the next stage learns from; ground truth is left out where it will be appended again."""
        keep = [is_larger_than(b, 0) & ~(r.is_gt & self.resample) & (r.labels != EMPTY) for b, r in zip(boxes, regions)]
        if may_look(boxes[0].device):
            return [b[k] for b, k in zip(boxes, keep)]
        return [torch.where(k[:, None], b, 0) for b, k in zip(boxes, keep)]


@torch.no_grad()
def refine(stage: Stage, deltas: Tensor, boxes: list[Tensor], sizes: list[Size]) -> list[Tensor]:
    """The boxes (R_i, 4) of every image after a stage, clipped; non-finite ones keep their input coordinates."""
    source = torch.cat(boxes)
    refined = stage.coder.decode(deltas[:, 0], source)
    refined = torch.where(refined.isfinite().all(dim=-1, keepdim=True), refined, source)
    return [clip_boxes(b, size) for b, size in zip(refined.split([len(b) for b in boxes]), sizes)]


def _scaled(x: Tensor, share: float) -> Tensor:
    """The same map, which passes back only a share of its gradient."""
    x = x.view_as(x)
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * share)
    return x
