"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017). Parameters carry torchvision's names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.errors import CheckpointError, ConfigError
from detector.layers import Norm, c2_msra_, conv_norm, folded, is_foldable, make_norm

log = logging.getLogger(__name__)

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
CLASSIFIER_KEYS = ("fc.weight", "fc.bias")  # the ImageNet head, which a detector does not have


class Block(nn.Module):
    """y = relu(F(x) + shortcut(x)); the subclasses build F as (conv1, bn1), (conv2, bn2), ..."""

    expansion: int

    def __init__(self, c_in: int, c_out: int, stride: int, norm: Norm, eps: float):
        super().__init__()
        self.downsample = None
        if stride != 1 or c_in != c_out:
            conv = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, make_norm(norm, c_out, eps))

    def pairs(self) -> list[tuple[nn.Conv2d, nn.Module]]:
        """The convolutions of F with their norms, in order."""
        names = [name for name in ("1", "2", "3") if hasattr(self, "conv" + name)]
        return [(getattr(self, "conv" + n), getattr(self, "bn" + n)) for n in names]

    def forward(self, x: Tensor) -> Tensor:
        *inner, last = self.pairs()
        y = x
        for conv, norm in inner:
            y = F.relu_(conv_norm(conv, norm, y))
        y = conv_norm(*last, y)
        shortcut = x if self.downsample is None else conv_norm(*self.downsample, x)
        return F.relu_(y.add_(shortcut))

    def fold(self) -> None:
        """For inference: the norms go into the convolutions."""
        for i, (conv, norm) in enumerate(self.pairs(), start=1):
            if is_foldable(norm):
                setattr(self, f"conv{i}", folded(conv, norm))
                setattr(self, f"bn{i}", nn.Identity())
        if self.downsample is not None and is_foldable(self.downsample[1]):
            self.downsample = nn.Sequential(folded(*self.downsample), nn.Identity())


class BasicBlock(Block):
    """Two 3x3 convolutions; the stride sits in the first."""

    expansion = 1

    def __init__(self, c_in: int, planes: int, *, stride: int, dilation: int, norm: Norm, eps: float):
        super().__init__(c_in, planes, stride, norm, eps)
        self.conv1 = nn.Conv2d(c_in, planes, 3, stride, padding=dilation, dilation=dilation, bias=False)
        self.bn1 = make_norm(norm, planes, eps)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = make_norm(norm, planes, eps)


class Bottleneck(Block):
    """1x1 down, 3x3, 1x1 up to four times the planes. `stride_in` names the convolution that strides."""

    expansion = 4

    def __init__(
        self, c_in: int, planes: int, *, stride: int, dilation: int, norm: Norm, eps: float,
        stride_in: str, groups: int, width_per_group: int,
    ):  # fmt: skip
        super().__init__(c_in, 4 * planes, stride, norm, eps)
        inner = planes * width_per_group // 64 * groups
        stride1, stride3 = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = nn.Conv2d(c_in, inner, 1, stride1, bias=False)
        self.bn1 = make_norm(norm, inner, eps)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride3, padding=dilation, dilation=dilation, groups=groups, bias=False)
        self.bn2 = make_norm(norm, inner, eps)
        self.conv3 = nn.Conv2d(inner, 4 * planes, 1, bias=False)
        self.bn3 = make_norm(norm, 4 * planes, eps)


