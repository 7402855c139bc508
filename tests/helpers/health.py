"""A small data set with a configuration, clean or with every fault that the check of a data set knows."""

import contextlib
import copy
import io
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from helpers.training import script, write_config, write_json

WIDE, TALL = (96, 64), (64, 96)
CATEGORIES = [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]


def noise(path: Path, size: tuple[int, int], seed: int, **options: Any) -> None:
    """A picture like no other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def entry(number: int, name: str, size: tuple[int, int] = WIDE, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": name, "width": size[0], "height": size[1], **more}


def box(number: int, image: Any, bbox: Any, category: Any = 3, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


def clean_split(folder: Path, name: str, first: int, count: int = 3) -> dict[str, Any]:
    """`count` images with a square and a disc each; the document of their annotations."""
    images, annotations = [], []
    for i in range(first, first + count):
        noise(folder / name / f"{i}.png", WIDE, seed=i)
        images.append(entry(i, f"{i}.png"))
        annotations += [box(2 * i, i, [4, 4, 20, 20]), box(2 * i + 1, i, [40, 10, 30, 40], 7)]
    return {"images": images, "annotations": annotations, "categories": copy.deepcopy(CATEGORIES)}


def clean_set(folder: Path) -> dict[str, dict[str, Any]]:
    """Two splits in folders of their own, on the disk but for their annotations."""
    return {"train": clean_split(folder, "train", 1), "val": clean_split(folder, "val", 21)}


def configure(folder: Path, documents: dict[str, dict[str, Any]], **data: Any) -> Path:
    """Write the annotations and a configuration; its path."""
    for name, document in documents.items():
        write_json(folder / f"{name}.json", document)
    config = write_config(folder / "config.yaml", folder)
    splits = {name: {"images": name, "annotations": f"{name}.json"} for name in documents}
    overrides = {f"data.{key}": value for key, value in {**splits, **data}.items()}
    (folder / "overrides").write_text("\n".join(f"{key}={json.dumps(value)}" for key, value in overrides.items()))
    return config


def check(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """`detector check-data` on a folder that was configured: status, output and errors."""
    overrides = (folder / "overrides").read_text().splitlines()
    return run(str(folder / "config.yaml"), *overrides, *map(str, arguments))


def run(*arguments: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = script("check_data").main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


class DirtySet:
    """A set in which every fault is found once; `expected` says where: {(kind, split): what its place has}."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.documents = folder, clean_set(folder)
        self.train, self.val = self.documents["train"], self.documents["val"]
        for picture in self.val["images"]:  # a folder that holds the other's, too
            picture["file_name"] = f"val/{picture['file_name']}"
        self.expected: dict[tuple[str, str], dict[str, Any]] = {}
        self.spoil_files()
        self.spoil_images()
        self.spoil_boxes()
        self.spoil_annotations()
        self.spoil_categories()
        self.spoil_val()

    def configure(self) -> Path:
        val = {"images": ".", "annotations": "val.json"}
        return configure(self.folder, self.documents, val=val, max_pixels=10_000)

    def expect(self, kind: str, split: str = "train", **place: Any) -> None:
        assert (kind, split) not in self.expected
        self.expected[kind, split] = place

    def image(self, kind: str, number: int, name: str, size: tuple[int, int] = WIDE, note: str | None = None) -> None:
        """List an image, with an object, that is at fault."""
        self.train["images"].append(entry(number, name, size))
        self.train["annotations"].append(box(2000 + number, number, [4, 4, 20, 20]))
        self.expect(kind, file=name, image_id=number, **({"note": note} if note else {}))

    def spoil_files(self) -> None:
        train, exif = self.folder / "train", Image.Exif()
        exif[0x0112] = 6  # a quarter turn
        self.image("missing file", 41, "missing.png")
        (train / "corrupt.png").write_bytes((train / "1.png").read_bytes()[:500])
        self.image("corrupt file", 42, "corrupt.png")
        noise(train / "large.png", (200, 200), seed=43)
        self.image("oversized file", 43, "large.png", (200, 200))
        noise(train / "turned.jpg", WIDE, seed=44, exif=exif)
        self.image("rotated file", 44, "turned.jpg", TALL, note="EXIF orientation 6")
        noise(train / "other.jpg", WIDE, seed=45, exif=exif)
        told = "the image (turned upright, EXIF orientation 6) is 64 x 96, the annotations say 96 x 64"
        self.image("other size", 45, "other.jpg", WIDE, note=told)
        self.image("file listed twice", 46, "1.png", note="like 1.png, image 1")
        (train / "twin.png").write_bytes((train / "3.png").read_bytes())
        self.image("equal files", 47, "twin.png", note="like 3.png, image 3")
        os.symlink("/dev/null", train / "away.png")
        self.image("outside folder", 48, "away.png")
        noise(train / "below" / "unlisted.png", WIDE, seed=49)
        self.expect("unlisted file", file="below/unlisted.png")

    def spoil_images(self) -> None:
        def add(kind: str, picture: Any, key: str, **place: Any) -> None:
            self.expect(kind, key=f"images[{len(self.train['images'])}]{key}", **place)
            self.train["images"].append(picture)

        add("not an entry", "no entry", "", note='is "no entry"; it must be an object')
        noise(self.folder / "train" / "wide.png", WIDE, seed=50)
        self.train["images"].append(entry(50, "wide.png"))
        self.expect("image without objects", file="wide.png", image_id=50)
        add("repeated id", entry(1, "wide.png"), ".id", file="wide.png", image_id=1, note="is 1; two images share it")

    def spoil_boxes(self) -> None:
        """Boxes in the first image: a square at [4, 4, 20, 20], a disc at [40, 10, 30, 40]."""

        def add(kind: str, bbox: Any, note: str) -> None:
            number = 100 + len(self.expected)
            self.train["annotations"].append(box(number, 1, bbox))
            self.expect(kind, file="1.png", image_id=1, annotation_id=number, note=note)

        add("box without area", [5, 50, 0, 9], "[5, 50, 0, 9]")
        add("box outside image", [80, 2, 20, 8], "[80, 2, 20, 8] in 96 x 64")
        add("duplicate box", [4, 4, 20, 20.5], "square, like annotation 2, square")
        add("box of two classes", [40, 10, 30, 41], "square, like annotation 3, disc")

    def spoil_annotations(self) -> None:
        def add(kind: str, annotation: Any, key: str, note: str) -> None:
            where = f"annotations[{len(self.train['annotations'])}].{key}"
            self.train["annotations"].append(annotation)
            ids = {"image_id": annotation["image_id"], "annotation_id": annotation["id"]}
            self.expect(kind, **ids, key=where, note=note)

        rule = "it must be four finite numbers [x, y, width, height]"
        add("invalid box", box(200, 1, [math.nan, 1, 2, 3]), "bbox", f"is [NaN, 1, 2, 3]; {rule}")
        add("unknown image", box(201, 999, [1, 50, 9, 9]), "image_id", "is 999; no such image")
        add("unknown category", box(202, 1, [1, 50, 9, 9], 999), "category_id", "is 999; no such category")
        add(
            "invalid value",
            box(203, 1, [1, 50, 9, 9], iscrowd="no"),
            "iscrowd",
            'is "no"; it must be 0 or 1 (no quotes)',
        )
        add("repeated annotation id", box(2, 1, [60, 54, 9, 9]), "id", "is 2; two annotations share it")

    def spoil_categories(self) -> None:
        where = f"categories[{len(self.train['categories'])}].name"
        for number, name in ((8, "disc"), (9, "DISC"), (10, "ring"), (11, "Big Star")):
            self.train["categories"].append({"id": number, "name": name})
        self.train["annotations"] += [box(300, 1, [70, 54, 9, 9], 9), box(301, 1, [80, 54, 9, 9], 11)]
        self.expect("repeated name", key=where, note='is "disc"; two categories share it')
        self.expect("alike categories", note="'disc' and 'DISC'")
        self.expect("unused category", note="'ring'")

    def spoil_val(self) -> None:
        self.val["categories"] += [{"id": 9, "name": "DISC"}, {"id": 12, "name": "bigstar"}]
        self.val["annotations"] += [box(401, 21, [70, 54, 9, 9], 9), box(402, 21, [80, 54, 9, 9], 12)]
        self.expect("alike categories", "val", note="'disc' and 'DISC'")
        self.expect("other spelling", "val", note="'bigstar', in train 'Big Star'")
        self.expect("other categories", "val", note="'ring' is only in train")
        (self.folder / "val" / "copy.png").write_bytes((self.folder / "train" / "1.png").read_bytes())
        shared = (
            ("image in two splits", 31, "train/2.png", "like 2.png, image 2 of train"),
            ("equal files in two splits", 32, "val/copy.png", "like 1.png, image 1 of train"),
        )
        for kind, number, name, note in shared:
            self.val["images"].append(entry(number, name))
            self.val["annotations"].append(box(2000 + number, number, [4, 4, 20, 20]))
            self.expect(kind, "val", file=name, image_id=number, note=note)
