"""Training under torchrun, by gloo: as one process would; and what happens when one of several stops."""

import json
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.processes import ROOT, fork_processes, run_processes, start_processes
from helpers.training import add_outlines, assert_same_training, draw_split, rows, train, write_config, write_json

from detector.checkpoint import read_checkpoint

SCRIPT = ROOT / "scripts/train.py"
LOSSES = ["loss", "rpn_objectness", "rpn_box", "roi_class", "roi_box", "roi_mask", "grad_norm"]
SCORES = ["val_loss", "AP", "AR100", "segm/AP"]
EVERYTHING = {"sampling": {"batch_per_image": 10**6, "positive_fraction": 1.0}}


def of_one_size(folder: Path, split: str, count: int, empty: int = 0) -> None:
    """`count` images of 96 x 64, which no batch pads, with outlines; the objects of the last `empty` are removed."""
    draw_split(folder, split, 2 * count)
    path = folder / f"{split}.json"
    content = json.loads(path.read_text())
    images = [image for image in content["images"] if image["width"] == 96]
    full = {image["id"] for image in images[: count - empty]}
    write_json(
        path, content | {"images": images, "annotations": [a for a in content["annotations"] if a["image_id"] in full]}
    )
    add_outlines(path)


def write_exhaustive(path: Path, data: Path, norm: str = "frozen", **recipe: Any) -> Path:
    """A configuration with masks and without chance: all anchors and regions learn, nothing is jittered, norms are `norm`."""
    config = yaml.safe_load(write_config(path, data, epochs=2, **recipe).read_text())
    for part in ("rpn", "roi_head"):
        config["model"][part] |= EVERYTHING
    config["model"]["backbone"] |= {"norm": norm}
    config["model"]["roi_head"] |= {"mask_head": {"width": 8, "convs": 1}}
    config["data"] |= {"transforms": [], "resize": {"short": 64, "long": 96}, "keep_empty": True}
    path.write_text(yaml.safe_dump(config))
    return path


def curve(run: Path) -> torch.Tensor:
    """(8, 7): the losses and the gradient's norm of every step."""
    return torch.tensor([[float(row[name]) for name in LOSSES] for row in rows(run) if row["loss"]])


def scores(run: Path) -> torch.Tensor:
    return torch.tensor([[float(row[name]) for name in SCORES] for row in rows(run) if row["AP"]])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images, three of them without objects, in batches of two; one image to score on."""
    folder = tmp_path_factory.mktemp("data")
    of_one_size(folder, "train", 7, empty=3)
    of_one_size(folder, "val", 1)
    return folder


@pytest.mark.parametrize(
    ("launch", "count"), [(fork_processes, 2), pytest.param(run_processes, 3, marks=pytest.mark.slow)]
)
def test_processes_learn_what_one_would(tmp_path: Path, data: Path, launch: Callable, count: int):
    """Though a process gets an image without objects, or none at all: the last batch has one image, val has one."""
    config = write_exhaustive(tmp_path / "tiny.yaml", data)
    assert train(config, tmp_path / "one") == 0
    done = launch(SCRIPT, config, "--output", tmp_path / "many", count=count)
    assert done.returncode == 0, done.stderr
    assert len(curve(tmp_path / "one")) == 8
    torch.testing.assert_close(curve(tmp_path / "many"), curve(tmp_path / "one"), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(scores(tmp_path / "many"), scores(tmp_path / "one"), rtol=1e-3, atol=1e-6)
    assert done.stderr.count("images, ") == 2 and f"on {count} processes, cpu" in done.stderr  # said once


NORM = """
import torch
from detector import distributed
from detector.modeling.layers import BatchNorm, SyncBatchNorm

