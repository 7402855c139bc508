"""The mask head of Mask R-CNN (He et al. 2017, arXiv 1703.06870, sec. 3 and fig. 4)."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.convolution import Conv2d
from detector.modeling.layers import ConvNorm, Norm, caffe2_msra_, normal_
from detector.modeling.roi_heads.mask_targets import MaskTargets
from detector.schema.ranges import Range, Width
from detector.schema.signatures import checked


@checked
class ConvUpsample(nn.Module):
    """(R, C, size, size) -> mask logits (R, K or 1, 2 size, 2 size): 3x3 convolutions, a transposed one, a 1x1.

    Args:
        channels: C.
        size: cells of a pooled region along each side.
        num_classes: K, without background.
        convs: 3x3 convolutions in a row; 0 where the regions come from the backbone's last stage (C4).
        width: channels of each of them and of the transposed one.
        norm: after each 3x3 convolution; null: none.
        class_agnostic: one mask for all classes instead of one for each.
        init: the framework whose first weights the 1x1 convolution has: small ones in Detectron2.
        targets: what the masks of the positive regions are compared with.
    """

    def __init__(
        self, channels: int, size: int, num_classes: int, *, convs: Annotated[int, Range(0, 100)] = 4, width: Width = 256,
        norm: Norm | None = None, class_agnostic: bool = False,
        init: Literal["detectron2", "mmdetection", "torchvision"] = "detectron2", targets: MaskTargets = MaskTargets(),
    ):  # fmt: skip
        super().__init__()
        widths = [channels] + [width] * convs
        self.convs = nn.ModuleList(ConvNorm(a, b, 3, norm=norm) for a, b in zip(widths, widths[1:]))
        self.deconv = nn.ConvTranspose2d(widths[-1], width, 2, stride=2)
        self.predictor = Conv2d(width, 1 if class_agnostic else num_classes, 1)
        self.size, self.targets = 2 * size, targets
        _initialise(self, init)

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """(R, C, size, size) -> (R, width, size, size): the 3x3 convolutions alone."""
        for conv in self.convs:
            x = F.relu_(conv(x))
        return x

    def predict(self, x: Tensor) -> Tensor:
        """(R, width, size, size) -> mask logits (R, K or 1, 2 size, 2 size), float32."""
        return self.predictor(F.relu_(self.deconv(x))).float()


def _initialise(head: ConvUpsample, init: str) -> None:
    caffe2_msra_(head.convs)
    if init == "torchvision":
        for layer in (head.deconv, head.predictor):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        return
    caffe2_msra_(head.deconv)
    normal_(head.predictor, std=0.001) if init == "detectron2" else caffe2_msra_(head.predictor)
