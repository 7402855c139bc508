"""ImageNet weights under torchvision's names, from a file or from torchvision's downloads."""

from __future__ import annotations

import logging
import re
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from detector.errors import CheckpointError
from detector.files import load_tensors
from detector.modeling.preprocess import ImagePreprocessor

log = logging.getLogger(__name__)

CLASSIFIER = "fc."  # the ImageNet head, which a detector does not have
# tensors that a classifier lacks; they keep their initial value or follow from a loaded weight (sac.py)
ADDED = re.compile(
    r"(.*\.)?(num_batches_tracked|weight_(gamma|beta|diff)|(switch|pre_context|post_context|offset_[sl])\..*)"
)
# {"pixels": {"order", "mean", "std"}, "stride_in": ...}, which `detector convert-weights` writes beside the weights
TrainedWith = Mapping[str, Any]


class Loaded(NamedTuple):
    """The result of loading weights."""

    missing: str | None = None
    """Why they could not be downloaded."""
    trained_with: TrainedWith | None = None
    """The settings of their training, where their file states them."""


def load_imagenet(
    part: nn.Module, weights: str, network: str, *, prefix: str = "", elsewhere: Sequence[str] = ()
) -> Loaded:
    """Fill a module with ImageNet weights.

    A failed download does not raise, because a checkpoint may still fill the model: the reason is logged and returned, and
    training refuses to start. Raises CheckpointError unless all tensors of the module are filled and all others are used.

    Args:
        part: the module.
        weights: a file, or torchvision's name for weights of the network.
        network: torchvision's name of the network.
        prefix: beginning of the names of this module's tensors in the file.
        elsewhere: beginnings of the names of tensors that this module does not use.
    """
    try:
        state, trained_with = _read(weights, network)
    except OSError as error:
        reason = f"model.backbone.weights: {error}"
        log.warning("%s", reason)
        return Loaded(missing=reason)
    others = (CLASSIFIER, *elsewhere)
    mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) and not k.startswith(others)}
    ours = part.state_dict()
    unused = [k for k in mine if k not in ours and not ADDED.fullmatch(k)]
    missing = [k for k in ours if k not in mine and not ADDED.fullmatch(k)]
    wrong = [k for k in ours if k in mine and mine[k].shape != ours[k].shape]
    if unused or missing or wrong:
        found = "; ".join(f"{what}: {', '.join(keys[:4])}{' …' if len(keys) > 4 else ''}" for what, keys in
                          [("missing", missing), ("unknown", unused), ("other shape", wrong)] if keys)  # fmt: skip
        raise CheckpointError(f"{weights}: not the weights of this {network} ({found}). {_advice(weights, mine, ours)}")
    used = {k: v for k, v in mine.items() if k in ours}
    part.load_state_dict(used, strict=False)
    log.info("%s%s: %d tensors loaded from %s, %d not for it", "backbone" if not prefix else "backbone's ",
             prefix.rstrip("."), len(used), weights, len(state) - len(used))  # fmt: skip
    return Loaded(trained_with=trained_with)


def _advice(weights: str, state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str:
    """Advice for tensors that do not fit."""
    if any(name.startswith("pyramid.") for name in state):
        return f"It is a whole detector of this project: start from it by --init-from {shlex.quote(weights)}"
    if state and not ours.keys() & state.keys():
        return f"Convert weights with other names first: {_conversion(Path(weights))}"
    return "Check model.backbone.depth, norm, groups and width_per_group."


def _conversion(path: Path) -> str:
    """The command that converts a file to torchvision's names."""
    output = path.with_name(f"{path.stem}_converted.pth")
    return f"detector convert-weights {shlex.quote(str(path))} --from auto --output {shlex.quote(str(output))}"


def _read(weights: str, network: str) -> tuple[dict[str, Tensor], TrainedWith | None]:
    path = Path(weights)
    if path.suffix in (".pth", ".pt", ".pkl", ".safetensors") or path.exists():
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file (model.backbone.weights)")
        content = _load_file(path)
        state = content.get("state_dict", content.get("model", content))
        entries = state.items() if isinstance(state, dict) else ()
        tensors = {k: v for k, v in entries if isinstance(k, str) and isinstance(v, Tensor)}
        return tensors, _trained_with(content, path)
    return _by_torchvision_name(weights, network), None


def _load_file(path: Path) -> dict:
    try:
        content = load_tensors(path)
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path}: damaged ({error}); copy or download it again (model.backbone.weights)"
        ) from error
    except Exception as error:  # torch's message is long and advises unsafe loading
        raise CheckpointError(
            f"{path}: not a file of tensors that torch can read safely (model.backbone.weights). If another framework wrote "
            f"it, convert it first: {_conversion(path)}"
        ) from error
    return content if isinstance(content, dict) else {}


def _by_torchvision_name(name: str, network: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights  # slow to import, and a file does not need it

    try:
        choices = get_model_weights(network)
    except ValueError as error:
        raise CheckpointError(f"model.backbone.weights: torchvision has no {network}; give a file") from error
    if name not in choices.__members__:
        raise CheckpointError(
            f"model.backbone.weights: {name!r} is neither a file nor one of torchvision's {network} weights "
            f"({', '.join(choices.__members__)})"
        )
    try:
        return choices[name].get_state_dict(progress=True, check_hash=True)
    except OSError as error:
        raise OSError(
            f"{name} of {network} could not be downloaded ({error}). Download {choices[name].url} on another machine and "
            "give the path of the file, or null to start from scratch."
        ) from error


def _trained_with(content: Mapping[str, Any], path: Path) -> TrainedWith | None:
    found = content.get("trained_with")
    try:
        if found is not None:
            input_settings(found)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its entry `trained_with` is malformed; convert the original file again"
        ) from error
    return found


def input_settings(trained_with: TrainedWith) -> dict[str, str]:
    """The configuration keys and values that weights require, in the form of the command line."""
    pixels = trained_with["pixels"]
    colours = {f"model.preprocess.{name}": f"[{','.join(f'{x:g}' for x in pixels[name])}]" for name in ("mean", "std")}
    return {
        "model.preprocess.order": str(pixels["order"]),
        **colours,
        "model.backbone.stride_in": str(trained_with["stride_in"]),
    }


def check_trained_with(trained_with: TrainedWith, preprocess: ImagePreprocessor, stride_in: str, weights: str) -> None:
    """Raise ValueError, with the settings to change, where a model differs from the training of its `weights`."""
    colours = {name: getattr(preprocess, name).flatten().tolist() for name in ("mean", "std")}
    current = input_settings({"pixels": {"order": preprocess.order} | colours, "stride_in": stride_in})
    required = {key: value for key, value in input_settings(trained_with).items() if value != current[key]}
    if required:
        raise ValueError(
            f"{weights} was trained with other settings than {', '.join(f'{key}={current[key]}' for key in required)}; set "
            f"{' '.join(f'{key}={value}' for key, value in required.items())}"
        )
