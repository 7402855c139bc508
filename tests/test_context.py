"""The harder drawn set: the same pixels everywhere, and discs that only their surroundings tell apart."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.training import script
from numpy.random import RandomState
from pycocotools.coco import COCO

from detector.data.synthetic.context import CLASSES, CLEAR, CONTEXTS, SCENE, draw_image, surroundings

SIZE = (192, 160)


def test_pixels_are_the_same_on_every_machine():
    crc, labels = 0, []
    for seed in range(6):
        image, drawn = draw_image(RandomState(seed), *SIZE)
        crc = zlib.crc32(image.tobytes(), crc)
        labels += [d.label for d in drawn]
    assert set(labels) == set(range(len(CLASSES))) and draw_image(RandomState(0), *SIZE, empty=True)[1] == []
    assert crc == 0xABAF7639  # integers and a frozen stream of random numbers: another value is another set


@pytest.mark.parametrize("name", CONTEXTS)
def test_nothing_of_a_context_lies_near_its_disc(name: str):
    y, x = np.mgrid[:SCENE, :SCENE] - (SCENE - 1) / 2
    near = np.hypot(x, y) < CLEAR / 2 - 1
    for seed in range(4):
        context = surroundings(RandomState(seed), name)
        assert context.shape == (SCENE, SCENE) and context.any() and not context[near].any()


def test_every_disc_has_a_context_of_its_own():
    for seed in range(40):
        _, drawn = draw_image(RandomState(seed), *SIZE)
        discs = np.array([d.box for d in drawn if d.label < len(CONTEXTS)])
        middle = discs[:, :2] + discs[:, 2:] / 2
        apart = abs(middle[:, None] - middle[None]).max(axis=-1) + SCENE * np.eye(len(middle))
        assert (apart >= SCENE - 1).all()
        room = SCENE // 2 - 1
        assert (middle >= room).all() and (middle <= np.array(SIZE) - room).all()


def test_discs_are_small_and_shapes_of_all_scales():
    areas: dict[bool, list[int]] = {True: [], False: []}
    for seed in range(60):
        image, drawn = draw_image(RandomState(seed), *SIZE)
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
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES) and len(coco.imgs) == 3
    assert json.loads((tmp_path / "set/annotations/val.json").read_text())["info"]["count"] == 1
    assert script("make_shapes").main([folder, *counts]) == 2  # the plain set is another
    assert "remove the folder" in capsys.readouterr().err
