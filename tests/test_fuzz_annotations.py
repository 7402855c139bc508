"""Mangled annotations, file names that want out, and results that are none: a data set or one line, whatever they say."""

import copy
import functools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.fuzz import damaged, fuzz, json_values, outcome, tries, watchdog  # noqa: F401
from helpers.training import draw_split, script
from hypothesis import strategies as st
from PIL import Image
from test_voc import annotation, element

from detector.data.coco import CocoDataset
from detector.data.convert.voc import convert_voc
from detector.data.convert.writer import document_summary
from detector.data.convert.yolo import convert_yolo
from detector.evaluation.coco import evaluate_results
from detector.evaluation.results import read_json

KEYS = {
    "images": ["id", "file_name", "width", "height"],
    "annotations": ["id", "image_id", "category_id", "bbox", "iscrowd", "area", "segmentation"],
    "categories": ["id", "name"],
}
places = st.sampled_from([(section, key) for section, keys in KEYS.items() for key in keys])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw_split(tmp_path / "data", "train", 3)
    return tmp_path / "data"


def read(folder: Path, annotations: Path, *fields: str) -> None:
    """All that a training asks of a data set before and while it runs."""
    dataset = outcome(lambda: CocoDataset(folder, annotations, fields=fields))
    if dataset is not None:
        f"{dataset.report}{dataset.class_table()}{dataset.full_names()}".encode()
        for i in range(len(dataset)):
            outcome(functools.partial(dataset.__getitem__, i))


@tries(4000)
def test_a_value_of_any_kind_at_any_key(data: Path, tries: int):
    document = json.loads((data / "train.json").read_text())
    path = data / "mangled.json"

    def mangle(changes: list[tuple[tuple[str, str], int, Any]]) -> None:
        mangled = copy.deepcopy(document)
        for (section, key), entry, value in changes:
            mangled[section][entry % len(mangled[section])][key] = value
        path.write_text(json.dumps(mangled))
        read(data / "images", path)
        found = [{"image_id": 10, "category_id": 3, "bbox": [1, 1, 5, 5], "score": 0.5}]
        outcome(lambda: evaluate_results(path, found))

    numbers = st.lists(st.floats() | st.integers(-10, 200), min_size=4, max_size=4)
    changes = st.lists(st.tuples(places, st.integers(0, 9), json_values | numbers), min_size=1, max_size=3)
    fuzz(tries, mangle, changes=changes)


@tries(2000)
def test_outlines_and_keypoints_of_any_shape(data: Path, tries: int):
    document, path = json.loads((data / "train.json").read_text()), data / "mangled.json"
    document["categories"][0]["keypoints"] = ["left", "right"]
    image = document["images"][0]
    for a in document["annotations"]:
        x, y, w, h = a["bbox"]
        a |= {"segmentation": [[x, y, x + w, y, x + w, y + h]]}

    def mangle(changes: list[tuple[str, int, Any]]) -> None:
        mangled = copy.deepcopy(document)
        for key, entry, value in changes:
            mangled["annotations"][entry % len(mangled["annotations"])][key] = value
        path.write_text(json.dumps(mangled))
        read(data / "images", path, "masks", "outlines")
        read(data / "images", path, "keypoints")

    numbers = st.integers(-5, 200) | st.floats() | st.sampled_from([1e8, 10**400])
    parts = st.lists(st.lists(numbers, max_size=9), max_size=3)
    sides = st.sampled_from([image["height"], image["width"], 0, -1, 2**40, 1.5])
    text = st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=12)
    runs = st.fixed_dictionaries(
        {"size": st.lists(sides, min_size=1, max_size=3), "counts": text | st.lists(numbers, max_size=5)}
    )
    values = json_values | parts | runs | st.lists(numbers, min_size=6, max_size=6)
    keys = st.sampled_from(["segmentation", "segmentation", "keypoints", "iscrowd"])
    fuzz(tries, mangle, changes=st.lists(st.tuples(keys, st.integers(0, 9), values), min_size=1, max_size=3))


@tries(3000)
def test_a_file_of_any_shape(data: Path, tries: int):
    content, path = (data / "train.json").read_bytes(), data / "mangled.json"

    def write(content: bytes) -> None:
        path.write_bytes(content)
        read(data / "images", path)

    shapes = st.dictionaries(st.sampled_from(list(KEYS)), json_values) | json_values
    fuzz(tries, write, content=damaged(content) | shapes.map(lambda value: json.dumps(value).encode()))
    for bomb in (b"[" * 10**6, b'{"a":' * 10**6, b"9" * 10**6, b'{"images": [' + b"{}," * 10**5 + b"{}]}"):
        write(bomb)


PIECES = r".. . a.png in out C: C:\ \\host\share ~ con %2e%2e ａ".split() + ["", "\0", "\n", "a.png "]


