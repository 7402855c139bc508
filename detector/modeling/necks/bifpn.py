"""BiFPN, EfficientDet's weighted bidirectional pyramid (Tan, Pang and Le 2020, arXiv 1911.09070, sec. 3, fig. 2d)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, reduce
from operator import iadd
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.convolution import Conv2d
from detector.modeling.layers import ConvNorm, Norm, glorot_
from detector.modeling.necks.fpn import up
from detector.schema.ranges import Repeats, Width
from detector.schema.signatures import checked

LEVELS = 5


@checked
class BiFPN(nn.Module):
    """[C2..C5] -> [P2..P6], or with `first_level` 3 the paper's [C3..C5] -> [P3..P7].

    Raises ValueError for a backbone that lacks one of these maps.

    Args:
        channels: of the backbone's maps [C2..C5].
        strides: pixels of the image between two cells of each of these maps.
        width: channels of every level; 64 in EfficientDet-D0, 384 in D7.
        repeats: layers, each a pass down and a pass up; 3 in EfficientDet-D0, 8 in D7.
        first_level: number of the finest level.
        fuse: weights of the maps that meet, by fast normalised fusion (sec. 3.3) or a softmax; sum adds without weights
            (D6 and D7).
        separable: depthwise and pointwise convolutions instead of full ones.
        norm: norm layer after each convolution.
        bias: whether convolutions before a norm have a bias, as in the authors' weights.
        pool_padding: symmetric centres the 3x3 windows that halve a map on its even pixels, as a ResNet's strided
            convolutions do; same is TensorFlow's rule, which centres them on the odd pixels of an even side.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        width: Width = 256,
        repeats: Repeats = 3,
        first_level: Literal[2, 3] = 2,
        fuse: Literal["fast", "softmax", "sum"] = "fast",
        separable: bool = True,
        norm: Norm = "batch",
        bias: bool = True,
        pool_padding: Literal["symmetric", "same"] = "symmetric",
    ):
        super().__init__()
        needed = [2**level for level in range(first_level, 6)]  # strides of C2..C5 or C3..C5
        if list(strides[-len(needed) :]) != needed:
            raise ValueError(f"levels from P{first_level} need maps of strides {needed}, got {list(strides)}")
        # The authors' eps, but not their momentum of 0.01: statistics that slow are still stale after some hundred steps.
        conv = partial(ConvNorm, norm=norm, bias=bias, eps=1e-3)
        fusion = partial(Fusion, width=width, fuse=fuse, separable=separable, conv=conv)
        c = list(channels[-len(needed) :])
        self.pool = pool_symmetric if pool_padding == "symmetric" else pool_same
        self.top = conv(c[-1], width, 1)
        self.lateral_down = nn.ModuleList(conv(c_in, width, 1) for c_in in c)
        self.lateral_up = nn.ModuleList(conv(c_in, width, 1) for c_in in c[1:])
        self.layers = nn.ModuleList(BiFPNLayer(fusion, self.pool) for _ in range(repeats))
        glorot_(self)
        self.channels = [width] * LEVELS
        self.strides = [needed[0] * 2**i for i in range(LEVELS)]

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        c = c[-len(self.lateral_down) :]  # a pyramid from P3 on does not read C2
        above = [self.pool(self.top(c[-1]))]  # P6
        while len(c) + len(above) < LEVELS:  # P7, in a pyramid from P3 on
            above.append(self.pool(above[-1]))
        p = [lateral(x) for lateral, x in zip(self.lateral_down, c, strict=True)] + above
        # As in the authors' code, each pass of the first layer has its own laterals; the pass up has no node at the finest
        # level.
        p_up = p[:1] + [lateral(x) for lateral, x in zip(self.lateral_up, c[1:], strict=True)] + above
        for layer in self.layers:
            p = p_up = layer(p, p_up)
        return p


class BiFPNLayer(nn.Module):
    """One pass down and one up (fig. 2d); comments name levels as in P3..P7. `fusion(n)` makes a node for n maps."""

    def __init__(self, fusion: Callable[[int], nn.Module], pool: Callable[[Tensor], Tensor]):
        super().__init__()
        self.down = nn.ModuleList(fusion(2) for _ in range(LEVELS - 1))  # O3, T4, T5, T6
        self.up = nn.ModuleList(fusion(n) for n in (3,) * (LEVELS - 2) + (2,))  # O4, O5, O6, O7
        self.pool = pool

    def forward(self, p: list[Tensor], p_up: list[Tensor]) -> list[Tensor]:
        """The inputs [P3..P7] of the pass down and of the pass up -> [O3..O7]."""
        t = list(p)
        for i in reversed(range(LEVELS - 1)):  # T6 from P6 and P7, then T5, T4, and O3
            t[i] = self.down[i](p[i], up(t[i + 1], like=p[i]))
        o = t[:1]  # O3
        for i in range(1, LEVELS - 1):  # O4 from P4, T4 and O3, then O5, O6
            o.append(self.up[i - 1](p_up[i], t[i], self.pool(o[-1])))
        return o + [self.up[-1](p_up[-1], self.pool(o[-1]))]  # O7 from P7 and O6: there is no T7


class Fusion(nn.Module):
    """conv(swish(w1 x1 + w2 x2 + ...)) of maps of one size; w >= 0 sums to nearly 1, or for "sum" every w is 1."""

    def __init__(self, maps: int, *, width: int, fuse: str, separable: bool, conv: Callable[..., ConvNorm]):
        super().__init__()
        self.normalise = {"fast": fast_normalised, "softmax": partial(torch.softmax, dim=0), "sum": None}[fuse]
        self.weight = None if self.normalise is None else nn.Parameter(torch.ones(maps))
        depthwise = Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.conv = nn.Sequential(depthwise, conv(width, width, 1)) if separable else conv(width, width, 3)

    def forward(self, *x: Tensor) -> Tensor:
        if self.normalise is None:
            return self.conv(F.silu(reduce(torch.add, x)))
        weighted = (w * x_i for w, x_i in zip(self.normalise(self.weight), x, strict=True))
        return self.conv(F.silu(reduce(iadd, weighted)))  # in place: nothing else refers to the first product


def fast_normalised(weight: Tensor) -> Tensor:
    """w_i = relu(a_i) / (sum_j relu(a_j) + 1e-4) (sec. 3.3)."""
    positive = weight.relu()
    return positive / (positive.sum() + 1e-4)


def pool_symmetric(x: Tensor) -> Tensor:
    """Half the size, rounded up: the maximum of 3x3 windows centred on the even pixels 0, 2, 4, ..."""
    return F.max_pool2d(x, 3, stride=2, padding=1)


def pool_same(x: Tensor) -> Tensor:
    """Half the size, rounded up: TensorFlow's SAME pads an even side only at its end, an odd side at both ends."""
    return F.max_pool2d(x, 3, stride=2, padding=[side % 2 for side in x.shape[-2:]], ceil_mode=True)
