"""The processes that torchrun started together, and what they tell each other. One process alone needs no case of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from detector.errors import DetectorError, Interrupted

T = TypeVar("T")


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """What is inside runs together with the other processes of torchrun, if it started this one.

    Tensors on the CPU travel by gloo, those on GPUs by NCCL, each process having a GPU to itself (see `own_device`).
    """
    if not is_launched() or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def own_device(device: torch.device) -> torch.device:
    """Of the GPUs of a machine, the one of this process. Raises DetectorError if there are fewer than processes."""
    if device.type != "cuda" or not is_launched():
        return device
    index = int(os.environ["LOCAL_RANK"])
    if index >= torch.cuda.device_count():
        raise DetectorError(
            f"process {index + 1} of this machine has no GPU of its own: start torchrun with --nproc-per-node "
            f"{torch.cuda.device_count()}, or train with train.device=cpu"
        )
    return torch.device("cuda", index)


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes the files and says what happens."""
    return rank() == 0


def gather(thing: Any) -> list[Any]:
    """What every process gives, in the order of their ranks, on each of them. All must call it."""
    if world() == 1:
        return [thing]
    things: list[Any] = [None] * world()
    dist.all_gather_object(things, thing)
    return things


def mean(x: Tensor) -> Tensor:
    """The mean over all processes, on each of them; without a gradient. All must call it."""
    if world() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world()


def together(work: Callable[[], T]) -> T:
    """What `work` gives on this process. What it raises on one of them is raised on all; see `speaks`.

    So none waits for another that has left. All must call it.
    """
    if world() == 1:
        return work()
    result, error = None, None
    try:
        result = work()
    except (DetectorError, Interrupted) as known:
        error = known
    except Exception as unknown:  # which may not travel; its own process tells it in full
        gather(DetectorError(f"process {rank()}: {type(unknown).__name__}: {unknown}"))
        raise
    for error in filter(None, gather(error)):
        error.is_shared = True
        raise error
    return result


def largest(*values: int) -> list[int]:
    """The largest of each over all processes. All must call it."""
    if world() == 1:
        return list(values)
    numbers = torch.tensor(values)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers.tolist()


def speaks(error: Exception) -> bool:
    """Whether this process tells the user of an error: what all have in common, the first one says."""
    return not getattr(error, "is_shared", False) or os.environ.get("RANK", "0") == "0"
