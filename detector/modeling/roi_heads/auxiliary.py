"""Consistent supervision (Guo et al. 2020, AugFPN, arXiv 1912.05384, sec. 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from detector.modeling.boxes import BoxCoder
from detector.modeling.matching import Matching
from detector.modeling.roi_heads.mask_branch import MaskBranch
from detector.modeling.roi_heads.pool import AllLevelPool
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.modeling.roi_heads.selection import DetectionSelection
from detector.modeling.roi_heads.stage import RegionLoss, Regions, Stage, boxes_of, to_rois
from detector.modeling.sampling import Sampling
from detector.schema.ranges import Weight
from detector.schema.signatures import checked
from detector.structures import Batch, Features, Proposals, Target


@checked
class AuxiliaryRoIHead(RoIHead):
    """The standard head, and in training one more stage that learns the same regions from each lateral M2..M5.

    This narrows the semantic gap between the laterals before they are fused. All levels share the auxiliary stage.

    Args:
        pool: levels and regions -> pooled regions.
        box_head: pooled regions -> vectors.
        new_box_head: makes the auxiliary stage's box head.
        num_classes: K, without background.
        lateral_strides: of the laterals M2..M5, from the pyramid; None if it has none.
        auxiliary_weight: factor of the auxiliary losses.
        class_agnostic: one set of deltas for all classes instead of one for each.
        matching: which regions are positive.
        sampling: how many regions of an image are learnt from.
        coder: how deltas describe a box relative to its region.
        loss: of classes and deltas, in both stages.
        selection: which classified regions become detections.
        mask: the branch that gives every detection a mask; None: boxes alone.
    """

    def __init__(
        self,
        pool: Any,
        box_head: nn.Module,
        new_box_head: Callable[[], nn.Module],
        num_classes: int,
        lateral_strides: Sequence[int] | None,
        *,
        auxiliary_weight: Weight = 0.25,
        class_agnostic: bool = False,
        matching: Matching = Matching(pos_iou=0.5),
        sampling: Sampling = Sampling(batch_per_image=512, positive_fraction=0.25),
        coder: BoxCoder = BoxCoder(weights=(10, 10, 5, 5)),
        loss: RegionLoss = RegionLoss(),
        selection: DetectionSelection = DetectionSelection(),
        mask: MaskBranch | None = None,
    ):
        parts: dict[str, Any] = dict(
            class_agnostic=class_agnostic, matching=matching, sampling=sampling, coder=coder, loss=loss
        )
        super().__init__(pool, box_head, num_classes, **parts, selection=selection, mask=mask)
        if lateral_strides is None:
            raise ValueError(
                "the auxiliary head learns from the laterals of neck augfpn in a plain pyramid; set model.neck.type=augfpn and "
                "model.pyramid.type=plain, or model.roi_head.type=standard"
            )
        if pool.branches > 1:
            raise ValueError("the auxiliary head reads one map per region; the pools by_level and soft give one")
        self.lateral_pool = AllLevelPool(
            [pool.channels], lateral_strides, levels=len(lateral_strides), size=pool.size, samples=pool.samples,
            aligned=pool.aligned,
        )  # fmt: skip
        self.auxiliary = Stage(new_box_head(), num_classes, **parts)
        self.auxiliary_weight = auxiliary_weight

    def losses(
        self, p: list[Tensor], proposals: list[Proposals], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """The standard head's and, in training, {"aux_class", "aux_box"}, each summed over the levels."""
        regions = self.stage.sample(boxes_of(proposals), targets)
        losses = self.losses_of(p, regions, batch, targets)
        return losses | self._auxiliary_losses(p, regions, targets) if self.training else losses

    def _auxiliary_losses(
        self, p: list[Tensor], regions: list[Regions], targets: list[Target]
    ) -> dict[str, Tensor]:  # fmt: skip
        if not isinstance(p, Features):
            raise ValueError("the auxiliary losses need the laterals, but the neck gave none: it is in eval mode")
        pooled = self.lateral_pool(p.laterals, to_rois([r.boxes for r in regions]))  # per level (S, C, size, size)
        losses = [self.auxiliary.losses(*self.auxiliary(x), regions, targets) for x in pooled]
        class_loss, box_loss = (self.auxiliary_weight * sum(terms) for terms in zip(*losses))
        return {"aux_class": class_loss, "aux_box": box_loss}
