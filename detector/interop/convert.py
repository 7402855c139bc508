"""Files of weights from other frameworks into checkpoints of this project, and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.build import build_detector
from detector.errors import CheckpointError
from detector.inference.predictor import without_weights
from detector.interop.torchvision import class_names_and_ids, from_torchvision, to_torchvision, torchvision_like
from detector.training.checkpoint import FORMAT, load_weights, read_checkpoint, save_checkpoint, write_atomically


def import_torchvision(source: Path, config: Mapping[str, Any], output: Path) -> str:
    """Write torchvision's state dict as a checkpoint of `config`; returns one line that says what was done.

    Raises CheckpointError for an unreadable file, one of another architecture, or an output that exists.
    """
    make_room(output)
    state = read_state(source)
    model = build_detector(without_weights(config))
    try:
        converted = from_torchvision(state, model.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}; is this the right --config?") from error
    model.load_state_dict(converted)
    columns = len(state["roi_heads.box_predictor.cls_score.bias"])
    names, ids = class_names_and_ids(columns, model.roi_head.num_classes)
    save_checkpoint(output, model=model, config=config, class_names=names, category_ids=ids)
    return f"{output}: {len(state)} tensors of {source}, {len(names)} classes"


def export_torchvision(source: Path, output: Path) -> str:
    """Write a checkpoint of this project as a state dict for torchvision's model of the same architecture.

    Raises CheckpointError for an unreadable checkpoint, an architecture that torchvision lacks, or an output that exists.
    """
    make_room(output)
    checkpoint = read_checkpoint(source)
    model = build_detector(without_weights(checkpoint["config"]), trust=False)
    load_weights(model, checkpoint["model"], source)
    state = model.state_dict()
    try:
        converted = to_torchvision(state, torchvision_like(state))
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    write_atomically(output, converted)
    same_function = model.rpn.anchors.strides_from_image and not model.roi_head.pool.aligned  # as in configs/compat
    note = "" if same_function else "; torchvision's anchors and RoIAlign are not this model's: expect other boxes"
    return f"{output}: {len(converted)} tensors for torchvision, {model.roi_head.num_classes} classes{note}"


def make_room(output: Path) -> None:
    """Raise CheckpointError rather than overwrite a file or lose the result of the work."""
    if output.exists():
        raise CheckpointError(f"{output}: exists already; choose another --output or remove it first")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{output.parent}: cannot be made ({error.strerror}); choose another --output") from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict in a file, bare or under "model"; nothing in the file is run."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged or foreign file
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(f"{path}: damaged, or not a file of tensors that is safe to read ({reason})") from error
    if isinstance(content, Mapping) and content.get("format") == FORMAT:
        raise CheckpointError(f"{path}: is a checkpoint of this project already; --to torchvision takes it back")
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path}: holds no state dict; save model.state_dict() alone, or under the key 'model'")
    return dict(state)
