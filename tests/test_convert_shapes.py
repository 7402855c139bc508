"""Outlines and keypoints of other formats: known shapes come back, and what a format cannot hold is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.formats import convert, converted, refusal
from PIL import Image
from test_voc import annotation, element

from detector.data.coco import CocoDataset
from detector.records.outlines import Outlines

H, W = 40, 60
ELL = [10, 5, 30, 5, 30, 15, 20, 15, 20, 35, 10, 35]


def bitmaps(folder: Path, document: dict[str, Any]) -> np.ndarray:
    """The masks of the first image, read as training reads them."""
    path = folder.parent / "read.json"
    path.write_text(json.dumps(document))
    return CocoDataset(folder, path, fields=["masks"])[0][1].masks.numpy()


def test_an_outline_goes_to_yolo_and_back(tmp_path: Path):
    ring = np.zeros((1, H, W), np.uint8)
    ring[0, 20:35, 40:55] = 1
    ring[0, 25:30, 45:50] = 0
    values = [[ELL], Outlines.of_bitmaps(torch.from_numpy(ring)).segmentations()[0],
              [[2, 2, 8, 2, 8, 8, 2, 8], [2, 20, 8, 20, 8, 30, 2, 30]]]  # fmt: skip
    (tmp_path / "images").mkdir()
    Image.new("RGB", (W, H)).save(tmp_path / "images" / "a.png")
    boxes = [[10, 5, 20, 30], [40, 20, 15, 15], [2, 2, 6, 28]]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": H, "width": W}], "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": i, "image_id": 1, "category_id": 1, "bbox": b, "segmentation": v}
                        for i, (b, v) in enumerate(zip(boxes, values))],
    }  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(document))
    original = bitmaps(tmp_path / "images", document)
    arguments = ["to-yolo", tmp_path / "train.json", "--copy-images", tmp_path / "images"]
    assert convert(*arguments, "--output", tmp_path / "seg", "--outlines") == 0
    back = converted("yolo", tmp_path / "seg")
    again = bitmaps(tmp_path / "seg", back)
    assert (again[0] == original[0]).all() and [a["bbox"] for a in back["annotations"]] == boxes
    filled = original[1].copy()
    filled[25:30, 45:50] = 1
    assert (again[1] == filled).all() and (again[2] >= original[2]).all() and (again[2] != original[2]).sum() < 30
    assert back["annotations"][0]["area"] == 20 * 10 + 10 * 20
    del document["annotations"][0]["segmentation"]
    (tmp_path / "train.json").write_text(json.dumps(document))
    assert convert(*arguments, "--output", tmp_path / "no", "--outlines") == 2 and not (tmp_path / "no").exists()


def test_yolo_keypoints_are_read_as_keypoints(tmp_path: Path):
    for below in ("images", "labels"):
        (tmp_path / "pose" / below).mkdir(parents=True)
    Image.new("RGB", (W, H)).save(tmp_path / "pose/images/a.png")
    (tmp_path / "pose/labels/a.txt").write_text("0 0.5 0.5 0.5 0.5 0.4 0.25 0.6 0.5 0 0\n")
    settings = {"names": ["person"], "kpt_shape": [3, 2], "flip_idx": [0, 2, 1]}
    (tmp_path / "pose/data.yaml").write_text(yaml.safe_dump(settings))
    document = converted("yolo", tmp_path / "pose")
    (tmp_path / "a.json").write_text(json.dumps(document))
    dataset = CocoDataset(tmp_path / "pose", tmp_path / "a.json", fields=["keypoints"])
    keypoints = dataset.target(0).keypoints
    assert keypoints is not None and keypoints.pose.swap() == [0, 2, 1]
    assert keypoints.points.tolist() == [[[24, 10], [36, 20], [0, 0]]] and keypoints.visible.tolist() == [[2, 2, 0]]


def labelme(folder: Path, *shapes: dict[str, Any], image: str = "a.png") -> Path:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (W, H)).save(folder / "a.png")
    content = {"version": "5.0", "imagePath": image, "imageData": None, "shapes": list(shapes)}
    (folder / "a.json").write_text(json.dumps(content))
    return folder


def shape(label: Any, points: Any, kind: str = "polygon", group: int | None = None) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": group}


def test_labelme_polygons_rectangles_circles_and_groups(tmp_path: Path):
    pairs = np.reshape(ELL, (-1, 2)).tolist()
    folder = labelme(
        tmp_path / "set", shape("ell", pairs), shape("box", [[55, 30], [40, 20]], "rectangle"),
        shape("two", [[1, 1], [5, 1], [5, 5]], group=7), shape("two", [[1, 20], [5, 20], [5, 25]], group=7),
        shape("disc", [[45, 10], [45, 18]], "circle"), shape("ell", [[3, 3]], "point"),
    )  # fmt: skip
    document = converted("labelme", folder)
    names = {c["id"]: c["name"] for c in document["categories"]}
    found = {names[a["category_id"]]: a for a in document["annotations"]}
    assert sorted(found) == ["box", "disc", "ell", "two"] and found["ell"]["segmentation"] == [ELL]
    assert found["box"]["bbox"] == [40, 20, 15, 10] and found["two"]["bbox"] == [1, 1, 4, 24]
    assert len(found["two"]["segmentation"]) == 2 and found["disc"]["bbox"] == [37, 2, 16, 16]
    assert found["disc"]["area"] == pytest.approx(np.pi * 64, rel=0.01)
    assert "shapes are no polygon, rectangle or circle (point): left out" in document["info"]["findings"][0]
    assert bitmaps(folder, document).shape == (4, H, W)


@pytest.mark.parametrize(
    ("shapes", "image", "message"),
    [
        ([shape("a\nb", [[1, 2]])], "a.png", "shape 1: `label` must be a name"),
        ([shape("a", [[1, "2"]])], "a.png", "shape 1: `points` must be pairs of finite numbers"),
        ([shape("a", [[1, 2]] * 3)], "../../b.png", "leads out of the image folder"),
        ([shape("a", [[1, 2]] * 3)], "b.png", "b.png"),
        ([7], "a.png", "shape 1: `label`"),
    ],
)
def test_what_is_wrong_with_a_labelme_file_is_one_line(tmp_path, capsys, shapes: list, image: str, message: str):
    assert message in refusal(capsys, "labelme", labelme(tmp_path / "set", *shapes, image=image))


def test_voc_regions_become_outlines(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = tmp_path / "voc"
    for below in ("Annotations", "JPEGImages", "SegmentationObject"):
        (folder / below).mkdir(parents=True)
    Image.new("RGB", (W, H)).save(folder / "JPEGImages/a.png")
    numbers = np.zeros((H, W), np.uint8)
    numbers[5:15, 5:20], numbers[20:35, 30:50], numbers[4, 5:20] = 2, 1, 255
    numbers[25:30, 35:40] = 0  # a hole
    picture = Image.fromarray(numbers, mode="P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    picture.save(folder / "SegmentationObject/a.png")
    boxes = [(5, 5, 15, 10), (30, 20, 20, 15), (50, 0, 5, 5)]
    (folder / "Annotations/a.xml").write_text(annotation(*(element("dog", *box) for box in boxes), width=W, height=H))
    document = converted("voc", folder)
    outlined = [a for a in document["annotations"] if "segmentation" in a]
    made = Outlines.of([a["segmentation"] for a in outlined], (H, W)).bitmaps((H, W)).numpy()
    assert (
        [a["id"] for a in outlined] == [1, 2]
        and (made[0] == (numbers == 2)).all()
        and (made[1] == (numbers == 1)).all()
    )
    assert any("1 objects have no region in SegmentationObject" in line for line in document["info"]["findings"])
    Image.new("RGB", (W, H)).save(folder / "SegmentationObject/a.png")
    assert "holds colours (RGB), not a number for each pixel" in refusal(capsys, "voc", folder)


def test_labelme_rectangles_of_four_corners_and_labels_of_shapes_that_are_left_out(tmp_path: Path):
    corners = [[9, 8], [1, 8], [1, 2], [9, 2]]
    folder = labelme(tmp_path / "set", shape("box", corners, "rectangle"), shape("way", [[1, 1], [9, 9]], "linestrip"))
    document = converted("labelme", folder)
    assert document["annotations"][0]["bbox"] == [1, 2, 8, 6] and [c["name"] for c in document["categories"]] == ["box"]


def test_a_labelme_image_that_is_only_within_the_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder = labelme(tmp_path / "set", shape("a", [[1, 1], [9, 1], [9, 9]]), image="gone.png")
    assert "a.json: its image 'gone.png' is not beside it" in refusal(capsys, "labelme", folder)


def yolo_rows(folder: Path, rows: str, **settings: Any) -> Path:
    for below in ("images", "labels"):
        (folder / below).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (W, H)).save(folder / "images/a.png")
    (folder / "labels/a.txt").write_text(rows)
    (folder / "data.yaml").write_text(yaml.safe_dump({"names": ["p", "q"], **settings}))
    return folder


BOX, POINTS = "0 .5 .5 .5 .5", " .4 .25 2 .6 .5 1 0 0 0"


@pytest.mark.parametrize(
    ("rows", "settings", "finding"),
    [
        (f"{BOX}\n0 .1 .1 .5 .1 .5 .5\n", {}, "1 objects have no outline, others have"),
        (f"{BOX}\n{BOX}{POINTS}\n", {"kpt_shape": [3, 3]}, "1 lines have no keypoints, which kpt_shape announces"),
        (f"{BOX} .4 .25 3 .6 .5 1 0 0 0\n", {"kpt_shape": [3, 3]}, "1 lines have a visibility that is not 0, 1 or 2"),
        (f"{BOX} 1.4 .25 2 .6 .5 1 0 0 0\n", {"kpt_shape": [3, 3]}, "1 lines have values outside of 0..1"),
        ("0 -.1 .1 .5 .1 .5 1.05\n", {}, "1 lines have values outside of 0..1"),
    ],
)
def test_odd_yolo_lines_are_counted(tmp_path: Path, rows: str, settings: dict, finding: str):
    findings = converted("yolo", yolo_rows(tmp_path / "set", rows, **settings))["info"]["findings"]
    assert any(line.startswith(finding) for line in findings), findings


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (f"{BOX} .4 .25 .6 .5 0 0\n", "line 1: 11 numbers; a box with 3 keypoints of 3 numbers (kpt_shape) has 14"),
        (f"{BOX} 24 10 2 36 20 1 0 0 0\n", "these are not fractions of the image's size; are they pixels?"),
    ],
)
def test_yolo_keypoints_that_do_not_fit_kpt_shape_are_no_outlines(tmp_path, capsys, rows: str, message: str):
    assert message in refusal(capsys, "yolo", yolo_rows(tmp_path / "set", rows, kpt_shape=[3, 3]))
