"""A training as a program, against kill -9, signals and a disk that fills up, at random moments."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.training import ROOT, assert_same_training, draw_set, train, write_config

from detector.checkpoint import read_checkpoint, save_checkpoint


def times(few_times: int, many_times: int, few=()) -> pytest.MarkDecorator:
    many = pytest.param(many_times, id="many", marks=pytest.mark.torture)
    return pytest.mark.parametrize("times", [pytest.param(few_times, id="few", marks=few), many])


ENVIRONMENT = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
REFUSED = "last.pth: could not be written"


class Model(torch.nn.Linear):
    """A tiny model with what `save_checkpoint` reads beside the weights."""

    class preprocess:
        order, mean, std = "rgb", torch.zeros(3), torch.ones(3)


def save_for_ever(path: Path, first: int) -> None:
    """At every step, as a training does."""
    for step in range(first, 10**9):
        save(path, step)


def save(path: Path, step: int) -> None:
    """Every tensor holds the number of the step."""
    model = Model(50, 50)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, step)
    save_checkpoint(path, model=model, config={}, class_names=[], category_ids=[], training={"step": step},
                    previous=path.with_name("previous.pth"))  # fmt: skip


def start_saving(path: Path, first: int) -> int:
    """A process of its own; a fork, because Python alone takes seconds to start."""
    number = os.fork()
    if number == 0:
        try:
            save_for_ever(path, first)
        finally:
            os._exit(1)
    return number


def wait_until_rewritten(path: Path, written: int) -> None:
    """However slow the machine is, the kill meets a process that has saved at least once."""
    end = time.monotonic() + 60
    while path.stat().st_mtime_ns == written:
        assert time.monotonic() < end, "nothing was saved within a minute"
        time.sleep(0.001)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@times(4, 100)
def test_a_killed_process_leaves_a_checkpoint_that_can_be_read(tmp_path: Path, times: int):
    path, chance, seen = tmp_path / "last.pth", random.Random(0), 0
    save(path, 0)
    save(path, 0)
    for _ in range(times):
        written = path.stat().st_mtime_ns
        process = start_saving(path, seen + 1)
        wait_until_rewritten(path, written)
        time.sleep(chance.random() * 0.15)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL  # it had not fallen before
        for name in ("last.pth", "previous.pth"):
            content = read_checkpoint(tmp_path / name)
            assert all((tensor == content["training"]["step"]).all() for tensor in content["model"].values())
        before, seen = seen, read_checkpoint(path)["training"]["step"]
        assert seen > before


@times(2, 25, few=pytest.mark.slow)
def test_a_training_that_is_killed_again_and_again_ends_like_one_that_is_not(tmp_path: Path, times: int):
    """At any moment: while it starts, loads, learns, saves or scores. It saves after every step."""
    config = write_config(tmp_path / "tiny.yaml", draw_set(tmp_path / "data"), save_seconds=0.0, epochs=3 * times)
    assert train(config, tmp_path / "whole", ["data.workers=1"]) == 0
    command = [sys.executable, ROOT / "scripts/train.py", config, "--output", tmp_path / "run", "data.workers=1"]
    chance, kills, status = random.Random(0), 0, None
    while status != 0:
        last = tmp_path / "run/last.pth"
        resume = ["--resume"] if last.exists() else []
        running = subprocess.Popen([*command, *resume], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        began = last.stat().st_mtime_ns if last.exists() else 0
        try:
            while running.poll() is None and kills < times and not (last.exists() and last.stat().st_mtime_ns > began):
                time.sleep(0.01)
            if kills < times:
                time.sleep(chance.random() * 1.5)
                running.kill()
                kills += 1
            _, errors = running.communicate(timeout=300)
        finally:
            running.kill()
        status = running.returncode
        assert status in (0, -signal.SIGKILL), errors
        assert status == 0 or read_checkpoint(last)["training"]["step"] >= 1
    assert kills == times
    assert_same_training(tmp_path / "run", tmp_path / "whole")
    assert not list((tmp_path / "run").glob(".*"))


@times(3, 20, few=pytest.mark.slow)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_moment_of_the_start_ends_it_in_order(tmp_path: Path, times: int, number: signal.Signals):
    """While Python loads torch, while data are read, while the model is built: one line, a status of its own."""
    config, chance = write_config(tmp_path / "tiny.yaml", draw_set(tmp_path / "data"), epochs=10**4), random.Random(0)
    for i in range(times):
        run = tmp_path / f"run{i}"
        command = [sys.executable, ROOT / "scripts/train.py", config, "--output", run]
        running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
        try:
            time.sleep(0.3 + 5 * chance.random())
            running.send_signal(number)
            _, errors = running.communicate(timeout=60)
        finally:
            running.kill()
        assert running.returncode == 128 + number, errors
        assert "Traceback" not in errors
        last = errors.splitlines()[-1]
        if (run / "last.pth").exists():
            assert last == f"stopped by {number.name}; {run / 'last.pth'} is saved, continue with --resume"
            read_checkpoint(run / "last.pth")
        else:
            assert last == f"stopped by {number.name} before the first step; nothing to save"


@pytest.mark.torture
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_disk_that_fills_up_and_empties_again(tmp_path: Path):
    """Ten times: the old checkpoint stays whole, nothing half-written is left, and the next one is written."""
    config = write_config(tmp_path / "tiny.yaml", draw_set(tmp_path / "data"), save_seconds=0.0, epochs=10**4)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], check=True)
    command = [sys.executable, ROOT / "scripts/train.py", config, "--output", disk / "run", "train.evaluate_every=100"]
    log = open(tmp_path / "errors", "w+")
    running = subprocess.Popen(command, stderr=log, env=ENVIRONMENT)
    try:
        for _ in range(10):
            fill_and_empty(disk, tmp_path / "errors", running)
        running.send_signal(signal.SIGTERM)
        assert running.wait(timeout=60) == 128 + signal.SIGTERM
        assert not list((disk / "run").glob(".*"))
        with open(disk / "run/metrics.csv") as file:
            steps = [int(line.partition(",")[0]) for line in file.readlines()[1:]]
        assert steps == sorted(steps) and set(range(1, saved_step(disk))) <= set(steps)  # the table has no gap
    finally:
        running.kill()
        running.wait()
        log.close()
        subprocess.run(["umount", disk], check=True)


def fill_and_empty(disk: Path, errors: Path, running: subprocess.Popen) -> None:
    begun, refused = saved_step(disk), errors.read_text().count(REFUSED)
    wait_for(lambda: saved_step(disk) > begun, running)
    fill(disk / "junk")
    wait_for(lambda: errors.read_text().count(REFUSED) >= refused + 3, running)
    before = saved_step(disk)
    assert before > 0 and sum(path.name.startswith(".") for path in (disk / "run").iterdir()) <= 1  # being written
    (disk / "junk").unlink()
    wait_for(lambda: saved_step(disk) > before, running)


def saved_step(disk: Path) -> int:
    last = disk / "run/last.pth"
    return read_checkpoint(last)["training"]["step"] if last.exists() else -1


def wait_for(condition: Callable[[], bool], running: subprocess.Popen) -> None:
    for _ in range(1200):
        if condition():
            return
        assert running.poll() is None, "it has fallen"
        time.sleep(0.05)
    raise AssertionError("nothing came of it in a minute")


def fill(path: Path) -> None:
    try:
        with open(path, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        pass
