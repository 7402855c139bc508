"""`detector check-data` judges outlines: each fault at its annotation, whether or not the model learns masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.health import run
from PIL import Image

from detector.config.config import parse_config
from detector.data.settings import build_dataset
from detector.data.synthetic.drawn_set import draw_set
from detector.dataset_check.check import check_data
from detector.dataset_check.checked_split import read_split
from detector.dataset_check.examples import OUTLINE, POINT, SIDE, find_examples
from detector.dataset_check.findings import UNUSED_OUTLINE, Findings
from detector.dataset_check.outlines import check_outlines, count_crossings
from detector.errors import DataError

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
CASES = [  # outline, box, area, kinds
    ([SQUARE], [10, 10, 20, 20], 400, []),
    ([[10, 10, 30, 30]], [10, 10, 20, 20], 400, ["outline without area"]),
    ([SQUARE, [1, 2]], [10, 10, 20, 20], 400, ["outline without area"]),
    ({"size": [40, 60], "counts": [2400]}, [10, 10, 20, 20], 400, ["outline without area"]),
    ([[10, 10, 20, 20, 30, 30]], [10, 10, 20, 20], 400, ["outline without area"]),
    ([[70, 10, 90, 10, 90, 30]], [10, 10, 20, 20], 400, ["outline without area"]),
    ([[10, 10, 70, 10, 70, 30, 10, 30]], [10, 10, 50, 20], 1000, ["outline outside image"]),
    ([[10, 10, 30, 30, 30, 10, 10, 30]], [10, 10, 20, 20], 200, ["self-crossing outline"]),
    ([SQUARE], [30, 10, 20, 20], 400, ["outline unlike box"]),
    ([SQUARE], [10, 10, 20, 20], 90, ["outline unlike area"]),
    ({"size": [60, 40], "counts": [2400]}, [10, 10, 20, 20], 400, [UNUSED_OUTLINE]),
    ([[1, 2, 3]], [10, 10, 20, 20], 400, [UNUSED_OUTLINE]),
    (None, [10, 10, 20, 20], 400, [UNUSED_OUTLINE]),
    ([], [10, 10, 20, 20], 400, []),
]  # fmt: skip


def file_of(folder: Path, *rows: tuple[Any, list[float], float, list[str]]) -> Path:
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": box, "area": area, "segmentation": outline}
        for i, (outline, box, area, _) in enumerate(rows, start=5)
    ]
    image = {"id": 1, "file_name": "a.png", "height": 40, "width": 60}
    document = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    (folder / "a.json").write_text(json.dumps(document))
    return folder / "a.json"


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_an_outline_has_the_faults_that_it_has(tmp_path: Path, case: tuple):
    findings = Findings()
    check_outlines(read_split("train", file_of(tmp_path, case), None, None, findings), findings)
    assert [f.kind for f in findings.all()] == case[3]
    assert all(f.severity == "warning" and f.places[0].annotation_id == 5 for f in findings.all())
    strict = Findings()
    read_split("train", file_of(tmp_path, case), None, None, strict, ["masks"])
    stops = case[3] == [UNUSED_OUTLINE] or case[0] == []
    assert [f.severity for f in strict.all()] == ["error"] * stops


@pytest.mark.parametrize("case", CASES[-3:])
def test_check_and_training_judge_outlines_alike_where_objects_are_pasted(tmp_path: Path, case: tuple):
    file = file_of(tmp_path, case)
    split = {"images": ".", "annotations": file.name}
    data = {"root": str(tmp_path), "train": split, "val": split, "workers": 0, "copy_paste": {"p": 1.0}}
    config = parse_config({"data": data}, trust=False)
    findings = check_data(config, "c.yaml", look=False).findings.all()
    [found] = [f for f in findings if f.split == "train" and "outline" in f.kind]
    assert found.severity == "error"
    with pytest.raises(DataError) as stopped:
        build_dataset(config.needed_data(), "train")
    assert all(words in str(stopped.value) for words in found.places[0].note.split("; "))


def test_crossings_are_counted():
    star = [[np.cos(4 * np.pi * k / 5), np.sin(4 * np.pi * k / 5)] for k in range(5)]
    assert count_crossings(np.array(star)) == 5
    assert count_crossings(np.reshape(SQUARE, (-1, 2))) == count_crossings(np.array(star)[:3]) == 0


def test_the_command_names_the_annotation_and_a_drawn_set_is_sound(tmp_path: Path):
    status, out, _ = run(str(file_of(tmp_path, *CASES)), "data.workers=0")
    assert status == 0 and "self-crossing outline" in out and "annotation 12: 1 crossing\n" in out
    draw_set(tmp_path / "set", train=30, val=1, size=(192, 160), seed=0)
    assert "outline" not in run(str(tmp_path / "set/annotations/train.json"), "data.workers=0")[1]


def test_labelled_keypoints_outside_the_image_are_named(tmp_path: Path):
    file = file_of(tmp_path, *[CASES[0]] * 4)
    content = json.loads(file.read_text())
    content["categories"][0]["keypoints"] = ["nose", "tail"]
    keypoints = ([60, 40, 2, 0, 0, 1], [61, 5, 2, 3, -4, 1], [-9, -9, 0, 1, 1, 2], [1, 1, 2, 1, 41, 1])
    for entry, points in zip(content["annotations"], keypoints):
        entry["keypoints"] = points
    file.write_text(json.dumps(content))
    out = run(str(file), "data.workers=0")[1]
    assert "annotation 6: 'nose' at 61, 5 and 1 more in 60 x 40\n" in out
    assert "annotation 8: 'tail' at 1, 41 in 60 x 40\n" in out and out.count(" in 60 x 40") == 2


def test_the_picture_shows_faulty_and_usual_objects_with_outlines_and_keypoints(tmp_path: Path):
    folder = tmp_path / "set"
    draw_set(folder, train=6, val=1, size=(192, 160), seed=0)
    path = folder / "annotations/train.json"
    content = json.loads(path.read_text())
    x, y, w, h = content["annotations"][0]["bbox"]
    content["annotations"][0]["segmentation"] = [[x, y, x + w, y + h, x + w, y, x, y + h]]
    path.write_text(json.dumps(content))
    split = read_split("train", path, folder / "images/train", None, findings := Findings())
    check_outlines(split, findings)
    found = find_examples(split, findings, 10**6, None)
    names = [example.caption for example in found]
    assert names[0] == "self-crossing outline" and sorted(names[1:]) == sorted(split.class_names)
    for caption, picture in found:
        pixels = np.asarray(picture)
        assert ((pixels == OUTLINE).all(axis=-1).sum() > 100) and (
            (pixels == POINT).all(axis=-1).any() == (caption == "triangle")
        )
    ring = np.asarray(found[names.index("ring")].picture)
    assert (ring[SIDE // 2] == OUTLINE).all(axis=-1).sum() >= 4  # both edges, of the hole as well
    picture = tmp_path / "a.png"
    assert run(str(path), "--images", str(folder / "images/train"), "--picture", str(picture), "data.workers=0")[0] == 0
    with Image.open(picture) as whole:
        assert whole.size == (1600, 900 + SIDE + 80)
    path.write_text(
        json.dumps(
            {
                **content,
                "annotations": [
                    {k: a[k] for k in ("id", "image_id", "category_id", "bbox")} for a in content["annotations"]
                ],
            }
        )
    )
    bare = read_split("train", path, folder / "images/train", None, Findings())
    assert find_examples(bare, Findings(), 10**6, None) == []
