"""Training and evaluation as functions: the same files and numbers as the commands, and ends that a notebook can go on from."""

import logging
import threading
from pathlib import Path

import pytest
import yaml
from helpers.training import before_steps, draw_set, write_config

import detector
from detector.errors import ConfigError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", draw_set(tmp_path / "data"))


def without_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """No log handler anywhere, as in a fresh interpreter."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def test_train_and_evaluate_log_and_give_numbers(config: Path, tmp_path: Path, monkeypatch, capsys):
    without_handlers(monkeypatch)
    result = detector.train(config, tmp_path / "run", ["train.epochs=1"])
    assert result.stopped_by is None and result.best.exists() and result.last.exists()
    out = capsys.readouterr().out
    assert "model: 0.1 M parameters on cpu" in out and f"done: {result.best}" in out
    metrics = detector.evaluate(result.best, trust=True, overrides=["data.workers=0"])
    out = capsys.readouterr().out
    assert out.startswith("val: ") and f"{metrics['bbox']['AP50']:.6f}" in out
    assert not (tmp_path / "run/metrics.json").exists()
    assert detector.evaluate(detector.load(result.best, trust=True), output=tmp_path / "out") == metrics
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["detections.json", "metrics.json"]
    with pytest.raises(ValueError, match=r"give them to detector\.load"):
        detector.evaluate(detector.load(result.best, trust=True), tta=True)
    assert not logging.getLogger("detector").handlers


def test_an_early_end_is_a_result_and_goes_on(config: Path, tmp_path: Path, monkeypatch, capsys):
    without_handlers(monkeypatch)

    def late(step: int) -> None:
        if step == 2:
            monkeypatch.setattr("detector.training.signals.time.monotonic", lambda: 1e12)

    before_steps(monkeypatch, late)
    content = yaml.safe_load(config.read_text())
    result = detector.train(content, tmp_path / "run", ["train.time_limit=9"])
    assert result.stopped_by == "the time limit" and result.last.exists()
    assert f"stopped by the time limit; {result.last} is saved, resume=True continues" in capsys.readouterr().out
    monkeypatch.undo()
    assert detector.train(content, tmp_path / "run", resume=True).stopped_by is None
    with pytest.raises(ConfigError, match="this folder holds a training already"):
        detector.train(content, tmp_path / "run")
    with pytest.raises(ValueError, match=r"dataclasses\.replace"):
        detector.train(detector.load_config(config), tmp_path / "new", ["train.epochs=1"])


def test_a_training_runs_in_a_thread(config: Path, tmp_path: Path):
    results: list[detector.TrainingResult] = []
    thread = threading.Thread(
        target=lambda: results.append(detector.train(config, tmp_path / "run", ["train.epochs=1"]))
    )
    thread.start()
    thread.join()
    assert results[0].stopped_by is None
