"""Convolutions with their norms, and the initialisers that the papers name."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector import distributed

Norm = Literal["frozen", "affine", "batch", "sync", "group"]


class FrozenBatchNorm(nn.Module):
    """y = x * scale + shift with the statistics and the affine map of a trained batch norm, all constant."""

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_shift(self) -> tuple[Tensor, Tensor]:
        """(C,), (C,)"""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.scale_shift()
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)  # of a trained batch norm; nothing counts here
        super()._load_from_state_dict(state_dict, prefix, *args)


class AffineBatchNorm(nn.BatchNorm2d):
    """A batch norm that keeps the statistics of its weights while its affine map trains (mmdetection's norm_eval)."""

    def train(self, mode: bool = True) -> AffineBatchNorm:
        return super().train(False)


class BatchNorm(nn.BatchNorm2d):
    """A batch norm that takes the running statistics, as evaluation does, of a batch of one value per channel.

    That is one image on a map of one cell. Its variance is 0: the batch's statistics would leave the bias alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        return _by_running(self, x) if self.training and _is_single(x) else super().forward(x)


class SyncBatchNorm(BatchNorm):
    """A batch norm over the batch of all processes together. Torch's own is for GPUs alone, this one for CPUs too."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or distributed.world_size() == 1:
            return super().forward(x)
        count = distributed.all_reduce_sum(x.new_full((), x.numel() / x.shape[1], dtype=torch.float32))
        centred = x.float()  # sums in float32 under mixed precision too
        mean = distributed.all_reduce_sum(centred.sum(dim=(0, 2, 3))) / count  # (C,)
        centred = centred - mean[:, None, None]
        var = distributed.all_reduce_sum(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), self.momentum)
        scale = (var + self.eps).rsqrt() * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """Torch's; but over channels-last maps on CPUs that one subtracts two large sums, and loses digits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.is_cuda else x.contiguous())


def _is_single(x: Tensor) -> bool:
    """Whether a map (N, C, H, W) has one value per channel."""
    return x.numel() == x.shape[1]


def _by_running(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


def make_norm(norm: Norm, channels: int, eps: float = 1e-5) -> nn.Module:
    """A norm layer over `channels` channels; "group" has 32 groups (Wu & He 2018)."""
    if norm == "group":
        return GroupNorm(32, channels, eps=eps)
    kinds = {
        "frozen": FrozenBatchNorm, "affine": AffineBatchNorm, "batch": BatchNorm, "sync": SyncBatchNorm
    }  # fmt: skip
    return kinds[norm](channels, eps=eps)


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """norm(conv(x)). A frozen norm is a constant factor on the filters, so it never touches the (much larger) map."""
    if not isinstance(norm, FrozenBatchNorm) or type(conv) is not nn.Conv2d:  # other kinds are no one set of filters
        return norm(conv(x))
    scale, shift = norm.scale_shift()
    weight = conv.weight * scale[:, None, None, None]
    shift = shift if conv.bias is None else conv.bias * scale + shift
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


@torch.no_grad()
def folded(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    """One convolution that computes norm(conv(x)) of an inference-mode batch norm or a frozen norm."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - norm.running_mean * scale
    out = nn.utils.skip_init(
        nn.Conv2d, conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
        conv.groups,
    )  # fmt: skip
    out.weight.copy_(conv.weight * scale[:, None, None, None])
    out.bias.copy_(shift if conv.bias is None else conv.bias * scale + shift)
    return out.to(memory_format=torch.channels_last)


class ConvNorm(nn.Module):
    """conv -> norm (where there is one): a bias where there is no norm, or where `bias` asks for one."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, *, stride: int = 1, norm: Norm | None = None, bias: bool = False,
        eps: float = 1e-5,
    ):  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, bias=bias or norm is None)
        self.norm = nn.Identity() if norm is None else make_norm(norm, c_out, eps)

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm(self.conv, self.norm, x)

    def fold(self) -> None:
        """For inference: the norm goes into the convolution."""
        if is_foldable(self.norm):
            self.conv, self.norm = folded(self.conv, self.norm), nn.Identity()


def is_foldable(norm: nn.Module) -> bool:
    """Group norm depends on the map and stays; batch and frozen norms are constants at inference."""
    return isinstance(norm, FrozenBatchNorm | nn.modules.batchnorm._BatchNorm)


def fold_norms(model: nn.Module) -> nn.Module:
    """Fold every foldable norm of an inference copy, in place: modules that own a norm say how in `fold`."""
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
    """`weight_` fills the weights of all convolutions and fully connected layers, in the order of their definition."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def smooth_l1(prediction: Tensor, target: Tensor, beta: float) -> Tensor:
    """Sum over all elements of 0.5 d^2 / beta where d = |prediction - target| < beta, else d - 0.5 beta; L1 at 0."""
    return F.smooth_l1_loss(prediction, target, beta=beta, reduction="sum")


def balanced_l1(prediction: Tensor, target: Tensor, beta: float, alpha: float = 0.5, gamma: float = 1.5) -> Tensor:
    """Sum over all elements of the balanced L1 loss (Libra R-CNN, Pang et al. 2019, arXiv 1904.02701, sec. 3.3).

    Its gradient alpha * ln(b * d / beta + 1) grows faster for small d = |prediction - target| than that of smooth L1; from
    d = beta on it is gamma, which fixes b.
    """
    d = (prediction - target).abs()
    b = math.exp(gamma / alpha) - 1
    small = alpha / b * (b * d + beta) * torch.log(b * d / beta + 1) - alpha * d
    large = gamma * d + (gamma / b - alpha) * beta
    return torch.where(d < beta, small, large).sum()


def log2_stride(stride: int) -> int:
    """The level number k of a map with stride 2**k."""
    return int(math.log2(stride))
