"""What a training says when it cannot go on: what happened, to which images, what is saved, what to do."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from detector import distributed
from detector.errors import DataError, DetectorError
from detector.files import write_atomically
from detector.training.step import NonFiniteLoss


def explain_lost_process(error: Exception, last: Path) -> DetectorError | None:
    """For an error that torch raises because another process has left: one that says so. None for any other."""
    text = str(error)
    if "DataLoader worker" in text:
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
    """With the images of all processes, which the first one keeps in `kept`. All must call it, with (images, targets, ids)."""
    images, targets, image_ids = (list(chain(*parts)) for parts in zip(*distributed.gather(batch)))
    if distributed.is_rank0():
        boxes = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
        write_atomically(kept, {"step": step, "image_ids": image_ids, "images": images, "targets": boxes})
    explained = NonFiniteLoss(
        f"step {step}: {error} (image ids {image_ids}, learning rate {lr:.3g}, gradient norm {error.row['grad_norm']:.3g}). "
        f"{saved}. Lower train.lr, raise train.warmup_steps, set train.clip_norm, or look at these images' boxes: "
        f"{kept} holds them.",
        error.row,
    )
    explained.is_shared = True
    return explained
