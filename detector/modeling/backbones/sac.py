"""The convolutions of DetectoRS (Qiao et al. 2020, arXiv 2006.02334, sec. 4); they start equal to plain convolutions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from detector.modeling.convolution import Conv2d, convolve

VARIANCE_EPS = 1e-5  # added to the variance of a filter


class AWSConv(nn.Conv2d):
    """Adaptive weight standardisation: a convolution with the filters gamma * (w - mean) / std + beta.

    Gamma and beta are constants: the std and mean of the initial filters, so that training starts from the plain
    convolution. For weights without gamma and beta (ImageNet's) they are computed when the weights are loaded.
    """

    weight_gamma: Tensor
    weight_beta: Tensor

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int = 1, **options: Any):
        super().__init__(c_in, c_out, kernel, stride, **options)
        self.register_buffer("weight_gamma", torch.ones(c_out, 1, 1, 1))
        self.register_buffer("weight_beta", torch.zeros(c_out, 1, 1, 1))

    def filters(self) -> Tensor:
        """The standardised filters, in float32 or wider."""
        std, mean = std_and_mean(self.weight)
        return self.weight_gamma * ((self.weight - mean) / std) + self.weight_beta

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.filters().to(x.dtype), self.bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.no_grad()
    def start_plain(self) -> None:
        """Set gamma and beta so that the function is that of a plain convolution with the current weight."""
        for constant, value in zip((self.weight_gamma, self.weight_beta), std_and_mean(self.weight)):
            constant.copy_(value)

    @torch.no_grad()
    def plain(self) -> nn.Conv2d:
        """A plain convolution with the standardised filters, for inference."""
        out = nn.utils.skip_init(
            nn.Conv2d, self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, bias=False,
        )  # fmt: skip
        out.weight.copy_(self.filters())
        return out

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        names = prefix + "weight_gamma", prefix + "weight_beta"
        if prefix + "weight" in state_dict and not any(name in state_dict for name in names):
            state_dict.update(zip(names, std_and_mean(state_dict[prefix + "weight"])))
        super()._load_from_state_dict(state_dict, prefix, *args)


class SAC(AWSConv):
    """Switchable atrous convolution (sec. 4.2): S * conv(x, w, dilation d) + (1 - S) * conv(x, w + dw, dilation 3d).

    The switch S is one unbounded number per pixel, initially 1. Before and after, a function of the map's mean is added to
    every pixel (global context, sec. 4.3). With `deformable`, each convolution has its own offsets (Dai et al. 2017).
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, *, deformable: bool = False, **options: Any
    ):
        super().__init__(c_in, c_out, kernel, stride, **options)
        self.weight_diff = nn.Parameter(torch.zeros_like(self.weight))
        self.switch = Conv2d(c_in, 1, 1, stride)
        self.pre_context = Conv2d(c_in, c_in, 1)
        self.post_context = Conv2d(c_out, c_out, 1)
        taps = 2 * kernel**2  # (dy, dx) of every tap, row by row
        self.offset_s = Conv2d(c_in, taps, 3, stride, padding=1) if deformable else None
        self.offset_l = Conv2d(c_in, taps, 3, stride, padding=1) if deformable else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pre_context(global_mean(x))
        near = mean_5x5(x)
        switch = self.switch(near)  # (N, 1, H, W)
        weight = self.filters()
        small = self._convolve(x, weight, 1, near, self.offset_s)
        large = self._convolve(x, weight + self.weight_diff, 3, near, self.offset_l)
        y = switch * small + (1 - switch) * large
        return y + self.post_context(global_mean(y))

    def _convolve(self, x: Tensor, weight: Tensor, times: int, near: Tensor, offset: nn.Conv2d | None) -> Tensor:
        """The convolution with dilation and padding multiplied by `times`."""
        dilation, padding = ((times * d, times * d) for d in (int(self.dilation[0]), int(self.padding[0])))
        if offset is None:
            return convolve(x, weight.to(x.dtype), None, self.stride, padding, dilation, self.groups)
        full = weight.dtype  # float32: the kernel does not support bfloat16
        y = deform_conv2d(x.to(full), offset(near).to(full), weight, None, self.stride, padding, dilation)
        return y.to(x.dtype)

    @torch.no_grad()
    def start_plain(self) -> None:
        super().start_plain()
        self.weight_diff.zero_()
        for parameter in (p for conv in self.children() for p in conv.parameters()):
            parameter.zero_()
        nn.init.ones_(self.switch.bias)


def std_and_mean(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Filters (C, c_in, k, k) -> the standard deviation and the mean of each, (C, 1, 1, 1), in float32 or wider."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    mean, variance = weight.mean((1, 2, 3), keepdim=True), weight.var((1, 2, 3), keepdim=True)
    return (variance + VARIANCE_EPS).sqrt(), mean


def global_mean(x: Tensor) -> Tensor:
    """The mean over the map: (N, C, H, W) -> (N, C, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


def mean_5x5(x: Tensor) -> Tensor:
    """The mean of the 5x5 window around every pixel; beyond its border the map is mirrored."""
    mode = "reflect" if min(x.shape[-2:]) > 2 else "replicate"  # mirroring two pixels needs a side of three
    return F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode=mode), 5, stride=1)
