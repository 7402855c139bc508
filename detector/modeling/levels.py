"""Which pyramid level a region is pooled from."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.modeling.boxes import box_area


def fpn_level(boxes: Tensor, k_min: int, k_max: int, k0: int = 4, s0: float = 224) -> Tensor:
    """FPN eq. (1): k = floor(k0 + log2(sqrt(w*h) / s0)), clamped to [k_min, k_max]: (R, 4) -> (R,) int64.

    s0 = 224 is the side of an ImageNet crop, which a classifier saw at level k0 = 4.
    """
    scale = box_area(boxes).sqrt()
    k = torch.floor(k0 + torch.log2(scale / s0 + 1e-8))  # 1e-8: an empty box goes to k_min
    return k.clamp(k_min, k_max).long()
