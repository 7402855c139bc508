"""Pascal VOC: the boxes come back as they were, every convention is said, and what is wrong is named with its element."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from helpers.formats import SETS, check_dataset, convert, converted, files_of, known_set, objects, refusal
from PIL import Image

from detector.data.image import ORIENTATION


def write_voc(document: dict[str, Any], images: Path, folder: Path) -> Path:
    """The standard's layout and corners: 1-based, both inclusive."""
    for below in ("Annotations", "ImageSets/Main"):
        (folder / below).mkdir(parents=True)
    classes = {category["id"]: category["name"] for category in document["categories"]}
    for image in document["images"]:
        own = [a for a in document["annotations"] if a["image_id"] == image["id"]]
        parts = [element(classes[a["category_id"]], *a["bbox"], difficult=a["iscrowd"]) for a in own]
        text = annotation(*parts, name=image["file_name"], width=image["width"], height=image["height"])
        (folder / "Annotations" / image["file_name"]).with_suffix(".xml").write_text(text)
    shutil.copytree(images, folder / "JPEGImages")
    return folder


def element(name: str, x: float, y: float, w: float, h: float, difficult: object = 0) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h))
    box = "".join(f"<{tag}>{value:g}</{tag}>" for tag, value in corners)
    return (
        f"<object><name>{escape(name)}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox>"
        "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
    )


