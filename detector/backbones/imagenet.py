"""ImageNet weights under torchvision's names, from a file or by torchvision's own name for them."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from detector.errors import CheckpointError

log = logging.getLogger(__name__)

CLASSIFIER = "fc."  # the ImageNet head, which a detector does not have
# what a classifier has not, and what keeps its initial value (or follows from a weight that is loaded: sac.py)
ADDED = re.compile(
    r"(.*\.)?(num_batches_tracked|weight_(gamma|beta|diff)|(switch|pre_context|post_context|offset_[sl])\..*)"
)


def load_imagenet(
    part: nn.Module, weights: str, network: str, *, prefix: str = "", elsewhere: Sequence[str] = ()
) -> str | None:
    """Fill `part` of a `network` (torchvision's name) with the tensors whose names begin with `prefix`.

    Those that begin with one of `elsewhere` belong to parts that are filled elsewhere or nowhere. Raises CheckpointError
    unless every tensor of the part is filled and every other tensor used. Weights that cannot be downloaded are no reason
    not to build the model (a checkpoint may fill it): the reason is logged and returned, and training does not start
    without them.
    """
    try:
        state = _read(weights, network)
    except OSError as error:
        reason = f"model.backbone.weights: {error}"
        log.warning("%s", reason)
        return reason
    others = (CLASSIFIER, *elsewhere)
    mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) and not k.startswith(others)}
    ours = part.state_dict()
    unused = [k for k in mine if k not in ours and not ADDED.fullmatch(k)]
    missing = [k for k in ours if k not in mine and not ADDED.fullmatch(k)]
    wrong = [k for k in ours if k in mine and mine[k].shape != ours[k].shape]
    if unused or missing or wrong:
        found = "; ".join(f"{what}: {', '.join(keys[:4])}{' …' if len(keys) > 4 else ''}" for what, keys in
                          [("missing", missing), ("unknown", unused), ("other shape", wrong)] if keys)  # fmt: skip
        raise CheckpointError(f"{weights}: not the weights of this {network} ({found}). "
                              "Check model.backbone.depth, norm, groups and width_per_group.")  # fmt: skip
    used = {k: v for k, v in mine.items() if k in ours}
    part.load_state_dict(used, strict=False)
    log.info("%s%s: %d tensors loaded from %s, %d not for it", "backbone" if not prefix else "backbone's ",
             prefix.rstrip("."), len(used), weights, len(state) - len(used))  # fmt: skip
    return None


def _read(weights: str, network: str) -> dict[str, Tensor]:
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
    return _by_torchvision_name(weights, network)


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
