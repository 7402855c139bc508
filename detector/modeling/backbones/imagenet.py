"""ImageNet weights under torchvision's names, from a file or by torchvision's own name for them."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detector.errors import CheckpointError, ConfigError
from detector.modeling.preprocess import ImagePreprocessor

log = logging.getLogger(__name__)

CLASSIFIER = "fc."  # the ImageNet head, which a detector does not have
# what a classifier has not, and what keeps its initial value (or follows from a weight that is loaded: sac.py)
ADDED = re.compile(
    r"(.*\.)?(num_batches_tracked|weight_(gamma|beta|diff)|(switch|pre_context|post_context|offset_[sl])\..*)"
)
TrainedWith = Mapping[
    str, Any
]  # {"pixels": a section model.preprocess, "stride_in": ...}, as scripts/convert_weights.py writes


class Loaded(NamedTuple):
    """Why the weights could not be downloaded, and what their file says that they were trained with."""

    missing: str | None = None
    trained_with: TrainedWith | None = None


def load_imagenet(
    part: nn.Module, weights: str, network: str, *, prefix: str = "", elsewhere: Sequence[str] = ()
) -> Loaded:
    """Fill `part` of a `network` (torchvision's name) with the tensors whose names begin with `prefix`.

    Those that begin with one of `elsewhere` belong to parts that are filled elsewhere or nowhere. Raises CheckpointError
    unless every tensor of the part is filled and every other tensor used. Weights that cannot be downloaded are no reason
    not to build the model (a checkpoint may fill it): the reason is logged and returned, and training does not start
    without them.
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
    """What to do about tensors that do not fit."""
    if any(name.startswith("pyramid.") for name in state):
        return f"It is a whole detector of this project: begin with it by --init-from {shlex.quote(weights)}"
    if state and not ours.keys() & state.keys():
        return f"Weights under other names have to be converted first: {_conversion(Path(weights))}"
    return "Check model.backbone.depth, norm, groups and width_per_group."


def _conversion(path: Path) -> str:
    """The command that gives a file torchvision's names."""
    output = path.with_name(f"{path.stem}_converted.pth")
    return f"python scripts/convert_weights.py {shlex.quote(str(path))} --from auto --output {shlex.quote(str(output))}"


def _read(weights: str, network: str) -> tuple[dict[str, Tensor], TrainedWith | None]:
    path = Path(weights)
    if path.suffix in (".pth", ".pt", ".pkl", ".safetensors") or path.exists():
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file (model.backbone.weights)")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's own text is long and advises to read the file unsafely
            raise CheckpointError(
                f"{path}: not a file of tensors that torch can read safely (model.backbone.weights). If it is another "
                f"framework's, convert it first: {_conversion(path)}"
            ) from error
        content = content if isinstance(content, dict) else {}
        state = content.get("state_dict", content.get("model", content))
        entries = state.items() if isinstance(state, dict) else ()
        tensors = {k: v for k, v in entries if isinstance(k, str) and isinstance(v, Tensor)}
        return tensors, _trained_with(content, path)
    return _by_torchvision_name(weights, network), None


def _by_torchvision_name(name: str, network: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights  # the list of names; only needed by who asks for one

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
            f"{name} of {network} could not be downloaded ({error}). Download {choices[name].url} elsewhere and give the "
            "path of the file, or null to start from scratch."
        ) from error


def _trained_with(content: Mapping[str, Any], path: Path) -> TrainedWith | None:
    found = content.get("trained_with")
    try:
        if found is not None:
            input_settings(found)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its entry `trained_with` is malformed; convert the original anew") from error
    return found


def input_settings(trained_with: TrainedWith) -> dict[str, str]:
    """Keys and values, as they are written on a command line, of what weights want of a configuration."""
    pixels = trained_with["pixels"]
    colours = {f"model.preprocess.{name}": f"[{','.join(f'{x:g}' for x in pixels[name])}]" for name in ("mean", "std")}
    return {
        "model.preprocess.order": str(pixels["order"]),
        **colours,
        "model.backbone.stride_in": str(trained_with["stride_in"]),
    }


def check_input(backbone: nn.Module | None, pixels: ImagePreprocessor) -> None:
    """Raise ConfigError if a backbone has weights whose file says that they want other pixels, or the stride elsewhere.

    Nothing else would tell: such weights fit and find little.
    """
    trained_with = getattr(backbone, "trained_with", None)
    if trained_with is None:
        return
    colours = {name: getattr(pixels, name).flatten().tolist() for name in ("mean", "std")}
    stride_in = backbone.settings.get("stride_in", "3x3")  # where basic blocks have it, too
    here = input_settings({"pixels": {"order": pixels.order} | colours, "stride_in": stride_in})
    wanted = {key: value for key, value in input_settings(trained_with).items() if value != here[key]}
    if wanted:
        raise ConfigError(
            f"model.backbone.weights: {backbone.weights} was trained with other settings than "
            f"{', '.join(f'{key}={here[key]}' for key in wanted)}; set "
            f"{' '.join(f'{key}={value}' for key, value in wanted.items())}"
        )
