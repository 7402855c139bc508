"""Sets whose boxes are known, to be written in another format and converted back."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from detector.data.coco import CocoDataset
from helpers.golden_rules import shared
from helpers.training import draw_split, script

SETS = ["drawn", "bccd"]


def known_set(name: str, folder: Path) -> tuple[dict[str, Any], Path]:
    """A COCO document and its image folder: drawn here, or of blood cells (skipped without them)."""
    if name == "bccd":
        return json.loads((shared("data/bccd/annotations") / "val.json").read_text()), shared("data/bccd/images")
    draw_split(folder, "train", 6)
    return json.loads((folder / "train.json").read_text()), folder / "images"


def objects(document: dict[str, Any]) -> dict[str, list[tuple]]:
    """Class and box of every object, by the name of its image alone, sorted; every image has an entry."""
    names = {image["id"]: Path(image["file_name"]).name for image in document["images"]}
    classes = {category["id"]: category["name"] for category in document["categories"]}
    found: dict[str, list[tuple]] = {name: [] for name in names.values()}
    for a in document["annotations"]:
        found[names[a["image_id"]]].append((classes[a["category_id"]], *a["bbox"]))
    return {name: sorted(rows) for name, rows in found.items()}


def convert(*arguments: object) -> int:
    """`detector convert-annotations ...`; its exit status."""
    return script("convert_annotations").main([str(argument) for argument in arguments])


def converted(form: str, folder: Path, *options: object) -> dict[str, Any]:
    """The document of a folder of that format."""
    output = folder.parent / f"{time.monotonic_ns()}.json"
    assert convert(form, folder, "--output", output, *options) == 0
    return json.loads(output.read_text())


def check_dataset(known: dict[str, Any], document: dict[str, Any], folder: Path) -> None:
    """The converted document is read as a data set of the same images, without a clipped box."""
    path = folder.parent / "read.json"
    path.write_text(json.dumps(document))
    dataset = CocoDataset(folder, path)
    assert f"{len(objects(known))} images" in dataset.report and "0 boxes clipped" in dataset.report
    assert dataset[0][0].shape[1:] == tuple(dataset.sizes[0])


def files_of(folder: Path) -> dict[Path, int]:
    """When each file below a folder was changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def refusal(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The one line with which it refuses; nothing is written."""
    capsys.readouterr()
    output = Path(str(arguments[1])).parent / "refused.json"
    assert convert(*arguments, "--output", output) == 2 and not output.exists()
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    return printed.err
