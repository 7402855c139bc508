"""The drawn set: the same pixels everywhere, true boxes, and a folder that is complete or untouched."""

from __future__ import annotations

import importlib.util
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.random import RandomState
from PIL import Image
from pycocotools.coco import COCO

from detector.data.synthetic.drawn_set import UNFINISHED, draw_set
from detector.data.synthetic.raster import SAMPLES, rasterise
from detector.data.synthetic.shapes import CLASSES, draw_image
from detector.errors import DataError

ROOT = Path(__file__).parents[1]


def draw(folder: Path, train: int = 3, val: int = 2, seed: int = 0) -> str:
    return draw_set(folder, train=train, val=val, size=(64, 48), seed=seed)


def pixels(path: Path) -> bytes:
    return Image.open(path).tobytes()


def test_pixels_are_the_same_on_every_machine():
    crc, labels = 0, []
    for seed in range(4):
        image, drawn = draw_image(RandomState(seed), 256, 192)
        crc = zlib.crc32(image.tobytes(), crc)
        labels += [d.label for d in drawn]
    assert set(labels) == set(range(len(CLASSES)))
    assert crc == 0xA5B69B9E  # integers and a frozen stream of random numbers: another value is another set


@pytest.mark.parametrize("p", [0, 8, -5])
@pytest.mark.parametrize(
    ("name", "share"),  # of width x height
    [("disc", math.pi / 4), ("ring", math.pi / 4 * 0.6975), ("square", 0.81), ("triangle", 0.45), ("cross", 0.5511)],
)
def test_a_shape_has_its_area_under_any_rotation(name: str, share: float, p: int):
    coverage = rasterise(name, 80, 60, p, 32)
    assert coverage.sum() / SAMPLES**2 == pytest.approx(share * 80 * 60, rel=0.02)


def test_boxes_are_tight():
    assert rasterise("square", 40, 20, 0, 32).shape == (18, 36)
    assert rasterise("disc", 20, 20, 3, 32).shape == (20, 20)
    for name in CLASSES:
        belongs = 2 * rasterise(name, 30, 24, 5, 32) > SAMPLES**2
        assert all(edge.any() for edge in (belongs[0], belongs[-1], belongs[:, 0], belongs[:, -1]))


def test_objects_lie_in_the_picture_at_all_scales():
    areas = []
    for seed in range(30):
        image, drawn = draw_image(RandomState(seed), 256, 192)
        assert image.shape == (192, 256, 3)
        assert 1 <= len(drawn) <= 8
        for object_ in drawn:
            x, y, w, h = object_.box
            assert min(x, y) >= 0 and x + w <= 256 and y + h <= 192 and min(w, h) >= 9
            areas.append(object_.area)
    scales = np.bincount(np.digitize(areas, [32**2, 96**2]), minlength=3)
    assert (scales >= 5).all()


def test_the_set_is_in_coco_form(tmp_path: Path):
    draw(tmp_path, train=20)
    coco = COCO(tmp_path / "annotations" / "train.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert len(coco.imgs) == 20 and not coco.getAnnIds(imgIds=[20])  # every 20th image is empty
    for image in coco.imgs.values():
        assert Image.open(tmp_path / "images" / "train" / image["file_name"]).size == (image["width"], image["height"])
    for annotation in coco.anns.values():
        assert 0 < annotation["area"] <= annotation["bbox"][2] * annotation["bbox"][3]


def test_an_image_depends_on_seed_split_and_index_alone(tmp_path: Path):
    draw(tmp_path / "a")
    draw(tmp_path / "b", train=1, val=3)
    draw(tmp_path / "c", seed=1)
    first = pixels(tmp_path / "a/images/train/000000.png")
    assert pixels(tmp_path / "b/images/train/000000.png") == first
    assert pixels(tmp_path / "c/images/train/000000.png") != first
    assert pixels(tmp_path / "a/images/val/000000.png") != first


def test_a_complete_set_is_left_as_it_is(tmp_path: Path):
    draw(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert "already" in draw(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_anything_else_in_the_folder_is_refused_and_kept(tmp_path: Path):
    draw(tmp_path / "other")
    with pytest.raises(DataError, match="remove the folder"):
        draw(tmp_path / "other", seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.txt"):
        draw(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(DataError, match="cannot write"):
        draw(tmp_path / "mine" / "notes.txt")


def test_an_interrupted_run_is_drawn_anew(tmp_path: Path):
    (tmp_path / UNFINISHED / "images" / "train").mkdir(parents=True)
    draw(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "images"]


def test_the_script_draws_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture):
    spec = importlib.util.spec_from_file_location("make_shapes_script", ROOT / "scripts/make_shapes.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = str(tmp_path / "set")
    assert script.main([folder, "--train", "2", "--val", "1", "--size", "40", "32"]) == 0
    assert "2 + 1 images of 40x32" in capsys.readouterr().out
    info = json.loads((tmp_path / "set/annotations/train.json").read_text())["info"]
    assert info["count"] == 2 and info["size"] == [40, 32] and info["seed"] == 0
    for wrong in (["--train", "0"], ["--size", "20", "20"], ["--seed", "-1"], ["--val", "3"]):
        assert script.main([folder, *wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")
