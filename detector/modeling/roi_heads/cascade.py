"""Cascade R-CNN (Cai & Vasconcelos 2018, arXiv 1712.00726): each stage refines the boxes of the one before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detector.errors import ConfigError, check_range
from detector.modeling.boxes import clip_boxes, is_larger_than
from detector.modeling.matching import LEAST_IOU
from detector.modeling.roi_heads.roi_head import RegionHead, Regions, to_rois
from detector.structures import Batch, Detections, Proposals, Target

Sizes = list[tuple[int, int]]  # (h, w) of every image


class Cascade(nn.Module):
    """Proposals -> detections in as many stages as there are `ious`, each a class-agnostic head of its own.

    A stage learns that a region is an object from its IoU on, and weighs its losses by its number of `stage_weights`. By
    default as in Detectron2: later stages learn from all boxes that the first stage's sample became, `average` is of the
    stages' scores, and each sends 1 / stages of its gradient to the pyramid. As in mmdetection: with `resample` the objects
    join again and a new sample is drawn, `average` is of logits, and without `scale_gradient` gradients flow in full.
    """

    def __init__(
        self,
        pool: nn.Module,
        new_box_head: Callable[[], nn.Module],
        num_classes: int,
        *,
        ious: Sequence[float] = (0.5, 0.6, 0.7),
        box_weights: Sequence[tuple[float, float, float, float]] = ((10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)),
        stage_weights: Sequence[float] = (1, 1, 1),
        resample: bool = False,
        average: Literal["scores", "logits"] = "scores",
        scale_gradient: bool = True,
        clamp_both: bool = False,
        batch_per_image: int = 512,
        positive_fraction: float = 0.25,
        beta: float = 0.0,
        score_threshold: float = 0.05,
        nms: Literal["hard", "linear", "gaussian"] = "hard",
        nms_iou: float = 0.5,
        soft_min_score: float = 1e-3,
        class_agnostic_nms: bool = False,
        max_detections: int = 100,
    ):
        super().__init__()
        if not ious or not len(ious) == len(box_weights) == len(stage_weights):
            raise ConfigError(
                f"model.roi_head: {len(ious)} ious, {len(box_weights)} box_weights and {len(stage_weights)} "
                "stage_weights; a cascade needs one of each for every stage, and a stage at least"
            )
        check_range("model.roi_head", LEAST_IOU, 1, ious=ious)
        check_range("model.roi_head", 0, 1e6, stage_weights=stage_weights)
        shared = dict(
            class_agnostic=True, clamp_both=clamp_both, batch_per_image=batch_per_image,
            positive_fraction=positive_fraction, beta=beta, score_threshold=score_threshold, nms=nms, nms_iou=nms_iou,
            soft_min_score=soft_min_score, class_agnostic_nms=class_agnostic_nms, max_detections=max_detections,
        )  # fmt: skip
        self.pool, self.num_classes = pool, num_classes
        self.stages = nn.ModuleList(
            RegionHead(
                new_box_head(), num_classes, pos_iou=iou, box_weights=box, class_weight=w, box_weight=w, **shared
            )
            for iou, box, w in zip(ious, box_weights, stage_weights)
        )
        self.resample, self.average, self.scale_gradient = resample, average, scale_gradient

    def losses(
        self, p: list[Tensor], proposals: list[Proposals], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """{"roi_class_1", "roi_box_1", "roi_class_2", ...}, each divided by its stage's number of regions."""
        p = [_scaled(x, 1 / len(self.stages)) for x in p] if self.scale_gradient else p
        boxes, losses = [r.boxes for r in proposals], {}
        for number, stage in enumerate(self.stages, start=1):
            regions = stage.sample_regions(boxes, targets, everything=number > 1 and not self.resample)
            logits, deltas = stage.predict(self.pool(p, to_rois(regions.boxes)))
            losses[f"roi_class_{number}"], losses[f"roi_box_{number}"] = stage.region_losses(logits, deltas, regions)
            boxes = self._next(refine(stage, deltas, regions.boxes, batch.sizes), regions)
        return losses

    def detect(self, p: list[Tensor], proposals: list[Proposals], batch: Batch) -> list[Detections]:
        """The final boxes of every image, best first: those of the last stage, with the average score of all."""
        boxes, logits, deltas = zip(*self.run(p, [r.boxes for r in proposals], batch.sizes))
        logits = torch.stack(logits)  # (stages, R, K + 1)
        scores = logits.mean(dim=0).softmax(dim=-1) if self.average == "logits" else logits.softmax(dim=-1).mean(dim=0)
        return self.stages[-1].report(scores[:, :-1], deltas[-1], boxes[-1], batch)

    def run(self, p: list[Tensor], boxes: list[Tensor], sizes: Sizes) -> list[tuple[list[Tensor], Tensor, Tensor]]:
        """Of every stage the boxes (R_i, 4) of every image that it was given, its logits (R, K+1) and deltas (R, 1, 4)."""
        out = []
        for stage in self.stages:
            logits, deltas = stage.predict(self.pool(p, to_rois(boxes)))
            out.append((boxes, logits, deltas))
            boxes = refine(stage, deltas, boxes, sizes)
        return out

    def _next(self, boxes: list[Tensor], regions: Regions) -> list[Tensor]:
        """What of the refined boxes the next stage learns from; objects go where they will join again."""
        keep = [is_larger_than(b, 0) & ~(own & self.resample) for b, own in zip(boxes, regions.is_object)]
        return [b[k] for b, k in zip(boxes, keep)]


@torch.no_grad()
def refine(stage: RegionHead, deltas: Tensor, boxes: list[Tensor], sizes: Sizes) -> list[Tensor]:
    """The boxes (R_i, 4) of every image after a stage, clipped; one that would be no number stays as it was."""
    source = torch.cat(boxes)
    refined = stage.decode(deltas[:, 0], source)
    refined = torch.where(refined.isfinite().all(dim=-1, keepdim=True), refined, source)
    return [clip_boxes(b, size) for b, size in zip(refined.split([len(b) for b in boxes]), sizes)]


def _scaled(x: Tensor, share: float) -> Tensor:
    """The same map, which hands back only a share of its gradient."""
    x = x.view_as(x)
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * share)
    return x
