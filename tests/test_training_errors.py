"""What is wrong with the input is one message that names it, status 2, and nothing of the user's is changed."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import CLASSES, STEPS, draw_set, draw_split, snapshot, train, write_json

from detector.checkpoint import read_checkpoint
from detector.config.config import build_detector
from detector.modeling.rcnn import GeneralizedRCNN


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw_set(tmp_path / "data")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def refusal(config: Path, run: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """The one line of a training that is refused before it begins; everything stays as it was."""

    def refusal(*arguments: object, output: Path = run) -> str:
        before = snapshot(config.parent)
        capsys.readouterr()
        status = train(config, output, arguments)
        printed = capsys.readouterr()
        assert status == 2 and printed.out == ""
        assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
        assert snapshot(config.parent) == before
        return printed.err

    return refusal


@pytest.mark.parametrize("name", ["last.pth", "best.pth", "config.yaml", "metrics.csv"])
def test_what_the_folder_holds_is_left_alone(refusal: Callable, run: Path, name: str):
    run.mkdir()
    (run / name).write_text("mine: true")
    message = refusal()
    assert f"{run / name}" in message
    assert name not in ("last.pth", "best.pth") or ("--resume" in message and "--output" in message)


@pytest.mark.parametrize("resume", [[], ["--resume"]], ids=["new", "resumed"])
@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", "train.log", "last.pth", "previous.pth", "best.pth"])
def test_what_is_no_file_is_left_alone(refusal: Callable, run: Path, name: str, resume: list[str]):
    run.mkdir()
    os.mkfifo(run / name)  # whoever opens it waits for ever
    assert f"{run / name}: not a file; move it away" in refusal(*resume)


def test_a_configuration_beside_its_output_is_left_alone(config: Path, capsys: pytest.CaptureFixture):
    """DIR/config.yaml --output DIR would be written over by what it means."""
    own = config.rename(config.with_name("config.yaml"))
    text = own.read_text()
    assert train(own, own.parent) == 2 and own.read_text() == text
    assert str(own) in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny.yaml", "tiny.yaml/below", "n" * 300, "a\0b", "circle", "circle/below"])
def test_what_cannot_be_a_folder_is_named(refusal: Callable, config: Path, name: str):
    (config.parent / "circle").symlink_to("circle")
    output = config.parent / name
    message = ascii(str(output))[1:-1]
    assert f"{message}: cannot be written to" in refusal(output=output)
    assert f"{message}: cannot be written to" in refusal("--resume", output=output)


def test_a_training_that_failed_before_its_first_step_can_be_started_again(config: Path, run: Path, data: Path):
    shutil.move(data / "images", data / "away")
    (data / "images").mkdir()
    assert train(config, run) == 2 and not (run / "last.pth").exists()
    shutil.copytree(data / "away", data / "images", dirs_exist_ok=True)
    assert train(config, run, ["train.epochs=1"]) == 0


def test_checkpoints_that_are_not_there_or_cannot_be_used_are_named(refusal: Callable, run: Path, tmp_path: Path):
    message = refusal("--resume")
    assert f"{run / 'last.pth'}: no such checkpoint" in message and "leave out --resume" in message
    assert not run.exists()
    for name in ("a", "b"):
        (run.parent / name).mkdir()
        (run.parent / name / "last.pth").write_bytes(b"weights")
    assert f"to resume one of {run.parent / 'a'}, {run.parent / 'b'}, name it by --output" in refusal("--resume")
    (tmp_path / "bad.pth").write_bytes(b"weights")
    assert f"{tmp_path / 'none.pth'}: no such checkpoint" in refusal("--init-from", tmp_path / "none.pth")
    assert f"{tmp_path / 'bad.pth'}: damaged" in refusal("--init-from", tmp_path / "bad.pth")
    assert "choose one" in refusal("--init-from", tmp_path / "bad.pth", "--resume")
    run.mkdir()
    (run / "last.pth").write_bytes(b"weights")
    assert f"{run / 'last.pth'}: damaged" in refusal("--resume")


def test_weights_are_no_training(refusal: Callable, config: Path, run: Path, tmp_path: Path):
    assert train(config, tmp_path / "first", ["train.epochs=1"]) == 0
    run.mkdir()
    shutil.copy(tmp_path / "first" / "best.pth", run / "last.pth")
    assert "holds weights but no training to resume" in refusal("--resume")
    message = refusal("--init-from", tmp_path / "first" / "best.pth", "model.neck.width=16", output=tmp_path / "second")
    assert "made for another architecture; of another shape: pyramid.neck." in message
    assert "set model.neck and model.rpn and model.roi_head as in the configuration that it was trained with" in message


HOLDER = """
import fcntl, os, sys, time
log = open(sys.argv[1], "a")
fcntl.lockf(log, fcntl.LOCK_EX)
if os.fork() == 0:  # a process that loads images, which lives on for a while
    time.sleep(20)
    os._exit(0)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("resume", [False, True])
def test_two_trainings_at_once_in_one_folder(refusal: Callable, config: Path, run: Path, tmp_path: Path, resume: bool):
    """The second is refused, whether a checkpoint is there already or not; once the first is killed it may go on."""
    assert train(config, tmp_path / "first", ["train.epochs=1"]) == 0
    (tmp_path / "first" / "best.pth").unlink()
    (tmp_path / "first").rename(run)
    if not resume:
        (run / "last.pth").unlink()
        (run / "previous.pth").unlink()
    arguments = ["train.epochs=1", *(["--resume"] if resume else [])]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, run / "train.log"], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        holder.stdout.readline()
        expected = f"error: {run}: another training writes into this folder; choose another --output\n"
        assert refusal(*arguments) == expected
        holder.kill()
        holder.wait()
        assert train(config, run, arguments) == 0
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.stdout.close()


