"""Path aggregation network (Liu et al. 2018, arXiv 1803.01534, sec. 3.1, fig. 1b).

Adaptive feature pooling (sec. 3.2) is AllLevelPool in roi_heads/pool.py, its box heads are roi_heads/adaptive_head.py.
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

    The paper has a ReLU after every convolution of the path. Without a norm there is none here, as in the authors' and
    MMDetection's code. With a norm, convolutions of the path keep their bias and a ReLU follows the norm; the FPN has no
    ReLU. Raises ValueError for maps that are not each half as large as the one before, and for a norm in MMDetection's form.

    Args:
        channels: of the backbone's maps [C2..C5].
        strides: pixels of the image between two cells of each of these maps.
        width: channels of every level.
        form: whether `down` reads N_k (authors) or the sum before `output` (mmdetection, which its weights need).
        norm: norm layer after each convolution, only in the authors' form; null: none.
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
                f"the path needs at least two maps, each half as large as the one before, got strides {list(strides)}"
            )
        if norm is not None and form != "authors":
            raise ValueError(f"norm: {norm} needs form: authors; MMDetection's form has no norm")
        self.fpn = FPN(channels, strides, width=width, norm=norm)
        self.down = nn.ModuleList(ConvNorm(width, width, 3, stride=2, norm=norm, bias=True) for _ in channels[1:])
        self.output = nn.ModuleList(ConvNorm(width, width, 3, norm=norm, bias=True) for _ in channels[1:])
        for path in (self.down, self.output):
            caffe2_xavier_(path)
        self.activation = nn.Identity() if norm is None else nn.ReLU()
        self.from_output = form == "authors"
        self.channels, self.strides = self.fpn.channels, self.fpn.strides

    def forward(self, c: list[Tensor]) -> list[Tensor]:
        p2, *above, _ = self.fpn(c)  # P2, [P3..P5]; N6 replaces P6
        n, merged = [p2], p2
        for p, down, output in zip(above, self.down, self.output, strict=True):  # bottom-up: N3, then N4, then N5
            merged = p + self.activation(down(n[-1] if self.from_output else merged))
            n.append(self.activation(output(merged)))
        return [*n, subsample(n[-1])]  # N6
