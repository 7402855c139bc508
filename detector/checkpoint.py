"""Checkpoints: tensors, numbers, texts and containers alone, so that reading one never runs anything."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from detector import __version__
from detector.errors import CheckpointError, ConfigError
from detector.files import load_tensors, write_atomically
from detector.renames import rename_config, rename_tensors

FORMAT = "detector checkpoint 1"
PREDICTOR = re.compile(r"roi_head\.(.+\.)?(class_score|box_delta)\.")  # of any stage: depends on the number of classes


def save_checkpoint(
    path: str | Path, *, model: Any, config: Mapping[str, Any], class_names: list[str], category_ids: list[int],
    training: Mapping[str, Any] | None = None, previous: Path | None = None,
) -> None:  # fmt: skip
    """Write a checkpoint that describes itself; `training` is the state that `--resume` continues from.

    It is written beside its place, flushed and renamed: a crash at any moment leaves the old file or the new one. An older
    file of that name is kept as `previous`, if given. Raises NotWritten if the disk will not have it.
    """
    pixels = model.preprocess
    content = {
        "format": FORMAT,
        "model": model.state_dict(),
        "config": dict(config),
        "class_names": list(class_names),
        "category_ids": list(category_ids),
        "pixels": {"order": pixels.order, "mean": pixels.mean.flatten().tolist(), "std": pixels.std.flatten().tolist()},
        "versions": {
            "detector": __version__,
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "python": platform.python_version(),
        },
        "training": dict(training or {}),
    }
    write_atomically(Path(path), content, previous)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of `save_checkpoint`. Raises CheckpointError for anything else; never runs code from the file."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        content = load_tensors(path)
    except Exception as error:  # torch raises a dozen kinds; its own text advises to read the file unsafely
        raise CheckpointError(
            f"{path}: damaged, or holds more than plain tensors and numbers; it was not read"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a checkpoint of this project. Weights of another framework come in by "
            "scripts/convert_weights.py; ImageNet weights by model.backbone.weights"
        )
    keys = {"model": dict, "config": dict, "class_names": list, "category_ids": list, "pixels": dict, "training": dict}
    wrong = [key for key, kind in keys.items() if not isinstance(content.get(key), kind)]
    if not wrong and not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content["model"].items()):
        wrong = ["model"]
    if wrong:
        raise CheckpointError(f"{path}: damaged: {', '.join(wrong)} missing or malformed")
    try:
        return _renamed(content)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration is damaged: {error}") from error


def _renamed(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint under today's names; where weights are averaged, `training` holds the current ones."""
    content["model"], content["config"] = rename_tensors(content["model"]), rename_config(content["config"])
    if isinstance(content["training"].get("weights"), dict):
        content["training"]["weights"] = rename_tensors(content["training"]["weights"])
    return content


def _differences(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """What does not fit: keys by kind of trouble."""
    own = model.state_dict()
    return {
        "missing": [k for k in own if k not in state],
        "not part of this model": [k for k in state if k not in own],
        "of another shape": [k for k in own if k in state and own[k].shape != state[k].shape],
    }


def load_weights(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Fill every tensor of the model. Raises CheckpointError that lists what does not fit."""
    troubles = {kind: keys for kind, keys in _differences(model, state).items() if keys}
    if troubles:
        raise CheckpointError(
            f"{path}: made for another architecture; {_listed(troubles)}; set {_sections(troubles)} as they were"
        )
    model.load_state_dict(state)


def init_from(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> str:
    """Take the weights of another training; the predictor starts afresh where the number of classes differs.

    Returns one line that says what was loaded. Raises CheckpointError if anything else does not fit.
    """
    troubles = _differences(model, state)
    before, now = _classes(state), _classes(model.state_dict())
    other_classes = [k for k in troubles["of another shape"] if PREDICTOR.match(k) and before != now]
    troubles["of another shape"] = [k for k in troubles["of another shape"] if k not in other_classes]
    if any(troubles.values()):
        raise CheckpointError(
            f"{path}: made for another architecture; {_listed(troubles)}; set {_sections(troubles)} as in the configuration "
            "that it was trained with, or leave out --init-from"
        )
    model.load_state_dict({k: v for k, v in state.items() if k not in other_classes}, strict=False)
    total = len(model.state_dict())
    if not other_classes:
        return f"{path}: all {total} tensors loaded"
    return (
        f"{path}: {total - len(other_classes)} of {total} tensors loaded; re-initialised because the number of classes "
        f"differs ({before} -> {now}): {', '.join(other_classes)}"
    )


def _classes(state: Mapping[str, Tensor]) -> int | None:
    """The number of classes, None where nothing tells them apart."""
    biases = [len(tensor) for key, tensor in state.items() if key.endswith("class_score.bias")]  # (K + 1,) each
    return biases[0] - 1 if biases else None


def _sections(troubles: Mapping[str, list[str]]) -> str:
    """The sections of a configuration whose parts hold these tensors: "model.neck and model.rpn"."""
    places = ([*key.split("."), ""][:2] for keys in troubles.values() for key in keys)
    parts = (below if part == "pyramid" and below in ("backbone", "neck") else part for part, below in places)
    return " and ".join(f"model.{part}" for part in dict.fromkeys(parts))


def _listed(troubles: Mapping[str, list[str]]) -> str:
    return "; ".join(
        f"{kind}: {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for kind, keys in troubles.items()
        if keys
    )
