"""COCO files as YOLO and Pascal VOC: read back they have the same classes and boxes, and what is lost is counted."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.formats import SETS, convert, converted, files_of, known_set, objects
from PIL import Image

from detector.data.coco_reader import read_coco_file


def put(path: Path, document: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def refused(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line with which it refuses; no folder is left."""
    capsys.readouterr()
    output = Path(str(arguments[1])).parent / "refused"
    assert convert(*arguments, "--output", output) == 2
    assert not [path for path in output.parent.iterdir() if "refused" in path.name]
    return capsys.readouterr().err


@pytest.fixture
def known(tmp_path: Path) -> tuple[Path, Path]:
    """A COCO file of two images of 331 x 77 in subfolders, and their folder; classes and boxes that are not simple."""
    images = tmp_path / "pictures"
    for name in ("one/images/a, b.png", "two/images/c.jpg"):
        (images / name).parent.mkdir(parents=True)
        Image.new("RGB", (331, 77)).save(images / name)
    boxes = [
        (9, [0.123, 1.457, 300.001, 70.333]),
        (2, [0, 0, 331, 77]),
        (9, [329.25, 75.125, 1.75, 1.875]),
        (2, [12, 3, 1, 1]),
    ]
    document = {
        "info": {}, "categories": [{"id": 9, "name": "yes"}, {"id": 2, "name": "<é & 7>"}, {"id": 5, "name": "12"}],
        "images": [{"id": i, "file_name": name, "width": 331, "height": 77}
                   for i, name in ((4, "one/images/a, b.png"), (3, "two/images/c.jpg"))],
        "annotations": [{"id": n, "image_id": 4, "category_id": c, "bbox": box} for n, (c, box) in enumerate(boxes)],
    }  # fmt: skip
    return put(tmp_path / "val.json", document), images


@pytest.mark.parametrize("form", ["yolo", "voc"])
@pytest.mark.parametrize("name", SETS)
def test_a_set_comes_back(tmp_path: Path, form: str, name: str):
    document, images = known_set(name, tmp_path / "known")
    source, folder = put(tmp_path / "set" / "train.json", document), tmp_path / form
    before = files_of(images)
    assert convert(f"to-{form}", source, "--output", folder, "--copy-images", images) == 0
    found = converted(form, folder, "--split", "train")
    if form == "yolo":
        by_id = sorted(document["categories"], key=lambda category: category["id"])
        assert [c["name"] for c in found["categories"]] == [c["name"] for c in by_id]
    assert objects(found) == objects(document) and sum(map(len, objects(found).values())) > 5
    assert len(found["images"]) == len(document["images"]) and files_of(images) == before


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_odd_names_and_fractions_come_back(known: tuple[Path, Path], tmp_path: Path, form: str):
    folder = tmp_path / form
    assert convert(f"to-{form}", known[0], "--output", folder, "--link-images", known[1]) == 0
    found = converted(form, folder)
    assert objects(found) == objects(json.loads(known[0].read_text()))
    assert {Path(image["file_name"]).name for image in found["images"]} == {"a, b.png", "c.jpg"}


