"""`train`: from a configuration to a finished training. Errors of the input are found before the first step."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import yaml

from detector import distributed
from detector.checkpoint import init_from as take_weights
from detector.checkpoint import is_of_0_1, load_weights, read_checkpoint, with_old_depth
from detector.config.config import Config, build_detector, in_file
from detector.config.match_data import with_num_classes
from detector.data.coco_reader import read_coco_file
from detector.data.settings import build_dataset
from detector.device import own_device, pick_device
from detector.errors import CheckpointError, ConfigError, DetectorError, Interrupted
from detector.files import write_beside
from detector.interop.fetch import checkpoint_file
from detector.modeling.rcnn import GeneralizedRCNN
from detector.protocols import DataSet
from detector.recipe import Recipe
from detector.rng import make_deterministic, seed
from detector.schema.signatures import prefixed
from detector.training.announce import announce
from detector.training.loggers import check_loggers
from detector.training.loop import Trainer
from detector.training.metrics import is_metrics_file
from detector.training.reporting import complete_report
from detector.training.signals import Stop

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

CHECKPOINTS = ["last.pth", "previous.pth", "best.pth"]
TEXTS = ["config.yaml", "metrics.csv", "train.log"]

DEFAULTS_OF_0_1: dict[str, Any] = {"milestones": [8, 11], "warmup_steps": 500}  # of the recipe, where others now

log = logging.getLogger("detector")


def run_training(
    config: Config, output: str | Path, *, resume: bool = False, init_from: str | Path | None = None
) -> Path:
    """Train, evaluate, and return the folder with config.yaml, metrics.csv, train.log, last.pth and best.pth.

    Under torchrun all processes call it; rank 0 writes and logs.

    Args:
        config: the configuration, with a `data` section.
        output: the folder of the run.
        resume: continue from its `last.pth`.
        init_from: a checkpoint, or the name of a published detector, whose weights the training starts from, at step 0.
    """
    output = Path(output)
    with distributed.processes(pick_device("auto")), quiet_nonzero_ranks():
        written = distributed.raise_on_all(_written, output)
        trainer, started = distributed.raise_on_all(_prepare, config, output, resume, init_from)
        with _open_folder(output, trainer.config.raw, written):
            announce(trainer, started)
            if init_from is not None:
                log.info("init-from: %s", init_from)
            try:
                trainer.run()
            except (DetectorError, Interrupted) as error:
                if distributed.is_rank0():
                    _record_end(output, error)
                raise
            best = f"{trainer.best:.3f}" if trainer.best >= 0 else "- (nothing in val can be scored)"
            log.info("done: %s, best %s %s", output / "best.pth", trainer.criterion, best)
            trainer.stop.deadline = None  # what is trained is reported, too
            with trainer.stop:
                complete_report(output, trainer.config, trainer.stop.check)
    return output


def _record_end(output: Path, error: Exception) -> None:
    """Write into train.log why a training ended; the command itself prints it."""
    with suppress(OSError), open(output / "train.log", "a", encoding="utf-8") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} stopped: {error}\n")


def _prepare(config: Config, output: Path, resume: bool, init_from: str | Path | None) -> tuple[Trainer, str | None]:
    """A trainer at its first step, and a line about the weights loaded into it; nothing is written yet."""
    last, path = _check_output(output, resume, init_from)
    config = config if last is None else with_old_defaults(config, last)
    recipe, data = config.train, config.needed_data()
    check_loggers(recipe.loggers)
    stop = Stop(recipe.time_limit)
    fields, offset = config.model.target_fields, config.model.keypoint_offset
    train_set = build_dataset(data, "train", fields=fields, keypoint_offset=offset)
    val_set = build_dataset(data, "val", class_names=train_set.class_names, fields=fields, keypoint_offset=offset)
    read_coco_file(val_set.annotation_file, fields=fields)  # else its errors would come after an epoch
    config = with_num_classes(config, train_set)
    device = own_device(pick_device(recipe.device))
    make_deterministic(recipe.deterministic)
    seed(recipe.seed)
    filled = last is not None or init_from is not None  # ImageNet weights would be overwritten
    model = build_detector(config, pretrained=not filled)
    backbone: Any = getattr(model.pyramid, "backbone", None)  # a custom pyramid may have none
    if getattr(backbone, "missing_weights", None):
        raise CheckpointError(backbone.missing_weights)
    check_input = getattr(backbone, "check_input", None)
    if check_input is not None:
        with in_file(config.source), prefixed("model.backbone.weights"):
            check_input(model.preprocess)
    started = _start_from(init_from, model, train_set) if last is None and init_from is not None else None
    if last is not None and path is not None:
        _check_same_run(last, config.raw, train_set, path)
        load_weights(model, last["model"], path)
    trainer = Trainer(model, config, train_set, val_set, output, device, stop)
    if distributed.rank() > 0:  # the processes share the weights, but not the random samples
        seed(recipe.seed, distributed.rank())
    if last is not None and path is not None:
        trainer.resume(last, path)
        started = f"resumed from {path} at step {trainer.step} of {trainer.steps}"
    return trainer, started


def _start_from(init_from: str | Path, model: GeneralizedRCNN, train_set: DataSet) -> str:
    """Load the weights of another training; returns a line about them."""
    checkpoint = read_checkpoint(checkpoint_file(init_from))
    return take_weights(model, checkpoint["model"], init_from, checkpoint["class_names"], train_set.class_names)


@contextmanager
def quiet_nonzero_ranks() -> Iterator[None]:
    """Log only errors on ranks above 0 while the context is open."""
    level = log.level
    if not distributed.is_rank0():
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def with_old_defaults(config: Config, checkpoint: Mapping[str, Any]) -> Config:
    """The configuration with which a training of 0.1 continues: keys that it leaves out have the defaults of that version."""
    if not is_of_0_1(checkpoint):
        return config
    given = config.raw.get("train", {})
    kept = {key: value for key, value in DEFAULTS_OF_0_1.items() if key not in given}
    for key, value in kept.items():
        log.info("resume: train.%s keeps the default of version 0.1, %s", key, value)
    raw = with_old_depth(config.raw, checkpoint)
    data = replace(config.needed_data(), bit_depth=raw["data"].get("bit_depth"))
    return replace(config, train=replace(config.train, **kept), data=data, raw=raw | {"train": given | kept})


def _check_output(
    output: Path, resume: bool, init_from: str | Path | None
) -> tuple[dict[str, Any], Path] | tuple[None, None]:
    """The checkpoint to resume from and its path, or (None, None). Raises ConfigError for the folder of another training."""
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
    if taken and distributed.is_restarted():  # torchrun restarted the same command
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
    """The newest readable checkpoint with a training state, and its path: `last.pth`, else `previous.pth`."""
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
    """The message for --resume without a checkpoint."""
    beside = ", ".join(str(path.parent) for path in sorted(output.parent.glob("*/last.pth")))
    hint = f"to resume one of {beside}, name it by --output; " if beside else ""
    return f"{output / 'last.pth'}: no such checkpoint, so nothing to resume; {hint}to start anew, leave out --resume"


def _check_same_run(last: Mapping[str, Any], config: Mapping[str, Any], train_set: DataSet, path: Path) -> None:
    """Raise CheckpointError if a training cannot be resumed with this configuration; warn of other changes."""
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
    """(dotted key, old value, new value) of each difference between two configurations."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return [] if before == now else [(key, before, now)]
    keys = dict.fromkeys([*before, *now])
    return [c for k in keys for c in changes(before.get(k), now.get(k), f"{key}.{k}" if key else k)]


