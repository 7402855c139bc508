"""One call from a configuration to a finished training; what can be wrong is found before anything heavy starts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml

from detector import distributed
from detector.checkpoint import init_from as take_weights
from detector.checkpoint import load_weights, read_checkpoint
from detector.config.config import Config, build_detector, in_file
from detector.data.coco import CocoDataset
from detector.data.settings import build_dataset
from detector.device import pick_device
from detector.errors import CheckpointError, ConfigError
from detector.evaluation.coco import read_ground_truth
from detector.files import write_beside
from detector.modeling.rcnn import GeneralizedRCNN
from detector.recipe import Recipe
from detector.rng import seed
from detector.schema.signatures import prefixed
from detector.training.loop import Trainer
from detector.training.metrics import is_metrics_file
from detector.training.signals import Stop

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

CHECKPOINTS = ["last.pth", "previous.pth", "best.pth"]
TEXTS = ["config.yaml", "metrics.csv", "train.log"]

log = logging.getLogger("detector")


def train(config: Config, output: str | Path, *, resume: bool = False, init_from: str | Path | None = None) -> Path:
    """Train, evaluate, and return the folder with config.yaml, metrics.csv, train.log, last.pth and best.pth.

    `resume` goes on from `last.pth`; `init_from` takes the weights of a checkpoint and starts at step 0. Under torchrun all processes call it; the first one writes and logs.
    """
    output = Path(output)
    with distributed.processes(pick_device("auto")), _one_voice():
        written = distributed.raise_on_all(lambda: _written(output))
        trainer, started = distributed.raise_on_all(lambda: _prepare(config, output, resume, init_from))
        with _open_folder(output, trainer.config.raw, written):
            _announce(trainer, started)
            trainer.run()
            log.info("done: %s, best %s %.3f", output / "best.pth", trainer.criterion, trainer.best)
    return output


def _prepare(config: Config, output: Path, resume: bool, init_from: str | Path | None) -> tuple[Trainer, str | None]:
    """A trainer at its place, and a line about what was loaded into it; nothing is written yet."""
    recipe, data = config.train, config.needed_data()
    stop = Stop(recipe.time_limit)
    last, path = _check_output(output, resume, init_from)
    train_set = build_dataset(data, "train")
    val_set = build_dataset(data, "val", class_names=train_set.class_names)
    read_ground_truth(val_set.annotation_file)  # what only the evaluation would stumble over, after an epoch
    config = with_num_classes(config, train_set)
    device = distributed.own_device(pick_device(recipe.device))
    _make_deterministic(recipe.deterministic)
    seed(recipe.seed)
    filled = last is not None or init_from is not None  # then ImageNet weights would only be overwritten
    model = build_detector(config, pretrained=not filled)
    backbone = getattr(model.pyramid, "backbone", None)  # a pyramid of the user's own may have none
    if getattr(backbone, "missing_weights", None):
        raise CheckpointError(backbone.missing_weights)
    check_input = getattr(backbone, "check_input", None)
    if check_input is not None:
        with in_file(config.source), prefixed("model.backbone.weights"):
            check_input(model.preprocess)
    started = _start_from(init_from, model, train_set) if last is None and init_from is not None else None
    if last is not None:
        _check_same_run(last, config.raw, train_set, path)
        load_weights(model, last["model"], path)
    trainer = Trainer(model, config, train_set, val_set, output, device, stop)
    if distributed.rank() > 0:  # all have the same weights, and each its own samples
        seed(recipe.seed, distributed.rank())
    if last is not None:
        trainer.resume(last, path)
        started = f"resumed from {path} at step {trainer.step} of {trainer.steps}"
    return trainer, started


def _start_from(init_from: str | Path, model: GeneralizedRCNN, train_set: CocoDataset) -> str:
    """Load the weights of another training, and say which."""
    given = read_checkpoint(init_from)
    started = take_weights(model, given["model"], init_from)
    if len(given["class_names"]) == len(train_set.class_names) and given["class_names"] != train_set.class_names:
        log.warning("%s: its predictor is kept, but its classes were %s", init_from, given["class_names"])
    return started


@contextmanager
def _one_voice() -> Iterator[None]:
    """All processes know the same; of the others only errors are heard."""
    level = log.level
    if not distributed.is_rank0():
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _make_deterministic(wanted: bool) -> None:
    """The same bits in every run. Where CUDA has no such kernel torch says so and takes another."""
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used


def with_num_classes(config: Config, train_set: CocoDataset) -> Config:
    """The configuration with the class count of the training annotations. Raises ConfigError if it says another."""
    count, found = config.model.num_classes, len(train_set.class_names)
    if count not in (None, found):
        with in_file(config.source):
            raise ConfigError(
                f"model.num_classes: {count}, but {train_set.annotation_file} has {found} classes "
                f"({', '.join(train_set.class_names[:10])}{', …' if found > 10 else ''}); correct it, or leave it out"
            )
    return config.with_num_classes(found)


def _check_output(
    output: Path, resume: bool, init_from: str | Path | None
) -> tuple[dict[str, Any], Path] | tuple[None, None]:
    """The checkpoint to resume from, if any, and its path; a training is never written over by accident."""
    if resume and init_from is not None:
        raise ConfigError("--resume continues a training, --init-from starts one from given weights: choose one")
    for path in map(output.joinpath, CHECKPOINTS + TEXTS):
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: not a file; move it away, or choose another --output")
    taken = [path for path in map(output.joinpath, CHECKPOINTS) if path.exists()]
    if resume:
        if not taken or taken[0].name == "best.pth":
            raise CheckpointError(_nothing_to_resume(output))
        return _newest(output)
    if taken and distributed.is_restarted():  # the same command again, in the place of processes that fell
        content, path = _newest(output)
        if {*content["training"]["launchers"]} & {*distributed.gather(distributed.launcher())}:
            return content, path
    if taken:
        raise ConfigError(f"{taken[0]}: this folder holds a training already; add --resume, or choose another --output")
    foreign = [path for path in map(output.joinpath, TEXTS) if path.exists()]
    if foreign and not is_metrics_file(output / "metrics.csv"):
        raise ConfigError(f"{foreign[0]}: not of a training, and would be written over; choose another --output")
    return None, None


def _newest(output: Path) -> tuple[dict[str, Any], Path]:
    """The newest checkpoint of a training that can be read: `last.pth`, or the one before it."""
    path, previous = output / "last.pth", output / "previous.pth"
    try:
        content = read_checkpoint(path)
    except CheckpointError as error:
        if not previous.exists():
            raise
        log.warning("%s; going back to %s, which was saved before it", error, previous)
        path, content = previous, read_checkpoint(previous)
    if "optimizer" not in content["training"]:
        raise CheckpointError(f"{path}: holds weights but no training to resume; start one with --init-from {path}")
    return content, path


def _nothing_to_resume(output: Path) -> str:
    beside = ", ".join(str(path.parent) for path in sorted(output.parent.glob("*/last.pth")))
    hint = f"to resume one of {beside}, name it by --output; " if beside else ""
    return f"{output / 'last.pth'}: no such checkpoint, so nothing to resume; {hint}to start anew, leave out --resume"


def _check_same_run(last: Mapping[str, Any], config: Mapping[str, Any], train_set: CocoDataset, path: Path) -> None:
    if last["class_names"] != train_set.class_names:
        raise CheckpointError(
            f"{path}: was trained on the classes {last['class_names']}, the data now have {train_set.class_names}; "
            "resume with the same data, or start anew with --init-from"
        )
    before, now = (c.get("train", {}).get("optimizer", Recipe.optimizer) for c in (last["config"], config))
    if before != now:
        raise CheckpointError(
            f"{path}: train.optimizer was {before}, now it is {now}; undo it, or use --init-from {path}"
        )
    for key, before, now in changes(last["config"], config):
        log.warning("resume: %s was %s, now it is %s", key, *("not set" if v is None else v for v in (before, now)))


def changes(before: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted key, old and new value, of whatever differs between two configurations."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [] if before == now else [(key, before, now)]
    keys = dict.fromkeys([*before, *now])
    return [c for k in keys for c in changes(before.get(k), now.get(k), f"{key}.{k}" if key else k)]


@contextmanager
def _open_folder(output: Path, config: Mapping[str, Any], written: int | None) -> Iterator[None]:
    """The folder with its config.yaml; as long as it is open, what is logged goes into its train.log too.

    Only the first process opens it. Raises ConfigError if another training has it open, or had since `written`.
    """
    with ExitStack() as stack:
        distributed.on_rank0(lambda: _enter_folder(stack, output, config, written))
        yield


def _enter_folder(stack: ExitStack, output: Path, config: Mapping[str, Any], written: int | None) -> None:
    """`stack` will undo what has to be undone."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(output / "train.log", encoding="utf-8")
        stack.callback(handler.close)
        if not _lock(handler.stream) or _written(output) != written:
            raise ConfigError(f"{output}: another training writes into this folder; choose another --output")
        for stale in output.glob(".*.tmp"):  # of a run that was killed
            if stale.name.startswith((".last.pth.", ".best.pth.", ".metrics.csv.", ".config.yaml.")):
                stale.unlink()
        text = yaml.safe_dump(dict(config), sort_keys=False).encode()
        write_beside(output / "config.yaml", lambda file: file.write(text))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{output}: cannot be written to ({error}); choose another --output") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    stack.callback(log.setLevel, log.level)
    log.setLevel(logging.INFO)
    stack.callback(log.removeHandler, handler)
    log.addHandler(handler)