class ResNet(nn.Module):
    """(N, 3, H, W) -> [C2..C5] at strides 4, 8, 16, 32 (C5 at 16 if dilated).

    `weights`: an ImageNet checkpoint: a file, or a name of torchvision's weights (e.g. "IMAGENET1K_V1"), which
    torchvision then downloads. `norm`: "frozen" keeps the statistics of those weights, "batch" and "sync" learn their own,
    "group" needs none. `frozen_stages` = n: the stem and layer1..layer(n-1) do not train (n = 0: all trains).
    `stride_in`: "3x3" as in torchvision, "1x1" as in MSRA's and Detectron's weights; both load without complaint, so
    the wrong one costs accuracy silently. `dilated_c5`: layer4 keeps stride 16 and dilates by 2 instead.
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        weights: str | None = None,
        norm: Norm = "frozen",
        norm_eps: float = 1e-5,
        frozen_stages: int = 2,
        stride_in: Literal["3x3", "1x1"] = "3x3",
        groups: int = 1,
        width_per_group: int = 64,
        dilated_c5: bool = False,
    ):
        super().__init__()
        if depth not in BLOCKS:
            raise ConfigError(f"depth: no ResNet-{depth}; choose one of {', '.join(map(str, BLOCKS))}")
        if depth < 50 and (groups, width_per_group, stride_in) != (1, 64, "3x3"):
            raise ConfigError(
                f"depth: groups, width_per_group and stride_in need bottlenecks (depth >= 50, not {depth})"
            )
        self.depth, self.norm, self.eps, self.dilated_c5 = depth, norm, norm_eps, dilated_c5
        self.bottleneck = (
            {} if depth < 50 else dict(stride_in=stride_in, groups=groups, width_per_group=width_per_group)
        )
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = make_norm(norm, 64, norm_eps)
        stages = list(zip((64, 128, 256, 512), BLOCKS[depth]))
        expansion = BasicBlock.expansion if depth < 50 else Bottleneck.expansion
        c_in = 64
        for i, (planes, blocks) in enumerate(stages, start=1):
            setattr(self, f"layer{i}", self._stage(i, c_in, planes, blocks))
            c_in = planes * expansion
        self.channels = [planes * expansion for planes, _ in stages]
        self.strides = [4, 8, 16, 16 if dilated_c5 else 32]
        self._initialise()
        self.missing_weights = None if weights is None else load_classifier(self, weights)
        self.freeze(frozen_stages)

    def _stage(self, number: int, c_in: int, planes: int, blocks: int) -> nn.Sequential:
        dilation = 2 if number == 4 and self.dilated_c5 else 1
        stride = 1 if number == 1 or dilation == 2 else 2
        make = BasicBlock if self.depth < 50 else Bottleneck
        settings = dict(dilation=dilation, norm=self.norm, eps=self.eps, **self.bottleneck)
        first = make(c_in, planes, stride=stride, **settings)
        rest = [make(planes * make.expansion, planes, stride=1, **settings) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                c2_msra_(module)

    def freeze(self, stages: int) -> None:
        """Stop the training of the stem (1), layer1 (2), ... layer4 (5), norms included; 0 frees everything."""
        parts = [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]
        if not 0 <= stages <= len(parts):
            raise ConfigError(f"frozen_stages: 0 (all trains) to {len(parts)} (nothing does), not {stages}")
        self.frozen = [module for part in parts[:stages] for module in part]
        for module in self.frozen:
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ResNet:
        """Batch norms of frozen stages stay on their running statistics."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu_(conv_norm(self.conv1, self.bn1, x)), 3, 2, padding=1)
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c2, c3, c4, self.layer4(c4)]

    def fold(self) -> None:
        """For inference: the stem's norm goes into its convolution (the blocks fold their own)."""
        if is_foldable(self.bn1):
            self.conv1, self.bn1 = folded(self.conv1, self.bn1), nn.Identity()


def load_classifier(resnet: ResNet, weights: str) -> str | None:
    """Load ImageNet weights under torchvision's names, from a file or by torchvision's own name for them.

    Raises CheckpointError unless every tensor of the backbone is filled and every tensor of the file is used. Weights that
    cannot be downloaded are no reason not to build the model (a checkpoint may fill it): the reason is logged and
    returned, and training does not start without them.
    """
    try:
        state = _classifier_state(resnet, weights)
    except OSError as error:
        reason = f"model.backbone.weights: {error}"
        log.warning("%s", reason)
        return reason
    ours = resnet.state_dict()
    unused = [k for k in state if k not in ours and k not in CLASSIFIER_KEYS and not k.endswith("num_batches_tracked")]
    missing = [k for k in ours if k not in state and not k.endswith("num_batches_tracked")]
    wrong = [k for k in ours if k in state and state[k].shape != ours[k].shape]
    if unused or missing or wrong:
        found = "; ".join(f"{what}: {', '.join(keys[:4])}{' …' if len(keys) > 4 else ''}" for what, keys in
                          [("missing", missing), ("unknown", unused), ("other shape", wrong)] if keys)  # fmt: skip
        raise CheckpointError(f"{weights}: not the weights of this ResNet-{resnet.depth} ({found}). "
                              "Check model.backbone.depth, norm, groups and width_per_group.")  # fmt: skip
    resnet.load_state_dict({k: v for k, v in state.items() if k in ours}, strict=False)
    used = sum(k in ours for k in state)
    log.info(
        "backbone: %d tensors loaded from %s, %d of the classifier's head left out", used, weights, len(state) - used
    )


def _classifier_state(resnet: ResNet, weights: str) -> dict[str, Tensor]:
    path = Path(weights)
    if path.suffix in (".pth", ".pt") or path.exists():
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file (model.backbone.weights)")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"{path}: not a file of tensors that torch can read safely ({error})") from error
        state = state.get("state_dict", state.get("model", state)) if isinstance(state, dict) else {}
        entries = state.items() if isinstance(state, dict) else ()
        return {k: v for k, v in entries if isinstance(k, str) and isinstance(v, Tensor)}
    return _by_torchvision_name(resnet, weights)


def _by_torchvision_name(resnet: ResNet, name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights  # the list of names; only needed by who asks for one

    groups, width = resnet.bottleneck.get("groups", 1), resnet.bottleneck.get("width_per_group", 64)
    model = f"resnet{resnet.depth}" if groups == 1 else f"resnext{resnet.depth}_{groups}x{width}d"
    try:
        choices = get_model_weights(model)
    except ValueError as error:
        raise CheckpointError(f"model.backbone.weights: torchvision has no {model}; give a file") from error
    if name not in choices.__members__:
        raise CheckpointError(
            f"model.backbone.weights: {name!r} is neither a file nor one of torchvision's {model} weights "
            f"({', '.join(choices.__members__)})"
        )
    try:
        return choices[name].get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise OSError(
            f"{name} of {model} could not be downloaded ({error}). Download {choices[name].url} elsewhere and give the "
            "path of the file, or null to start from scratch."
        ) from error
