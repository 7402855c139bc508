"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017). Parameters carry torchvision's names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.backbones.imagenet import Loaded, check_trained_with, load_imagenet
from detector.modeling.backbones.sac import SAC, AWSConv
from detector.modeling.convolution import Conv2d
from detector.modeling.layers import Norm, caffe2_msra_, conv_norm, folded, is_foldable, make_norm
from detector.modeling.preprocess import ImagePreprocessor
from detector.schema.ranges import Fraction, Range, Width
from detector.schema.signatures import checked

BLOCK_COUNTS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
# all convolutions, and the 3x3 one (the second one of a basic block) in layer2..layer4
CONVS: dict[str, tuple[Callable, Callable]] = {
    "plain": (Conv2d, Conv2d),
    "aws": (AWSConv, AWSConv),
    "sac": (AWSConv, SAC),
    "deformable_sac": (AWSConv, partial(SAC, deformable=True)),
}


class Block(nn.Module):
    """y = relu(F(x) + shortcut(x)); subclasses build F as (conv1, bn1), (conv2, bn2), ...

    Args:
        c_in: channels of x.
        c_out: channels of y.
        stride: of the shortcut.
        norm: norm layer after each convolution.
        eps: added to the norms' variances.
        conv: makes a convolution.
    """

    expansion: int
    downsample: nn.Sequential | None
    rfp_conv: Any

    def __init__(self, c_in: int, c_out: int, stride: int, norm: Norm, eps: float, conv: Callable):
        super().__init__()
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(conv(c_in, c_out, 1, stride, bias=False), make_norm(norm, c_out, eps))
        self.c_out, self.rfp_conv = c_out, None

    def add_feedback(self, channels: int) -> None:
        """Add a convolution of a feedback map with `channels` channels to the sum before the last ReLU, initially 0."""
        self.rfp_conv = Conv2d(channels, self.c_out, 1)
        for parameter in self.rfp_conv.parameters():
            nn.init.zeros_(parameter)

    def pairs(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        """The convolutions of F and their norms, in order."""
        names = [name for name in ("1", "2", "3") if hasattr(self, "conv" + name)]
        return [(getattr(self, "conv" + n), getattr(self, "bn" + n)) for n in names]

    def forward(self, x: Tensor, feedback: Tensor | None = None) -> Tensor:
        *inner, last = self.pairs()
        y = x
        for conv, norm in inner:
            y = F.relu_(conv_norm(conv, norm, y))
        y = conv_norm(*last, y)
        y = y.add_(x if self.downsample is None else conv_norm(*self.downsample, x))
        return F.relu_(y if feedback is None else y + self.rfp_conv(feedback))

    def fold(self) -> None:
        """Fold the norms into the convolutions, for inference."""
        for i, (conv, norm) in enumerate(self.pairs(), start=1):
            conv, norm = fold_pair(conv, norm)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", norm)
        if self.downsample is not None:
            self.downsample = nn.Sequential(*fold_pair(*self.downsample))


def fold_pair(conv: nn.Conv2d, norm: nn.Module) -> tuple[nn.Conv2d, nn.Module]:
    """A convolution with its norm folded in where that is possible, and the remaining norm, for inference."""
    if isinstance(conv, SAC):  # adds a function of its output's mean, so the norm does not fold into its filters
        return conv, norm
    conv = conv.plain() if isinstance(conv, AWSConv) else conv
    return (folded(conv, norm), nn.Identity()) if is_foldable(norm) else (conv, norm)


class BasicBlock(Block):
    """Two 3x3 convolutions; the first one has the stride. `switch` makes the second one, which may be switchable."""

    expansion = 1

    def __init__(
        self, c_in: int, planes: int, *, stride: int, dilation: int, norm: Norm, eps: float, conv: Callable,
        switch: Callable,
    ):  # fmt: skip
        super().__init__(c_in, planes, stride, norm, eps, conv)
        self.conv1 = conv(c_in, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = make_norm(norm, planes, eps)
        self.conv2 = switch(planes, planes, 3, 1, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = make_norm(norm, planes, eps)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions with 4 * `planes` output channels. `switch` makes the 3x3 one; `stride_in` has the stride."""

    expansion = 4

    def __init__(
        self, c_in: int, planes: int, *, stride: int, dilation: int, norm: Norm, eps: float, conv: Callable,
        switch: Callable, stride_in: str, groups: int, width_per_group: int,
    ):  # fmt: skip
        super().__init__(c_in, 4 * planes, stride, norm, eps, conv)
        inner = planes * width_per_group // 64 * groups
        stride1, stride3 = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = conv(c_in, inner, 1, stride1, bias=False)
        self.bn1 = make_norm(norm, inner, eps)
        self.conv2 = switch(inner, inner, 3, stride3, padding=dilation, dilation=dilation, groups=groups, bias=False)
        self.bn2 = make_norm(norm, inner, eps)
        self.conv3 = conv(inner, 4 * planes, 1, bias=False)
        self.bn3 = make_norm(norm, 4 * planes, eps)


class ResNetStage(nn.Sequential):
    """The blocks of one resolution; the first one reads feedback (DetectoRS, sec. 3.1)."""

    def forward(self, x: Tensor, feedback: Tensor | None = None) -> Tensor:
        first, *rest = self
        x = first(x, feedback)
        for block in rest:
            x = block(x)
        return x


@checked
class ResNet(nn.Module):
    """(N, 3, H, W) -> [C2..C5] with strides 4, 8, 16 and 32.

    `missing_weights` is None, or the reason why `weights` could not be downloaded; training refuses to start then. Raises
    ValueError for options that exclude each other, CheckpointError for a file of weights that does not fit.

    Args:
        depth: number of layers; from 50 on the blocks are bottlenecks.
        weights: ImageNet weights: a file, or torchvision's name for weights that it downloads, such as IMAGENET1K_V1;
            null: random.
        norm: norm layer after each convolution; frozen keeps statistics, scale and shift of the weights, affine only the
            statistics, batch and sync learn all of them, and group has no statistics.
        norm_eps: added to the norms' variances.
        frozen_stages: how many of the stem, layer1, layer2, layer3 and layer4 do not train, in this order; 0: all train.
        stride_in: convolution of a bottleneck that has the stride, 3x3 as in torchvision or 1x1 as in the weights of MSRA
            and Detectron; weights load with either, and the wrong one costs accuracy.
        groups: groups of a bottleneck's 3x3 convolution (ResNeXt).
        width_per_group: channels of each group in layer1 (ResNeXt).
        stages: 4 ends in C5; 3 ends in C4 and leaves layer4 to a box head (roi_heads/res5.py).
        dilated_c5: whether layer4 keeps stride 16 and has dilation 2 instead.
        conv: kind of convolution, plain or one of DetectoRS' (backbones/sac.py).
        width: channels of the stem; a network of width 16 learns from scratch on a CPU. Below 8, oneDNN's AVX2 kernels write
            beyond their memory in training (seen in torch 2.14).
    """

    def __init__(
        self,
        depth: Literal[18, 34, 50, 101, 152] = 50,
        *,
        weights: str | None = None,
        norm: Norm = "frozen",
        norm_eps: Fraction = 1e-5,
        frozen_stages: Annotated[int, Range(0, 5)] = 2,
        stride_in: Literal["3x3", "1x1"] = "3x3",
        groups: Width = 1,
        width_per_group: Width = 64,
        stages: Literal[3, 4] = 4,
        dilated_c5: bool = False,
        conv: Literal["plain", "aws", "sac", "deformable_sac"] = "plain",
        width: Annotated[int, Range(1, 1024)] = 64,
    ):
        super().__init__()
        if depth not in BLOCK_COUNTS:
            raise ValueError(f"depth: there is no ResNet-{depth}; choose one of {', '.join(map(str, BLOCK_COUNTS))}")
        if depth < 50 and (groups, width_per_group, stride_in) != (1, 64, "3x3"):
            raise ValueError(f"groups, width_per_group and stride_in need bottlenecks (depth >= 50, not {depth})")
        if dilated_c5 and stages < 4:
            raise ValueError("dilated_c5: with stages: 3 there is no C5")
        self.depth, self.weights, self.width, self.stages = depth, weights, width, stages
        self.network = f"resnet{depth}" if groups == 1 else f"resnext{depth}_{groups}x{width_per_group}d"
        self.dilated_c5, self.conv = dilated_c5, conv
        self.block = BasicBlock if depth < 50 else Bottleneck
        self.stride_in = stride_in
        self._block_options: dict = dict(norm=norm, eps=norm_eps)
        if depth >= 50:
            self._block_options |= dict(stride_in=stride_in, groups=groups, width_per_group=width_per_group)
        self.conv1 = CONVS[conv][0](3, width, 7, 2, padding=3, bias=False)
        self.bn1 = make_norm(norm, width, norm_eps)
        for number in range(1, stages + 1):
            setattr(self, f"layer{number}", self._stage(number))
        self.channels = [width * 2**i * self.block.expansion for i in range(stages)]
        self.strides = [4, 8, 16, 16 if dilated_c5 else 32][:stages]
        initialise(self)
        self.missing_weights, self._trained_with = self._load(self)
        self.freeze(frozen_stages)

    def _stage(self, number: int) -> ResNetStage:
        """A new layer1, layer2, layer3 or layer4."""
        # all blocks are dilated, as in Detectron2 and MMDetection; in torchvision the first one is not
        dilation = 2 if number == 4 and self.dilated_c5 else 1
        stride = 1 if number == 1 or dilation == 2 else 2
        conv, switch = CONVS[self.conv]
        options = self._block_options | dict(dilation=dilation, conv=conv, switch=conv if number == 1 else switch)
        planes, expansion = self.width * 2 ** (number - 1), self.block.expansion
        c_in = self.width if number == 1 else planes // 2 * expansion
        first = self.block(c_in, planes, stride=stride, **options)
        rest = BLOCK_COUNTS[self.depth][number - 1] - 1
        return ResNetStage(first, *(self.block(planes * expansion, planes, stride=1, **options) for _ in range(rest)))

    def layer4_for_head(self) -> ResNetStage:
        """A new layer4 with the options of this network, filled with its ImageNet weights."""
        stage = self._stage(4)
        initialise(stage)
        if self.missing_weights is None:
            self._load(stage, prefix="layer4.")
        return stage

    def _load(self, part: nn.Module, prefix: str = "") -> Loaded:
        if self.weights is None:
            return Loaded()
        elsewhere = [f"layer{number}." for number in range(self.stages + 1, 5)] if not prefix else []
        return load_imagenet(part, self.weights, self.network, prefix=prefix, elsewhere=elsewhere)

    def check_input(self, preprocess: ImagePreprocessor) -> None:
        """Raise ValueError, with the settings to change, if the file of weights was made for other colours or strides.

        Such weights load and detect little; nothing else would reveal the mistake.
        """
        if self._trained_with is not None:
            check_trained_with(self._trained_with, preprocess, self.stride_in, str(self.weights))

    def add_feedback(self, channels: int) -> None:
        """Let every stage but the first read a feedback map of its output's size with `channels` channels."""
        for layer in self._layers()[1:]:
            layer[0].add_feedback(channels)

    def _layers(self) -> list[ResNetStage]:
        return [getattr(self, f"layer{number}") for number in range(1, self.stages + 1)]

    def freeze(self, stages: int) -> None:
        """Freeze the first `stages` of the stem, layer1, layer2, layer3 and layer4, with their norms."""
        parts = [[self.conv1, self.bn1], *([layer] for layer in self._layers())]
        if not 0 <= stages <= len(parts):
            raise ValueError(f"frozen_stages: expected 0 (all train) to {len(parts)} (none trains), got {stages}")
        self.frozen = [module for part in parts[:stages] for module in part]
        for module in self.frozen:
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ResNet:
        """Torch's `train`, but the batch norms of frozen stages keep using their running statistics."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, x: Tensor, feedback: Sequence[Tensor | None] | None = None) -> list[Tensor]:
        """Images -> [C2..C5]; after `add_feedback`, `feedback` has a map for each stage, None for layer1."""
        x = F.max_pool2d(F.relu_(conv_norm(self.conv1, self.bn1, x)), 3, 2, padding=1)
        c = []
        for layer, added in zip(self._layers(), feedback or [None] * self.stages, strict=True):
            x = layer(x, added)
            c.append(x)
        return c

    def fold(self) -> None:
        """Fold the stem's norm into its convolution, for inference; the blocks fold their own."""
        self.conv1, self.bn1 = fold_pair(self.conv1, self.bn1)


def initialise(module: nn.Module) -> None:
    """Random convolutions (He et al. 2015, arXiv 1502.01852); those of DetectoRS start equal to plain ones."""
    caffe2_msra_(module)
    for conv in (m for m in module.modules() if isinstance(m, AWSConv)):
        conv.start_plain()
