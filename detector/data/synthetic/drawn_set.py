"""Synthetic data sets in COCO form. A folder is complete or untouched; the pixels depend on the arguments alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image

from detector.data.synthetic import context, shapes
from detector.data.synthetic.raster import Drawn
from detector.data.tracing import borders
from detector.errors import DataError
from detector.records.outlines import Outlines

PRESETS = {"plain": shapes, "context": context}
UNFINISHED = ".make_shapes_unfinished"  # files are written here, then moved into place
EMPTY_EVERY = 20  # every 20th image has no objects


def draw_set(
    folder: str | Path, *, train: int, val: int, size: tuple[int, int], seed: int, preset: str = "plain"
) -> str:
    """Draw `folder`/{annotations,images}/{train,val}, images of `size` (width, height); returns a message.

    A folder that already holds this set is not changed. Raises DataError if it holds anything else.
    """
    folder, counts = Path(folder), {"train": train, "val": val}
    _check(preset, counts, size, seed)
    infos = {split: _info(preset, split, count, size, seed) for split, count in counts.items()}
    if all(_holds(folder, split, info) for split, info in infos.items()):
        return f"{folder} already holds this set" + _without_outlines(folder)
    try:
        unfinished = _claim(folder)
        objects = sum(_draw_split(preset, unfinished, split, info) for split, info in infos.items())
        for part in ("images", "annotations"):
            (unfinished / part).rename(folder / part)
        unfinished.rmdir()
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}") from error
    classes = len(PRESETS[preset].CLASSES)
    return f"{folder}: {train} + {val} images of {size[0]}x{size[1]}, {objects} objects of {classes} classes"


def _check(preset: str, counts: dict[str, int], size: tuple[int, int], seed: int) -> None:
    if min(counts.values()) < 1:
        raise DataError(f"a split needs at least one image: train {counts['train']}, val {counts['val']}")
    least = PRESETS[preset].LEAST_SIZE
    if min(size) < least:
        raise DataError(f"an image of preset {preset} needs at least {least}x{least} pixels, not {size[0]}x{size[1]}")
    if not 0 <= seed < 2**32:
        raise DataError(f"the seed must lie in 0..2^32-1, not {seed}")


def _info(preset: str, split: str, count: int, size: tuple[int, int], seed: int) -> dict[str, object]:
    """The `info` section of an annotation file; equal for equal sets."""
    drawing = PRESETS[preset]
    arguments = {"split": split, "count": count, "size": list(size), "seed": seed}
    return {"description": drawing.DESCRIPTION, "version": drawing.VERSION} | arguments


def _file_name(index: int) -> str:
    return f"{index:06d}.png"


def _holds(folder: Path, split: str, info: dict[str, Any]) -> bool:
    """Whether the folder holds the split that this info describes, with all its images."""
    try:
        found = json.loads((folder / "annotations" / f"{split}.json").read_text())["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    images = folder / "images" / split
    return found == info and all((images / _file_name(i)).is_file() for i in range(info["count"]))


def _without_outlines(folder: Path) -> str:
    """What to say of a set that an earlier version drew."""
    files = [folder / "annotations" / f"{split}.json" for split in ("train", "val")]
    outlined = any('"segmentation"' in path.read_text() for path in files)
    return "" if outlined else ", drawn without outlines: remove the folder to draw it with them"


def _claim(folder: Path) -> Path:
    """Create the folder, which must be new or empty, and a temporary folder in it."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was interrupted
    other = next(folder.iterdir(), None)
    if other is not None:
        raise DataError(f"{folder} holds {other.name!r} and not the set asked for: remove the folder or name another")
    unfinished.mkdir()
    return unfinished


def _draw_split(preset: str, folder: Path, split: str, info: dict[str, Any]) -> int:
    """Write the images of one split, then its annotations; returns the number of objects."""
    drawing = PRESETS[preset]
    (width, height), seed = info["size"], info["seed"]
    (folder / "images" / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(info["count"]):
        rng = RandomState([seed, split == "val", index])  # an image depends on nothing but its own index
        empty = index % EMPTY_EVERY == EMPTY_EVERY - 1
        pixels, drawn = drawing.draw_image(rng, width, height, empty=empty)
        Image.fromarray(pixels).save(folder / "images" / split / _file_name(index), compress_level=1)  # noise anyway
        images.append({"id": index + 1, "file_name": _file_name(index), "width": width, "height": height})
        annotations += [_annotation(len(annotations) + n, index + 1, d) for n, d in enumerate(drawn, start=1)]
    categories = [_category(i, name, drawing.KEYPOINTS.get(name)) for i, name in enumerate(drawing.CLASSES, start=1)]
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content) + "\n")
    return len(annotations)


def _category(id_: int, name: str, keypoints: tuple[str, ...] | None) -> dict[str, object]:
    plain = {"id": id_, "name": name, "supercategory": "shape"}
    if keypoints is None:
        return plain
    lines = [[j, j % len(keypoints) + 1] for j in range(1, len(keypoints) + 1)]
    return plain | {"keypoints": list(keypoints), "skeleton": lines}


def _annotation(id_: int, image_id: int, drawn: Drawn) -> dict[str, object]:
    """Box and area are those of the whole shape; outline, which an object over it may cut in two, and visibility of keypoints
    those of what is seen of it."""
    where = {"bbox": drawn.box, "area": drawn.area, "iscrowd": 0, "segmentation": _segmentation(drawn.visible)}
    if drawn.points:
        seen = [  # a corner may lie just beside the pixels of its shape
            drawn.visible[max(int(y) - 1, 0) : int(y) + 2, max(int(x) - 1, 0) : int(x) + 2].any()
            for x, y in drawn.points
        ]
        keypoints = [number for (x, y), shown in zip(drawn.points, seen) for number in (x, y, 2 if shown else 1)]
        where |= {"keypoints": keypoints, "num_keypoints": len(seen)}
    return {"id": id_, "image_id": image_id, "category_id": drawn.label + 1} | where


def _segmentation(visible: np.ndarray) -> object:
    """Polygons along the edges of the pixels, or run lengths where there are holes, which polygons cannot have."""
    outer, holes = borders(visible)
    return (
        Outlines.of_bitmaps(torch.from_numpy(visible)[None]).segmentations()[0]
        if holes
        else [part.astype(int).ravel().tolist() for part in outer]
    )
