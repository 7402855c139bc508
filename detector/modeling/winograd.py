"""3 x 3 convolution with a quarter of the multiplications (Lavin and Gray 2016, arXiv 1509.09308, sec. 4.3: F(4 x 4, 3 x 3)).

Squares of 4 x 4 outputs are computed from the 6 x 6 inputs around them: both these and the filters are transformed to 36 values,
the sum over channels becomes 36 matrix products, and what they give is transformed back. Every transformation is a small matrix,
used for the rows and for the columns of a square.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

OUT, IN = 4, 6  # sides of the squares
STRIP = 300  # squares that are computed together, so that their values stay in the processor's cache
OF_FILTER = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]  # 24 G of the paper
OF_INPUT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1]]  # fmt: skip
OF_OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


@functools.cache
def _transformations() -> tuple[Tensor, Tensor, Tensor]:
    """Of filters in both directions (36, 9), of inputs (6, 6) and of outputs (4, 6) in one."""
    filters = torch.tensor(OF_FILTER, dtype=torch.float64) / 24
    return torch.kron(filters, filters).float(), torch.tensor(OF_INPUT).float(), torch.tensor(OF_OUTPUT).float()


@torch.library.custom_op(
    "detector::winograd", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
)
def winograd(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) of float32 maps (N, C, H, W) and filters (K, C, 3, 3), in channels-last memory.

    Not differentiable. It rounds as float32 does: on maps of 256 channels its error is about 3 times that of F.conv2d (root mean
    square 1.4e-6 and 0.4e-6 where the outputs are about 1). One operator for a compiler, and for a count of operations.
    """
    _, channels, h, w = x.shape
    of_filter, of_input, of_output = _transformations()
    filters = (of_filter @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(IN * IN, channels, -1)  # (36, C, K)
    high, wide = -(-h // OUT), -(-w // OUT)  # in squares, ceil
    out = x.new_empty(len(x), high * OUT, wide * OUT, len(weight))
    step = max(1, STRIP // wide)
    for image, found in zip(x.permute(0, 2, 3, 1), out):
        for top in range(0, high, step):
            count = min(step, high - top)
            rows = _padded_rows(image, top * OUT - 1, count * OUT + 2, wide * OUT + 2)
            values = rows.unfold(0, IN, OUT).permute(3, 0, 1, 2).reshape(IN, -1)
            values = (of_input @ values).view(IN, count, -1, channels).unfold(2, IN, OUT)  # (6, count, wide, C, 6)
            values = of_input @ values.permute(0, 4, 1, 2, 3).reshape(IN, IN, -1)
            products = torch.bmm(values.view(IN * IN, -1, channels), filters)
            block = of_output @ (of_output @ products.view(IN, -1)).view(OUT, IN, -1)
            block = block.view(OUT, OUT, count, wide, -1)
            if bias is not None:
                block += bias
            strip = found[top * OUT : (top + count) * OUT].view(count, OUT, wide, OUT, -1)
            strip.copy_(block.permute(2, 0, 3, 1, 4))
    return out[:, :h, :w].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


@winograd.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Its shape, for a compiler."""
    n, _, h, w = x.shape
    return x.new_empty((n, len(weight), h, w)).contiguous(memory_format=torch.channels_last)


def _padded_rows(image: Tensor, top: int, count: int, width: int) -> Tensor:
    """Rows from `top` on of an image (H, W, C) with a border of zeros: (count, width, C)."""
    rows, above = image[max(top, 0) : top + count], max(-top, 0)
    return F.pad(rows, (0, 0, 1, width - 1 - image.shape[1], above, count - above - len(rows)))
