"""Weights of other frameworks into checkpoints of this project, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from detector.checkpoint import load_weights, read_checkpoint, save_checkpoint
from detector.config.config import Config, build_detector, load_config, parse_config
from detector.errors import CheckpointError, ConfigError
from detector.interop.classes import classes_of
from detector.interop.files import Weights, read_weights, write_weights
from detector.interop.imagenet import is_imagenet, to_classifier
from detector.interop.names import some
from detector.interop.recognise import FRAMEWORKS, Fit, blank_state, fitting, model_settings, which_framework
from detector.modeling.backbones.imagenet import input_settings

Write = Callable[[], None]
UNSEEN = (
    "model.preprocess.order",
    "model.backbone.stride_in",
    "model.backbone.norm_eps",
)  # not to be seen in any tensor


def import_weights(
    source: Path, origin: str, output: Path, config: Path | str = "auto", overrides: Sequence[str] = ()
) -> list[str]:
    """Write what another framework trained in this project's form; returns lines that say what was done.

    A detector becomes a checkpoint, an ImageNet backbone of Detectron's a file for `model.backbone.weights`. `origin`: a key
    of FRAMEWORKS or "auto"; `config`: a file or "auto", the one of configs/compat/ that fits. Raises CheckpointError for an
    unreadable file, one of another architecture, or an output that exists.
    """
    refuse_existing(output)
    weights = read_weights(source)
    try:
        if is_imagenet(weights.state):
            write, lines = _backbone(weights, output)
        else:
            write, lines = _detector(weights, origin, output, config, overrides)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    _make_folder(output)
    write()
    return [f"{source}: {len(weights.state)} tensors", *lines]


def _backbone(weights: Weights, output: Path) -> tuple[Write, list[str]]:
    state, trained = to_classifier(weights.state)
    _check_finite(state)
    return partial(write_weights, output, state, {"trained_with": trained}, "state_dict"), [
        f"{output}: an ImageNet backbone for model.backbone.weights={output}",
        f"it wants {' '.join(f'{key}={value}' for key, value in input_settings(trained).items())}",
    ]


def _detector(
    weights: Weights, origin: str, output: Path, config: Path | str, overrides: Sequence[str]
) -> tuple[Write, list[str]]:
    framework = _whose(weights, origin)
    if config == "auto":
        fit, *others = _recognised(framework, weights, overrides)
        settings, notes = fit.config, _chosen(fit, others)
    else:
        settings, notes = load_config(config, overrides), []
    converted = _take(framework, weights, settings, config)
    model = build_detector(settings, pretrained=False)
    model.load_state_dict(converted)
    _check_finite(model.state_dict())
    names, ids, where_from = classes_of(framework, weights.meta, settings.model.num_classes or 0)
    write = partial(save_checkpoint, output, model=model, config=settings.raw, class_names=names, category_ids=ids)
    return write, [f"{output}: {FRAMEWORKS[framework].name}'s, {len(names)} classes ({where_from})", *notes]


def _whose(weights: Weights, origin: str) -> str:
    """The framework that was named, unless the names are plainly another's."""
    if origin == "auto":
        return which_framework(weights.state)
    with suppress(CheckpointError):
        found = which_framework(weights.state)
        if found != origin:
            raise ConfigError(
                f"--from {origin}: the names in the file are {FRAMEWORKS[found].name}'s; give --from {found}"
            )
    return origin


def _check_finite(state: Mapping[str, Tensor]) -> None:
    """In float32, in which they will be used."""
    broken = [name for name, tensor in state.items() if not tensor.float().isfinite().all()]
    if broken:
        raise CheckpointError(
            f"holds numbers that are not finite: {some(broken)}; take an earlier file of that training"
        )


def _recognised(framework: str, weights: Weights, overrides: Sequence[str]) -> list[Fit]:
    fits = fitting(framework, weights.state, overrides)
    if not fits:
        raise CheckpointError(
            f"no configuration of configs/compat/ has these names and shapes; give the {framework} model's by --config"
        )
    return fits


def _chosen(fit: Fit, others: Sequence[Fit]) -> list[str]:
    """Which configuration was chosen, and what nobody can know."""
    same = f"; of the same shapes: {', '.join(other.path.stem for other in others)}" if others else ""
    settings = model_settings(fit.config)
    unseen = ", ".join(f"{key}={settings[key]}" for key in UNSEEN)
    return [f"configuration: {fit.path}{same}", f"no tensor shows these, they are that configuration's: {unseen}"]


def _take(framework: str, weights: Weights, settings: Config, given: Path | str) -> dict[str, Any]:
    try:
        return FRAMEWORKS[framework].take(weights.state, blank_state(settings))
    except CheckpointError as error:
        fits = fitting(framework, weights.state)
        hint = f"{fits[0].path} would fit" if fits else "is this the right --config?"
        raise CheckpointError(f"{error} ({given}); {hint}") from error


def export_weights(source: Path, target: str, output: Path) -> list[str]:
    """Write a checkpoint of this project under the names and in the form of another framework; returns what to know.

    Raises CheckpointError for an unreadable checkpoint, an architecture that the framework lacks, or an output that exists.
    """
    refuse_existing(output)
    checkpoint = read_checkpoint(source)
    try:
        config = parse_config(checkpoint["config"], trust=False)
        model = build_detector(config, pretrained=False)
    except ConfigError as error:
        raise CheckpointError(f"{source}: its configuration does not build a model: {error}") from error
    load_weights(model, checkpoint["model"], source)
    framework = FRAMEWORKS[target]
    try:
        state = framework.give(model.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    names = checkpoint["class_names"]
    around = {
        "torchvision": {},
        "detectron2": {"__author__": "detector"},
        "mmdetection": {"meta": {"CLASSES": tuple(names), "dataset_meta": {"classes": tuple(names)}}},
    }[target]
    under = {"torchvision": None, "detectron2": "model", "mmdetection": "state_dict"}[target]
    _make_folder(output)
    write_weights(output, state, around, under)
    return [
        f"{output}: {len(state)} tensors for {framework.name}, {len(names)} classes",
        *_other(target, state, config),
    ]


def _other(target: str, state: Mapping[str, Any], config: Config) -> list[str]:
    """What computes differently from the reference configuration of the same tensors that is nearest."""
    own = model_settings(config)
    lists = []
    for fit in fitting(target, state):
        theirs = model_settings(fit.config)
        differing = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
        lists.append(
            (len(differing), [f"{key} is {own.get(key)}, there {theirs.get(key)}" for key in differing], fit.path)
        )
    if not lists:
        return ["no configuration of configs/compat/ has this architecture: check that the framework has this model"]
    number, differing, path = min(lists)
    if not number:
        return []
    return [f"expect other boxes there unless these are set as here ({path.name}): {'; '.join(differing)}"]


def refuse_existing(output: Path) -> None:
    """Raise CheckpointError rather than overwrite a file."""
    try:
        output.lstat()  # a link to nowhere exists, too
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise CheckpointError(f"{output}: cannot be a file ({error.strerror}); choose another --output") from error
    raise CheckpointError(f"{output}: exists already; choose another --output or remove it first")


def _make_folder(output: Path) -> None:
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{output.parent}: cannot be made ({error.strerror}); choose another --output") from error
