"""The data set that docs/extending.md shows has the required members alone; it is trained on and scored."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.training import ROOT, draw_set, script, table, train, write_config
from PIL import Image

from detector.config.config import load_config
from detector.data.describe import class_table_of, full_names_of, report_of
from detector.data.settings import build_dataset

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
