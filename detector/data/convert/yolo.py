"""YOLO data sets: a text file for each image with a line for each object, and class names in data.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from detector.data.convert.keypoint_check import KeypointCheck
from detector.data.convert.writer import (
    ConversionNotes,
    SourceImage,
    SourceObject,
    checked_classes,
    coco_document,
    images_below,
    path_within,
    read_text,
)
from detector.data.image import MAX_PIXELS, read_size
from detector.errors import DataError
from detector.yaml_reader import parse_yaml

CONVENTIONS = [
    "a line is: class index from 0, then centre x, centre y, width, height as fractions of the image's size",
    "the image's size is the file's own, turned upright by its EXIF orientation",
    "the labels of images/NAME.jpg are in labels/NAME.txt (the last folder named images counts), beside it without one",
    "an image without a text file, or with an empty one, has no objects",
    "an outline is: class index, then three points or more; its box is the one around it",
    "keypoints (kpt_shape in data.yaml) follow a box; two that flip_idx exchanges are named left and right",
]
FAR = 1  # a value further outside of 0..1 cannot be a fraction of the image; it may be in pixels


def convert_yolo(
    folder: Path, *, split: str | None = None, classes: Sequence[str] | None = None, max_pixels: int = MAX_PIXELS
) -> dict[str, Any]:
    """The COCO document of a YOLO folder.

    Raises DataError with file and line.

    Args:
        folder: the data set.
        split: an entry of data.yaml (train, val, ...) or, if it has none, the folder images/SPLIT or SPLIT/images; None: all
            images.
        classes: class names in order; None: those of data.yaml or classes.txt.
        max_pixels: images with more pixels are refused.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    settings, source = _settings(folder)
    names, where = (list(classes), "--classes") if classes is not None else _names(folder, settings, source)
    names = checked_classes(names, where)
    notes, images = ConversionNotes(), _images(folder, split, settings, source)
    for name in _orphans(folder, images) if split is None else ():
        notes.add("label files have no image: left out", name)
    owner: dict[str, str] = {}
    for name in images:
        if owner.setdefault(label_file(name), name) != name:
            notes.add("images share their label file with another image: both have its objects", name)
    shape = _keypoint_shape(settings, source)
    points = KeypointCheck(*shape)

    def pictures() -> Iterator[SourceImage]:
        for name in images:
            yield _picture(folder, name, names, max_pixels, points, notes)
        points.finish()

    chosen = f"images of the split {split}" if split else "all images of the folder"
    conventions = [*CONVENTIONS, f"class names are those of {where}", chosen]
    keypoints = _keypoint_names(settings, shape[0], source)
    return coco_document(pictures(), names, f"YOLO, {folder.name}", conventions, notes, keypoints)


