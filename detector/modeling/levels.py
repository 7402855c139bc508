"""Which pyramid level a region is pooled from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from detector.modeling.boxes import box_area

Rounding = Literal["detectron2", "torchvision", "mmdetection"]


def fpn_level(
    boxes: Tensor, k_min: int, k_max: int, k0: int = 4, s0: float = 224, rounding: Rounding = "detectron2"
) -> Tensor:
    """FPN eq. (1): k = floor(k0 + log2(sqrt(w*h) / s0)), clamped to [k_min, k_max]: (R, 4) -> (R,) int64.

    s0 = 224 is the side of an ImageNet crop, which a classifier saw at level k0 = 4. `rounding`: the framework whose float32
    operations decide about a box just below a border. Each adds another small number in another place.
    """
    scale = box_area(boxes).sqrt()  # an empty box goes to k_min
    if rounding == "detectron2":
        k = torch.floor(k0 + torch.log2(scale / s0 + 1e-8))
    elif rounding == "torchvision":
        k = torch.floor(k0 + torch.log2(scale / s0) + 1e-6)
    else:
        k = k_min + torch.floor(torch.log2(scale / (s0 * 2.0 ** (k_min - k0)) + 1e-6))
    return k.clamp(k_min, k_max).long()
