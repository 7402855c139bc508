"""The semantic branch of Hybrid Task Cascade (Chen et al. 2019, arXiv 1901.07518, sec. 3.3): a class for every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector import distributed
from detector.modeling.convolution import Conv2d
from detector.modeling.layers import ConvNorm, caffe2_msra_
from detector.modeling.roi_heads.pool import RegionPool, RoIPool
from detector.schema.ranges import Range, Repeats, Weight, Width
from detector.schema.signatures import checked
from detector.structures import Target

UNLABELLED = 255


@checked
class SemanticConvs(nn.Module):
    """[P2..P6] -> features of every cell of one level, (N, width, H, W), for class logits and for an embedding.

    Args:
        channels: of every level.
        strides: of every level, in pixels.
        classes: classes of the semantic maps, numbered from 0; COCO's things and stuff have 183.
        level: the level, 0 for P2, to whose size all levels are brought.
        convs: 3x3 convolutions in a row.
        width: channels of each.
        weight: factor of the loss.
    """

    target_fields = ("semantic",)

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], *, classes: Annotated[int, Range(1, UNLABELLED)] = 183,
        level: Annotated[int, Range(0, 100)] = 1, convs: Repeats = 4, width: Width = 256, weight: Weight = 0.2,
    ):  # fmt: skip
        super().__init__()
        if level >= len(strides):
            raise ValueError(f"level: {level}, and there are {len(strides)} levels, counted from 0")
        self.lateral = nn.ModuleList(ConvNorm(c, width, 1) for c in channels)
        self.convs = nn.ModuleList(ConvNorm(width, width, 3) for _ in range(convs))
        self.embedding = ConvNorm(width, width, 1)
        self.logits = Conv2d(width, classes, 1)
        caffe2_msra_(self)
        self.level, self.stride, self.width, self.weight = level, strides[level], width, weight

    def forward(self, p: Sequence[Tensor]) -> Tensor:
        size = p[self.level].shape[-2:]
        same = (
            F.interpolate(x, size=size, mode="bilinear", align_corners=True) for x in p
        )  # of its own size: as it is
        x = torch.stack([F.relu_(conv(level)) for conv, level in zip(self.lateral, same, strict=True)]).sum(dim=0)
        for conv in self.convs:
            x = F.relu_(conv(x))
        return x

    def embed(self, x: Tensor) -> Tensor:
        """The features (N, width, H, W) as the other branches read them."""
        return F.relu_(self.embedding(x))

    def loss(self, x: Tensor, targets: Sequence[Target], padded: Sequence[int]) -> Tensor:
        """Cross-entropy of the labelled cells, divided by the number of all cells, the padded ones too, as in MMDetection.

        The label of a cell is that of its first pixel.
        """
        logits = self.logits(x).float()
        maps = [self._padded(target.semantic, padded, i) for i, target in enumerate(targets)]
        labels = torch.stack(maps)[:, :: self.stride, :: self.stride].long()  # (N, H, W)
        total = F.cross_entropy(logits, labels, ignore_index=UNLABELLED, reduction="sum")
        cells = distributed.global_normalizer(labels.numel()) if self.training else labels.numel()
        return total * (self.weight / cells)

    def _padded(self, semantic: Tensor | None, padded: Sequence[int], i: int) -> Tensor:
        if semantic is None:
            raise ValueError(f"target {i}: no semantic map: the model's semantic_head learns from one of every image")
        (height, width), (h, w) = padded, semantic.shape
        return F.pad(semantic, (0, width - w, 0, height - h), value=UNLABELLED)


class FusedLevels(list[Tensor]):
    """The levels of a pyramid, [P2..P6], with the `embedding` of the semantic branch."""

    def __init__(self, levels: Sequence[Tensor], embedding: Tensor):
        super().__init__(levels)
        self.embedding = embedding


class FusedPool(nn.Module):
    """A pool to whose regions those of the embedding are added; larger ones are first averaged to the same size.

    Args:
        pool: levels and regions -> pooled regions (R, C, size, size).
        channels: of the embedding, the same as the pool's.
        stride: of the embedding, in pixels.
        size: cells along each side at which regions of the embedding are read.
    """

    def __init__(self, pool: Any, channels: int, stride: int, size: int):
        super().__init__()
        if not isinstance(pool, RegionPool) or pool.branches > 1 or pool.channels != channels:
            raise ValueError(
                f"the semantic embedding has one map of {channels} channels a region, and the pool has not"
            )
        self.pool = pool
        self.semantic = RoIPool([channels], [stride], levels=1, size=size, samples=pool.samples, aligned=pool.aligned)

    def forward(self, p: FusedLevels, rois: Tensor) -> Tensor:
        """Levels with embedding and (R, 5) rois -> (R, C, size, size)."""
        semantic = self.semantic([p.embedding], rois)
        return self.pool(p, rois) + F.adaptive_avg_pool2d(semantic, self.pool.size)
