"""The processes that torchrun started together, and what they tell each other. One process alone needs no case of its own."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, islice
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from detector.errors import DetectorError, Interrupted

T, R = TypeVar("T"), TypeVar("R")
ROUND = 8  # batches that a process does between two gatherings


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """What is inside runs together with the other processes of torchrun, if it started this one.

    Tensors on the CPU travel by gloo, those on GPUs by NCCL, each process having a GPU to itself (see `own_device`).
    """
    if not is_launched() or dist.is_initialized():
        yield
        return
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, number, count = next(rendezvous("env://"))
        # processes started anew would find the addresses of those that fell: each try has a name of its own
        store = dist.PrefixStore(f"try {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
        dist.init_process_group(backend, store=store, rank=number, world_size=count)
        yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank0() -> bool:
    """Whether this process writes the files and says what happens."""
    return rank() == 0


def launcher() -> str:
    """Who started this process: the torchrun of this machine."""
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {os.getppid()}" if is_launched() else ""


def is_restarted() -> bool:
    """Whether torchrun started this process in the place of one that fell."""
    return is_launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_lost_peer(error: Exception) -> bool:
    """Whether torch raised this because another process no longer answers."""
    words = ("connection", "gloo", "nccl", "socket", "timed out")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def gather(thing: Any) -> list[Any]:
    """What every process gives, in the order of their ranks, on each of them. All must call it.

    An exception that one gives instead is raised on all.
    """
    if world_size() == 1:
        return [thing]
    things: list[Any] = [None] * world_size()
    dist.all_gather_object(things, thing)
    for error in things:
        if isinstance(error, Exception):
            error.is_shared = True
            raise error
    return things


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean over all processes, on each of them; without a gradient. All must call it."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


def raise_on_all(work: Callable[..., T], *args: Any) -> T:
    """What `work(*args)` gives on this process. What it raises on one of them is raised on all; see `should_report`.

    The others meet the error here, or wherever within `work` they gather next: none waits for one that has left. All must
    call it.
    """
    if world_size() == 1:
        return work(*args)
    try:
        result = work(*args)
    except Exception as error:
        if getattr(error, "is_shared", False):
            raise
        if isinstance(error, DetectorError | Interrupted):
            gather(error)
        with suppress(Exception):  # the others get what can travel; the process itself tells the error in full
            gather(DetectorError(f"process {rank()}: {type(error).__name__}: {error}"))
        error.is_shared = True
        raise
    gather(None)
    return result


def on_rank0(work: Callable[..., T], *args: Any) -> T:
    """What `work(*args)` gives on the first process, where alone it is done, on all. All must call it."""
    return gather(raise_on_all(work, *args) if is_rank0() else raise_on_all(_nothing))[0]


def _nothing() -> None:
    """The part of the other processes."""


def map_sharded(items: Sequence[T], work: Callable[[list[T]], Iterable[R]], batch: int = 1) -> Iterator[R]:
    """The results of `work`, one an item, in the order of the items and on all processes, each of which does a part.

    `work` takes the items of a process, whole batches of them. Every now and then the processes gather what they have, so
    that an error on one soon ends all, and none waits long for another. All must take all results.
    """
    if world_size() == 1:
        yield from work(list(items))
        return
    fair = -(-len(items) // (batch * world_size()))  # batches for each process
    length = batch * max(1, min(ROUND, fair))
    parts = [items[i : i + length] for i in range(0, len(items), length)]
    results = iter(work([item for part in parts[rank() :: world_size()] for item in part]))
    for _ in range(0, len(parts), world_size()):
        done: list[R] = []
        caught = None
        try:
            done.extend(islice(results, length))
        except (Exception, KeyboardInterrupt) as error:  # what is done is given all the same
            caught = error
        yield from chain(*gather(done))
        raise_on_all(partial(_raise, caught))


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over all processes, on each of them. All must call it, and its backward pass."""
    return dist_functional.all_reduce(x)


def global_normalizer(count: int) -> float:
    """What a process divides a sum of its own by, so that the mean over the processes is the mean over all that they count.

    1 where nothing is counted. All must call it.
    """
    if world_size() == 1:
        return max(count, 1)
    total = torch.tensor(count)
    dist.all_reduce(total)
    return max(total.item(), 1) / world_size()


def all_reduce_max(*values: int) -> list[int]:
    """The largest of each over all processes. All must call it."""
    if world_size() == 1:
        return list(values)
    numbers = torch.tensor(values)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers.tolist()


def should_report(error: Exception) -> bool:
    """Whether this process tells the user of an error: what all have in common, the first one says."""
    return not getattr(error, "is_shared", False) or os.environ.get("RANK", "0") == "0"
