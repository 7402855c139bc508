"""What processes share, results in order and errors that all meet alike, and what one of them knows of itself."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.processes import fork_processes, run_processes

from detector import distributed
from detector.device import own_device
from detector.distributed import ROUND, map_sharded, on_rank0, processes, raise_on_all, rank, should_report
from detector.errors import DataError, DetectorError, Interrupted

GPU = torch.device("cuda")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As the second process of torchrun on a machine of two GPUs; the GPUs that were made the default."""
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("RANK", "3"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


def test_a_process_has_a_gpu_to_itself_and_more_processes_than_gpus_are_an_error(launched, monkeypatch):
    assert own_device(GPU) == torch.device("cuda", 1) and launched == [1]
    assert own_device(torch.device("cpu")) == torch.device("cpu") and launched == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DetectorError, match=r"process 3 of this machine has no GPU .* --nproc-per-node 2, or choose"):
        own_device(GPU)


def test_alone_nothing_is_a_case(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")  # of some other launcher
    x = torch.tensor(3.0)
    with distributed.processes(GPU):
        assert (distributed.rank(), distributed.world_size(), distributed.is_rank0()) == (0, 1, True)
        assert own_device(GPU) == GPU and distributed.gather("a") == ["a"]
        assert distributed.all_reduce_mean(x) is x and distributed.all_reduce_max(2, 5) == [2, 5]
        assert [distributed.global_normalizer(count) for count in (0, 7)] == [1, 7]
        assert list(distributed.map_sharded([1, 2, 3], lambda items: [10 * i for i in items])) == [10, 20, 30]


LONG = 5 * ROUND + 1  # more than one round of three processes


def doubled(error: Exception | None = None, at: int = -1) -> Callable[[list[int]], Iterator[int]]:
    """Work that gives twice each item, or in place of one raises the error."""

    def work(items: list[int]) -> Iterator[int]:
        for item in items:
            if item == at:
                raise error
            yield 2 * item

    return work


def in_order(count: int, batch: int = 1) -> bool:
    return list(map_sharded(range(count), doubled(), batch)) == [2 * i for i in range(count)]


def only(number: int, error: Exception) -> None:
    """Raise it on one process."""
    if rank() == number:
        raise error


def fail_before_sharing() -> None:
    only(1, DataError("early"))
    in_order(4)


def until_the_error() -> list[int]:
    """What is given although one process fails in the first round."""
    found: list[int] = []
    try:
        for result in map_sharded(range(LONG), doubled(DataError("bad"), at=ROUND + 2)):
            found.append(result)
    except DataError:
        return found
    raise AssertionError("no error")


CASES: dict[str, tuple[Callable[[], Any], Any]] = {  # what to do, and what every process has from it
    "items": (lambda: [in_order(n, k) for n in (0, 1, 2, 3, 7, LONG) for k in (1, 3)], 12 * [True]),
    "first": (lambda: on_rank0(lambda: rank() + 5), 5),
    "data": (lambda: list(map_sharded(range(LONG), doubled(DataError("bad"), at=LONG - 1))), "DataError bad"),
    "signal": (
        lambda: list(map_sharded(range(LONG), doubled(Interrupted("SIGTERM", 143), at=0))),
        "Interrupted SIGTERM",
    ),
    "nested": (lambda: raise_on_all(lambda: raise_on_all(fail_before_sharing)), "DataError early"),
    "of the first": (lambda: on_rank0(lambda: only(0, DataError("full"))), "DataError full"),
    "of each": (lambda: raise_on_all(lambda: only(rank(), DataError(f"of {rank()}"))), "DataError of 0"),
    "unknown": (lambda: raise_on_all(lambda: only(1, KeyError("x"))), "DetectorError process 1: KeyError: 'x'"),
    "partly": (until_the_error, [2 * i for i in [*range(ROUND + 2), *range(2 * ROUND, 3 * ROUND)]]),
    "in the end": (lambda: in_order(5), True),
}


def met(work: Callable[[], Any]) -> tuple[Any, bool]:
    """The result, or the kind and text of the error; and whether this process tells the user."""
    try:
        return work(), False
    except Exception as error:
        return f"{type(error).__name__} {error}", should_report(error)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_all_processes_have_the_results_in_order_or_the_same_error(tmp_path: Path, count: int):
    run = run_processes(Path(__file__), "cases", tmp_path, count=count)
    assert run.returncode == 0, run.stderr
    for number in range(count):
        said = json.loads((tmp_path / f"{number}.json").read_text())
        for name, (_, expected) in CASES.items():
            result, tells = said[name]
            if name == "partly" and count == 2:
                expected = expected[: ROUND + 2]
            if name == "unknown" and number == 1:
                expected = "KeyError 'x'"
            assert result == expected, name
            assert tells == (number == 0 and isinstance(expected, str)), name


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_all(tmp_path: Path, victim: int):
    began = time.monotonic()
    run = run_processes(Path(__file__), "killed", victim, count=3)
    assert run.returncode != 0 and "Signal 9 (SIGKILL)" in run.stderr and time.monotonic() - began < 60


@pytest.mark.slow
def test_what_is_done_survives_ctrl_c(tmp_path: Path):
    # without torchrun, which may send SIGTERM to the processes instead of the signal that it gets
    run = fork_processes(Path(__file__), "stopped", tmp_path)
    assert "KeyboardInterrupt" in run.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == [2 * i for i in [*range(7), *range(ROUND, ROUND + 7)]], run.stderr


def stopped(items: list[int]) -> Iterator[int]:
    """Work that is interrupted at the eighth item of each process."""
    for i, item in enumerate(items):
        if i == 7:
            signal.raise_signal(signal.SIGINT)
        yield 2 * item


def main(part: str, argument: str) -> None:
    if part == "cases":
        said = {name: met(work) for name, (work, _) in CASES.items()}
        Path(argument, f"{rank()}.json").write_text(json.dumps(said))
    elif part == "killed":
        raise_on_all(lambda: os.kill(os.getpid(), signal.SIGKILL) if rank() == int(argument) else in_order(LONG))
    else:
        found: list[int] = []
        try:
            for result in map_sharded(range(4 * ROUND), stopped):
                found.append(result)
        finally:
            if rank() == 0:
                Path(argument, "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with processes(torch.device("cpu")):
        main(*sys.argv[1:])
