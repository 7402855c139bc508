"""A training that stops, for whatever reason, goes on as if it had not; and the weights of one begin another."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import (
    ROOT,
    STEPS,
    add_outlines,
    assert_same_training,
    draw_set,
    place,
    rows,
    table,
    train,
    write_config,
)  # fmt: skip

from detector.checkpoint import read_checkpoint
from detector.errors import DataError
from detector.inference.predictor import Predictor
from detector.training import loop, validate

HEAD = ("roi_head.stage.class_score.", "roi_head.stage.box_delta.")


@pytest.mark.parametrize("at", [2, STEPS, 2 * STEPS], ids=["mid-epoch", "at an epoch's end", "at the very end"])
def test_resume_equals_the_uninterrupted_run(tmp_path, config, whole, interrupt, at, capsys):
    run = tmp_path / "run"
    interrupt(at)
    assert train(config, run) == 128 + signal.SIGINT == 130
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == f"stopped by SIGINT; {run / 'last.pth'} is saved, continue with --resume"
    assert (run / "train.log").read_text().splitlines()[-1].endswith(" stopped: SIGINT")
    assert place(run) == (at, (at - 1) // STEPS)  # an epoch that is not scored is not finished
    interrupt(None)
    assert train(config, run, ["--resume"]) == 0
    assert f"resumed from {run / 'last.pth'} at step {at} of 6" in (run / "train.log").read_text()
    assert_same_training(run, whole)


def test_a_training_with_masks_resumes_exactly(tmp_path: Path, interrupt: Callable):
    data = draw_set(tmp_path / "data")
    for split in ("train", "val"):
        add_outlines(data / f"{split}.json")
    config, masks = write_config(tmp_path / "tiny.yaml", data), ["model.roi_head.mask_head={width: 8, convs: 1}"]
    assert train(config, tmp_path / "whole", masks) == 0
    interrupt(STEPS + 1)
    assert train(config, tmp_path / "run", masks) == 130
    interrupt(None)
    assert train(config, tmp_path / "run", [*masks, "--resume"]) == 0
    assert "roi_mask" in rows(tmp_path / "run")[0]
    assert_same_training(tmp_path / "run", tmp_path / "whole")


def test_a_training_cut_short_on_resume_is_scored(tmp_path: Path, config: Path, interrupt: Callable):
    run, often = tmp_path / "run", ["train.epochs=9", "train.evaluate_every=9"]
    interrupt(2 * STEPS + 1)
    assert train(config, run, often) == 130 and not (run / "best.pth").exists()
    interrupt(None)
    assert train(config, run, ["--resume", "train.epochs=2"]) == 0
    assert (run / "best.pth").exists() and place(run) == (2 * STEPS + 1, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_and_a_lost_terminal_too(tmp_path: Path, config: Path, interrupt: Callable, number: signal.Signals):
    interrupt(1, number)
    assert train(config, tmp_path / "run") == 128 + number
    assert place(tmp_path / "run") == (1, 0)


def test_the_second_signal_does_not_wait(tmp_path, config, interrupt, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(os, "_exit", sys.exit)  # which this process survives
    interrupt(3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(SystemExit) as stop:
        train(config, tmp_path / "run")
    assert stop.value.code == 130 and place(tmp_path / "run") == (1, 0)  # as saved after the first step
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_does_not_wait_for_the_evaluation(tmp_path, config, whole, monkeypatch):
    detect, seen = Predictor.detect, []

    def look(self: Predictor, *batch: Any) -> list:
        seen.append(detect(self, *batch))
        signal.raise_signal(signal.SIGINT)
        return seen[-1]

    monkeypatch.setattr(Predictor, "detect", look)
    assert train(config, tmp_path / "run") == 130
    assert len(seen) == 1 and place(tmp_path / "run") == (STEPS, 0)
    monkeypatch.undo()
    assert train(config, tmp_path / "run", ["--resume"]) == 0
    assert_same_training(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_as_a_program(tmp_path: Path, data: Path, number: signal.Signals):
    """Ctrl-C and a scheduler reach the workers too: no traceback, nothing left behind but what was trained."""
    config = write_config(tmp_path / "tiny.yaml", data, epochs=10_000)
    command = [sys.executable, ROOT / "scripts/train.py", config, "--output", tmp_path / "run", "data.workers=1"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    try:
        for _ in range(3000):
            if (tmp_path / "run" / "last.pth").exists() or running.poll() is not None:
                break
            time.sleep(0.1)
        os.killpg(running.pid, number)
        _, errors = running.communicate(timeout=300)
    finally:
        running.kill()
    assert running.returncode == 128 + number and "Traceback" not in errors.partition("Exception ignored")[0]
    assert errors.splitlines()[-1].endswith("is saved, continue with --resume")
    assert place(tmp_path / "run")[0] >= 1
    assert not list((tmp_path / "run").glob(".*"))


def test_a_worker_that_falls_while_saving_does_not_spoil_the_checkpoint(tmp_path, config, monkeypatch, capsys):
    """Torch raises it between any two operations; a signal to all processes kills the workers first."""
    save, torch_save = loop.save_checkpoint, torch.save

    def fall(*event: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    def disturbed(*content: Any) -> None:
        os.kill(os.getpid(), signal.SIGCHLD)
        torch_save(*content)

    def signalled(*args: Any, **options: Any) -> None:
        if options["training"]["step"] == 2:
            signal.raise_signal(signal.SIGTERM)
            monkeypatch.setattr(torch, "save", disturbed)
        save(*args, **options)

    monkeypatch.setattr(loop, "save_checkpoint", signalled)
    before = signal.signal(signal.SIGCHLD, fall)
    try:
        assert train(config, tmp_path / "run", ["train.save_seconds=0"]) == 143
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert "is saved, continue with --resume" in capsys.readouterr().err and place(tmp_path / "run") == (2, 0)


def test_an_accident_while_scoring_costs_no_step(tmp_path, config, whole, monkeypatch):
    def fail(*args: Any, **options: Any) -> None:
        raise DataError("val0.png: gone")

    monkeypatch.setattr(validate, "evaluate_predictor", fail)
    assert train(config, tmp_path / "run") == 2
    assert place(tmp_path / "run") == (STEPS, 0)
    monkeypatch.undo()
    assert train(config, tmp_path / "run", ["--resume"]) == 0
    assert_same_training(tmp_path / "run", whole)


def test_a_finished_training_has_nothing_left_to_do_and_no_link_is_written_through(tmp_path, config, whole):
    run, text = shutil.copytree(whole, tmp_path / "run"), config.read_text()
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to(config)
    assert train(config, run, ["--resume"]) == 0
    assert config.read_text() == text != (run / "config.yaml").read_text()
    assert_same_training(run, whole)


@pytest.mark.parametrize("changed", ["momentum=0", "weight_decay=0.5", "norm_weight_decay=0.5", "precision=bfloat16"])
def test_a_changed_recipe_is_what_it_goes_on_by(tmp_path: Path, config: Path, whole: Path, changed: str):
    for name, override in (("same", "clip_norm=10.0"), ("other", changed)):
        shutil.copytree(whole, tmp_path / name)
        assert train(config, tmp_path / name, ["--resume", "train.epochs=3", f"train.{override}"]) == 0
    same, other = (read_checkpoint(tmp_path / name / "last.pth")["model"] for name in ("same", "other"))
    assert not all(torch.equal(tensor, other[key]) for key, tensor in same.items())
    assert place(tmp_path / "same") == (3 * STEPS, 3) and table(tmp_path / "same")[:8] == table(whole)


def test_float16_may_begin_in_the_middle(tmp_path: Path, config: Path, whole: Path):
    shutil.copytree(whole, tmp_path / "run")
    assert train(config, tmp_path / "run", ["--resume", "train.epochs=3", "train.precision=float16"]) == 0
    assert read_checkpoint(tmp_path / "run/last.pth")["training"]["scaler"]["scale"] > 0


@pytest.mark.parametrize(
    "key, value",
    [("step", math.nan), ("step", "6"), ("step", 10**9), ("epoch", -1), ("epoch", "2"), ("best", "high"),
     ("history", [1]), ("history", [{"AP": 0.5}]), ("optimizer", None), ("random", [{}])],
)  # fmt: skip
def test_a_place_that_is_none_is_refused(tmp_path, config, whole, key, value, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    content = read_checkpoint(run / "last.pth")
    content["training"][key] = value
    torch.save(content, run / "last.pth")
    assert train(config, run, ["--resume", "train.epochs=3"]) == 2
    assert f"error: {run / 'last.pth'}: this training cannot go on" in capsys.readouterr().err


def test_momenta_of_another_shape_are_refused(tmp_path: Path, config: Path, whole: Path, capsys: pytest.CaptureFixture):
    run = shutil.copytree(whole, tmp_path / "run")
    content = read_checkpoint(run / "last.pth")
    content["training"]["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3)
    torch.save(content, run / "last.pth")
    assert train(config, run, ["--resume", "train.epochs=3"]) == 2
    assert "the optimiser state has another shape" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("train.batch_size=3", "3 steps an epoch then, 2 now"),
        ("train.optimizer=adamw", "train.optimizer was sgd, now it is adamw"),
        ("model.neck.width=16", "made for another architecture"),
        ("data.classes=[disc]", r"was trained on the classes \['square', 'disc'\], the data now have \['disc'\]"),
    ],
)
def test_another_training_cannot_be_resumed(tmp_path, config, whole, change, reason, capsys):
    shutil.copytree(whole, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert train(config, tmp_path / "run", ["--resume", change]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"error: {tmp_path / 'run' / 'last.pth'}: ") and reason.replace("\\", "") in message
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_init_from_takes_weights_and_starts_at_step_0(tmp_path: Path, whole: Path):
    """Of a training with fewer classes; test_checkpoint.py has equal ones, too."""
    classes = {"disc": 1, "ring": 2, "square": 9}
    config = write_config(tmp_path / "tiny.yaml", draw_set(tmp_path / "data", classes), lr=0.0, epochs=1)
    assert train(config, tmp_path / "run", ["--init-from", whole / "best.pth"]) == 0
    log, total = (tmp_path / "run" / "train.log").read_text(), len(read_checkpoint(whole / "best.pth")["model"])
    assert "resumed" not in log
    assert f"{total} tensors loaded; rows of the predictor moved by name for 2 of 3 classes; afresh: ring" in log
    source, found = (read_checkpoint(path)["model"] for path in (whole / "best.pth", tmp_path / "run" / "last.pth"))
    for key, tensor in found.items():
        statistic = "running" in key or "num_batches" in key  # moves even where the learning rate is 0
        assert statistic or key.startswith(HEAD) or torch.equal(tensor, source[key]), key
    assert place(tmp_path / "run") == (STEPS, 1)
