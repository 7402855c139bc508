"""A loading process that dies, by itself or of the signal that stops the whole program, is told from all else."""

import argparse
import os
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from detector.cli.ending import ending
from detector.data.loader import ImageLoader
from detector.data.workers import deferred_sigchld, ignore_lost_workers, is_lost_worker
from detector.errors import DataError, Interrupted
from detector.training.diagnostics import lost_process_explained
from detector.training.signals import Stop

DEATH = RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")


class Deadly(Dataset):
    """One sample, which runs `deed` in the process that loads it."""

    def __init__(self, deed: Callable[[], Any]) -> None:
        self.deed = deed

    def __len__(self) -> int:
        return 1

    def __getitem__(self, i: int) -> tuple[Any, Any, Any]:
        self.deed()
        return torch.zeros(1), (1, 1), i


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def lose_file() -> NoReturn:
    raise FileNotFoundError("of the data set")


def lose_connection(*args: Any) -> NoReturn:
    raise ConnectionResetError(104, "Connection reset by peer")


@pytest.fixture
def dying():
    """SIGCHLD raises the death of a worker, as PyTorch's handler does."""

    def fall(*event: Any) -> None:
        raise DEATH

    before = signal.signal(signal.SIGCHLD, fall)
    yield
    signal.signal(signal.SIGCHLD, before)


def die() -> None:
    os.kill(os.getpid(), signal.SIGCHLD)


def test_a_worker_that_dies_and_a_connection_that_breaks_are_one_error(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RuntimeError) as death:
        list(ImageLoader(Deadly(kill), num_workers=1))
    assert is_lost_worker(death.value)
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_next_data", lose_connection)
    with pytest.raises(RuntimeError) as broken:
        list(ImageLoader(Deadly(int), num_workers=1))
    assert is_lost_worker(broken.value)


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_error_of_the_data_set_is_not_a_death(workers: int):
    with pytest.raises(FileNotFoundError, match="of the data set"):
        list(ImageLoader(Deadly(lose_file), num_workers=workers))
    assert not is_lost_worker(RuntimeError("Caught RuntimeError in DataLoader worker process 0."))


def test_one_signal_that_ends_two_workers_is_a_stop(dying, monkeypatch: pytest.MonkeyPatch, tmp_path):
    """The second dies while the first death is explained."""
    monkeypatch.setattr(time, "sleep", lambda seconds: die())
    with (
        pytest.raises(Interrupted, match="SIGTERM"),
        Stop() as stop,
        lost_process_explained(stop, tmp_path / "last.pth"),
    ):
        stop.signal = signal.SIGTERM
        die()


def test_a_death_while_a_stop_leaves_changes_nothing(dying, tmp_path):
    with (
        pytest.raises(Interrupted, match="SIGTERM"),
        Stop() as stop,
        lost_process_explained(stop, tmp_path / "last.pth"),
    ):
        stop.signal = signal.SIGTERM
        try:
            stop.check()
        finally:
            die()


def test_a_death_without_a_signal_is_explained(dying, tmp_path):
    with pytest.raises(DataError, match="lower data"), Stop() as stop:
        with lost_process_explained(stop, tmp_path / "last.pth"):
            die()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_ends_by_its_signal_though_workers_died_of_it(number: signal.Signals, dying, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with ending(argparse.Namespace()) as end:
        try:
            signal.raise_signal(number)
        finally:
            die()
    assert end.status == 128 + number


def test_deferred_deaths_come_at_the_end_and_ignored_ones_never(dying):
    reached = []
    with pytest.raises(RuntimeError) as death, deferred_sigchld():
        die()
        reached.append(1)
    assert death.value is DEATH and reached
    ignore_lost_workers()
    die()