def _settings(folder: Path) -> tuple[Mapping[str, Any], Path | None]:
    """The content of data.yaml or of the only YAML file, and its path; ({}, None) if there is none."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    chosen = [path for path in files if path.stem == "data"] or files
    if len(chosen) > 1:
        raise DataError(
            f"{folder}: holds several YAML files ({', '.join(p.name for p in chosen)}); rename one to data.yaml"
        )
    settings = _read_yaml(chosen[0]) if chosen else {}
    return settings, chosen[0] if chosen else None


def _keypoint_shape(settings: Mapping[str, Any], source: Path | None) -> tuple[int, int]:
    """How many keypoints follow each box, and how many numbers each has."""
    shape = settings.get("kpt_shape", [0, 0])
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and 0 <= n < 1000 for n in shape)):
        raise DataError(f"{source}: kpt_shape: {shape!r:.80}, expected two numbers such as [17, 3]")
    if shape[0] and shape[1] not in (2, 3):
        raise DataError(
            f"{source}: kpt_shape: {shape!r:.80}; a keypoint has 2 numbers (x, y) or 3 (and its visibility)"
        )
    return shape[0], shape[1]


def _keypoint_names(settings: Mapping[str, Any], count: int, source: Path | None) -> list[str]:
    """Names by which a mirrored image exchanges what flip_idx exchanges."""
    flip = settings.get("flip_idx") or list(range(count))
    if not isinstance(flip, list) or (sorted(flip, key=str) != sorted(range(count), key=str) and count):
        raise DataError(f"{source}: flip_idx: {flip!r:.80}, expected each of 0..{count - 1} once")
    sides = {True: "left", False: "right"}
    return [f"point {j}" if flip[j] == j else f"{sides[j < flip[j]]} point {min(j, flip[j])}" for j in range(count)]


def _read_yaml(path: Path) -> Mapping[str, Any]:
    """The `key: value` lines of a file. Raises ConfigError if it is not YAML, DataError if it holds something else."""
    content = parse_yaml(read_text(path), str(path)) or {}
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected 'key: value' lines, found a {type(content).__name__}")
    return content


def _names(folder: Path, settings: Mapping[str, Any], source: Path | None) -> tuple[list[str], object]:
    """The class names by index, and the name of their source."""
    if source is not None and "names" in settings:
        names, count = settings["names"], settings.get("nc")
        if isinstance(names, dict):
            if sorted(names, key=str) != sorted(range(len(names)), key=str):
                raise DataError(f"{source}: names: the keys must be 0, 1, 2 and so on, without a gap")
            names = [names[i] for i in range(len(names))]
        wrong = [name for name in names if type(name) not in (str, int)] if isinstance(names, list) else [names]
        if wrong:
            raise DataError(f"{source}: names: expected a list of texts, found {wrong[0]!r:.80}; quote it")
        if count not in (None, len(names)):
            raise DataError(f"{source}: nc: {count!r:.80}, but there are {len(names)} names")
        return [str(name) for name in names], source.name
    for path in (folder / "classes.txt", folder / "labels" / "classes.txt"):
        if path.is_file():
            return [line.strip() for line in read_text(path).splitlines() if line.strip()], path.name
    raise DataError(f"{folder}: neither data.yaml nor classes.txt gives class names; give them by --classes")


def _images(folder: Path, split: str | None, settings: Mapping[str, Any], source: Path | None) -> list[str]:
    """The names of the images, relative to the folder, sorted."""
    if split is None:
        return images_below(folder)
    entries = settings.get(split)
    if entries is None:
        entries = next((e for e in (f"images/{split}", f"{split}/images") if (folder / e).is_dir()), None)
        source = None
    entries = entries if isinstance(entries, list) else [entries]
    if not all(isinstance(entry, str) and entry for entry in entries):
        raise DataError(f"{source or folder}: there is no split {split!r:.80}")
    return sorted({name for entry in entries for name in _of_entry(folder, entry, source or folder)})


def _of_entry(folder: Path, entry: str, source: Path) -> list[str]:
    """The images of an entry, a folder or a text file with a list. A leading `../` means `folder`, as in many exports."""
    path = path_within(folder, _tidy(entry), source)
    if path.is_dir():
        return images_below(folder, _tidy(entry))
    if path.suffix != ".txt":
        raise DataError(f"{source}: {entry!r:.80}: no such folder in {folder}")
    return [_tidy(line.strip()) for line in read_text(path).splitlines() if line.strip()]


def _tidy(name: str) -> str:
    return name.removeprefix("../").removeprefix("./").rstrip("/") or "."


def label_file(name: str) -> str:
    """images/a.jpg -> labels/a.txt"""
    parts = list(PurePosixPath(name).with_suffix(".txt").parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return "/".join(parts)


def _orphans(folder: Path, images: Sequence[str]) -> list[str]:
    """The label files without an image."""
    names = [path.relative_to(folder) for path in folder.rglob("*.txt")]
    labels = {name.as_posix() for name in names if "labels" in name.parts[:-1] and name.name != "classes.txt"}
    return sorted(labels - set(map(label_file, images)))


def _picture(
    folder: Path, name: str, names: Sequence[str], max_pixels: int, points: KeypointCheck, notes: ConversionNotes
) -> SourceImage:
    size = read_size(path_within(folder, name, folder), max_pixels, "--max-pixels")
    path = path_within(folder, label_file(name), name)
    if not path.exists():
        notes.add("images have no label file: taken as images without objects", name)
        return SourceImage(name, size, [])
    rows = enumerate(read_text(path).splitlines(), start=1)
    boxes = [_box(line.split(), f"{path}, line {n}", size, names, points, notes) for n, line in rows if line.strip()]
    return SourceImage(name, size, boxes)


def _box(
    words: Sequence[str], where: str, size: tuple[int, int], names: Sequence[str], points: KeypointCheck,
    notes: ConversionNotes,
) -> SourceObject:  # fmt: skip
    index, *values = _numbers(words, where)
    if not (index.is_integer() and 0 <= index < len(names)):
        raise DataError(f"{where}: the class index {words[0]} is none of 0..{len(names) - 1}")
    keypoints = None
    if points.numbers and len(values) == 4 + points.numbers:
        places = [value for i, value in enumerate(values[4:]) if i % points.dimensions < 2]
        values, keypoints = values[:4] + places, _keypoints(values[4:], points.dimensions, size, where, notes)
    elif points.numbers and len(values) != 4:
        expected = f"{points.numbers // points.dimensions} keypoints of {points.dimensions} numbers (kpt_shape)"
        raise DataError(
            f"{where}: {len(words)} numbers; a box with {expected} has {5 + points.numbers}, without them 5"
        )
    elif points.numbers:
        notes.add("lines have no keypoints, which kpt_shape announces", where)
    if not all(-FAR <= value <= 1 + FAR for value in values):
        raise DataError(
            f"{where}: {' '.join(words)[:80]}: these are not fractions of the image's size; are they pixels?"
        )
    if not all(0 <= value <= 1 for value in values):
        notes.add("lines have values outside of 0..1", where)
    height, width = size
    outline = None
    if len(values) == 4 or keypoints is not None:
        x, y, w, h = values[:4]
        if w < 0 or h < 0:
            raise DataError(f"{where}: width and height must not be negative")
        fractions = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    elif len(values) >= 6 and len(values) % 2 == 0:
        points.see(where, values)
        xs, ys = values[::2], values[1::2]
        fractions = (min(xs), min(ys), max(xs), max(ys))
        outline = [[value * side for pair in zip(xs, ys) for value, side in zip(pair, (width, height))]]
    else:
        raise DataError(f"{where}: {len(words)} numbers; a box has 5, an outline 7, 9, 11 and so on")
    x1, y1, x2, y2 = fractions
    box = (x1 * width, y1 * height, x2 * width, y2 * height)
    return SourceObject(names[int(index)], box, outline=outline, keypoints=keypoints)


def _keypoints(
    values: Sequence[float], dimensions: int, size: tuple[int, int], where: str, notes: ConversionNotes
) -> list[float]:  # fmt: skip
    """x, y in pixels and COCO's visibility of each point; one without a visibility is visible unless it is at (0, 0)."""
    height, width = size
    found: list[float] = []
    if dimensions == 3 and not {0, 1, 2}.issuperset(values[2::3]):
        notes.add("lines have a visibility that is not 0, 1 or 2: taken as visible", where)
    for x, y, *more in zip(*(values[i::dimensions] for i in range(dimensions))):
        seen = (more[0] if more[0] in (0, 1) else 2) if more else 2 * ((x, y) != (0, 0))
        found += [x * width, y * height, seen] if seen else [0, 0, 0]
    return found


def _numbers(words: Sequence[str], where: str) -> list[float]:
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