def test_a_training_that_ended_while_this_one_began_is_noticed(config, run, monkeypatch, capsys):
    def build(*arguments: object, **options: object) -> object:
        run.mkdir()
        (run / "last.pth").write_bytes(b"of the other training")
        return build_detector(*arguments, **options)

    monkeypatch.setattr("detector.training.run.build_detector", build)
    assert train(config, run) == 2
    assert "another training writes into this folder" in capsys.readouterr().err
    assert (run / "last.pth").read_bytes() == b"of the other training" and not (run / "config.yaml").exists()


def test_a_wrong_key_is_named(refusal: Callable, data: Path, run: Path):
    for override, message in [
        ("train.epoch=3", "tiny.yaml: train.epoch: unknown key; did you mean 'epochs'"),
        ("train.seed=-1", "train.seed: expected a whole number at least 0 and below 9.22337e+18, got -1"),
        ("train.device=gpu", "device 'gpu' cannot be used here"),
        ("model.num_classes=3", "tiny.yaml: model.num_classes: 3, but {data}/train.json has 2 classes (square, disc)"),
        ("model.backbone.type=nowhere.Net", "model.backbone.type: nowhere.Net cannot be imported"),
        ("model.rpn.anchors.sizes=[[16]]", "tiny.yaml: model.rpn.anchors does not fit: sizes: 1 lists"),
        ("data.root={data}/none", "{data}/none/images: no such image folder"),
        ("data.train.annotations=none.json", "{data}/none.json: cannot read the annotations"),
        ("data.val=null", "data.val: expected"),
    ]:
        assert message.replace("{data}", str(data)) in refusal(override.replace("{data}", str(data)))
        assert not run.exists()


def test_splits_must_have_the_same_classes_whose_ids_may_differ(refusal: Callable, data: Path, run: Path, config: Path):
    draw_split(data, "val", 2, {"square": 1, "ring": 2})
    message = refusal()
    assert str(data / "val.json") in message and "['ring']" in message and "['disc']" in message
    assert not run.exists()
    draw_split(data, "val", 2, {"disc": 1, "square": 90})
    assert train(config, run, ["train.epochs=1"]) == 0
    checkpoint = read_checkpoint(run / "best.pth")
    assert dict(zip(checkpoint["class_names"], checkpoint["category_ids"])) == CLASSES


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_wrong_annotation_is_named(refusal: Callable, data: Path, run: Path, split: str):
    """test_coco_reader.py has every fault."""
    content = json.loads((data / f"{split}.json").read_text())
    content["annotations"][1]["image_id"] = 99
    write_json(data / f"{split}.json", content)
    assert f"{data / f'{split}.json'}: annotations[1], id 2: `image_id` is 99" in refusal() and not run.exists()


@pytest.fixture
def failure(config: Path, run: Path, data: Path, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """The last line of a training that stops on the way; the data stay as they were."""

    def failure(status: int, *arguments: str) -> str:
        before = snapshot(data)
        assert train(config, run, arguments) == status
        errors = capsys.readouterr().err
        assert "Traceback" not in errors and snapshot(data) == before
        return errors.splitlines()[-1]

    return failure


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["train3.png", "val1.png"])
def test_a_missing_image_is_named(failure: Callable, data: Path, run: Path, name: str, workers: int):
    (data / "images" / name).unlink()
    message = failure(2, f"data.workers={workers}")
    assert message.startswith(f"error: {data / 'images' / name}: no such image")
    if name.startswith("val"):
        assert read_checkpoint(run / "last.pth")["training"]["step"] == STEPS


def test_a_loss_that_is_no_number_stops_the_training(failure: Callable, run: Path, monkeypatch: pytest.MonkeyPatch):
    losses, steps = GeneralizedRCNN.losses, iter(range(1, 7))

    def spoilt(self: GeneralizedRCNN, *batch: Any) -> dict[str, torch.Tensor]:
        found = losses(self, *batch)
        return found | {"roi_box": found["roi_box"] * math.nan} if self.training and next(steps) == 5 else found

    monkeypatch.setattr(GeneralizedRCNN, "losses", spoilt)
    message = failure(1, "train.save_seconds=1000")
    assert message.startswith("stopped: step 5: roi_box is nan, grad_norm is nan (image ids [")
    ids = json.loads(message.split("image ids ")[1].split("]")[0] + "]")
    assert len(ids) == 2 and set(ids) <= set(range(10, 16))
    assert "learning rate 0.01, gradient norm nan)" in message and f"{run / 'last.pth'} holds step 3." in message
    checkpoint = read_checkpoint(run / "last.pth")
    assert checkpoint["training"]["step"] == 3 and "Lower train.lr" in message
    assert all(tensor.isfinite().all() for tensor in checkpoint["model"].values())


def test_a_gradient_that_is_no_number_stops_it_too(failure: Callable, run: Path, monkeypatch: pytest.MonkeyPatch):
    losses = GeneralizedRCNN.losses

    def spoilt(self: GeneralizedRCNN, *batch: Any) -> dict[str, torch.Tensor]:
        found = losses(self, *batch)
        found["rpn_box"].register_hook(lambda gradient: gradient * math.inf)
        return found

    monkeypatch.setattr(GeneralizedRCNN, "losses", spoilt)
    message = failure(1)
    assert message.startswith("stopped: step 1: grad_norm is ") and "Nothing is saved yet." in message
    assert os.listdir(run) and not (run / "last.pth").exists()
