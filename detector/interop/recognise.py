"""Whose weights a state dict holds, and which reference configuration (configs/compat/) computes the same function."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detector.config.config import Config, build_detector, load_config, parse_config
from detector.config.inherit import shipped_configs
from detector.errors import CheckpointError
from detector.interop.detectron2 import DETECTRON2
from detector.interop.mmdetection import MMDETECTION
from detector.interop.names import rename, some
from detector.interop.torchvision import ROWS_2019, TORCHVISION
from detector.schema.signatures import parameters_of

FRAMEWORKS = {"torchvision": TORCHVISION, "detectron2": DETECTRON2, "mmdetection": MMDETECTION}
COMPAT = shipped_configs() / "compat"
BLOCKS = {(4, 6): 50, (4, 23): 101, (8, 36): 152}  # of layer2 and layer3 in ResNets of bottlenecks: the depth
# what only training reads; a norm's kind as well, since all kinds with statistics compute the same in evaluation
TRAINING = {"weights", "norm", "frozen_stages", "matching", "sampling", "loss", "allowed_border", "padded_to", "ious",
            "stage_weights", "resample", "scale_gradient"}  # fmt: skip
TRAIN_AND_TEST = ("pre_nms", "post_nms")


class Fit(NamedTuple):
    """A configuration whose model has the names and shapes of a state dict."""

    path: Path
    config: Config


def which_framework(names: Collection[str]) -> str:
    """The key of FRAMEWORKS of the one whose detector has these names. Raises CheckpointError if that is not one."""
    found = [key for key, framework in FRAMEWORKS.items() if any(re.match(framework.mark, name) for name in names)]
    if len(found) == 1:
        return found[0]
    raise CheckpointError(
        f"a detector of none of {', '.join(FRAMEWORKS)} (its tensors are {some(list(names), 3)}); say which by --from"
    )


def blank_state(config: Config) -> dict[str, Tensor]:
    """Names and shapes, without data, of a configuration's model."""
    return dict(_blank_state(json.dumps(config.raw.get("model", {}))))


@functools.lru_cache(maxsize=32)
def _blank_state(model: str) -> dict[str, Tensor]:
    config = parse_config({"model": json.loads(model)}, trust=True)
    with torch.device("meta"):
        return build_detector(config, pretrained=False).state_dict()


def fitting(framework: str, state: Mapping[str, Tensor], overrides: Sequence[str] = ()) -> list[Fit]:
    """The reference configurations whose models a state dict of that framework fills, the plainest first.

    The number of classes is the file's, and where no configuration fits as it is, so is the shape of the backbone.
    """
    names = {name: tensor for key, tensor in state.items() for name in rename(key, FRAMEWORKS[framework].all_rows)}
    classes = [*_classes(framework, names), *overrides]
    paths = sorted(COMPAT.glob(f"{framework}_*.yaml"), key=lambda path: (len(path.stem), path.stem))
    if any(rename(key, ROWS_2019) for key in state):  # torchvision's published file has the old names
        paths.sort(key=lambda path: not path.stem.endswith("coco_v1"))
    shape = [f"model.backbone.{k}={v}" for k, v in backbone_shape(names, "pyramid.backbone.").items()]
    for settings in [classes, [*shape, *classes]][: 2 if shape else 1]:
        fits = [Fit(path, load_config(path, settings)) for path in paths]
        fits = [fit for fit in fits if _fits(framework, state, fit.config)]
        if fits:
            return fits
    return []


def _fits(framework: str, state: Mapping[str, Tensor], config: Config) -> bool:
    try:
        FRAMEWORKS[framework].take(state, blank_state(config))
    except CheckpointError:
        return False
    return True


def _classes(framework: str, names: Mapping[str, Tensor]) -> list[str]:
    columns = [len(tensor) for name, tensor in names.items() if name.endswith("class_score.bias") and tensor.ndim]
    return [f"model.num_classes={columns[0] - 1}"] if columns and columns[0] > 1 else []


def backbone_shape(names: Mapping[str, Tensor], prefix: str) -> dict[str, int]:
    """Depth, groups and their width of a ResNet of bottlenecks, whose names begin with `prefix`; {} for another."""
    blocks = tuple(len({k.removeprefix(f"{prefix}layer{n}.").split(".")[0] for k in names if k.startswith(f"{prefix}layer{n}.")})
                   for n in (2, 3))  # fmt: skip
    inner = names.get(f"{prefix}layer1.0.conv2.weight")
    if blocks not in BLOCKS or inner is None or inner.ndim != 4 or not inner.shape[1]:
        return {}
    width, per_group = inner.shape[:2]
    return {"depth": BLOCKS[blocks], "groups": width // per_group, "width_per_group": per_group}


def model_settings(config: Config) -> dict[str, Any]:
    """Everything that a model computes with in evaluation by its key, `model.preprocess.order`, defaults included."""
    settings = {}
    for part, (constructor, given) in config.model.calls.items():
        key = f"model.{part}"
        settings[f"{key}.type"] = constructor.__name__
        for name, parameter in parameters_of(constructor).items():
            if name not in TRAINING and (name in given or parameter.default is not parameter.empty):
                settings |= _flat(f"{key}.{name}", given.get(name, parameter.default))
    return settings


def _flat(key: str, value: Any) -> dict[str, Any]:
    """A value, or the options of a group, by their keys."""
    if dataclasses.is_dataclass(value):
        return {
            k: v for f in dataclasses.fields(value) for k, v in _flat(f"{key}.{f.name}", getattr(value, f.name)).items()
        }
    return {key: _comparable(value[1] if key.rpartition(".")[2] in TRAIN_AND_TEST else value)}


def _comparable(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
