"""The drawn sets: the same pixels everywhere, true boxes, and a folder that is complete or untouched."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from helpers.training import script
from numpy.random import RandomState
from PIL import Image
from pycocotools.coco import COCO

from detector.data.coco import CocoDataset
from detector.data.synthetic import context, shapes
from detector.data.synthetic.context import CLEAR, CONTEXTS, SCENE, surroundings
from detector.data.synthetic.drawn_set import UNFINISHED, draw_set
from detector.data.synthetic.raster import SAMPLES, rasterise
from detector.data.synthetic.shapes import CLASSES
from detector.data.tracing import borders
from detector.errors import DataError
from detector.records.geometry import tight_boxes
from detector.records.raster import polygon_area

SIZE = (192, 160)  # of the harder set


def draw(folder: Path, train: int = 3, val: int = 2, seed: int = 0) -> str:
    return draw_set(folder, train=train, val=val, size=(64, 48), seed=seed)


def pixels(path: Path) -> bytes:
    return Image.open(path).tobytes()


@pytest.mark.parametrize(
    ("drawn_set", "seeds", "size", "crc"), [(shapes, 4, (256, 192), 0xA5B69B9E), (context, 6, SIZE, 0xABAF7639)]
)
def test_pixels_are_the_same_on_every_machine(drawn_set: ModuleType, seeds: int, size: tuple[int, int], crc: int):
    """Integers and a frozen stream of random numbers: another value is another set."""
    found, labels = 0, set()
    for seed in range(seeds):
        image, drawn = drawn_set.draw_image(RandomState(seed), *size)
        found = zlib.crc32(image.tobytes(), found)
        labels |= {d.label for d in drawn}
    assert labels == set(range(len(drawn_set.CLASSES))) and found == crc
    assert drawn_set.draw_image(RandomState(0), *size, empty=True)[1] == []


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
        image, drawn = shapes.draw_image(RandomState(seed), 256, 192)
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


@pytest.mark.parametrize("preset", ["plain", "context"])
def test_outlines_are_the_visible_pixels_and_corners_are_keypoints(tmp_path: Path, preset: str):
    draw_set(tmp_path, train=12, val=1, size=SIZE, seed=1, preset=preset)
    path = tmp_path / "annotations" / "train.json"
    dataset = CocoDataset(tmp_path / "images" / "train", path, fields=["masks", *(["keypoints"] * (preset == "plain"))])
    module, hidden, corners, in_two = (shapes if preset == "plain" else context), 0, 0, 0
    for i in range(11):
        drawn = module.draw_image(RandomState([1, False, i]), *SIZE)[1]
        target = dataset[i][1]
        assert target.labels.tolist() == [d.label for d in drawn]
        for d, mask, box in zip(drawn, target.masks.numpy(), target.boxes):
            assert (mask == d.visible).all() and 4 * mask.sum() >= 3 * d.area
            hidden += int(mask.sum() < d.area)
            in_two += sum(polygon_area(part) >= d.area / 10 for part in borders(mask)[0]) > 1
            if mask.sum() == d.area:
                assert torch.equal(tight_boxes(torch.from_numpy(mask)[None])[0], box)
        if target.keypoints is not None:
            for d, points, kinds, box in zip(drawn, target.keypoints.points, target.keypoints.visible, target.boxes):
                assert bool(kinds.any()) == (d.label == CLASSES.index("triangle"))
                if kinds.any():
                    top, right, left = points
                    assert top[1] < min(left[1], right[1]) and left[0] < right[0]
                    assert ((points - box[:2]).min() > -2) and ((box[2:] - points).min() > -2)
                    corners += 3
    content = path.read_text()
    holes = content.count('"counts"')
    assert hidden > 3 and in_two >= (1 if preset == "plain" else 3)  # cut in two by what lies over it
    assert (corners > 10 and holes > 1) if preset == "plain" else "keypoints" not in content


def test_a_set_of_an_earlier_version_is_left_as_it_is_and_named(tmp_path: Path):
    draw(tmp_path)
    for path in (tmp_path / "annotations").iterdir():
        path.write_text(path.read_text().replace('"segmentation"', '"other"'))
    assert draw(tmp_path).endswith(
        "already holds this set, drawn without outlines: remove the folder to draw it with them"
    )


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
    main, folder = script("make_shapes").main, str(tmp_path / "set")
    assert main([folder, "--train", "2", "--val", "1", "--size", "40", "32"]) == 0
    assert "2 + 1 images of 40x32" in capsys.readouterr().out
    info = json.loads((tmp_path / "set/annotations/train.json").read_text())["info"]
    assert info["count"] == 2 and info["size"] == [40, 32] and info["seed"] == 0
    for wrong in (["--train", "0"], ["--size", "20", "20"], ["--seed", "-1"], ["--val", "3"]):
        assert main([folder, *wrong]) == 2
        assert capsys.readouterr().err.startswith("error: ")


# --- the harder set, whose discs only their surroundings tell apart


@pytest.mark.parametrize("name", CONTEXTS)
def test_nothing_of_a_context_lies_near_its_disc(name: str):
    y, x = np.mgrid[:SCENE, :SCENE] - (SCENE - 1) / 2
    near = np.hypot(x, y) < CLEAR / 2 - 1
    for seed in range(4):
        around = surroundings(RandomState(seed), name)
        assert around.shape == (SCENE, SCENE) and around.any() and not around[near].any()


def test_every_disc_has_a_context_of_its_own():
    for seed in range(40):
        _, drawn = context.draw_image(RandomState(seed), *SIZE)
        discs = np.array([d.box for d in drawn if d.label < len(CONTEXTS)])
        middle = discs[:, :2] + discs[:, 2:] / 2
        apart = abs(middle[:, None] - middle[None]).max(axis=-1) + SCENE * np.eye(len(middle))
        assert (apart >= SCENE - 1).all()
        room = SCENE // 2 - 1
        assert (middle >= room).all() and (middle <= np.array(SIZE) - room).all()


def test_discs_are_small_and_shapes_of_all_scales():
    areas: dict[bool, list[int]] = {True: [], False: []}
    for seed in range(60):
        image, drawn = context.draw_image(RandomState(seed), *SIZE)
        assert image.shape == (160, 192, 3) and image.dtype == np.uint8
        for object_ in drawn:
            x, y, w, h = object_.box
            assert min(x, y) >= 0 and x + w <= 192 and y + h <= 160
            areas[object_.label < len(CONTEXTS)].append(object_.area)
    assert max(areas[True]) < 18**2
    assert (np.bincount(np.digitize(areas[False], [32**2, 96**2]), minlength=3) >= 10).all()


def test_an_image_too_small_for_a_disc_is_refused_with_the_smallest_that_is_not(tmp_path: Path, capsys):
    arguments = ["--preset", "context", str(tmp_path / "set"), "--train", "12", "--val", "1", "--size"]
    assert script("make_shapes").main([*arguments, "160", str(SCENE - 1)]) == 2
    assert f"preset context needs at least {SCENE}x{SCENE} pixels, not 160x{SCENE - 1}" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
    assert script("make_shapes").main([*arguments, str(SCENE), str(SCENE)]) == 0
    content = json.loads((tmp_path / "set/annotations/train.json").read_text())
    assert any(annotation["category_id"] <= len(CONTEXTS) for annotation in content["annotations"])


def test_the_script_draws_the_preset_and_keeps_the_sets_apart(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = str(tmp_path / "set")
    counts = ["--train", "3", "--val", "1", "--size", "96", "80"]
    assert script("make_shapes").main(["--preset", "context", folder, *counts]) == 0
    coco = COCO(tmp_path / "set/annotations/train.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(context.CLASSES) and len(coco.imgs) == 3
    assert json.loads((tmp_path / "set/annotations/val.json").read_text())["info"]["count"] == 1
    assert script("make_shapes").main([folder, *counts]) == 2  # the plain set is another
    assert "remove the folder" in capsys.readouterr().err
