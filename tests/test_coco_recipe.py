"""The published COCO recipes on a folder of COCO's shape, of real COCO images; a narrow, small R18 stands for R50."""

import csv
import json
from pathlib import Path

import pytest
from helpers import training
from helpers.golden_rules import PROJECT, shared

import detector
from detector.data.transforms import Resize

RECIPES = sorted(p for p in (PROJECT / "configs").glob("*_coco.yaml"))
SCRATCH = ["model.backbone.weights=null", "model.backbone.norm=batch", "model.backbone.frozen_stages=0"]


def coco_folder(root: Path, *, images: int, smallest: float) -> Path:
    """The first images without crowds whose objects all have at least `smallest` pixels, laid out like COCO 2017."""
    source = shared("data/coco128")
    document = json.loads((source / "annotations/instances.json").read_text())
    objects = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    fit = [i for i, a in objects.items() if a and all(x["area"] >= smallest and not x["iscrowd"] for x in a)][:images]
    document["images"] = [image for image in document["images"] if image["id"] in fit]
    document["annotations"] = [a for i in fit for a in objects[i]]
    (root / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (root / split).symlink_to(source / "images")
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(document))
    return root


def train(recipe: str, output: Path, *overrides: str) -> list[dict[str, str]]:
    """Train by the command; the rows of metrics.csv."""
    assert training.train(PROJECT / "configs" / recipe, output, ["data.workers=1", *SCRATCH, *overrides]) == 0
    return list(csv.DictReader((output / "metrics.csv").open()))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_recipes_are_the_published_ones(path):
    """Batch 16, lr 0.02, warm-up 1000 steps; 12 epochs with steps at 8 and 11, or 36, 28 and 34."""
    config = detector.load_config(path, ["data.root=somewhere"])
    recipe = config.train
    assert (recipe.batch_size, recipe.lr, recipe.momentum, recipe.weight_decay) == (16, 0.02, 0.9, 1e-4)
    assert (recipe.warmup_steps, recipe.warmup_factor) == (1000, 0.001)
    expected = (36, [28, 34]) if "_3x_" in path.name else (12, [8, 11])
    assert (recipe.epochs, recipe.milestones) == expected
    assert config.data.resize == Resize([640, 672, 704, 736, 768, 800], 1333)
    backbone = config.model.calls["backbone"].arguments
    # DetectoRS trains the affine map of its norms, never their statistics
    assert backbone["frozen_stages"] == 2 and backbone["norm"] == ("affine" if "conv" in backbone else "frozen")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["faster_rcnn_r50_fpn_1x_coco.yaml", "panet_r50_1x_coco.yaml"])
def test_a_recipe_starts_with_only_the_root_given(tmp_path, recipe):
    """The real depth, at a small size for the clock's sake: one epoch, scored, 80 classes."""
    root = coco_folder(tmp_path / "coco", images=4, smallest=32**2)
    small = ["data.resize.short=[128]", "data.resize.long=192", "train.epochs=1", "train.batch_size=2"]
    rows = train(recipe, tmp_path / "run", f"data.root={root}", *small)
    assert len(rows) == 3  # two steps and an evaluation
    assert rows[-1]["AP"] != "" and (tmp_path / "run/best.pth").exists()
    assert len(detector.load(tmp_path / "run/best.pth").class_names) == 80


@pytest.mark.slow
@pytest.mark.longest
def test_eight_images_are_overfitted(tmp_path):
    """The loss falls, and what is learnt by heart is found again: AP50 >= 0.9."""
    root = coco_folder(tmp_path / "coco", images=8, smallest=32**2)
    rows = train(
        "faster_rcnn_r50_fpn_1x_coco.yaml", tmp_path / "run", f"data.root={root}", "model.backbone.depth=18",
        "model.neck.width=128", "model.roi_head.sampling.batch_per_image=128", "model.roi_head.box_head.width=512",
        "data.resize.short=[192]", "data.resize.long=288", "data.transforms=[]", "train.epochs=60", "train.batch_size=4",
        "train.optimizer=adamw", "train.lr=3e-4", "train.weight_decay=1e-4", "train.warmup_steps=20", "train.clip_norm=10",
        "train.schedule=cosine", "train.evaluate_every=60", "train.save_seconds=1000",
    )  # fmt: skip
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
    assert float(rows[-1]["AP50"]) >= 0.9
