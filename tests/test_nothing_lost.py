"""Whatever stops a training, it goes on as if it had not: files that are damaged, disks that are full, time that is up."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import STEPS, assert_same_training, place, table, train, write_config

from detector import checkpoint
from detector.checkpoint import read_checkpoint
from detector.training import metrics
from detector.training.loop import Trainer
from detector.training.step import TrainStep

OFTEN = "train.save_seconds=0"  # after every step


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert train(write_config(folder / "tiny.yaml", data), folder / "run", [OFTEN]) == 0
    return folder / "run"


@pytest.mark.parametrize(
    "options",
    [
        ["train.ema=0.9", "train.accumulate=2", "data.repeat_threshold=1", "train.optimizer=adamw"],
        ["train.precision=float16", "--deterministic"],
        pytest.param(["data.workers=2", "train.ema=0.5"], marks=pytest.mark.slow),
    ],
    ids=lambda options: options[0],
)
def test_resume_is_exact_at_step_0_twice_in_an_epoch_and_at_its_end(tmp_path, config, interrupt, options):
    assert train(config, tmp_path / "whole", options) == 0
    steps = len([row for row in table(tmp_path / "whole") if row[3]])  # of both epochs; repeats make more of them
    resume: list[str] = []
    for at in (0, 1, 2, steps // 2):
        interrupt(at)
        assert train(config, tmp_path / "run", [*options, *resume]) == 130
        assert place(tmp_path / "run") == (at, 0)
        resume = ["--resume"]
    interrupt(None)
    assert train(config, tmp_path / "run", [*options, "--resume"]) == 0
    assert_same_training(tmp_path / "run", tmp_path / "whole")


def test_random_numbers_of_all_kinds_go_on(tmp_path, config, interrupt, monkeypatch):
    """A part of the user's own may draw from Python's and NumPy's."""
    import random

    import numpy as np

    drawn: list[tuple] = []
    forward = TrainStep.__call__

    def drawing(self: TrainStep, *batch: Any) -> dict[str, float]:
        drawn.append((random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()))
        return forward(self, *batch)

    monkeypatch.setattr(TrainStep, "__call__", drawing)
    assert train(config, tmp_path / "whole") == 0
    expected, drawn[:] = drawn.copy(), []
    interrupt(2)
    assert train(config, tmp_path / "run") == 130
    interrupt(None)
    random.seed(7), np.random.seed(7)
    assert train(config, tmp_path / "run", ["--resume"]) == 0
    assert drawn == expected and len(set(drawn)) == 2 * STEPS


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 256] = (byte ^ 1 for byte in content[middle : middle + 256])  # one might be padding
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_it(tmp_path, config, whole, interrupt, damage, capsys):
    run = tmp_path / "run"
    interrupt(2)
    assert train(config, run, [OFTEN]) == 130
    interrupt(None)
    damage(run / "last.pth")
    capsys.readouterr()
    assert train(config, run, [OFTEN, "--resume"]) == 0
    log = (run / "train.log").read_text()
    assert f"resumed from {run / 'previous.pth'} at step 1 of 6" in log
    assert f"going back to {run / 'previous.pth'}, which was saved before it" in capsys.readouterr().err
    assert_same_training(run, whole)


def test_where_both_are_damaged_nothing_is_touched(tmp_path, config, whole, capsys):
    run = shutil.copytree(whole, tmp_path / "run")
    cut(run / "last.pth")
    cut(run / "previous.pth")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    assert train(config, run, ["--resume"]) == 2
    assert f"error: {run / 'previous.pth'}: damaged" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_lost_table_gets_its_evaluations_back(tmp_path: Path, config: Path, whole: Path):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "metrics.csv").unlink()
    assert train(config, run, ["--resume"]) == 0
    assert table(run) == [row for row in table(whole) if row[6]]