def annotation(*parts: str, name: str = "a.png", width: object = 20, height: object = 10) -> str:
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>\n<filename>{escape(name)}</filename>{size}{''.join(parts)}\n</annotation>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two images of 20 x 10 with a dog each; a cat that is difficult is in the second."""
    folder = tmp_path / "voc"
    for below in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / below).mkdir(parents=True)
    for name, more in (("a", []), ("b", [element("cat", 2, 3, 4, 5, difficult=1)])):
        Image.new("RGB", (20, 10)).save(folder / "JPEGImages" / f"{name}.png")
        text = annotation(element("dog", 0, 0, 20, 10), *more, name=f"{name}.png")
        (folder / "Annotations" / f"{name}.xml").write_text(text)
        (folder / "ImageSets/Main" / f"only_{name}.txt").write_text(f"{name}\n")
    return folder


def put(folder: Path, text: str) -> None:
    (folder / "Annotations" / "a.xml").write_text(text)


@pytest.mark.parametrize("name", SETS)
def test_the_boxes_come_back(tmp_path: Path, name: str):
    known, images = known_set(name, tmp_path / "known")
    folder = write_voc(known, images, tmp_path / "voc")
    before = files_of(folder)
    document = converted("voc", folder)
    expected, found = objects(known), objects(document)
    assert found == expected and sum(map(len, found.values())) > 5
    assert files_of(folder) == before
    check_dataset(known, document, folder)


def test_conventions_are_in_the_file_and_on_the_screen(voc: Path, capsys: pytest.CaptureFixture):
    document = converted("voc", voc, "--split", "only_b")
    printed = capsys.readouterr().out
    assert all(f"assumed: {line}" in printed for line in document["info"]["conventions"])
    text = " ".join(document["info"]["conventions"])
    for word in ("1-based", "iscrowd", "sorted", "EXIF", "ImageSets/Main/only_b.txt"):
        assert word in text
    assert "1 images, 2 objects, 2 classes" in printed


@pytest.mark.parametrize(("option", "crowds"), [("crowd", [0, 0, 1]), ("keep", [0, 0, 0]), ("drop", [0, 0])])
def test_difficult_objects_become_what_is_asked_for(voc: Path, option: str, crowds: list[int]):
    assert [a["iscrowd"] for a in converted("voc", voc, "--difficult", option)["annotations"]] == crowds


def test_corners_are_one_or_zero_based(voc: Path):
    standard, other = (converted("voc", voc, "--difficult", "keep", *option) for option in ([], ["--zero-based"]))
    assert [a["bbox"] for a in standard["annotations"]] == [[0, 0, 20, 10], [0, 0, 20, 10], [2, 3, 4, 5]]
    assert other["annotations"][2]["bbox"] == [3, 4, 3, 4] and "0-based" in other["info"]["conventions"][0]


def test_a_pixel_zero_says_that_the_data_may_be_zero_based(voc: Path, capsys: pytest.CaptureFixture):
    put(voc, annotation(element("dog", -1, 0, 5, 5)))
    document = converted("voc", voc)
    assert "1 boxes begin at pixel 0" in " ".join(document["info"]["findings"])
    assert "a.xml: object 1" in capsys.readouterr().out
    assert converted("voc", voc, "--zero-based")["info"]["findings"] == []


def test_classes_are_those_of_all_splits_or_as_given(voc: Path, capsys: pytest.CaptureFixture):
    assert [c["name"] for c in converted("voc", voc, "--split", "only_a")["categories"]] == ["cat", "dog"]
    given = converted("voc", voc, "--classes", "dog", "owl", "cat")
    assert [(c["id"], c["name"]) for c in given["categories"]] == [(1, "dog"), (2, "owl"), (3, "cat")]
    assert "'cat' is none of --classes; nearest: cats" in refusal(capsys, "voc", voc, "--classes", "dog", "cats")
    assert "the class 'dog' is named twice" in refusal(capsys, "voc", voc, "--classes", "dog", "dog")


def test_the_size_is_that_of_the_upright_image(voc: Path, capsys: pytest.CaptureFixture):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.new("RGB", (20, 10)).save(voc / "JPEGImages" / "a.png", exif=exif)
    message = refusal(capsys, "voc", voc)
    assert "a.xml: <size> says 20 x 10" in message and "is 10 x 20" in message
    put(voc, annotation(element("dog", 0, 0, 10, 20), width=10, height=20))
    assert (converted("voc", voc)["images"][0]["width"], converted("voc", voc)["images"][0]["height"]) == (10, 20)
    for unsaid in (annotation(width=0, height=0), "<annotation/>"):
        put(voc, unsaid)
        assert converted("voc", voc)["images"][0]["width"] == 10


def test_an_image_is_found_by_the_xml_files_name_or_by_the_one_it_says(voc: Path, capsys: pytest.CaptureFixture):
    put(voc, annotation(element("dog", 0, 0, 1, 1), name="stale.jpg"))
    assert converted("voc", voc)["images"][0]["file_name"] == "JPEGImages/a.png"
    (voc / "JPEGImages" / "a.png").rename(voc / "JPEGImages" / "stale.jpg")
    assert converted("voc", voc)["images"][0]["file_name"] == "JPEGImages/stale.jpg"
    put(voc, annotation(name="b.png"))
    assert "two annotations are of the image" in refusal(capsys, "voc", voc)
    put(voc, annotation(name="gone.png"))
    document = converted("voc", voc)
    assert [image["file_name"] for image in document["images"]] == ["JPEGImages/b.png"]
    assert document["info"]["findings"] == [
        "1 XML files have no image: left out (the first: Annotations/a.xml)",
        "1 images have no XML file of their own: left out (the first: JPEGImages/stale.jpg)",
    ]
    for name in ("a.png", "a.jpg"):
        Image.new("RGB", (20, 10)).save(voc / "JPEGImages" / name)
    said = refusal(capsys, "voc", voc)
    assert "a.xml: its image is not clear: a.jpg, a.png in " in said and "'gone.png'; correct the filename" in said


def test_images_without_an_xml_file_are_counted_one_that_shares_a_name_too(voc: Path):
    for name in ("c.png", "a.jpg"):
        Image.new("RGB", (20, 10)).save(voc / "JPEGImages" / name)
    found = converted("voc", voc)["info"]["findings"]
    assert found == ["2 images have no XML file of their own: left out (the first: JPEGImages/a.jpg)"]


def test_folders_of_any_name(voc: Path):
    before = converted("voc", voc)
    (voc / "Annotations").rename(voc / "annots")
    (voc / "JPEGImages").rename(voc / "photos")
    after = converted("voc", voc)
    assert after["info"]["findings"] == before["info"]["findings"] == []
    assert [image["file_name"] for image in after["images"]] == ["photos/a.png", "photos/b.png"]
    assert after["annotations"] == before["annotations"]


@pytest.mark.parametrize(
    ("written", "crowd"), [("0", 0), ("False", 0), ("no", 0), ("1", 1), ("TRUE", 1), ("maybe", None)]
)
def test_difficult_in_words(voc: Path, written: str, crowd: int | None, capsys: pytest.CaptureFixture):
    put(voc, annotation(element("dog", 0, 0, 20, 10, difficult=written)))
    if crowd is None:
        assert "object 1: <difficult> is 'maybe', expected 0 or 1" in refusal(capsys, "voc", voc)
    else:
        assert converted("voc", voc)["annotations"][0]["iscrowd"] == crowd


def test_an_output_that_exists_is_left_alone(voc: Path, capsys: pytest.CaptureFixture):
    output = voc.parent / "there.json"
    output.write_text("mine")
    assert convert("voc", voc, "--output", output) == 2 and output.read_text() == "mine"
    assert "there.json: exists already" in capsys.readouterr().err


BOMB = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha"}">' for i in range(9))
DOG = element("dog", 0, 0, 5, 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no element found"),
        ("<annotation><object>", "line 1, column"),
        (f"<!DOCTYPE a [{BOMB}]><annotation>&e8;</annotation>", "DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', "DOCTYPE"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "not the XML"),
        ("<html/>", "its element is 'html'"),
        (" " * 2**22 + "<annotation/>", "larger than"),
        (annotation(name="../../a.png").replace("a.png", "c.png"), "leads out of the image folder"),
        (annotation(DOG.replace("<name>dog</name>", "<name/>", 1)), "object 1: <name> is missing or empty"),
        (annotation(DOG.replace("dog", "d&#10;og")), "is no name of a class"),
        (annotation(DOG, DOG.replace("<xmin>1<", "<xmin>one<", 1)), "object 2, bndbox: <xmin> is 'one'"),
        (annotation(DOG.replace("<ymin>1<", "<ymin>nan<")), "<ymin> is 'nan'"),
        (annotation(DOG.replace("<xmin>1</xmin>", "", 1)), "<xmin> is missing"),
        (annotation(DOG.replace("<bndbox>", "<box>", 1).replace("</bndbox>", "</box>", 1)), "has no <bndbox>"),
        (annotation(element("dog", 5, 5, -3, 2)), "upside down"),
        (annotation(width="wide"), "size: <width> is 'wide'"),
    ],
)
def test_what_is_wrong_with_an_xml_file_is_one_line(voc: Path, capsys: pytest.CaptureFixture, text: str, message: str):
    (voc / "JPEGImages" / "a.png").rename(voc / "JPEGImages" / ("c.png" if "c.png" in text else "a.png"))
    put(voc, text)
    found = refusal(capsys, "voc", voc)
    assert message in found and ("a.xml" in found or str(voc) in found)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "JPEGImages" / "a.png").write_bytes(b""), "a.png: not a readable image"),
        (lambda f: (f / "ImageSets/Main/mine.txt").write_text("a 1\n"), "line 1: expected the name of an image alone"),
        (lambda f: (f / "ImageSets/Main/mine.txt").write_text("a\n\nz\n"), "line 3: 'z' has no XML file"),
        (lambda f: None, "mine.txt: no such list of images"),
        (lambda f: shutil.rmtree(f / "Annotations"), "no XML files in it"),
        (lambda f: shutil.rmtree(f), "no such folder"),
    ],
)
def test_what_is_wrong_with_the_folder_is_one_line(
    voc: Path, capsys: pytest.CaptureFixture, break_it: Callable[[Path], object], message: str
):
    (voc / "ImageSets/Main/mine.txt").write_text("a\n")
    if message.startswith("mine.txt"):
        (voc / "ImageSets/Main/mine.txt").unlink()
    break_it(voc)
    assert message in refusal(capsys, "voc", voc, "--split", "mine")
