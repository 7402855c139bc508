"""Checkpoints hold only tensors, numbers, strings and containers, so that reading one runs no code."""

from __future__ import annotations

import platform
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import Tensor, nn

from detector import __version__
from detector.errors import CheckpointError, ConfigError
from detector.files import check_there, load_tensors, write_atomically
from detector.records.keypoints import Pose
from detector.renames import rename_config, rename_tensors

FORMAT = "detector checkpoint 1"
# what a model finds beside boxes, which one that was trained without it can learn
BRANCH = re.compile(r"roi_head\.(masks?\.iou_head|masks?|flow|keypoint|semantic_head)\.")


class Entries(NamedTuple):
    """What lies along an axis of a tensor whose length depends on the number of classes."""

    of_class: int | None = 1
    """For each class in turn; None: all that there are, in equal shares."""
    background: int = 0
    """Behind those of the classes."""
    others: bool = False
    """Whether any come before those of the classes."""


# the layers of any stage whose shapes depend on the number of classes, and their axes
PREDICTOR: dict[str, list[Entries | None]] = {
    "class_score": [Entries(background=1)],
    "box_delta": [Entries(4)],
    r"head\.predictor": [Entries()],
    r"mask.*\.head\.logits": [Entries(None)],  # cells of a class
    r"point_head\.layers\.\d+": [None, Entries(others=True)],  # features, then a coarse logit of each class
    r"point_head\.predictor": [Entries(), Entries(others=True)],
}


def save_checkpoint(
    path: str | Path, *, model: Any, config: Mapping[str, Any], class_names: list[str], category_ids: list[int],
    pose: Pose | None = None, training: Mapping[str, Any] | None = None, previous: Path | None = None,
) -> None:  # fmt: skip
    """Write a checkpoint that describes itself: after a crash at any moment there is the old file or the new one.

    Raises NotWritten if the file cannot be written.

    Args:
        path: the file.
        model: the detector whose state dict is saved.
        config: the plain values that it was built from (`Config.raw`).
        class_names: names of the K classes, in the order of the class scores.
        category_ids: their ids in the annotations, in the same order.
        pose: what the keypoints mean that the model finds.
        training: the state that `--resume` continues from.
        previous: name under which an older file at `path` is kept.
    """
    preprocess: Any = model.preprocess
    content = {
        "format": FORMAT,
        "model": model.state_dict(),
        "config": dict(config),
        "class_names": list(class_names),
        "category_ids": list(category_ids),
        "pose": None if pose is None else {"names": list(pose.names), "skeleton": [[*bone] for bone in pose.skeleton]},
        "pixels": {
            "order": preprocess.order,
            "mean": preprocess.mean.flatten().tolist(),
            "std": preprocess.std.flatten().tolist(),
        },
        "versions": versions(),
        "training": dict(training or {}),
    }
    write_atomically(Path(path), content, previous)


