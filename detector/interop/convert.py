"""Conversion of other frameworks' files into checkpoints of this project, and back."""

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
from detector.files import check_new_file, make_folder
from detector.interop.classes import classes_of
from detector.interop.files import Weights, read_weights, write_weights
from detector.interop.imagenet import is_imagenet, to_classifier
from detector.interop.names import first_few
from detector.interop.recognise import FRAMEWORKS, Fit, blank_state, fitting, inference_options, which_framework
from detector.modeling.backbones.imagenet import input_settings
from detector.records.keypoints import PERSON

Write = Callable[[], None]
# options that change no name and no shape of a tensor
NOT_IN_TENSORS = ("model.preprocess.order", "model.backbone.stride_in", "model.backbone.norm_eps")
ADVICE = "choose another --output"


def import_weights(
    source: Path, origin: str, output: Path, config: Path | str = "auto", overrides: Sequence[str] = ()
) -> list[str]:
    """Convert a file of another framework to this project's format; returns lines about what was done.

    A detector becomes a checkpoint, an ImageNet backbone of Detectron a file for `model.backbone.weights`. Raises
    CheckpointError for a file that is unreadable or of another architecture, DataError for an output that exists.

    Args:
        source: the file.
        origin: key of FRAMEWORKS, or "auto".
        output: the file to write.
        config: configuration of the same model, or "auto": the one in detector://compat/ that fits.
        overrides: `key.path=value` changes to the configuration.
    """
    check_new_file(output, ADVICE)
    weights = read_weights(source)
    try:
        if is_imagenet(weights.state):
            write, lines = _convert_backbone(weights, output)
        else:
            write, lines = _convert_detector(weights, origin, output, config, overrides)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    make_folder(output.parent)
    write()
    return [f"{source}: {len(weights.state)} tensors", *lines]


def _convert_backbone(weights: Weights, output: Path) -> tuple[Write, list[str]]:
    """The function that writes the file, and lines about it."""
    state, trained_with = to_classifier(weights.state)
    _check_finite(state)
    settings = " ".join(f"{key}={value}" for key, value in input_settings(trained_with).items())
    return partial(write_weights, output, state, {"trained_with": trained_with}, "state_dict"), [
        f"{output}: an ImageNet backbone for model.backbone.weights={output}",
        f"it was trained with {settings}",
    ]


def _convert_detector(
    weights: Weights, origin: str, output: Path, config: Path | str, overrides: Sequence[str]
) -> tuple[Write, list[str]]:
    """The function that writes the checkpoint, and lines about it."""
    framework = _framework(weights, origin)
    if config == "auto":
        fit, *others = _recognise(framework, weights, overrides)
        settings, notes = fit.config, _describe(fit, others)
    else:
        settings, notes = load_config(config, overrides), []
    state = _import_state(framework, weights, settings, config)
    model = build_detector(settings, pretrained=False)
    model.load_state_dict(state)
    _check_finite(model.state_dict())
    keypoints = "roi_head.keypoint_head" in settings.model.calls
    names, ids, names_from = classes_of(framework, weights.meta, settings.model.num_classes or 0, keypoints=keypoints)
    head = getattr(getattr(model.roi_head, "keypoint", None), "head", None)
    pose = PERSON if getattr(head, "keypoints", 0) == len(PERSON.names) else None
    write = partial(
        save_checkpoint, output, model=model, config=settings.raw, class_names=names, category_ids=ids, pose=pose
    )
    return write, [f"{output}: from {FRAMEWORKS[framework].name}, {len(names)} classes ({names_from})", *notes]


def _framework(weights: Weights, origin: str) -> str:
    """The framework named by --from, or recognised. Raises ConfigError if the tensors have another framework's names."""
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
    """Raise CheckpointError for values that are NaN or infinite in float32, the precision of the model."""
    broken = [name for name, tensor in state.items() if not tensor.float().isfinite().all()]
    if broken:
        raise CheckpointError(
            f"holds numbers that are not finite: {first_few(broken)}; take an earlier file of that training"
        )


def _recognise(framework: str, weights: Weights, overrides: Sequence[str]) -> list[Fit]:
    """The configurations that fit, at least one."""
    fits = fitting(framework, weights.state, overrides)
    if not fits:
        raise CheckpointError(
            f"no configuration in detector://compat/ has these names and shapes; give the {framework} model's by --config"
        )
    return fits


def _describe(fit: Fit, others: Sequence[Fit]) -> list[str]:
    """Lines about the chosen configuration, and its options that the tensors do not show."""
    same = f"; of the same shapes: {', '.join(other.name for other in others)}" if others else ""
    options = inference_options(fit.config)
    unseen = ", ".join(f"{key}={options[key]}" for key in NOT_IN_TENSORS)
    return [f"configuration: {fit.name}{same}", f"taken from it, since the tensors do not show it: {unseen}"]


def _import_state(framework: str, weights: Weights, settings: Config, given: Path | str) -> dict[str, Any]:
    """The state dict under our names; if it does not fit, the message names a configuration that fits."""
    try:
        return FRAMEWORKS[framework].import_state(weights.state, blank_state(settings))
    except CheckpointError as error:
        fits = fitting(framework, weights.state)
        hint = f"{fits[0].name} would fit" if fits else "is this the right --config?"
        raise CheckpointError(f"{error} ({given}); {hint}") from error


def export_weights(source: Path, target: str, output: Path) -> list[str]:
    """Convert a checkpoint of this project to the names and the format of a framework; returns lines about what was done.

    Raises CheckpointError for an unreadable checkpoint or an architecture that the framework does not have, DataError for an
    output that exists.
    """
    check_new_file(output, ADVICE)
    checkpoint = read_checkpoint(source)
    try:
        config = parse_config(checkpoint["config"], trust=False)
        model = build_detector(config, pretrained=False)
    except ConfigError as error:
        raise CheckpointError(f"{source}: its configuration does not build a model: {error}") from error
    load_weights(model, checkpoint["model"], source)
    framework = FRAMEWORKS[target]
    try:
        state = framework.export_state(model.state_dict())
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    names = checkpoint["class_names"]
    meta, under = _format_of(target, names)
    make_folder(output.parent)
    write_weights(output, state, meta, under)
    return [
        f"{output}: {len(state)} tensors for {framework.name}, {len(names)} classes",
        *_describe_differences(target, state, config),
    ]


def _format_of(target: str, names: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """The other entries of a framework's file, and the key of its state dict (None: bare)."""
    if target == "torchvision":
        return {}, None
    if target == "detectron2":
        return {"__author__": "detector"}, "model"
    return {"meta": {"CLASSES": tuple(names), "dataset_meta": {"classes": tuple(names)}}}, "state_dict"


def _describe_differences(target: str, state: Mapping[str, Any], config: Config) -> list[str]:
    """A line about the options that differ from the nearest reference configuration of the same tensors."""
    ours = inference_options(config)
    candidates = []
    for fit in fitting(target, state):
        theirs = inference_options(fit.config)
        keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        candidates.append((len(keys), [f"{key} is {ours.get(key)}, there {theirs.get(key)}" for key in keys], fit.name))
    if not candidates:
        return ["no configuration in detector://compat/ has this architecture: check that the framework has this model"]
    number, differences, name = min(candidates)
    if not number:
        return []
    return [f"expect other boxes there unless these are set as here ({name}): {'; '.join(differences)}"]
