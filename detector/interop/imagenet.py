"""ImageNet backbones of Detectron and Detectron2 (MSRA/R-50.pkl, FAIR/X-101-32x8d.pkl) under torchvision's names.

Caffe2's names are `res2_0_branch2a_w` and `res2_0_branch2a_bn_s`; files that Detectron2 converted from torchvision have `stem.`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from detector.interop.detectron2 import STAGES, stage
from detector.interop.names import Row, rename, translate
from detector.interop.recognise import backbone_shape
from detector.modeling.backbones.resnet import ResNet

MARKER = re.compile(r"conv1_w|res2_0_branch.*|stem\.conv1\.weight|res2\.0\..*")
SUFFIXES = {"s": "weight", "gamma": "weight", "b": "bias", "beta": "bias", "rm": "running_mean", "riv": "running_var",
            "running_mean": "running_mean", "running_var": "running_var"}  # fmt: skip
BRANCHES = {"branch1": ("downsample.0", "downsample.1")}
BRANCHES |= {f"branch2{letter}": (f"conv{i}", f"bn{i}") for i, letter in enumerate("abc", start=1)}
CAFFE2: list[Row] = [("conv1_w", "conv1.weight")]
CAFFE2 += [(f"res_conv1_bn_{short}", f"bn1.{name}") for short, name in SUFFIXES.items()]
for number, _, layer in STAGES:
    for branch, (conv, norm) in BRANCHES.items():
        CAFFE2 += [(f"res{number}_#_{branch}_w", f"{layer}.#.{conv}.weight")]
        CAFFE2 += [
            (f"res{number}_#_{branch}_bn_{short}", f"{layer}.#.{norm}.{name}") for short, name in SUFFIXES.items()
        ]
DETECTRON2 = [("stem.conv1.weight", "conv1.weight"), ("stem.conv1.norm.{}", "bn1.{}")]
DETECTRON2 += [row for _, res, layer in STAGES for row in stage(res, layer)]
IGNORABLE = ("fc1000_.*", "pred_.*", "fc1000.*", "conv1_b", "stem.fc.*", "linear.*", ".*_momentum", "lr", "model_iter")
EPS = 1e-5


def is_imagenet(names: Collection[str]) -> bool:
    """Whether these are the names of an ImageNet classifier or its backbone."""
    return any(MARKER.fullmatch(name) for name in names)


def to_classifier(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a backbone under torchvision's names, and the settings of its training.

    The settings are {"pixels": {"order": ..., "mean": ..., "std": ...}, "stride_in": ...}. Raises CheckpointError that lists
    the tensors that do not fit.
    """
    rows = CAFFE2 + DETECTRON2
    ours = {(rename(key, rows) or [key])[0]: tensor for key, tensor in state.items()}
    _complete_norms(ours)
    shape: dict[str, Any] = backbone_shape(ours, "")
    with torch.device("meta"):
        like = ResNet(**shape).state_dict()
    found = translate(ours, like, [("{...}", "{...}")], "not a known ImageNet backbone", ignorable=IGNORABLE)
    return found, trained_with(state, resnext=shape.get("groups", 1) > 1)


def _complete_norms(state: dict[str, Tensor]) -> None:
    """Add the statistics of norms that Detectron stores as scale and shift: mean 0, and variance 1 together with the eps."""
    for name in [name for name in state if re.fullmatch(r"(.*\.)?(bn\d|downsample\.1)\.weight", name)]:
        stem = name.removesuffix("weight")
        state.setdefault(f"{stem}running_mean", torch.zeros_like(state[name]))
        state.setdefault(f"{stem}running_var", torch.full_like(state[name], 1 - EPS))


def trained_with(names: Collection[str], *, resnext: bool) -> dict[str, Any]:
    """Preprocessing and stride of MSRA's ResNets, of FAIR's ResNeXts (both from Caffe2), or of torchvision's networks."""
    if not any(re.fullmatch("conv1_w|res2_.*", name) for name in names):
        return {
            "pixels": {"order": "rgb", "mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
            "stride_in": "3x3",
        }
    std = [57.375, 57.12, 58.395] if resnext else [1.0, 1.0, 1.0]
    return {
        "pixels": {"order": "bgr", "mean": [103.53, 116.28, 123.675], "std": std},
        "stride_in": "3x3" if resnext else "1x1",
    }
