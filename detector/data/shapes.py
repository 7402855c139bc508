"""A drawn detection set in COCO form: shapes of all scales on textured grounds, the same pixels on every machine.

All arithmetic is on integers and the random numbers are those of `numpy.random.RandomState`, whose stream is frozen
(NEP 19), so the pixels depend on the arguments alone: not on the platform, the versions of the libraries or a font.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import RandomState
from PIL import Image

from detector.errors import DataError

VERSION = 1  # of the drawing: raise it when the pixels change
UNFINISHED = ".make_shapes_unfinished"  # everything is drawn in here, then moved into place
SAMPLES = 3  # per pixel and axis, so that edges are smooth
UNIT = 1000  # half the side of a shape in its own coordinates
SCALES = ((14, 31), (32, 95), (96, 2**31 - 1))  # sides in pixels: small, medium, large as in COCO
SCALE_ODDS = (0, 0, 0, 1, 1, 1, 2, 2)  # indices of SCALES
LEAST_SIZE = 32  # of an image
EMPTY_EVERY = 20  # every 20th image has no objects
MOST_OBJECTS = 8
TRIES = 12  # per object to find a place; then it is left out
CONTRAST = 180  # least sum over the channels of |colour - what lies under|
BRIGHT = 400  # least sum of the channels of a shape; grounds are dark, so that a small network learns in minutes
POLYGONS = {
    "square": [(-900, -900), (900, -900), (900, 900), (-900, 900)],
    "triangle": [(0, -1000), (1000, 800), (-1000, 800)],
    "star": [(0, -1000), (247, -340), (951, -309), (399, 130), (588, 809)]
    + [(0, 420), (-588, 809), (-399, 130), (-951, -309), (-247, -340)],
    "cross": [(-330, -1000), (330, -1000), (330, -330), (1000, -330), (1000, 330), (330, 330)]
    + [(330, 1000), (-330, 1000), (-330, 330), (-1000, 330), (-1000, -330), (-330, -330)],
}  # x right, y down, in UNITs
CLASSES = ("disc", "ring", *POLYGONS)


@dataclass(frozen=True)
class Drawn:
    """One object of a picture."""

    label: int  # index of CLASSES
    box: tuple[int, int, int, int]  # x, y, width, height: the tight box of the whole shape, hidden parts included
    area: int  # pixels of the whole shape


def draw_set(folder: str | Path, *, train: int, val: int, size: tuple[int, int], seed: int) -> str:
    """Draw `folder`/{annotations,images}/{train,val}, images of `size` (width, height); returns a line for the user.

    A folder that already holds this set is left as it is. DataError where it holds anything else.
    """
    folder, counts = Path(folder), {"train": train, "val": val}
    _check(counts, size, seed)
    infos = {split: _info(split, count, size, seed) for split, count in counts.items()}
    if all(_holds(folder, split, info) for split, info in infos.items()):
        return f"{folder} already holds this set"
    try:
        unfinished = _claim(folder)
        objects = sum(_draw_split(unfinished, split, info) for split, info in infos.items())
        for part in ("images", "annotations"):
            (unfinished / part).rename(folder / part)
        unfinished.rmdir()
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}") from error
    return f"{folder}: {train} + {val} images of {size[0]}x{size[1]}, {objects} objects of {len(CLASSES)} classes"


def draw_image(rng: RandomState, width: int, height: int, most: int = MOST_OBJECTS) -> tuple[np.ndarray, list[Drawn]]:
    """A picture (H, W, 3) uint8 with at most `most` objects (at least one unless `most` is 0); these objects."""
    image = _ground(rng, width, height)
    owner = np.full((height, width), -1)  # the object that is seen at each pixel
    drawn: list[Drawn] = []
    count = rng.randint((most + 1) // 2, most + 1)
    for side in sorted((_side(rng, min(width, height)) for _ in range(count)), reverse=True):  # large ones lie below
        label = rng.randint(len(CLASSES))
        coverage = rasterise(CLASSES[label], *_pose(rng, side))
        mask = _mask(coverage)
        place = _find_place(rng, mask, owner, drawn)
        if place is None:
            continue
        x, y = place
        h, w = mask.shape
        window = slice(y, y + h), slice(x, x + w)
        _paint(rng, image[window], coverage)
        owner[window][mask] = len(drawn)
        drawn.append(Drawn(label, (x, y, w, h), int(mask.sum())))
    grain = rng.randint(-5, 6, size=(height, width, 1))
    return np.clip(image + grain, 0, 255).astype(np.uint8), drawn


def rasterise(name: str, width: int, height: int, p: int, q: int) -> np.ndarray:
    """How many of its SAMPLES x SAMPLES points a shape covers in each pixel of its tight box: (h, w).

    `width` and `height` are pixels before the rotation by 2 atan(p / q), which is exact: a Pythagorean triple.
    """
    reach = (3 * max(width, height) + 3) // 4 + 1  # pixels; a rotated square reaches sqrt(2) / 2 sides from its centre
    points = np.arange(1 - 2 * reach * SAMPLES, 2 * reach * SAMPLES, 2, dtype=np.int64)  # half samples from the centre
    dx, dy = points[None, :], points[:, None]
    cos, sin, norm = q * q - p * p, 2 * p * q, q * q + p * p
    x = UNIT * (cos * dx + sin * dy) // (norm * width * SAMPLES)
    y = UNIT * (cos * dy - sin * dx) // (norm * height * SAMPLES)
    inside = _inside(name, x.astype(np.int32), y.astype(np.int32))  # int32: half the time
    coverage = inside.reshape(2 * reach, SAMPLES, 2 * reach, SAMPLES).sum(axis=(1, 3))
    belongs = _mask(coverage)
    rows, columns = np.flatnonzero(belongs.any(axis=1)), np.flatnonzero(belongs.any(axis=0))
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _check(counts: dict[str, int], size: tuple[int, int], seed: int) -> None:
    if min(counts.values()) < 1:
        raise DataError(f"a split needs at least one image: train {counts['train']}, val {counts['val']}")
    if min(size) < LEAST_SIZE:
        raise DataError(f"an image needs at least {LEAST_SIZE}x{LEAST_SIZE} pixels, not {size[0]}x{size[1]}")
    if not 0 <= seed < 2**32:
        raise DataError(f"the seed must lie in 0..2^32-1, not {seed}")


def _info(split: str, count: int, size: tuple[int, int], seed: int) -> dict[str, object]:
    """What the annotation file says of itself; equal for equal sets."""
    arguments = {"split": split, "count": count, "size": list(size), "seed": seed}
    return {"description": "drawn shapes", "version": VERSION} | arguments


def _file_name(index: int) -> str:
    return f"{index:06d}.png"


def _holds(folder: Path, split: str, info: dict[str, object]) -> bool:
    """Whether the folder holds the split that this info describes, with all its images."""
    try:
        found = json.loads((folder / "annotations" / f"{split}.json").read_text())["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    images = folder / "images" / split
    return found == info and all((images / _file_name(i)).is_file() for i in range(info["count"]))


def _claim(folder: Path) -> Path:
    """Make the folder, which must be new or empty, and in it one for unfinished work."""
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / UNFINISHED
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was interrupted
    other = next(folder.iterdir(), None)
    if other is not None:
        raise DataError(f"{folder} holds {other.name!r} and not the set asked for: remove the folder or name another")
    unfinished.mkdir()
    return unfinished


def _draw_split(folder: Path, split: str, info: dict[str, object]) -> int:
    """Write the images of one split, then its annotations; returns the number of objects."""
    (width, height), seed = info["size"], info["seed"]
    (folder / "images" / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(info["count"]):
        rng = RandomState([seed, split == "val", index])  # an image depends on nothing but its own index
        empty = index % EMPTY_EVERY == EMPTY_EVERY - 1
        pixels, drawn = draw_image(rng, width, height, most=0 if empty else MOST_OBJECTS)
        Image.fromarray(pixels).save(folder / "images" / split / _file_name(index), compress_level=1)  # noise anyway
        images.append({"id": index + 1, "file_name": _file_name(index), "width": width, "height": height})
        annotations += [_annotation(len(annotations) + n, index + 1, d) for n, d in enumerate(drawn, start=1)]
    categories = [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASSES, start=1)]
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content) + "\n")
    return len(annotations)


def _annotation(id_: int, image_id: int, drawn: Drawn) -> dict[str, object]:
    where = {"bbox": drawn.box, "area": drawn.area, "iscrowd": 0}
    return {"id": id_, "image_id": image_id, "category_id": drawn.label + 1} | where


def _side(rng: RandomState, room: int) -> int:
    """The longer side of a shape in pixels, at most 7/8 of the `room`."""
    least, most = SCALES[SCALE_ODDS[rng.randint(len(SCALE_ODDS))]]
    most = min(most, room * 7 // 8)
    return rng.randint(min(least, most), most + 1)


def _pose(rng: RandomState, side: int) -> tuple[int, int, int, int]:
    """Width and height in pixels, and tan(angle / 2) as a fraction of 32: at most 14 degrees."""
    other = rng.randint((3 * side + 3) // 4, side + 1)
    width, height = (side, other) if rng.randint(2) else (other, side)
    return width, height, rng.randint(-4, 5), 32


def _mask(coverage: np.ndarray) -> np.ndarray:
    """The pixels that belong to the shape: more than half of their points do."""
    return 2 * coverage > SAMPLES**2


def _inside(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points, in UNITs from the centre, lie in the shape."""
    if name in ("disc", "ring"):
        radius2 = x * x + y * y
        hole = 0 if name == "disc" else (UNIT * 11 // 20) ** 2
        return (hole <= radius2) & (radius2 < UNIT**2)
    inside = np.zeros(x.shape, dtype=bool)
    corners = POLYGONS[name]
    for (x1, y1), (x2, y2) in zip(corners, [*corners[1:], corners[0]]):  # even-odd rule: count the edges to the right
        side = (x - x1) * (y2 - y1) - (y - y1) * (x2 - x1)
        inside ^= ((y1 > y) != (y2 > y)) & ((side < 0) == (y2 > y1))
    return inside


def _find_place(rng: RandomState, mask: np.ndarray, owner: np.ndarray, drawn: list[Drawn]) -> tuple[int, int] | None:
    """A top left corner (x, y) where the mask fits and hides no object by more than a quarter; None if none was found."""
    h, w = mask.shape
    room_y, room_x = owner.shape[0] - h, owner.shape[1] - w
    if min(room_x, room_y) < 0:
        return None
    area = np.array([d.area for d in drawn], dtype=np.int64)
    for _ in range(TRIES):
        x, y = rng.randint(room_x + 1), rng.randint(room_y + 1)
        after = owner.copy()
        after[y : y + h, x : x + w][mask] = -1
        visible = np.bincount(after[after >= 0], minlength=len(drawn))
        if (4 * visible >= 3 * area).all():
            return x, y
    return None


def _paint(rng: RandomState, image: np.ndarray, coverage: np.ndarray) -> None:
    """Fill the covered pixels of image (h, w, 3) with a mottled bright colour that stands out from what lies there."""
    under = image[coverage > 0].sum(axis=0) // (coverage > 0).sum()
    colour = under
    while abs(colour - under).sum() < CONTRAST or colour.sum() < BRIGHT:
        colour = rng.randint(60, 256, size=3)
    h, w = coverage.shape
    fill = np.clip(colour + _mottle(rng, w, h, cell=6, swing=14)[..., None], 0, 255)
    share, whole = coverage[..., None], SAMPLES**2
    image[:] = (image * (whole - share) + fill * share) // whole


def _ground(rng: RandomState, width: int, height: int) -> np.ndarray:
    """A textured ground (H, W, 3): a dark colour that drifts, with coarse and fine grey mottles."""
    base = rng.randint(20, 100, size=3)
    drift = np.stack([_mottle(rng, width, height, cell=64, swing=25) for _ in range(3)], axis=-1)
    grey = _mottle(rng, width, height, cell=16, swing=24) + _mottle(rng, width, height, cell=4, swing=16)
    return np.clip(base + drift + grey[..., None], 0, 255)


def _mottle(rng: RandomState, width: int, height: int, *, cell: int, swing: int) -> np.ndarray:
    """Random values in -swing..swing on a grid of cells, interpolated bilinearly: (H, W)."""
    grid = rng.randint(-swing, swing + 1, size=(height // cell + 2, width // cell + 2))
    (y, fy), (x, fx) = (np.divmod(np.arange(n), cell) for n in (height, width))
    rows = grid[y] * (cell - fy[:, None]) + grid[y + 1] * fy[:, None]  # (H, grid columns)
    return (rows[:, x] * (cell - fx) + rows[:, x + 1] * fx) // cell**2