def test_a_score_that_was_written_but_not_saved_is_not_in_the_table_twice(tmp_path, config, whole, monkeypatch):
    save = Trainer._save

    def fall(self: Trainer, name: str, **options: Any) -> bool:
        if name == "best.pth":
            raise KeyboardInterrupt
        return save(self, name, **options)

    monkeypatch.setattr(Trainer, "_save", fall)
    assert train(config, tmp_path / "run", [OFTEN]) == 130
    monkeypatch.undo()
    assert train(config, tmp_path / "run", [OFTEN, "--resume"]) == 0
    assert_same_training(tmp_path / "run", whole)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], bool]], None]:
    """A disk that is full as long as a function says so: it takes the beginning of a file and refuses the rest."""

    def arrange(is_full: Callable[[], bool]) -> None:
        save = torch.save

        def torch_save(content: Any, file: Any) -> None:
            if is_full():
                file.write(b"a beginning")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            save(content, file)

        monkeypatch.setattr(checkpoint.torch, "save", torch_save)

    return arrange


def test_a_full_disk_costs_a_checkpoint_and_not_the_training(tmp_path, config, whole, disk, capsys):
    run, saves = tmp_path / "run", iter(range(100))
    disk(lambda: next(saves) in (1, 2))
    assert train(config, run, [OFTEN]) == 0
    assert capsys.readouterr().err.count("No space left on device") == 2
    log = (run / "train.log").read_text()
    assert "step 2: " in log and "The training goes on" in log
    assert not list(run.glob(".*"))
    assert_same_training(run, whole)


def test_leaving_with_steps_that_no_disk_took_is_an_error(tmp_path, config, disk, interrupt, capsys):
    run, saves = tmp_path / "run", iter(range(100))
    disk(lambda: next(saves) > 0)
    interrupt(3)
    assert train(config, run, [OFTEN]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(
        f"error: {run / 'last.pth'}: step 3 could not be written, it holds step 1; make room and "
    )
    assert place(run) == (1, 0) and not list(run.glob(".*"))


def test_the_last_checkpoint_must_be_written(tmp_path, config, disk, capsys):
    disk(lambda: True)
    assert train(config, tmp_path / "run") == 2
    assert "step 6 could not be written, it holds nothing; make room" in capsys.readouterr().err


def test_rows_wait_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    table = metrics.CsvWriter(tmp_path)
    table.write(1, {"loss": 0.5})
    file = table._file

    class Full:
        """Takes three bytes."""

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def write(self, text: bytes) -> int:
            return file.write(text[:3])

    table._file = Full()
    before = table.path.read_bytes()
    table.write(2, {"loss": 0.25})
    table.write(3, {"loss": 0.125})
    assert table.path.read_bytes() == before and len(caplog.messages) == 1 and "wait for room" in caplog.messages[0]
    table._file = file
    table.write(4, {"loss": 1.0})
    table.close()
    assert [row["step"] for row in metrics.CsvWriter._old_rows(table)] == ["1", "2", "3", "4"]


def test_time_that_is_up_saves_and_leaves(tmp_path: Path, config: Path, whole: Path, capsys: pytest.CaptureFixture):
    run = tmp_path / "run"
    assert train(config, run, ["--time-limit", 1e-9]) == 124
    message = capsys.readouterr().err.splitlines()[-1]
    assert message == f"stopped by the time limit; {run / 'last.pth'} is saved, continue with --resume"
    assert place(run) == (0, 0)
    assert train(config, run, ["--resume", OFTEN]) == 0
    assert_same_training(run, whole)


def test_patience_ends_the_training_and_best_is_kept_from_the_first_best_epoch(tmp_path, config, monkeypatch):
    """After two scores that are not better, and again at once on resume."""
    scores = iter([0.2, 0.6, 0.6, 0.4, 0.9])

    def score(*args: Any, **options: Any) -> tuple[dict, list]:
        return {"bbox": dict.fromkeys(metrics.SCORES[:-1], next(scores)), "proposals": {"AR1000": 1.0}}, []

    monkeypatch.setattr("detector.training.validate.evaluate_predictor", score)
    for resume in ([], ["--resume"]):
        assert train(config, tmp_path / "run", ["train.epochs=9", "train.patience=2", *resume]) == 0
        assert place(tmp_path / "run") == (4 * STEPS, 4)
    assert "no better score in the last 2 evaluations: the training ends" in (tmp_path / "run/train.log").read_text()
    assert read_checkpoint(tmp_path / "run/best.pth")["training"] == {"step": 2 * STEPS, "best": 0.6}
