"""Consistent supervision (Guo et al. 2020, AugFPN, arXiv 1912.05384, sec. 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from detector.errors import ConfigError, check_range
from detector.modeling.roi_heads.pool import AllLevelPool
from detector.modeling.roi_heads.roi_head import RegionHead, Regions, RoIHead, to_rois
from detector.structures import Batch, Levels, Proposals, Target


class AuxiliaryRoIHead(RoIHead):
    """The standard head, and in training one more that learns the same regions from each of the raw laterals M2..M5.

    So the laterals are alike in meaning before the pyramid adds them up. All levels share the auxiliary head, which has
    the main head's kind, options and losses, times `auxiliary_weight`. The other options are those of RegionHead.
    """

    def __init__(
        self,
        pool: nn.Module,
        box_head: nn.Module,
        new_box_head: Callable[[], nn.Module],
        num_classes: int,
        raw_strides: Sequence[int] | None,
        *,
        auxiliary_weight: float = 0.25,
        **options,
    ):
        super().__init__(pool, box_head, num_classes, **options)
        check_range("model.roi_head", 0, 1e6, auxiliary_weight=auxiliary_weight)
        if raw_strides is None:
            raise ConfigError(
                "model.roi_head: the auxiliary head learns from the raw laterals of neck augfpn in a plain pyramid; set "
                "model.neck.type=augfpn and model.pyramid.type=plain, or model.roi_head.type=standard"
            )
        if pool.branches > 1:
            raise ConfigError("model.roi_head: the auxiliary head reads one map of a region; pools that give one are "
                              "by_level and soft")  # fmt: skip
        self.raw_pool = AllLevelPool([pool.channels], raw_strides, levels=len(raw_strides), size=pool.size,
                                     samples=pool.samples, aligned=pool.aligned)  # fmt: skip
        self.auxiliary = RegionHead(new_box_head(), num_classes, **options)
        self.auxiliary_weight = auxiliary_weight

    def losses(
        self, p: list[Tensor], proposals: list[Proposals], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """{"roi_class", "roi_box"}, and in training {"aux_class", "aux_box"}, each summed over the levels."""
        regions = self.sample_regions([r.boxes for r in proposals], targets)
        class_loss, box_loss = self.region_losses(*self.head(p, to_rois(regions.boxes)), regions)
        losses = {"roi_class": class_loss, "roi_box": box_loss}
        return losses | self._auxiliary_losses(p, regions) if self.training else losses

    def _auxiliary_losses(self, p: list[Tensor], regions: Regions) -> dict[str, Tensor]:
        if not isinstance(p, Levels):
            raise ValueError("the auxiliary losses need the raw laterals, but the neck gave none: it is in eval mode")
        pooled = self.raw_pool(p.raw, to_rois(regions.boxes))  # of every level (S, C, size, size)
        losses = [self.auxiliary.region_losses(*self.auxiliary.predict(x), regions) for x in pooled]
        class_loss, box_loss = (self.auxiliary_weight * sum(terms) for terms in zip(*losses))
        return {"aux_class": class_loss, "aux_box": box_loss}