@contextmanager
def _open_folder(output: Path, config: Mapping[str, Any], written: int | None) -> Iterator[None]:
    """Context of a run: rank 0 locks the folder, writes config.yaml and logs into train.log.

    Raises ConfigError if another training has the folder open, or wrote its checkpoint after `written`.
    """
    with ExitStack() as stack:
        distributed.on_rank0(_enter_folder, stack, output, config, written)
        yield


def _enter_folder(stack: ExitStack, output: Path, config: Mapping[str, Any], written: int | None) -> None:
    """Open the folder; `stack` receives the steps that close it."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(output / "train.log", encoding="utf-8")
        stack.callback(handler.close)
        if not _lock(handler.stream) or _written(output) != written:
            raise ConfigError(f"{output}: another training writes into this folder; choose another --output")
        for stale in output.glob(".*.tmp"):  # from a killed run
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
    """A log file whose write errors (a full disk) are ignored; stderr has every line, too."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _written(output: Path) -> int | None:
    """Modification time of a folder's last.pth, or None. Raises ConfigError for a path that cannot be a folder."""
    try:
        return (output / "last.pth").stat().st_mtime_ns
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{output}: cannot be written to ({error}); choose another --output") from error


def _lock(file: TextIO) -> bool:
    """Take the lock of a file; returns whether no other process holds it. The system releases it when this process ends.

    `lockf`, because loader processes would inherit a `flock` and outlive a killed training by seconds.
    """
    try:
        if fcntl is not None:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks
        pass
    return True
