"""`detector train` from beginning to end: what it writes, and that it learns."""

import inspect
import json
import logging
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from helpers.training import (
    CLASSES,
    ROOT,
    STEPS,
    before_steps,
    draw_split,
    place,
    rows,
    train,
    write_config,
    write_json,
)
from torch import Tensor

from detector.checkpoint import read_checkpoint
from detector.config.config import load_config
from detector.data.coco import CocoDataset
from detector.device import memory_mib, pick_precision
from detector.evaluation.run import evaluate_predictor
from detector.inference.predictor import load_predictor as load
from detector.modeling.rcnn import GeneralizedRCNN
from detector.recipe import Recipe
from detector.training.loop import Trainer
from detector.training.signals import Stop
from detector.training.step import TrainStep

FILES = ["best.pth", "config.yaml", "last.pth", "metrics.csv", "previous.pth", "train.log"]


def weights(folder: Path, name: str = "last.pth") -> dict[str, Tensor]:
    return read_checkpoint(folder / name)["model"]


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert [key for key in a | b if not torch.equal(a[key], b[key])] == []


def test_the_folder_holds_six_files_whose_checkpoints_know_configuration_classes_and_place(whole: Path, config: Path):
    assert sorted(path.name for path in whole.iterdir()) == FILES
    saved = yaml.safe_load((whole / "config.yaml").read_text())
    assert saved["model"].pop("num_classes") == 2  # counted in the data
    assert saved == yaml.safe_load(config.read_text())
    for name in ("last.pth", "best.pth"):
        assert read_checkpoint(whole / name)["config"] == load_config(whole / "config.yaml").raw
    last, best = (read_checkpoint(whole / name) for name in ("last.pth", "best.pth"))
    for checkpoint in (last, best):
        assert dict(zip(checkpoint["class_names"], checkpoint["category_ids"])) == CLASSES
        assert all(tensor.isfinite().all() for tensor in checkpoint["model"].values())
    assert last["training"]["step"] == 2 * STEPS and "optimizer" in last["training"]
    assert "optimizer" not in best["training"]


