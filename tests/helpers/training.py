"""Data, a model and a configuration with which a whole training takes a second."""

import csv
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image, ImageDraw
from torch import Tensor, nn

from detector.checkpoint import read_checkpoint
from detector.modeling.layers import make_norm
from detector.recipe import Recipe
from detector.training.optim import learning_rate

ROOT = Path(__file__).parents[2]
CLASSES = {"square": 3, "disc": 7}  # name -> category id
COLOURS = {"square": "red", "disc": "blue", "ring": "green"}
STEPS = 3  # an epoch: six images in batches of two
STABLE = ["step", "epoch", "lr", "loss", "grad_norm", "val_loss", "AP", "AP50", "AR100"]  # no times, no memory
MODEL = {
    "backbone": {"type": "helpers.training.TinyBackbone"},
    "neck": {"type": "fpn", "width": 32},
    "rpn": {
        "anchors": {"sizes": [[16], [32], [48], [64], [96]]},
        "selection": {"pre_nms": [200, 100], "post_nms": [100, 50]},
    },
    "roi_head": {"sampling": {"batch_per_image": 32}, "box_head": {"width": 32}, "pool": {"canonical_size": 56}},
}


class TinyBackbone(nn.Module):
    """A convolution with a batch norm per level: a user's own part, named by its dotted path."""

    def __init__(self, width: int = 16, norm: str = "batch"):
        super().__init__()
        self.channels, self.strides = [width] * 4, [4, 8, 16, 32]
        convs = [nn.Conv2d(3, width, 7, 4, 3), *(nn.Conv2d(width, width, 3, 2, 1) for _ in range(3))]
        self.levels = nn.ModuleList(nn.Sequential(conv, make_norm(norm, width)) for conv in convs)

    def forward(self, x: Tensor) -> list[Tensor]:
        c = []
        for level in self.levels:
            c.append(x := F.relu(level(x)))
        return c


def draw_split(folder: Path, split: str, count: int, classes: dict[str, int] = CLASSES) -> None:
    """`count` pictures of 96 x 64 or 64 x 96 pixels in folder/images and folder/<split>.json, an object or two in each."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(count):
        size = (96, 64) if i % 2 else (64, 96)
        picture = Image.new("RGB", size, "white")
        for k, name in enumerate(list(classes)[: 1 + i % 3]):
            along, across, side = 3 + 31 * k, 4 + 5 * i, 24 + 3 * k  # inside of the picture, and apart
            x, y = (along, across) if i % 2 else (across, along)
            draw = ImageDraw.Draw(picture)
            shape = draw.rectangle if name == "square" else draw.ellipse
            shape((x, y, x + side - 1, y + side - 1), fill=COLOURS[name])
            box = {"bbox": [x, y, side, side], "area": side * side, "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": 10 + i, "category_id": classes[name], **box})
        picture.save(folder / "images" / f"{split}{i}.png")
        images.append({"id": 10 + i, "file_name": f"{split}{i}.png", "width": size[0], "height": size[1]})
    categories = [{"id": number, "name": name} for name, number in classes.items()]
    write_json(folder / f"{split}.json", {"images": images, "annotations": annotations, "categories": categories})


def add_outlines(annotations: Path) -> None:
    """Every object gets the hexagon of its box as outline."""
    content = json.loads(annotations.read_text())
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [
            [x + w / 4, y, x + w * 3 / 4, y, x + w, y + h / 2, x + w * 3 / 4, y + h, x + w / 4, y + h, x, y + h / 2]
        ]
    write_json(annotations, content)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def draw_set(folder: Path, classes: dict[str, int] = CLASSES) -> Path:
    """Six images to train on, two to score on."""
    draw_split(folder, "train", 6, classes)
    draw_split(folder, "val", 2, classes)
    return folder


def write_config(path: Path, data: Path, **train: Any) -> Path:
    """A configuration of two epochs, the number of classes left to the data."""
    settings = {
        "root": str(data),
        "train": {"images": "images", "annotations": "train.json"},
        "val": {"images": "images", "annotations": "val.json"},
        "workers": 0,
        "resize": {"short": [56, 64], "long": 96},
    }
    recipe = dict(epochs=2, batch_size=2, lr=0.01, lr_batch=2, milestones=[8, 11], warmup_steps=1, clip_norm=10.0)
    recipe |= {"device": "cpu", "report": False} | train  # tests/test_report.py has reports
    path.write_text(yaml.safe_dump({"model": MODEL, "data": settings, "train": recipe}))
    return path


def script(name: str) -> ModuleType:
    """The command `detector NAME` as a module, or a script of scripts/ that is no command."""
    path = ROOT / "scripts" / f"{name}.py"
    if importlib.util.find_spec(f"detector.cli.{name}"):
        return importlib.import_module(f"detector.cli.{name}")
    spec = importlib.util.spec_from_file_location(f"{name}_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(config: Path, output: Path, arguments: Sequence[str] = ()) -> int:
    """`detector train CONFIG --output DIR ...`; its exit status."""
    return script("train").main([str(config), "--output", str(output), *map(str, arguments)])


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def before_steps(monkeypatch: pytest.MonkeyPatch, work: Callable[[int], None]) -> None:
    """Arrange that trainings call `work(number)` at the beginning of each step, numbered from 1."""

    def rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
        work(step + 1)
        return learning_rate(recipe, step, steps_per_epoch)

    monkeypatch.setattr("detector.training.loop.learning_rate", rate)


def leaves(content: Any, path: str = "", but: str | None = None) -> dict[str, Any]:
    """Everything in nested containers, by its path; what lies at the path `but` is left out."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    found = {}
    for key, value in items:
        nested, here = isinstance(value, dict | list | tuple), f"{path}/{key}"
        if here != but:
            found |= leaves(value, here, but) if nested else {here: value}
    return found


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def table(folder: Path) -> list[list[str]]:
    return [[row[name] for name in STABLE] for row in rows(folder)]


def assert_same_training(a: Path, b: Path, but: str | None = None) -> None:
    """Bit for bit: weights, statistics, optimiser, random numbers, place, scores, and what the table says.

    What lies at the path `but` in a checkpoint may differ.
    """
    for name in ("last.pth", "best.pth"):
        one, other = (leaves(read_checkpoint(folder / name), but=but) for folder in (a, b))
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key], key
    assert table(a) == table(b)


def place(folder: Path) -> tuple[int, int]:
    """Steps done and epochs finished, of last.pth."""
    state = read_checkpoint(folder / "last.pth")["training"]
    return state["step"], state["epoch"]
