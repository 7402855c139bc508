"""Path aggregation network (Liu et al. 2018, arXiv 1803.01534, sec. 3.1, fig. 1b).

Its adaptive feature pooling is detector/modeling/roi_heads/pool.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from detector.modeling.layers import ConvNorm, Norm, caffe2_xavier_
from detector.modeling.necks.fpn import FPN, subsample
from detector.schema.ranges import Width
from detector.schema.signatures import checked


@checked
class PANet(nn.Module):
    """[C2..C5] -> [N2..N6]: an FPN, then a bottom-up path: N2 = P2, N_(k+1) = output(P_(k+1) + down(N_k)), N6 from N5.

    `form`: "authors" is that; in "mmdetection", whose weights need it, `down` reads the sum before `output`, not N_k.
    `norm`, for the authors' form alone, follows every convolution; those of the path then keep their bias and get a
    ReLU after the norm, those of the FPN do not. The paper has a ReLU after every convolution of the path; without a
    norm there is none here, nor in the authors' or mmdetection's code.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        width: Width = 256,
        form: Literal["authors", "mmdetection"] = "mmdetection",
        norm: Norm | None = None,
    ):
        super().__init__()
        if len(strides) < 2 or any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise ValueError(
                f"the path needs two maps or more, each half as large as the last, not strides {list(strides)}"
            )
        if norm is not None and form != "authors":
            raise ValueError(f"norm: {norm} belongs to form: authors; mmdetection's has none")
        self.fpn = FPN(channels, strides, width=width, norm=norm)
        self.down = nn.ModuleList(ConvNorm(width, width, 3, stride=2, norm=norm, bias=True) for _ in channels[1:])
        self.output = nn.ModuleList(ConvNorm(width, width, 3, norm=norm, bias=True) for _ in channels[1:])
        for path in (self.down, self.output):
            caffe2_xavier_(path)
        self.activation = nn.Identity() if norm is None else nn.ReLU()
        self.from_output = form == "authors"
        self.channels, self.strides = self.fpn.channels, self.fpn.strides

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        p2, *above, _ = self.fpn(c)  # P2, [P3..P5]; P6 gives way to N6
        n, merged = [p2], p2
        for p, down, output in zip(above, self.down, self.output, strict=True):  # bottom-up: N3, then N4, then N5
            merged = p + self.activation(down(n[-1] if self.from_output else merged))
            n.append(self.activation(output(merged)))
        return [*n, subsample(n[-1])]  # N6
