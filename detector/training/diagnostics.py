"""Explanations of a training that cannot continue: what happened, to which images, what is saved, what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from detector import distributed
from detector.data.workers import ignore_lost_workers, is_lost_worker
from detector.errors import CheckpointError, DataError, DetectorError
from detector.files import write_atomically
from detector.training.signals import Stop
from detector.training.step import NonFiniteLoss


@contextmanager
def lost_process_explained(stop: Stop, last: Path) -> Iterator[None]:
    """Replace PyTorch's errors about a process that has left by one that says so; `last` is the checkpoint to resume."""
    try:
        yield
    except (RuntimeError, CheckpointError) as error:  # PyTorch may raise it anywhere, even during a save
        explained = explain_lost_process(error, last)
        if explained is None:
            raise
        ignore_lost_workers()  # another may die while this one is explained
        # a signal sent to all processes at once may reach another process first
        time.sleep(0.2)
        stop.check()
        raise explained from None


def explain_lost_process(error: Exception, last: Path) -> DetectorError | None:
    """The error to raise instead of one that PyTorch raises because a process has left; None for any other."""
    text = str(error)
    if is_lost_worker(error):
        return DataError(
            f"a process that loads images died ({text}). If memory ran out, lower data.workers or train.batch_size; "
            f"then continue from {last} with --resume"
        )
    if distributed.world_size() > 1 and distributed.is_lost_peer(error):
        return DetectorError(
            f"process {distributed.rank()}: another process of this training has left; its own message says why. "
            f"Continue from {last} with --resume"
        )
    return None


def explain_non_finite(
    error: NonFiniteLoss, step: int, lr: float, batch: list[list], kept: Path, saved: str
) -> NonFiniteLoss:
    """The error with the image ids of all processes; rank 0 writes the images into a file. All processes must call it.

    Args:
        error: the error of the step.
        step: number of the step, from 1.
        lr: its learning rate.
        batch: [images, targets, image ids] of this process.
        kept: the file to write.
        saved: a sentence about the last checkpoint.
    """
    images, targets, image_ids = (list(chain(*parts)) for parts in zip(*distributed.gather(batch)))
    if distributed.is_rank0():
        boxes = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
        write_atomically(kept, {"step": step, "image_ids": image_ids, "images": images, "targets": boxes})
    return NonFiniteLoss(
        f"step {step}: {error} (image ids {image_ids}, learning rate {lr:.3g}, gradient norm "
        f"{error.row['grad_norm']:.3g}). {saved}. Lower train.lr, raise train.warmup_steps, "
        f"set train.clip_norm, or look at these images' boxes: "
        f"{kept} holds them. Where the loss rose before, start anew: the saved weights are of that time.",
        error.row,
    )