@tries(4000)
def test_no_file_name_leads_out_of_the_folder(tmp_path: Path, tries: int):
    """The image outside, to which every step up, absolute path and link leads, is white; those inside are black."""
    folder = tmp_path / "x" / "images"
    (folder / "in").mkdir(parents=True)
    for place in (folder, folder / "in"):
        Image.new("RGB", (4, 4)).save(place / "a.png")
    for place in (tmp_path, tmp_path / "x"):
        Image.new("RGB", (4, 4), "white").save(place / "a.png")
    (folder / "out").symlink_to(tmp_path)
    (folder / "in" / "out").symlink_to("../../a.png")
    path, seen = tmp_path / "a.json", {"inside": 0, "refused": 0}

    def name(pieces: list[str], separator: str, absolute: bool) -> None:
        file_name = (f"{tmp_path}{separator}" if absolute else "") + separator.join(pieces)
        image = {"id": 1, "file_name": file_name, "width": 4, "height": 4}
        path.write_text(json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
        dataset = outcome(lambda: CocoDataset(folder, path))
        pixels = None if dataset is None else outcome(lambda: dataset.image(0))
        assert pixels is None or not pixels.any(), file_name
        seen["refused" if pixels is None else "inside"] += 1

    fuzz(
        tries, name, pieces=st.lists(st.sampled_from(PIECES), min_size=1, max_size=5),
        separator=st.sampled_from(["/", "/", "\\", "//"]), absolute=st.booleans(),
    )  # fmt: skip
    assert seen["inside"] and seen["refused"]


def converted(folder: Path, convert: Any) -> None:
    """What comes out is a COCO file that is read."""
    document = outcome(lambda: convert(folder))
    if document is not None:
        "\n".join(document_summary(document)).encode()
        path = folder.parent / "converted.json"
        path.write_text(json.dumps(document))
        read(folder, path)


@tries(3000)
def test_a_damaged_xml_file(tmp_path: Path, tries: int):
    folder = tmp_path / "voc"
    for below in ("Annotations", "JPEGImages"):
        (folder / below).mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(folder / "JPEGImages" / "a.png")
    text = annotation(element("dog", 0, 0, 20, 10, 1), element("c\u00e4t", 2.5, 3, 4, 5)).encode()

    def write(content: bytes) -> None:
        (folder / "Annotations" / "a.xml").write_bytes(content)
        converted(folder, convert_voc)

    others = st.text(max_size=50).map(lambda t: annotation(t).encode("utf-8", "replace"))
    fuzz(tries, write, content=damaged(text) | others)


WORDS = "0 1 2 -1 0.5 1.0 1e-400 1e400 nan inf -0 0x1 1_0 ٣ # 0.5,".split() + ["", "\0"]


@tries(3000)
def test_any_line_of_a_yolo_file(tmp_path: Path, tries: int):
    folder = tmp_path / "yolo"
    for below in ("images", "labels"):
        (folder / below).mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(folder / "images" / "a.png")

    def write(lines: list[list[str]], names: Any) -> None:
        text = "\n".join(" ".join(words) for words in lines)
        (folder / "labels" / "a.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
        (folder / "data.yaml").write_text(json.dumps({"names": names}))
        converted(folder, convert_yolo)

    word = st.sampled_from(WORDS) | st.floats(-0.2, 1.2).map(str) | st.text(max_size=3)
    good = st.tuples(st.just("1"), *[st.sampled_from(["0.3", "0.5"])] * 4).map(list)
    lines = st.lists(good | st.lists(word, max_size=9), max_size=3)
    fuzz(tries, write, lines=lines, names=st.just(["a", "b"]) | json_values | st.lists(st.text(max_size=3), max_size=3))


@tries(3000)
def test_results_of_any_kind(data: Path, tries: int):
    good = {"image_id": 10, "category_id": 3, "bbox": [1.0, 2.0, 20.0, 20.0], "score": 0.9}

    def score(changes: list[tuple[str, Any]], rest: Any) -> None:
        path = data / "results.json"
        path.write_text(json.dumps([{**good, **dict(changes)}, good] if rest is None else rest))
        outcome(lambda: evaluate_results(data / "train.json", read_json(path)))

    numbers = st.lists(st.floats(), min_size=4, max_size=4)
    changes = st.lists(st.tuples(st.sampled_from(list(good)), json_values | numbers))
    fuzz(tries, score, changes=changes, rest=st.none() | json_values | st.lists(json_values, max_size=2))


@pytest.mark.parametrize(
    "make", [os.mkfifo, Path.mkdir, lambda p: p.symlink_to("/dev/zero"), lambda p: p.symlink_to(p)]
)
def test_annotations_that_are_no_file_are_refused_at_once(data: Path, make: Any, capsys: pytest.CaptureFixture):
    make(data / "a.json")
    assert outcome(lambda: CocoDataset(data / "images", data / "a.json")) is None
    arguments = ["--detections", str(data / "a.json"), "--annotations", str(data / "train.json")]
    if not (data / "a.json").is_fifo():  # the shell's <(command) is one
        assert script("evaluate").main(arguments) == 2 and capsys.readouterr().err.count("\n") == 1