def versions() -> dict[str, str]:
    """Of this program and of what it runs on."""
    packages = {"detector": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__}
    return {name: str(version) for name, version in packages.items()} | {"python": platform.python_version()}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content that `save_checkpoint` wrote; no code in the file is run. Raises CheckpointError for any other file."""
    path = Path(path)
    check_there(path)
    try:
        content = load_tensors(path)
    except Exception as error:  # torch raises a dozen kinds; its own text advises to read the file unsafely
        if path.suffix in (".onnx", ".xml", ".pt2"):
            raise CheckpointError(f"{path}: an exported file, which only runs; give its checkpoint") from error
        raise CheckpointError(
            f"{path}: damaged, or holds more than plain tensors and numbers; it was not read"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a checkpoint of this project. Convert weights of another framework with `detector convert-weights`; "
            "ImageNet weights belong in model.backbone.weights"
        )
    keys = {"model": dict, "config": dict, "class_names": list, "category_ids": list, "pixels": dict, "training": dict}
    wrong = [key for key, kind in keys.items() if not isinstance(content.get(key), kind)]
    if not wrong and not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content["model"].items()):
        wrong = ["model"]
    try:
        pose_of(content)
    except (TypeError, KeyError, ValueError):
        wrong.append("pose")
    if wrong:
        raise CheckpointError(f"{path}: damaged: {', '.join(wrong)} missing or malformed")
    try:
        return _renamed(content)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration is damaged: {error}") from error


def pose_of(content: Mapping[str, Any]) -> Pose | None:
    """What the keypoints mean that the model of a checkpoint finds; None if that is not known, as in older files."""
    pose = content.get("pose")
    if pose is None:
        return None
    names, skeleton = [*map(str, pose["names"])], [(int(a), int(b)) for a, b in pose["skeleton"]]
    if not all(0 <= end < len(names) for bone in skeleton for end in bone):
        raise ValueError("a line of the skeleton leads to no keypoint")
    return Pose(names, skeleton)


def _renamed(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a checkpoint under today's names; `training` of a run with ModelEMA has a second state dict."""
    content["model"], content["config"] = rename_tensors(content["model"]), rename_config(content["config"])
    if isinstance(content["training"].get("weights"), dict):
        content["training"]["weights"] = rename_tensors(content["training"]["weights"])
    return content


def _mismatches(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Names of tensors that do not fit, by the kind of mismatch."""
    own = model.state_dict()
    return {
        "missing": [k for k in own if k not in state],
        "not part of this model": [k for k in state if k not in own],
        "of another shape": [k for k in own if k in state and own[k].shape != state[k].shape],
    }


def load_weights(model: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Fill every tensor of the model. Raises CheckpointError that lists the tensors that do not fit."""
    wrong = {kind: keys for kind, keys in _mismatches(model, state).items() if keys}
    if wrong:
        raise CheckpointError(
            f"{path}: made for another architecture; {_listed(wrong)}; set {_sections(wrong)} as in the configuration that it "
            "was trained with"
        )
    model.load_state_dict(state)


def init_from(
    model: nn.Module, state: Mapping[str, Tensor], path: str | Path, before: Sequence[str], now: Sequence[str]
) -> str:
    """Load the weights of another training; the rows of the predictor move to the classes of the same names.

    Classes and branches (of masks, of keypoints) that the other training did not have start from their initial weights; its
    branches that this model lacks are left out. Returns a log line about what was loaded. Raises CheckpointError if anything
    else does not fit.

    Args:
        model: the detector to fill.
        state: the state dict of the other one.
        path: its file, for messages.
        before: class names of the other training, in label order.
        now: class names of this one.
    """
    own = model.state_dict()
    new, unused = _branches(own) - _branches(state), _branches(state) - _branches(own)
    given = {key: value for key, value in state.items() if not key.startswith(tuple(unused))}
    filled = {key: value for key, value in own.items() if key.startswith(tuple(new))}
    rows = {} if list(before) == list(now) else _predictor_by_name(own, given, before, now)
    wrong = {kind: [k for k in keys if k not in rows] for kind, keys in _mismatches(model, given | filled).items()}
    if any(wrong.values()):
        raise CheckpointError(
            f"{path}: made for another architecture; {_listed(wrong)}; set {_sections(wrong)} as in the configuration that it "
            "was trained with, or leave out --init-from"
        )
    model.load_state_dict({**given, **filled, **rows})
    parts = [f"{branch[:-1]} starts afresh" for branch in sorted(new)]
    parts += [f"{branch[:-1]} of the file is left out" for branch in sorted(unused)]
    return "; ".join([f"{path}: {_loaded(len(own), len(filled), rows, before, now)}", *parts])


def _branches(names: Iterable[str]) -> set[str]:
    """The prefixes of the branches beside the box head that tensors of these names belong to."""
    return {found[0] for found in map(BRANCH.match, names) if found}


def _loaded(total: int, afresh: int, rows: Collection[str], before: Sequence[str], now: Sequence[str]) -> str:
    """How many tensors of a model were loaded, and what became of the classes."""
    if not rows:
        return f"{total - afresh} of {total} tensors loaded" if afresh else f"all {total} tensors loaded"
    known, fresh = [n for n in now if n in before], [n for n in now if n not in before]
    if not known:
        return (
            f"{total - afresh - len(rows)} of {total} tensors loaded; the predictor starts afresh, because none of its "
            f"{len(before)} classes is among the {len(now)} of the data ({', '.join(rows)})"
        )
    dropped = [name for name in before if name not in now]
    parts = [f"rows of the predictor moved by name for {len(known)} of {len(now)} classes"]
    parts += [f"afresh: {', '.join(fresh)}"] if fresh else []
    parts += [f"dropped: {', '.join(dropped)}"] if dropped else []
    return f"{total - afresh} tensors loaded; {'; '.join(parts)}"


def _predictor_by_name(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], before: Sequence[str], now: Sequence[str]
) -> dict[str, Tensor]:
    """The tensors of the predictor that have entries by class, filled by the names of the classes.

    What belongs to the background or to no class moves with them unless all classes are new.
    """
    known = [name for name in now if name in before]
    filled = {}
    for key, tensor in own.items():
        axes = next(
            (axes for name, axes in PREDICTOR.items() if re.fullmatch(rf"roi_head\.(.+\.)?{name}\.\w+", key)), None
        )
        if axes is None or key not in state:
            continue
        old = state[key]
        here, there = _entries(axes, tensor.shape, now, known), _entries(axes, old.shape, before, known)
        if here is None or there is None or list(map(len, here)) != list(map(len, there)):
            continue  # class-agnostic, or of another architecture
        filled[key] = tensor.clone()
        if known:
            filled[key][torch.meshgrid(*here, indexing="ij")] = old[torch.meshgrid(*there, indexing="ij")]
    return filled