class _LogFile(logging.FileHandler):
    """A log that a full disk does not stop: the screen has every line, too."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _written(output: Path) -> int | None:
    """When the checkpoint of a folder was written, if there is one. Raises ConfigError for what can be no folder of ours."""
    try:
        return (output / "last.pth").stat().st_mtime_ns
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{output}: cannot be written to ({error}); choose another --output") from error


def _lock(file: TextIO) -> bool:
    """Whether no other process has this lock; the system gives it back when this one ends, however it ends.

    `flock` would pass it on to the processes that load images, which outlive a killed training by seconds.
    """
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _announce(trainer: Trainer, started: str | None) -> None:
    """What is about to happen, said once."""
    recipe, model = trainer.recipe, trainer.update.model
    log.info("train %s", trainer.train_set.report)
    log.info("val   %s", trainer.val_set.report)
    log.info("%s", trainer.train_set.class_table())
    count = sum(p.numel() for p in model.parameters())
    device = (
        trainer.device
        if distributed.world_size() == 1
        else f"{distributed.world_size()} processes, {trainer.device.type}"
    )
    log.info("model: %.1f M parameters on %s, %s", count / 1e6, device, recipe.precision)
    rule = f"scaled from {recipe.lr:g} for {recipe.lr_batch}" if recipe.optimizer == "sgd" else "as given, not scaled"
    log.info(
        "%s, %d images a step, learning rate %.4g (%s), %d steps in %d epochs",
        recipe.optimizer, recipe.batch_size, recipe.scaled_lr(), rule, trainer.steps, recipe.epochs,
    )  # fmt: skip
    if trainer.criterion != "AP":
        log.info(
            "an RPN alone: best.pth is chosen by the %s of proposals; AP is that of all classes as one",
            trainer.criterion,
        )
    if started:
        log.info("%s", started)