def test_metrics_have_a_row_for_each_step_and_each_evaluation(whole: Path):
    table = rows(whole)
    assert [row["step"] for row in table] == list("12334566") and [row["epoch"] for row in table] == list("11112222")
    scored = [row for row in table if row["AP"]]
    stepped = [row for row in table if not row["AP"]]
    assert [table.index(row) for row in scored] == [3, 7]
    for row in stepped:
        parts = [float(row[name]) for name in ("rpn_objectness", "rpn_box", "roi_class", "roi_box")]
        assert float(row["loss"]) == pytest.approx(sum(parts), rel=1e-4) and row["val_loss"] == ""
        assert all(float(row[name]) > 0 for name in ("grad_norm", "data_s", "step_s", "memory_mib"))
    assert [float(row["lr"]) for row in stepped] == pytest.approx([1e-5, 0.01, 0.01, 0.01, 0.01, 0.01])
    for row in scored:
        assert row["loss"] == "" and float(row["val_loss"]) > 0
        assert all(-1 <= float(row[name]) <= 1 for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100"))


def test_the_log_says_what_is_trained_and_stays_out_of_the_next(whole: Path, tmp_path: Path, config: Path):
    text = (whole / "train.log").read_text()
    for part in (
        "train.json: 6 images, 10 objects of 2 classes",
        "val.json: 2 images",
        "7        4  disc",
        "0.1 M parameters on cpu, float32",
        "sgd, 2 images a step, learning rate 0.01 (scaled from 0.01 for 2), 6 steps in 2 epochs",
        "epoch 1/2: val loss ",
        "epoch 2/2: val loss ",
        "done: ",
    ):
        assert part in text
    assert "resumed" not in text
    before = (whole / "train.log").read_text()
    assert train(config, tmp_path / "next", ["train.epochs=1"]) == 0
    assert (whole / "train.log").read_text() == before
    assert (tmp_path / "next" / "train.log").read_text().count("epoch 1/1") == 1
    assert logging.getLogger("detector").handlers == []


def test_best_scores_what_the_table_says(whole: Path, data: Path):
    predictor = load(whole / "best.pth", trust=True, device="cpu")
    found, _ = evaluate_predictor(predictor, CocoDataset(data / "images", data / "val.json"), workers=0, progress=False)
    best = max(float(row["AP"]) for row in rows(whole) if row["AP"])
    assert found["bbox"]["AP"] == pytest.approx(best, abs=1e-5)
    assert read_checkpoint(whole / "last.pth")["training"]["best"] == pytest.approx(best, abs=1e-5)


def test_last_is_there_after_the_first_step(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch):
    def saved_steps(run: str, *options: str) -> list[int | None]:
        seen: list[int | None] = []
        last = tmp_path / run / "last.pth"
        before_steps(monkeypatch, lambda number: seen.append(place(last.parent)[0] if last.exists() else None))
        assert train(config, last.parent, options) == 0
        return seen

    # then at the end of each epoch, as a step takes far less than save_seconds
    assert saved_steps("run") == [None, 1, 1, 3, 3, 3]
    assert saved_steps("often", "train.save_seconds=0") == [None, 1, 2, 3, 4, 5]


def test_the_last_epoch_is_always_scored(tmp_path: Path, config: Path):
    assert train(config, tmp_path / "run", ["train.epochs=3", "train.evaluate_every=2"]) == 0
    assert [row["epoch"] for row in rows(tmp_path / "run") if row["AP"]] == ["2", "3"]


@pytest.mark.parametrize("detections", ["some", "none"])
def test_best_is_there_even_if_nothing_can_be_scored(tmp_path: Path, data: Path, detections: str):
    """No object in val: AP is -1 where something was detected, 0 where nothing was."""
    (tmp_path / "images").symlink_to(data / "images")
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        write_json(tmp_path / f"{split}.json", content | ({"annotations": []} if split == "val" else {}))
    threshold = {"some": 0.0, "none": 1.0}[detections]
    arguments = ["train.epochs=1", f"model.roi_head.selection.score_threshold={threshold}"]
    assert train(write_config(tmp_path / "tiny.yaml", tmp_path), tmp_path / "run", arguments) == 0
    assert float(rows(tmp_path / "run")[-1]["AP"]) == {"some": -1, "none": 0}[detections]
    assert_equal(weights(tmp_path / "run", "best.pth"), weights(tmp_path / "run"))


def test_workers_and_scoring_do_not_move_the_training_and_the_seed_does(tmp_path: Path, config: Path, whole: Path):
    assert train(config, tmp_path / "run", ["data.workers=1", "train.evaluate_every=2"]) == 0
    assert_equal(weights(tmp_path / "run"), weights(whole))
    assert train(config, tmp_path / "seed", ["train.seed=1", "train.epochs=1"]) == 0
    assert rows(tmp_path / "seed")[0]["loss"] != rows(whole)[0]["loss"]


def test_a_subset_of_the_classes_trains_without_clipping(tmp_path: Path, config: Path):
    """Other optimisers and precisions train in test_nothing_lost.py and test_resume.py."""
    arguments = ["train.epochs=1", "data.keep_empty=true", "data.classes=[disc]", "train.clip_norm=null"]
    assert train(config, tmp_path / "run", arguments) == 0
    assert all(math.isfinite(float(row["loss"])) for row in rows(tmp_path / "run") if row["loss"])


@pytest.mark.parametrize("norm", ["batch", "sync"])
def test_a_batch_of_one_image_trains_where_the_coarsest_map_has_one_cell(tmp_path: Path, config: Path, norm: str):
    """Six images, five of them in the first batch; P7 of a 96 x 64 image is 1 x 1."""
    neck = f"model.neck={{type: bifpn, first_level: 3, width: 8, repeats: 1, norm: {norm}}}"
    assert train(config, tmp_path / "run", [neck, "train.batch_size=5", "train.epochs=1"]) == 0
    assert all(tensor.isfinite().all() for tensor in read_checkpoint(tmp_path / "run" / "best.pth")["model"].values())


def test_two_images_are_learnt_by_heart(tmp_path: Path):
    for split in ("train", "val"):
        draw_split(tmp_path, split, 2)
    config = write_config(tmp_path / "tiny.yaml", tmp_path, epochs=90, evaluate_every=90, optimizer="adamw", lr=0.003)
    arguments = ["data.transforms=[]", "data.resize.short=64", "train.schedule=cosine", "train.warmup_steps=10"]
    assert train(config, tmp_path / "run", arguments) == 0
    losses = [float(row["loss"]) for row in rows(tmp_path / "run") if row["loss"]]
    assert losses[0] > 1.5 and sum(losses[-5:]) / 5 < 0.5
    assert float(rows(tmp_path / "run")[-1]["AP50"]) == pytest.approx(1)


@pytest.mark.torture  # two minutes of compiling
@pytest.mark.skipif(shutil.which("gcc") is None, reason="torch.compile needs a C++ compiler here")
def test_a_compiled_pyramid_learns_the_same(tmp_path: Path, data: Path):
    for run, options in (("plain", []), ("compiled", ["train.compile=true"])):
        config = write_config(tmp_path / "tiny.yaml", data, epochs=1, clip_norm=None)
        assert train(config, tmp_path / run, options) == 0
    plain, compiled = (
        [float(row["loss"]) for row in rows(tmp_path / run) if row["loss"]] for run in ("plain", "compiled")
    )
    assert compiled == pytest.approx(plain, rel=1e-3)
    assert weights(tmp_path / "plain").keys() == weights(tmp_path / "compiled").keys()


def test_a_forward_pass_is_seven_calls_below_the_command(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch):
    """main, train, run, _train_epoch, __call__, _backward, forward: so a reader finds it soon."""
    forward, stacks = GeneralizedRCNN.forward, []

    def counted(self: GeneralizedRCNN, *batch: Any) -> Any:
        frames = inspect.stack(context=0)[1:]
        own = [frame.function for frame in frames if Path(frame.filename).is_relative_to(ROOT / "detector")]
        stacks.append([*reversed(own), "forward"])
        return forward(self, *batch)

    monkeypatch.setattr(GeneralizedRCNN, "forward", counted)
    assert train(config, tmp_path / "run", ["train.epochs=1"]) == 0
    assert stacks[0] == ["main", "run_training", "run", "_train_epoch", "__call__", "_backward", "forward"]


def test_a_time_limit_after_the_last_step_does_not_keep_a_training_from_its_score(tmp_path, config, monkeypatch):
    """The clock runs out in the last step."""
    real = TrainStep.__call__

    def late(self: TrainStep, *arguments: Any) -> dict[str, float]:
        late.calls += 1
        if late.calls == 2 * STEPS:
            monkeypatch.setattr(Stop, "_is_late", lambda stop: stop.deadline is not None)
        return real(self, *arguments)

    late.calls = 0
    monkeypatch.setattr(Stop, "_is_late", lambda stop: False)
    monkeypatch.setattr(TrainStep, "__call__", late)
    assert train(config, tmp_path / "run", ["train.time_limit=60", "train.epochs=2"]) == 0
    assert (tmp_path / "run/best.pth").exists()


def test_last_is_not_written_more_often_than_it_costs(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch):
    trainer = SimpleNamespace(recipe=Recipe(), save_duration=0.0)
    assert Trainer._save_interval(trainer) == 15
    trainer.save_duration = 3.0
    assert Trainer._save_interval(trainer) == 150
    trainer.recipe = Recipe(save_seconds=1.0)
    assert Trainer._save_interval(trainer) == 1


def test_memory_and_automatic_precision_are_what_the_device_tells(monkeypatch, caplog):
    cpu = torch.device("cpu")
    for known in (True, False):
        monkeypatch.setattr("detector.device.has_bfloat16", lambda device, known=known: known)
        caplog.clear()
        assert pick_precision("auto", cpu) == ("bfloat16" if known else "float32")
        assert pick_precision("bfloat16", cpu) == "bfloat16" and pick_precision("float32", cpu) == "float32"
        assert ("has no instructions for it; a product takes" in caplog.text) is not known
    # As on Windows, which has no such module.
    assert 1 < memory_mib(torch.device("cpu")) < 1e6
    monkeypatch.setattr("detector.device.resource", None)
    assert math.isnan(memory_mib(torch.device("cpu")))