def _entries(
    axes: Sequence[Entries | None], shape: Sequence[int], names: Sequence[str], wanted: Sequence[str]
) -> list[Tensor] | None:
    """Along each axis of a tensor for the classes `names`, the entries of the `wanted` ones and of none.

    None for a tensor of another length.
    """
    found = []
    for axis, length in enumerate(shape):
        entries = axes[axis] if axis < len(axes) else None
        places = torch.arange(length)
        if entries is not None:
            size = length // len(names) if entries.of_class is None else entries.of_class
            first = length - len(names) if entries.others else 0
            if first < 0 or first + size * len(names) + entries.background != length:
                return None
            by_class = places[first : first + size * len(names)].view(len(names), size)
            rows = by_class[[names.index(name) for name in wanted]].flatten()
            places = torch.cat([places[:first], rows, places[first + size * len(names) :]])
        found.append(places)
    return found


def _sections(wrong: Mapping[str, list[str]]) -> str:
    """The sections of a configuration whose parts hold these tensors: "model.neck and model.rpn"."""
    prefixes = ([*key.split("."), ""][:2] for keys in wrong.values() for key in keys)
    parts = (second if first == "pyramid" and second in ("backbone", "neck") else first for first, second in prefixes)
    return " and ".join(f"model.{part}" for part in dict.fromkeys(parts))


def _listed(wrong: Mapping[str, list[str]]) -> str:
    return "; ".join(
        f"{kind}: {', '.join(keys[:4])}{f' and {len(keys) - 4} more' if len(keys) > 4 else ''}"
        for kind, keys in wrong.items()
        if keys
    )


def is_of_0_1(checkpoint: Mapping[str, Any]) -> bool:
    """Whether version 0.1 wrote it."""
    return str(checkpoint.get("versions", {}).get("detector", "")).startswith("0.1.")


def with_old_depth(config: dict[str, Any], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that reads images as its checkpoint was trained: version 0.1 took the high byte of 16 bits.

    A data set of the user's own class reads its images itself, and may not take the key.
    """
    data = config.get("data")
    if not is_of_0_1(checkpoint) or not isinstance(data, dict) or data.get("type", "coco") != "coco":
        return config
    return config | {"data": {"bit_depth": 16} | data}