x = torch.randn(4, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 3 + 1
with distributed.processes(torch.device("cpu")):
    part = slice(2 * distributed.rank(), 2 * distributed.rank() + 2)
    weights = torch.randn(4, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    found = []
    for norm, where in ((BatchNorm(3), slice(0, 4)), (SyncBatchNorm(3), part)):
        mine = x[where].clone().requires_grad_()
        y = norm(mine)
        (y * weights[where]).sum().backward()
        found.append([y.detach(), mine.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
    (y, dx, dw, db, mean, var), own = found
    own[2:4] = [2 * distributed.all_reduce_mean(gradient) for gradient in own[2:4]]  # of all processes
    for expected, got in zip([y[part], dx[part], dw, db, mean, var], own):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.slow
def test_a_synchronised_norm_trains_and_is_the_norm_of_the_whole_batch(tmp_path: Path, data: Path):
    (tmp_path / "norm.py").write_text(NORM)
    done = run_processes(tmp_path / "norm.py")
    assert done.returncode == 0, done.stderr
    config = write_exhaustive(tmp_path / "tiny.yaml", data, "sync")
    done = run_processes(SCRIPT, config, "--output", tmp_path / "run", "train.epochs=1")
    assert done.returncode == 0, done.stderr


ACCIDENT = """
import os, signal, sys
from detector.cli.train import main
from detector.training import loop
learning_rate = loop.learning_rate

def rate(recipe, step, steps_per_epoch):
    if step + 1 == {at} and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        {what}
    return learning_rate(recipe, step, steps_per_epoch)

loop.learning_rate = rate
sys.exit(main())
"""


def accident(path: Path, at: int, what: str) -> Path:
    path.write_text(ACCIDENT.format(at=at, what=what))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, Path]:
    """A configuration with chance, and the folder of a training on two processes that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder / "tiny.yaml", data, save_seconds=0.0, ema=0.9)
    done = run_processes(SCRIPT, config, "--output", folder / "run")
    assert done.returncode == 0, done.stderr
    return config, folder / "run"


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_step_and_resume_is_exact(tmp_path: Path, whole: tuple[Path, Path]):
    config, run = whole
    script = accident(tmp_path / "stopped.py", 2, "os.kill(os.getpid(), signal.SIGTERM)")
    done = run_processes(script, config, "--output", tmp_path / "run")
    assert done.returncode != 0 and done.stderr.count("stopped by SIGTERM; ") == 1, done.stderr
    assert read_checkpoint(tmp_path / "run/last.pth")["training"]["step"] == 2
    done = run_processes(SCRIPT, config, "--output", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_training(tmp_path / "run", run, but="/training/launchers")


@pytest.mark.slow
def test_a_process_that_is_killed_is_started_again_and_nothing_is_lost(tmp_path: Path, whole: tuple[Path, Path]):
    """Elastic restarts: the same command, the same files."""
    config, run = whole
    script = accident(tmp_path / "killed.py", 3, "os.kill(os.getpid(), signal.SIGKILL)")
    done = run_processes(script, config, "--output", tmp_path / "run", restarts=1)
    assert done.returncode == 0, done.stderr
    assert "resumed from" in (tmp_path / "run/train.log").read_text()
    assert_same_training(tmp_path / "run", run, but="/training/launchers")


@pytest.mark.slow
def test_a_restart_does_not_write_into_a_folder_of_another_training(tmp_path: Path, whole: tuple[Path, Path]):
    config, run = whole
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    done = run_processes(SCRIPT, config, "--output", run, restarts=1)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == done.stderr.count("this folder holds a training already") == 2  # tries
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


@pytest.mark.slow
def test_an_image_that_one_process_cannot_read_ends_all_with_one_message(tmp_path: Path):
    of_one_size(tmp_path, "train", 7)
    of_one_size(tmp_path, "val", 1)
    (tmp_path / "images" / "train5.png").unlink()
    config = write_config(tmp_path / "tiny.yaml", tmp_path)
    done = run_processes(SCRIPT, config, "--output", tmp_path / "run")
    assert done.returncode != 0 and done.stderr.count("no such image") == 1, done.stderr
    assert "error: " in done.stderr and "Error: " not in done.stderr.partition("torch/distributed/run")[0]


@pytest.mark.slow
def test_ctrl_c_for_all(tmp_path: Path, data: Path):
    config = write_config(tmp_path / "tiny.yaml", data, epochs=10_000)
    running = start_processes(SCRIPT, config, "--output", tmp_path / "run")
    try:
        for _ in range(600):
            if (tmp_path / "run/last.pth").exists():
                break
            time.sleep(0.1)
        running.send_signal(signal.SIGTERM)  # torchrun passes it on
        _, errors = running.communicate(timeout=60)
    finally:
        running.kill()
    assert errors.count("is saved, continue with --resume") == 1, errors
    assert read_checkpoint(tmp_path / "run/last.pth")["training"]["step"] >= 1


@pytest.mark.slow
def test_two_machines_are_as_good_as_one(tmp_path: Path, whole: tuple[Path, Path]):
    """A torchrun each, which meet at an address; both see the same folder."""
    config, run = whole
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    machines = [
        start_processes(
            SCRIPT, config, "--output", tmp_path / "run", count=1, options=[*options, "--node-rank", str(i)]
        )
        for i in range(2)
    ]
    for machine in machines:
        _, errors = machine.communicate(timeout=120)
        assert machine.returncode == 0, errors
    assert_same_training(tmp_path / "run", run, but="/training/launchers")
