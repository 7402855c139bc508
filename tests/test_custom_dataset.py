"""The data set that docs/extending.md shows has the required members alone; it is trained on and scored."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.training import ROOT, draw_set, script, table, train, write_config
from PIL import Image

from detector.config.config import load_config
from detector.data.describe import class_table_of, full_names_of, report_of
from detector.data.settings import build_dataset
from detector.errors import DataError

OWN = [
    "data.type=my_data.ImageArrays",
    *(f"data.{s}={{images: {s}.npz, annotations: {s}.json}}" for s in ("train", "val")),
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = draw_set(tmp_path / "data")
    for split in ("train", "val"):
        images = json.loads((folder / f"{split}.json").read_text())["images"]
        arrays = {str(i["id"]): np.asarray(Image.open(folder / "images" / i["file_name"])) for i in images}
        np.savez(folder / f"{split}.npz", **arrays)
    code = re.search(r"```python\n(# my_data\.py.*?)```", (ROOT / "docs/extending.md").read_text(), re.DOTALL)
    (tmp_path / "my_data.py").write_text(code[1])
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_the_example_trains_and_scores_like_the_coco_data_set(data: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", data, epochs=1)
    assert train(config, tmp_path / "own", OWN) == 0
    assert train(config, tmp_path / "coco") == 0
    assert table(tmp_path / "own") == table(tmp_path / "coco")
    checkpoint = [str(tmp_path / "own/last.pth"), "--output", str(tmp_path / "scores"), "--trust"]
    assert script("evaluate").main(checkpoint) == 0


def test_members_that_it_leaves_out_have_defaults(data: Path, tmp_path: Path) -> None:
    config = load_config(write_config(tmp_path / "config.yaml", data), OWN)
    dataset = build_dataset(config.data, "val")
    assert report_of(dataset) == f"{data / 'val.json'}: 2 images, 2 classes"
    assert [line.split() for line in class_table_of(dataset).splitlines()[1:]] == [
        ["0", "3", "square"],
        ["1", "7", "disc"],
    ]
    assert full_names_of(dataset) == [f"{data / 'val.json'}/{i}" for i in (10, 11)]


MASKED = ["model.roi_head.mask_head={width: 16, convs: 1}"]


def with_outlines(data: Path) -> None:
    """An outline for each object: a right triangle in its box."""
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["segmentation"] = [[x, y, x + w, y + h, x, y + h]]
        (data / f"{split}.json").write_text(json.dumps(content))


def test_the_example_trains_masks_like_the_coco_data_set(data: Path, tmp_path: Path) -> None:
    with_outlines(data)
    config = write_config(tmp_path / "config.yaml", data, epochs=1)
    assert train(config, tmp_path / "own", OWN + MASKED) == 0
    assert train(config, tmp_path / "coco", MASKED) == 0
    assert table(tmp_path / "own") == table(tmp_path / "coco")
    with open(tmp_path / "own/metrics.csv") as file:
        assert {"roi_mask", "segm/AP"} <= set(file.readline().strip().split(","))


@pytest.mark.parametrize("gives", ["outlines", "masks", "small", "none"])
def test_masks_come_of_outlines_or_are_given(data: Path, tmp_path: Path, gives: str):
    with_outlines(data)
    (tmp_path / f"bare_{gives}.py").write_text(BARE.format(gives=gives))
    own = [change.replace("my_data.ImageArrays", f"bare_{gives}.Bare") for change in OWN]
    config = load_config(write_config(tmp_path / "config.yaml", data), own + MASKED)
    made = build_dataset(config.data, "val", fields=config.model.target_fields)
    expected = build_dataset(load_config(tmp_path / "config.yaml", MASKED).data, "val", fields=["masks"])
    if gives in ("outlines", "masks"):
        target = made[0][1]
        assert torch.equal(target.masks, expected[0][1].masks) and target.outlines is None and target.masks.any()
        assert made.pixels is made.dataset.pixels  # the members of the data set itself
        return
    message = "has no `outlines` or `masks`, from which" if gives == "none" else "masks must be"
    with pytest.raises(DataError, match=f"data.type: Bare, image id 10.*{message}"):
        made[0]


BARE = '''
from dataclasses import replace
from detector.data.coco_reader import read_coco_file
from my_data import ImageArrays

class Bare(ImageArrays):
    """Its constructor does not know `fields`."""

    def __init__(self, images, annotations, *, classes, class_names, transform, keep_empty, max_pixels):
        super().__init__(images, annotations, classes=classes, class_names=class_names, transform=transform, fields=["masks"])

    def __getitem__(self, i):
        image, target, number = super().__getitem__(i)
        if "{gives}" == "outlines":
            return image, target, number
        drawn = target.drawn(tuple(image.shape[1:]))
        masks = {{"masks": drawn.masks, "small": drawn.masks[:, 1:], "none": None}}["{gives}"]
        return image, replace(drawn, masks=masks, outlines=None), number
'''
