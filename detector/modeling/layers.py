"""Norms, convolutions with norms, initialisers and box losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector import distributed
from detector.modeling.convolution import Conv2d, convolve

Model = TypeVar("Model", bound=nn.Module)
Norm = Literal["frozen", "affine", "batch", "sync", "group"]


class FrozenBatchNorm(nn.Module):
    """A batch norm with constant statistics and a constant affine map: y = x * scale + shift."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_shift(self) -> tuple[Tensor, Tensor]:
        """scale (C,) and shift (C,) of y = x * scale + shift."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.scale_shift()
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # of a trained batch norm; a frozen one does not count
        super()._load_from_state_dict(state_dict, prefix, *args)


class AffineBatchNorm(nn.BatchNorm2d):
    """A batch norm with constant statistics and a trained affine map (MMDetection's norm_eval)."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__(channels, eps)
        self.train(False)  # a module is born in training mode

    def train(self, mode: bool = True) -> AffineBatchNorm:
        return super().train(False)


class BatchNorm(nn.BatchNorm2d):
    """Torch's batch norm, but a batch of one value per channel (one image, one cell) uses the running statistics.

    The variance of such a batch is 0, so its own statistics would reduce the output to the bias.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _by_running(self, x) if self.training and _is_single(x) else super().forward(x)


class SyncBatchNorm(BatchNorm):
    """A batch norm over the batches of all processes. Torch's SyncBatchNorm needs GPUs; this one also runs on CPUs."""

    num_batches_tracked: Tensor
    running_mean: Tensor
    running_var: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        count = distributed.all_reduce_sum(x.new_full((), x.numel() / x.shape[1], dtype=torch.float32))
        centred = x.float()  # sums are in float32 under mixed precision, too
        divisor = count.clamp(min=1)  # a mask head's batch may be empty on all processes
        mean = distributed.all_reduce_sum(centred.sum(dim=(0, 2, 3))) / divisor  # (C,)
        centred = centred - mean[:, None, None]
        var = distributed.all_reduce_sum(centred.square().sum(dim=(0, 2, 3))) / divisor
        with torch.no_grad():
            self.num_batches_tracked += 1
            unbiased = var * count / (count - 1).clamp(min=1)
            self.running_mean.lerp_(torch.where(count > 0, mean, self.running_mean), self.momentum)
            self.running_var.lerp_(torch.where(count > 0, unbiased, self.running_var), self.momentum)
        scale = (var + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """Torch's group norm, with contiguous input on CPUs: its channels-last kernel subtracts large sums and loses digits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.is_cuda else x.contiguous())


def _is_single(x: Tensor) -> bool:
    """Whether a map (N, C, H, W) has one value per channel."""
    return x.numel() == x.shape[1]


def _by_running(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def reads_whole_batch(module: nn.Module) -> bool:
    """Whether a norm in `module` has the statistics of its batch in training, so that padding would change them."""
    batch_norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return any(not isinstance(m, AffineBatchNorm) for m in batch_norms)


def make_norm(norm: Norm, channels: int, eps: float = 1e-5) -> nn.Module:
    """A norm layer for `channels` channels; "group" has 32 groups (Wu and He 2018, arXiv 1803.08494)."""
    if norm == "group":
        return GroupNorm(32, channels, eps=eps)
    kinds = {
        "frozen": FrozenBatchNorm, "affine": AffineBatchNorm, "batch": BatchNorm, "sync": SyncBatchNorm
    }  # fmt: skip
    return kinds[norm](channels, eps=eps)


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)). A frozen norm scales the filters instead of the much larger map."""
    if not isinstance(norm, FrozenBatchNorm) or type(conv) is not Conv2d:  # SAC has more than one set of filters
        return norm(conv(x))
    scale, shift = norm.scale_shift()
    weight = conv.weight * scale[:, None, None, None]
    shift = shift if conv.bias is None else conv.bias * scale + shift
    return convolve(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


@torch.no_grad()
def folded(conv: nn.Conv2d, norm: Any) -> nn.Conv2d:
    """One convolution equal to norm(conv(x)) for a frozen norm or a batch norm at inference."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    out = nn.utils.skip_init(
        Conv2d, conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
        conv.groups,
    )  # fmt: skip
    out.weight.copy_(conv.weight * scale[:, None, None, None])
    out.bias.copy_(shift if conv.bias is None else conv.bias * scale + shift)
    return out.to(memory_format=torch.channels_last)


class ConvNorm(nn.Module):
    """norm(conv(x)), with padding that keeps the size at stride 1.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        kernel: odd side of the filters.
        stride: of the convolution.
        norm: norm layer after the convolution; None: none.
        bias: give the convolution a bias despite a norm; without a norm it always has one.
        eps: added to the norm's variance.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, norm: Norm | None = None, bias: bool = False,
        eps: float = 1e-5,
    ):  # fmt: skip
        super().__init__()
        self.conv: nn.Conv2d = Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=bias or norm is None)
        self.norm = nn.Identity() if norm is None else make_norm(norm, c_out, eps)

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm(self.conv, self.norm, x)

    def fold(self) -> None:
        """Fold the norm into the convolution, for inference."""
        if is_foldable(self.norm):
            self.conv, self.norm = folded(self.conv, self.norm), nn.Identity()


def is_foldable(norm: nn.Module) -> bool:
    """Whether a norm is constant at inference: batch and frozen norms are, a group norm depends on the map."""
    return isinstance(norm, FrozenBatchNorm | nn.modules.batchnorm._BatchNorm)


def fold_norms(model: Model) -> Model:
    """Fold every foldable norm of an inference copy, in place, by the `fold` methods of its modules."""
    for module in list(model.modules()):
        if hasattr(module, "fold"):
            module.fold()
    return model


def caffe2_xavier_(module: nn.Module) -> None:
    """Caffe2's XavierFill of every layer in `module`: uniform with variance 1 / fan_in, biases 0."""
    _fill(module, partial(nn.init.kaiming_uniform_, a=1))


def caffe2_msra_(module: nn.Module) -> None:
    """Caffe2's MSRAFill of every layer in `module`: normal with variance 2 / fan_out, biases 0."""
    _fill(module, partial(nn.init.kaiming_normal_, mode="fan_out", nonlinearity="relu"))


def glorot_(module: nn.Module) -> None:
    """TensorFlow's default in every layer in `module`: uniform with variance 2 / (fan_in + fan_out), biases 0."""
    _fill(module, nn.init.xavier_uniform_)


def normal_(module: nn.Module, std: float) -> None:
    """Normal weights in every layer in `module`, biases 0."""
    _fill(module, partial(nn.init.normal_, std=std))


def _fill(module: nn.Module, weight_: Callable[[Tensor], Tensor]) -> None:
    """Apply `weight_` to the weights of all convolutions and linear layers, in order of definition, and zero biases."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            if layer.weight.is_meta:  # holds no values, and torch takes longer to say so than to fill others
                continue
            weight_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def only(rows: Tensor, wanted: Tensor, found: Tensor) -> Tensor:
    """What `found` (R, ...) is compared with: `wanted`, and itself beyond the `rows` (R,) bool, where a distance is then 0."""
    return torch.where(rows.view(-1, *[1] * (found.ndim - 1)), wanted, found.detach())


def at_least(count: Any, least: int) -> Any:
    """The greater of the two; a count on the device stays there."""
    return count.clamp(min=least) if isinstance(count, Tensor) else max(count, least)


def smooth_l1(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """Sum over all elements of 0.5 d^2 / beta where d = |prediction - target| < beta, else d - 0.5 beta; L1 for beta 0."""
    return F.smooth_l1_loss(prediction, target, beta=beta, reduction="sum")


def balanced_l1(prediction: Tensor, target: Tensor, beta: float, alpha: float = 0.5, gamma: float = 1.5) -> Tensor:
    """Sum over all elements of the balanced L1 loss (Libra R-CNN, Pang et al. 2019, arXiv 1904.02701, sec. 3.3).

    For small d = |prediction - target| its gradient alpha * ln(b * d / beta + 1) grows faster than that of smooth L1. From
    d = beta on the gradient is gamma; b makes it continuous there.
    """
    d = (prediction - target).abs()
    b = math.exp(gamma / alpha) - 1
    small = alpha / b * (b * d + beta) * torch.log(b * d / beta + 1) - alpha * d
    large = gamma * d + (gamma / b - alpha) * beta
    return torch.where(d < beta, small, large).sum()


def log2_stride(stride: int) -> int:
    """The level number k of a map with stride 2**k."""
    return int(math.log2(stride))