def test_the_layout_of_yolo(known: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    train = put(tmp_path / "x.json", json.loads(known[0].read_text()) | {"annotations": []})
    folder = tmp_path / "yolo"
    assert convert("to-yolo", train, known[0], "--split", "train", "val", "--output", folder) == 0
    assert yaml.safe_load((folder / "data.yaml").read_text()) == {
        "train": "images/train", "val": "images/val", "names": {0: "<é & 7>", 1: "12", 2: "yes"}
    }  # fmt: skip
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    labels = {
        f"images/{split}/{name}" for split in ("train", "val") for name in ("one/labels/a, b.txt", "two/labels/c.txt")
    }
    assert files == labels | {"data.yaml"}  # the last folder named images is the one that labels replaces
    lines = (folder / "images/val/one/labels/a, b.txt").read_text().splitlines()
    assert lines[1] == "0 0.500000000 0.500000000 1.000000000 1.000000000" and lines[0].startswith("2 0.4535")
    assert "labels alone; the images of each split belong into images/SPLIT" in capsys.readouterr().out


def test_the_layout_of_voc(known: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    document = json.loads(known[0].read_text())
    document["images"][1]["file_name"] = "c.jpg"
    document["annotations"][3]["bbox"] = [330.7, 3, 0.2, 1]
    folder = tmp_path / "voc"
    assert convert("to-voc", put(known[0], document), "--output", folder, "--whole-pixels") == 0
    text = (folder / "Annotations/one/images/a, b.xml").read_text()
    assert "<filename>a, b.png</filename>" in text and "<width>331</width>" in text
    assert (
        text.count("<xmin>1</xmin>") == 2
        and text.count("<xmax>331</xmax>") == 3
        and "." not in text.split("</size>")[1]
    )
    assert (folder / "ImageSets/Main/val.txt").read_text() == "c\n"
    printed = capsys.readouterr().out
    assert (
        "1 images with a space in their name: not in ImageSets" in printed
        and "1 boxes are thinner than a pixel" in printed
    )
    assert (folder / "Annotations/c.xml").is_file()


def test_what_is_lost_is_counted(known: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    document = json.loads(known[0].read_text())
    document["annotations"][0] |= {"iscrowd": 1, "segmentation": {"size": [77, 331], "counts": "x"}}
    document["annotations"][1]["bbox"] = [-10, 0, 20, 10]
    document["annotations"][2]["bbox"] = [400, 0, 20, 10]
    document["annotations"][3] |= {"score": 0, "attributes": {"old": True}}
    document["images"][0]["coco_url"] = "x"
    path = put(known[0], document)
    for form, kept in (("yolo", 2), ("voc", 3)):
        folder = tmp_path / form
        assert convert(f"to-{form}", path, "--output", folder, "--copy-images", known[1]) == 0
        printed = capsys.readouterr().out
        for line in ("1 boxes were clipped", "1 boxes have no area inside",
                     "1 annotations have `segmentation`: left out",
                     "1 annotations have `attributes`", "1 images have `coco_url`",
                     f"val: 2 images, {kept} objects"):  # fmt: skip
            assert line in printed, line
        assert ("1 crowd regions: left out" in printed) == (form == "yolo") and "`score`" not in printed
        found = converted(form, folder)["annotations"]
        assert len(found) == kept and [0, 0, 10, 10] in [a["bbox"] for a in found]
        assert sum(a["iscrowd"] for a in found) == (form == "voc")  # a difficult object is a crowd region, both ways


def test_nothing_is_written_over_and_a_refusal_leaves_nothing(known, tmp_path, capsys):
    path, images = known
    document = json.loads(path.read_text())
    (tmp_path / "full").mkdir()
    assert convert("to-yolo", path, "--output", tmp_path / "full") == 2 and not list((tmp_path / "full").iterdir())
    twice = document | {"images": [document["images"][0], document["images"][1] | {"file_name": "one/images/a, b.jpg"}]}
    for form in ("to-yolo", "to-voc"):
        message = refused(capsys, form, put(tmp_path / "twice.json", twice))
        assert "'one/images/a, b.jpg' and 'one/images/a, b.png' would both be described by" in message
    other = put(
        tmp_path / "other.json", document | {"categories": [*document["categories"], {"id": 1, "name": "yess"}]}
    )
    assert "has no class 'yess'; nearest: yes" in refused(capsys, "to-voc", path, other)
    assert "a split needs a name of its own" in refused(capsys, "to-yolo", path, path)
    assert "a split needs a name of its own" in refused(capsys, "to-yolo", path, "--split", "../x")
    (images / "two/images/c.jpg").unlink()
    assert "c.jpg: no such image" in refused(capsys, "to-yolo", path, "--copy-images", images)
    Image.new("RGB", (77, 331)).save(images / "two/images/c.jpg")
    assert "is 77 x 331, the annotations say 331 x 77" in refused(capsys, "to-voc", path, "--link-images", images)
    assert read_coco_file(path).file_names == [
        image["file_name"] for image in document["images"]
    ]  # the input is as it was
    with pytest.raises(SystemExit, match="2"):
        convert("to-yolo", path, path, "--split", "a", "--output", tmp_path / "n")
