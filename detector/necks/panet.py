"""Path aggregation network (Liu et al. 2018, arXiv 1803.01534, sec. 3.1, fig. 1b)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detector.layers import ConvNorm, Norm, c2_xavier_
from detector.necks.fpn import FPN


class PANet(nn.Module):
    """[C2..C5] -> [N2..N6]: an FPN, then a short bottom-up path over its outputs.

    `form`: "authors", whose path goes on from N_l, the level's own output, as in the paper; "mmdetection", whose path
    goes on from the sum before the output's convolution and whose weights need that. `norm`, of the authors' form alone,
    follows every convolution of FPN and path; on the path, where the convolutions keep their bias beside it, a ReLU
    comes last. Neither form has a ReLU without a norm; the paper's text has one after every convolution of the path.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        width: int = 256,
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
        for layer in [*self.down, *self.output]:
            c2_xavier_(layer.conv)
        self.activation = nn.Identity() if norm is None else nn.ReLU()
        self.from_output = form == "authors"
        self.channels, self.strides = self.fpn.channels, self.fpn.strides

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        p2, *above, _ = self.fpn(c)  # P2..P5; the path makes its own top level
        n, s = [p2], p2
        for p, down, output in zip(above, self.down, self.output, strict=True):  # bottom-up: N3, then N4, then N5
            s = p + self.activation(down(n[-1] if self.from_output else s))
            n.append(self.activation(output(s)))
        return n + [F.max_pool2d(n[-1], kernel_size=1, stride=2)]  # N6
