"""Convolutions the way that a processor is fast in, at inference and for the weight gradient, and at some cells alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.shapes import is_portable
from detector.modeling.winograd import winograd

Pair = tuple[int, ...]  # (of y, of x)
CHANNELS, CELLS = 256, 2000  # the least of a map for Winograd's convolution


class Conv2d(nn.Conv2d):
    """torch's convolution, by `convolve`."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return convolve(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Any, dilation: Pair, groups: int
) -> Tensor:
    """F.conv2d, by Winograd's algorithm where that is faster; where torch's weight gradient is slow, with that of this module."""
    if _has_slow_weight_gradient(x, weight, groups):
        return _Convolution.apply(x, weight, bias, stride, padding, dilation)
    if _has_fewer_products(x, weight, stride, padding, dilation, groups):
        return winograd(x, weight, bias)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def patches_at(p: Sequence[Tensor], image: Tensor, cell: Tensor, side: int) -> Tensor:
    """Levels (N, C, H, W) -> (S, side * side * C): the square around each cell (S,) of an `image` (S,), 0 beyond its level.

    Cells are numbered through all levels, row by row.
    """
    around, out = torch.arange(side, device=cell.device) - side // 2, p[0].new_zeros(())
    for x in p:
        _, c, h, w = x.shape
        y, column = (cell // w)[:, None, None] + around[:, None], (cell % w)[:, None, None] + around
        inside = ((cell >= 0) & (cell < h * w))[:, None, None] & (y >= 0) & (y < h) & (column >= 0) & (column < w)
        index = torch.where(inside, (image[:, None, None] * h + y) * w + column, 0)  # (S, side, side)
        found = F.embedding(index, x.permute(0, 2, 3, 1).reshape(-1, c))
        out = torch.where(inside[..., None], found, out)  # a cell lies on one level
        cell = cell - h * w
    return out.flatten(1)


def at_patches(conv: Any, x: Tensor) -> Tensor:
    """The convolution at single cells: their squares, by `patches_at` (S, k * k * C) -> (S, channels)."""
    return F.linear(x, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def _has_fewer_products(x: Tensor, weight: Tensor, stride: Pair, padding: Any, dilation: Pair, groups: int) -> bool:
    """Whether Winograd's convolution is the faster one, at inference on a CPU.

    Measured on one core: 1.4 times as fast with 256 channels and 2000 cells, 1.8 with 60,000; little is won below.
    """
    return (
        weight.shape[2:] == (3, 3)
        and stride == padding == dilation == (1, 1)
        and groups == 1
        and min(weight.shape[:2]) >= CHANNELS
        and x.shape[2] * x.shape[3] >= CELLS
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.is_contiguous(memory_format=torch.channels_last)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not is_portable()
    )


def _has_slow_weight_gradient(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Whether torch's weight gradient takes several times as long in channels-last memory as in contiguous memory.

    Measured with AVX2, without AVX-512: 3 to 6 times for kernels of 3 x 3 on maps of 200 x 304, as long on small maps.
    """
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and weight.shape[-1] > 1
        and groups == 1
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
    )


class _Convolution(torch.autograd.Function):
    """F.conv2d of one group, whose backward pass computes the weight gradient in contiguous memory."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Any, dilation: Pair
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rest = (stride, padding, dilation, False, (0, 0), 1)
        return F.conv2d(x, weight, bias, stride, padding, dilation)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        backward = torch.ops.aten.convolution_backward
        of_x, of_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        dx = backward(grad, x, weight, None, *ctx.rest, (True, False, False))[0] if of_x else None
        dw = backward(grad.contiguous(), x.contiguous(), weight.contiguous(), None, *ctx.rest, (False, True, False))[1]
        dw = torch.empty_like(weight).copy_(dw)  # in its layout: DistributedDataParallel warns of another
        return dx, dw, grad.sum((0, 2, 3)) if of_bias else None, None, None, None
