"""Valid data that look like a mistake: boxes of another form or size, images that use a part of their bits, far anchors."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.health import run
from helpers.training import draw_set, train, write_config
from PIL import Image

import detector
from detector.data.coco import CocoDataset
from detector.data.image import read_image, used_bits
from detector.data.plausible import implausible_boxes
from detector.errors import DataError

SIZES = np.array([[100, 200]] * 60)  # height, width
rng = np.random.default_rng(0)
LOW = rng.uniform(0, [120, 60], (60, 2))
BOXES = np.concatenate([LOW, LOW + rng.uniform(5, [80, 40], (60, 2))], axis=1)  # corners inside 200 x 100


def as_read(written: np.ndarray) -> np.ndarray:
    """Corners that a reader makes of numbers that it takes for [x, y, width, height]."""
    return np.concatenate([written[:, :2], written[:, :2] + written[:, 2:]], axis=1)


def test_boxes_of_another_form_or_size_and_a_class_of_equal_ones():
    for boxes, sizes, kind, words in [
        (BOXES, SIZES, None, ""),
        (BOXES / [200, 100, 200, 100], SIZES, "boxes like fractions", "60 of 60 boxes have four numbers of at most 1"),
        (np.where(np.arange(60)[:, None] < 12, BOXES / [200, 100, 200, 100], BOXES), SIZES, "boxes like fractions", "12 of 60"),
        (as_read(BOXES / [200, 100, 200, 100]), SIZES, "boxes like fractions", "60 of 60"),
        (as_read(BOXES), SIZES, "boxes like corners", "of 60 boxes leave their image, none as [x1, y1, x2, y2]"),
        (BOXES * 3, SIZES, "boxes like another size", "leave their image, up to 2."),
        (BOXES, SIZES[:, ::-1], "boxes like another size", "all fit if width and height change places"),
        (BOXES / 2, SIZES, "boxes like another size", "no box of 60 reaches beyond"),
        (BOXES[:1] + [-90, 0, 0, 0], SIZES[:1], "boxes like another size", "1 of 1 boxes leave their image"),
        (BOXES[:10] / 2, SIZES[:10], None, ""),  # too few to tell
        (np.array([[0, 0, 201.0, 100]] * 3), SIZES[:3], None, ""),  # a pixel too wide
        (np.zeros((0, 4)), SIZES[:0], None, ""),
    ]:  # fmt: skip
        doubts = implausible_boxes(boxes, np.zeros(len(boxes), dtype=int), sizes, ["cat"])
        assert [doubt.kind for doubt in doubts] == ([] if kind is None else [kind])
        assert all(words in doubt.note for doubt in doubts)
    labels = np.arange(60) % 3
    boxes = np.where(labels[:, None] == 1, [[10, 20, 40, 70.5]], BOXES)
    (doubt,) = implausible_boxes(boxes, labels, SIZES, ["cat", "dog", "cow"])
    assert doubt == ("equal boxes", "all 20 boxes of 'dog' are [10, 20, 30, 50.5]")


def save(path: Path, values: list[int], **tags: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array([values] * 40, dtype=np.uint16)).save(path, **({"tiffinfo": tags} if tags else {}))
    return path


def test_an_image_is_scaled_by_the_range_that_it_uses_or_is_given_or_refused(tmp_path: Path):
    assert read_image(save(tmp_path / "a.png", [0, 16, 1000, 4095]))[0, 0].tolist() == [0, 1, 62, 255]
    assert used_bits(tmp_path / "a.png") == 12
    assert read_image(tmp_path / "a.png", bit_depth=16)[0, 0].tolist() == [0, 0, 3, 15]
    assert read_image(tmp_path / "a.png", bit_depth=10)[0, 0].tolist() == [0, 4, 250, 255]  # white beyond
    for largest, bits in ((0, 8), (255, 8), (256, 10), (1024, 12), (4096, 14), (16384, 16), (65535, 16)):
        assert used_bits(save(tmp_path / "b.png", [0, 0, largest])) == bits
    Image.fromarray(np.full((4, 4), 900, dtype=np.uint16)).save(tmp_path / "c.tiff", tiffinfo={281: 4095})
    assert used_bits(tmp_path / "c.tiff") == 12  # stated
    Image.new("RGB", (4, 4)).save(tmp_path / "d.png")
    assert used_bits(tmp_path / "d.png") is None
    for values, reach in (([-1000, 500], "from -1000 to 500"), ([0, 70000], "from 0 to 70000")):
        Image.fromarray(np.array([values] * 4, dtype=np.int32)).save(tmp_path / "a.tiff")
        with pytest.raises(DataError, match=f"values {reach} do not fit 16 bits"):
            read_image(tmp_path / "a.tiff")


def grey_set(folder: Path) -> Path:
    """`draw_set` with its images as grey of 12 bits in 16."""
    draw_set(folder)
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            values = np.asarray(image.convert("L")).astype(np.uint16) * 16 + 15
        Image.fromarray(values).save(path)
    return folder


def test_check_and_training_say_what_is_doubtful_and_the_remedies_work(tmp_path: Path, capsys):
    data = grey_set(tmp_path / "data")
    config = write_config(tmp_path / "a.yaml", data)
    status, out, _ = run(config)
    assert status == 0 and "it uses 12 of 16 bits; data.bit_depth=12 holds all" in out
    assert "part of the bit depth" not in run(config, "data.bit_depth=12")[1]
    assert "beyond the bit depth" in run(config, "data.bit_depth=10")[1]
    sizes = "model.rpn.anchors.sizes=[[300],[400],[500],[600],[700]]"
    assert train(config, tmp_path / "run", ["train.epochs=1", sizes]) == 0
    log = (tmp_path / "run/train.log").read_text()
    assert "images of 16 bits use 12: 6 of 6 that were looked at" in log and "data.bit_depth=12" in log
    assert "train: anchors far from objects: 0.0% of the objects have an anchor with IoU >= " in log
    assert train(config, tmp_path / "fixed", ["train.epochs=1", "data.bit_depth=12"]) == 0
    log = (tmp_path / "fixed/train.log").read_text()
    assert "16 bits" not in log
    assert detector.load(tmp_path / "fixed/best.pth", trust=True).config.data.bit_depth == 12


def test_proposed_anchors_are_a_configuration_to_train_on(tmp_path: Path):
    data = draw_set(tmp_path / "data")
    truth = json.loads((data / "train.json").read_text())
    image = truth["images"][0]["id"]
    wide = [{"id": n, "image_id": image, "category_id": 3, "bbox": [n % 9, n % 30, 44, 15]} for n in range(60)]
    (data / "train.json").write_text(json.dumps(truth | {"annotations": wide}))
    config = write_config(tmp_path / "a.yaml", data)
    status, out, _ = run(config, "--anchors", tmp_path / "new/anchors.yaml")
    assert status == 0 and "anchors far from objects" in out and "--anchors FILE writes some with " in out
    before, after = (detector.load_config(path).raw["model"] for path in (config, tmp_path / "new/anchors.yaml"))
    assert after["neck"] == before["neck"] and after["rpn"]["anchors"] != before["rpn"]["anchors"]
    assert train(tmp_path / "new/anchors.yaml", tmp_path / "run", ["train.epochs=1"]) == 0
    assert "anchors far" not in (tmp_path / "run/train.log").read_text()
    assert run(tmp_path / "new/anchors.yaml", "--anchors", tmp_path / "a.yaml")[0] == 2  # not of an earlier run
    (tmp_path / "a.json").write_text(json.dumps(truth))
    assert run(data / "val.json", "--anchors", tmp_path / "no.yaml")[0] == 2 and not (tmp_path / "no.yaml").exists()


def test_doubts_of_a_data_set_are_of_its_chosen_classes(tmp_path: Path):
    data = draw_set(tmp_path / "data")
    assert CocoDataset(data / "images", data / "train.json").doubts == []
    with pytest.raises(DataError):
        CocoDataset(data / "images", data / "train.json", classes=["none"])
