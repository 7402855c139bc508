"""Recognition of a state dict: its framework, and the reference configurations (detector://compat/) of the same model."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detector.config.config import Config, build_detector, load_config, parse_config
from detector.config.describe import effective_options
from detector.config.inherit import SHIPPED, shipped_configs
from detector.config.keys import key_table
from detector.errors import CheckpointError
from detector.interop.detectron2 import DETECTRON2
from detector.interop.mmdetection import MMDETECTION
from detector.interop.names import first_few, rename
from detector.interop.torchvision import ROWS_2019, TORCHVISION

FRAMEWORKS = {"torchvision": TORCHVISION, "detectron2": DETECTRON2, "mmdetection": MMDETECTION}
COMPAT = shipped_configs() / "compat"
BLOCKS = {(4, 6): 50, (4, 23): 101, (8, 36): 152}  # blocks of layer2 and layer3 in bottleneck ResNets -> depth
# options that do not change inference; all kinds of norm with statistics compute the same then
TRAINING_ONLY = {"weights", "norm", "frozen_stages", "matching", "sampling", "loss", "allowed_border", "padded_to", "ious",
                 "stage_weights", "resample", "scale_gradient", "train_on_predicted_boxes"}  # fmt: skip
OF_BRANCHES = {
    "targets",
    "init",
    "weight",
    "positives_per_image",
    "sampling",
}  # the same, of masks, keypoints and semantics
TRAIN_AND_TEST = ("pre_nms", "post_nms")  # pairs: the value in training, the value in inference


class Fit(NamedTuple):
    """A reference configuration whose model has the names and shapes of a state dict."""

    path: Path
    config: Config

    @property
    def name(self) -> str:
        """The argument of --config, usable from any folder."""
        return f"{SHIPPED}compat/{self.path.name}"


def which_framework(names: Collection[str]) -> str:
    """The key in FRAMEWORKS of the framework that names tensors so. Raises CheckpointError if it is not exactly one."""
    found = [key for key, framework in FRAMEWORKS.items() if any(re.match(framework.marker, name) for name in names)]
    if len(found) == 1:
        return found[0]
    raise CheckpointError(
        f"not a detector of exactly one of {', '.join(FRAMEWORKS)} (its tensors are {first_few(list(names), 3)}); "
        "name its framework by --from"
    )


def blank_state(config: Config) -> dict[str, Tensor]:
    """The state dict of a configuration's model on the meta device: names and shapes without data."""
    return dict(_blank_state(json.dumps(config.raw.get("model", {}))))


@functools.lru_cache(maxsize=32)
def _blank_state(model: str) -> dict[str, Tensor]:
    config = parse_config({"model": json.loads(model)}, trust=True)
    with torch.device("meta"):
        return build_detector(config, pretrained=False).state_dict()


def fitting(framework: str, state: Mapping[str, Tensor], overrides: Sequence[str] = ()) -> list[Fit]:
    """The reference configurations of a framework whose models have the tensors of a state dict, the simplest first.

    The number of classes is read from the state dict and, where no configuration fits unchanged, the backbone's shape as well.

    Args:
        framework: key of FRAMEWORKS.
        state: state dict under its names.
        overrides: `key.path=value` changes to each configuration.
    """
    names = {name: tensor for key, tensor in state.items() for name in rename(key, FRAMEWORKS[framework].all_rows)}
    classes = [*_classes(names), *overrides]
    paths = sorted(COMPAT.glob(f"{framework}_*.yaml"), key=lambda path: (len(path.stem), path.stem))
    if any(rename(key, ROWS_2019) for key in state):  # only the published file of torchvision has these names
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
        FRAMEWORKS[framework].import_state(state, blank_state(config))
    except CheckpointError:
        return False
    return True


def _classes(names: Mapping[str, Tensor]) -> list[str]:
    """The override that sets the number of classes, if there are class scores."""
    columns = [len(tensor) for name, tensor in names.items() if name.endswith("class_score.bias") and tensor.ndim]
    return [f"model.num_classes={columns[0] - 1}"] if columns and columns[0] > 1 else []


def backbone_shape(names: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
    """Depth, groups and width per group of a bottleneck ResNet whose tensors have this prefix; {} for other backbones."""
    blocks = tuple(len({k.removeprefix(f"{prefix}layer{n}.").split(".")[0] for k in names if k.startswith(f"{prefix}layer{n}.")})
                   for n in (2, 3))  # fmt: skip
    inner = names.get(f"{prefix}layer1.0.conv2.weight")
    if blocks not in BLOCKS or inner is None or inner.ndim != 4 or not inner.shape[1]:
        return {}
    width, per_group = inner.shape[:2]
    return {"depth": BLOCKS[blocks], "groups": width // per_group, "width_per_group": per_group}


def inference_options(config: Config) -> dict[str, Any]:
    """Every option of the model that inference depends on by its dotted path, defaults included."""
    options = {}
    for path, value in effective_options(config, key_table(config)).items():
        room, *names = path.split(".")
        if room == "model" and TRAINING_ONLY.isdisjoint(names[1:2]) and OF_BRANCHES.isdisjoint(names[2:3]):
            options[path] = _comparable(value[1] if names[-1] in TRAIN_AND_TEST else value)
    return options


def _comparable(value: Any) -> Any:
    """Lists for tuples, floats for integers."""
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
