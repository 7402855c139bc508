"""Collective operations of the processes that torchrun starts. Each of them also works in a single process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from detector.errors import DetectorError, Interrupted

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
ROUND = 8  # batches that a process handles between two gathers


class SharedError(Exception):
    """The `__cause__` of an error that is raised on all processes: rank 0 alone reports it.

    `raise error from SharedError()` marks an error. Its type stays, so that handlers of that type still catch it.
    """

    def __init__(self) -> None:
        super().__init__("raised on all processes")


@contextmanager
def processes(device: torch.device) -> Iterator[None]:
    """A process group while the context is open, if torchrun started this process.

    CPU tensors are sent with gloo, GPU tensors with NCCL; each process has a GPU of its own (see `own_device`).
    """
    if not is_launched() or dist.is_initialized():
        yield
        return
    try:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        store, number, count = next(rendezvous("env://"))
        # without a prefix per attempt, restarted processes would rendezvous with stale addresses
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
    """Rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank0() -> bool:
    """Whether this process writes files and logs."""
    return rank() == 0


def launcher() -> str:
    """Identity of the torchrun that started this process: run id, host and process id; "" without torchrun."""
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {os.getppid()}" if is_launched() else ""


def is_restarted() -> bool:
    """Whether torchrun restarted this process after a failure."""
    return is_launched() and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def is_lost_peer(error: Exception) -> bool:
    """Whether PyTorch raised this error because another process is gone."""
    words = ("connection", "gloo", "nccl", "socket", "timed out")
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def gather(item: Any) -> list[Any]:
    """The items of all processes in the order of their ranks. All processes must call it.

    An exception passed as an item is raised on all processes.
    """
    if world_size() == 1:
        return [item]
    items: list[Any] = [None] * world_size()
    dist.all_gather_object(items, item)
    for error in items:
        if isinstance(error, Exception):
            raise error from SharedError()
    return items


def all_reduce_mean(x: Tensor) -> Tensor:
    """The mean over all processes, without gradient. All processes must call it."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


def raise_on_all(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work(*args, **kwargs)` on this process. An error of one process is raised on all.

    The other processes raise it here, or at the next `gather` within `work`, so that none waits for a process that has left.
    All processes must call it. See `should_report`.
    """
    if world_size() == 1:
        return work(*args, **kwargs)
    try:
        result = work(*args, **kwargs)
    except Exception as error:
        if is_shared(error):
            raise
        if isinstance(error, DetectorError | Interrupted):
            gather(error)
        with suppress(Exception):  # the others get a text, because this error may not be picklable
            gather(DetectorError(f"process {rank()}: {type(error).__name__}: {error}"))
        raise error from SharedError()
    gather(None)
    return result


def on_rank0(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of `work(*args, **kwargs)`, which only rank 0 runs, on all processes. All must call it."""
    result = raise_on_all(work, *args, **kwargs) if is_rank0() else raise_on_all(_nothing)
    return gather(result)[0]


def _nothing() -> None:
    """The work of the other ranks."""


def map_sharded(items: Sequence[T], work: Callable[[list[T]], Iterable[R]], batch: int = 1) -> Iterator[R]:
    """One result per item, in the order of the items, on all processes; each process computes a part.

    The processes gather their results every few batches, so that an error of one soon stops all. All processes must
    consume all results.

    Args:
        items: the items, the same on all processes.
        work: maps the items of one process, whole batches, to their results.
        batch: items per batch.
    """
    if world_size() == 1:
        yield from work(list(items))
        return
    batches_per_process = -(-len(items) // (batch * world_size()))  # ceil
    length = batch * max(1, min(ROUND, batches_per_process))
    parts = [items[i : i + length] for i in range(0, len(items), length)]
    results = iter(work([item for part in parts[rank() :: world_size()] for item in part]))
    for _ in range(0, len(parts), world_size()):
        done: list[R] = []
        caught = None
        try:
            done.extend(islice(results, length))
        except (Exception, KeyboardInterrupt) as error:  # raised after the finished results are yielded
            caught = error
        yield from chain(*gather(done))
        raise_on_all(_raise, caught)


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum over all processes, with gradient. All must call it, and run its backward pass."""
    return dist_functional.all_reduce(x)


def global_normalizer(count: int | Tensor) -> float | Tensor:
    """Divisor for the sum of one process, so that the mean over processes equals the mean over all counted items.

    It is `count` summed over all processes, at least 1, divided by their number. All processes must call it. A count on the
    device, a tensor () that the host does not know, stays there.
    """
    if isinstance(count, Tensor):
        return all_reduce_mean(count.float()).clamp(min=1 / world_size())
    if world_size() == 1:
        return max(count, 1)
    total = torch.tensor(count)
    dist.all_reduce(total)
    return max(total.item(), 1) / world_size()


def all_reduce_max(*values: int) -> list[int]:
    """The maximum of each value over all processes. All processes must call it."""
    if world_size() == 1:
        return list(values)
    numbers = torch.tensor(values)
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    return numbers.tolist()


def is_shared(error: BaseException) -> bool:
    """Whether this error is raised on all processes."""
    return isinstance(error.__cause__, SharedError)


def should_report(error: BaseException) -> bool:
    """Whether this process reports an error: rank 0 reports a shared one, each process reports its own."""
    return not is_shared(error) or os.environ.get("RANK", "0") == "0"
