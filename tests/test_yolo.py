"""YOLO folders: the boxes come back to rounding, in every layout, and what is wrong is named with its line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.formats import SETS, check_dataset, converted, files_of, known_set, objects, refusal
from PIL import Image

from detector.data.image import ORIENTATION


def write_yolo(document: dict[str, Any], images: Path, folder: Path) -> Path:
    """images/train, labels/train and data.yaml; six digits, as is the custom."""
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "images" / "train").mkdir(parents=True)
    index = {category["id"]: i for i, category in enumerate(document["categories"])}
    for image in document["images"]:
        shutil.copy(images / image["file_name"], folder / "images" / "train")
        rows = []
        for a in (a for a in document["annotations"] if a["image_id"] == image["id"]):
            (x, y, w, h), width, height = a["bbox"], image["width"], image["height"]
            numbers = (x + w / 2) / width, (y + h / 2) / height, w / width, h / height
            rows.append(f"{index[a['category_id']]} " + " ".join(f"{number:.6f}" for number in numbers))
        (folder / "labels" / "train" / image["file_name"]).with_suffix(".txt").write_text("\n".join(rows))
    names = [category["name"] for category in document["categories"]]
    settings = {"train": "images/train", "val": "images/train", "nc": len(names), "names": names}
    (folder / "data.yaml").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """Two images of 20 x 10: a dog in the middle of one, nothing said of the other."""
    folder = tmp_path / "yolo"
    for below in ("images/train", "labels/train", "images/val"):
        (folder / below).mkdir(parents=True)
    for name in ("train/a.png", "val/b.png"):
        Image.new("RGB", (20, 10)).save(folder / "images" / name)
    put(folder, "1 0.5 0.5 0.5 0.2")
    configure(folder, names=["cat", "dog"], train="images/train", val="../images/val")
    return folder


def put(folder: Path, text: str) -> None:
    (folder / "labels" / "train" / "a.txt").write_text(text)


def configure(folder: Path, **settings: Any) -> None:
    (folder / "data.yaml").write_text(yaml.safe_dump(settings))


def names_of(document: dict[str, Any]) -> list[str]:
    return [image["file_name"] for image in document["images"]]


@pytest.mark.parametrize("name", SETS)
def test_the_boxes_come_back(tmp_path: Path, name: str):
    known, images = known_set(name, tmp_path / "known")
    folder = write_yolo(known, images, tmp_path / "yolo")
    before = files_of(folder)
    document = converted("yolo", folder, "--split", "train")
    expected, found = objects(known), objects(document)
    assert found.keys() == expected.keys() and sum(map(len, found.values())) > 5
    for image in expected:
        for (label, *box), (other, *rounded) in zip(expected[image], found[image], strict=True):
            assert label == other and rounded == pytest.approx(box, abs=2e-3)
    assert files_of(folder) == before
    check_dataset(known, document, folder)


def test_conventions_are_in_the_file_and_on_the_screen(yolo: Path, capsys: pytest.CaptureFixture):
    document = converted("yolo", yolo, "--split", "train")
    assert document["annotations"][0]["bbox"] == [5, 4, 10, 2] and document["annotations"][0]["area"] == 20
    printed = capsys.readouterr().out
    assert all(f"assumed: {line}" in printed for line in document["info"]["conventions"])
    text = " ".join(document["info"]["conventions"])
    for word in ("class index from 0", "EXIF", "labels/NAME.txt", "has no objects", "data.yaml", "the split train"):
        assert word in text


def test_fractions_are_of_the_upright_image(yolo: Path):
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    Image.new("RGB", (20, 10)).save(yolo / "images/train/a.png", exif=exif)
    document = converted("yolo", yolo, "--split", "train")
    assert document["annotations"][0]["bbox"] == [2.5, 8, 5, 4]
    assert (document["images"][0]["width"], document["images"][0]["height"]) == (10, 20)


def test_images_without_labels_have_no_objects_and_are_counted(yolo: Path):
    (yolo / "labels/train/orphan.txt").write_text("")
    document = converted("yolo", yolo)
    assert names_of(document) == ["images/train/a.png", "images/val/b.png"] and len(document["annotations"]) == 1
    assert document["info"]["findings"] == [
        "1 label files have no image: left out (the first: labels/train/orphan.txt)",
        "1 images have no label file: taken as images without objects (the first: images/val/b.png)",
    ]
    put(yolo, "\n")
    assert converted("yolo", yolo, "--split", "train")["info"]["findings"] == []


def test_splits_are_folders_or_lists(yolo: Path, capsys: pytest.CaptureFixture):
    assert names_of(converted("yolo", yolo, "--split", "val")) == ["images/val/b.png"]
    (yolo / "list.txt").write_text("./images/val/b.png\nimages/train/a.png\n\n")
    configure(yolo, names=["cat", "dog"], test="list.txt", both=["images/train", "list.txt"])
    assert names_of(converted("yolo", yolo, "--split", "test")) == names_of(converted("yolo", yolo, "--split", "both"))
    assert names_of(converted("yolo", yolo, "--split", "train")) == ["images/train/a.png"]  # by the folder's name
    assert "there is no split 'other'" in refusal(capsys, "yolo", yolo, "--split", "other")


def test_labels_lie_beside_images_too(yolo: Path):
    other = yolo.parent / "other"
    (other / "train").mkdir(parents=True)
    shutil.move(yolo / "images/train", other / "train/images")
    shutil.move(yolo / "labels/train", other / "train/labels")
    shutil.copy(yolo / "data.yaml", other / "set.yaml")
    (other / "set.yaml").write_text("train: ../train/images\nnames: [cat, dog]\n")
    assert len(converted("yolo", other, "--split", "train")["annotations"]) == 1
    flat = yolo.parent / "flat"
    flat.mkdir()
    shutil.copy(other / "train/images/a.png", flat)
    (flat / "a.txt").write_text("0 .5 .5 1 1")
    (flat / "classes.txt").write_text("cat\ndog\n")
    assert converted("yolo", flat)["annotations"][0]["bbox"] == [0, 0, 20, 10]


@pytest.mark.parametrize("names", [["cat", "dog"], {0: "cat", 1: "dog"}, ["cat", 7]])
def test_names_are_a_list_or_a_dictionary_or_given(yolo: Path, names: Any, capsys: pytest.CaptureFixture):
    configure(yolo, names=names, train="images/train")
    document = converted("yolo", yolo)
    assert [(c["id"], c["name"]) for c in document["categories"]] == [(1, "cat"), (2, str(names[1]))]
    assert document["annotations"][0]["category_id"] == 2
    assert [c["name"] for c in converted("yolo", yolo, "--classes", "a", "b", "c")["categories"]] == ["a", "b", "c"]
    (yolo / "data.yaml").unlink()
    assert "give them by --classes" in refusal(capsys, "yolo", yolo)


def test_outlines_have_boxes_and_what_stands_out_is_counted(yolo: Path):
    put(yolo, "0 0.1 0.2 0.5 0.2 0.5 1 0.1 0.9\n1 0.95 0.5 0.3 0.2\n1 1.2 0.5 0.1 0.1\n0 .5 .5 0 .1")
    document = converted("yolo", yolo, "--split", "train")
    assert document["annotations"][0]["bbox"] == [2, 2, 8, 8]
    assert document["annotations"][1]["bbox"] == [16, 4, 6, 2]  # not clipped: CocoDataset does that, and counts it
    findings = " ".join(document["info"]["findings"])
    for part in ("1 lines have values outside of 0..1", "a.txt, line 3",
                 "2 boxes reach out of their image", "1 boxes have no area"):  # fmt: skip
        assert part in findings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat 0.5 0.5 1 1", "line 1: could not convert string to float: 'cat'"),
        ("\n2 0.5 0.5 1 1", "line 2: the class index 2 is none of 0..1"),
        ("-1 0.5 0.5 1 1", "the class index -1"),
        ("nan 0.5 0.5 1 1", "the class index nan"),
        ("0 320 240 64 64", "these are not fractions of the image's size; are they pixels?"),
        ("0 nan 0.5 0.5 0.5", "not fractions of the image's size"),
        ("0 0.5 0.5 -0.1 0.5", "must not be negative"),
        ("0 0.5 0.5 0.1", "4 numbers; a box has 5"),
        ("\ud800".encode("utf-16", "surrogatepass"), "cannot be read as text"),
        (b" " * (2**22 + 1), "larger than"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_with_its_number(
    yolo: Path, capsys: pytest.CaptureFixture, text: str | bytes, message: str
):
    (yolo / "labels/train/a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    found = refusal(capsys, "yolo", yolo)
    assert message in found and "a.txt" in found


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"names": ["cat", True]}, "names: expected a list of texts, found True; quote it"),
        ({"names": "cat"}, "names: expected a list of texts, found 'cat'"),
        ({"names": ["cat", "cat"]}, "the class 'cat' is named twice"),
        ({"names": ["a\nb"]}, "is no name of a class"),
        ({"names": []}, "names no classes"),
        ({"names": {1: "cat", 2: "dog"}}, "the keys must be 0, 1, 2"),
        ({"names": ["cat", "dog"], "nc": 3}, "nc: 3, but there are 2 names"),
        ({"names": ["cat", "dog"], "kpt_shape": 17}, "kpt_shape: 17, expected two numbers"),
        ({"names": ["cat", "dog"], "mine": "../../elsewhere"}, "leads out of the image folder"),
        ({"names": ["cat", "dog"], "mine": "gone"}, "no such folder in"),
        ({"names": ["cat", "dog"], "mine": 3}, "there is no split 'mine'"),
        ({"names": ["cat", "dog"], "mine": "bad.txt"}, "leads out of the image folder"),
        ({"names": ["cat", "dog"], "mine": "empty.txt"}, "no images found"),
        ({"names": ["cat", "dog"], "mine": "gone.txt"}, "no such file"),
    ],
)
def test_what_is_wrong_with_the_settings_is_one_line(
    yolo: Path, capsys: pytest.CaptureFixture, settings: dict[str, Any], message: str
):
    (yolo / "bad.txt").write_text("../../elsewhere.png")
    (yolo / "empty.txt").write_text("\n")
    configure(yolo, **settings)
    assert message in refusal(capsys, "yolo", yolo, *(["--split", "mine"] if "mine" in settings else []))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "images/train/a.png").write_bytes(b"x"), "a.png: not a readable image"),
        (lambda f: (f / "data.yaml").write_text("names: !!python/object/apply:os.getcwd []"), "not valid YAML"),
        (
            lambda f: (f / "data.yaml").rename(f / "x.yaml") and shutil.copy(f / "x.yaml", f / "y.yaml"),
            "rename one to data.yaml",
        ),
        (lambda f: (f / "images/train/z.png").symlink_to("/etc/passwd"), "leads out of the image folder"),
        (lambda f: shutil.rmtree(f / "images"), "no images found"),
        (lambda f: shutil.rmtree(f), "no such folder"),
    ],
)
def test_what_is_wrong_with_the_folder_is_one_line(
    yolo: Path, capsys: pytest.CaptureFixture, break_it: Callable[[Path], object], message: str
):
    break_it(yolo)
    assert message in refusal(capsys, "yolo", yolo)


POSES = [  # box, then two keypoints of x, y, visibility
    "0 0.5 0.5 0.4 0.4 0.4 0.6 0.9 0.6 0.4 0.2", "1 0.3 0.3 0.2 0.2 0.35 0.3 1 0 0 0", "0 0.7 0.5 0.2 0.6 0.7 0.3 1 0.65 0.6 1",
    "0 0.5 0.2 0.2 0.2 0.5 0.2 1 0.5 0.25 1", "1 0.6 0.6 0.4 0.4 0.5 0.5 1 0.7 0.75 0",
]  # fmt: skip


def test_boxes_with_keypoints_are_no_outlines(yolo: Path, capsys: pytest.CaptureFixture):
    put(yolo, "\n".join(POSES))
    message = refusal(capsys, "yolo", yolo)
    assert "a.txt, line 1: these look like keypoints, not outlines: all 5 lines have 10 values" in message
    configure(yolo, names=["cat", "dog"], kpt_shape=[2, 3])
    document = converted("yolo", yolo)
    assert document["annotations"][0]["bbox"] == pytest.approx([6, 3, 8, 4])
    assert (
        document["annotations"][0]["keypoints"] == [8, 6, 2, 12, 4, 2]
        and document["annotations"][1]["num_keypoints"] == 1
    )
    assert document["categories"][0]["keypoints"] == ["point 0", "point 1"]
    configure(yolo, names=["cat", "dog"], kpt_shape=[2, 3], flip_idx=[1, 0])
    assert converted("yolo", yolo)["categories"][1]["keypoints"] == ["left point 0", "right point 0"]
    put(yolo, "\n".join([*POSES[:4], "1 0.1 0.1 0.9 0.1 0.9 0.8 0.5 0.9 0.1 0.9"]))  # an outline among them
    configure(yolo, names=["cat", "dog"])
    assert len(converted("yolo", yolo)["annotations"]) == 5


def test_two_images_of_a_label_file_are_counted(yolo: Path):
    Image.new("RGB", (20, 10)).save(yolo / "images/train/a.jpg")
    document = converted("yolo", yolo)
    assert len(document["annotations"]) == 2
    shared = "1 images share their label file with another image: both have its objects (the first: images/train/a.png)"
    assert shared in document["info"]["findings"]
