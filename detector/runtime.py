"""Run a file that `detector export` wrote, .onnx or .xml, without PyTorch: on NumPy, Pillow and the file's engine alone.

It needs no other file of the package and may be copied: `python runtime.py detector.onnx photo.jpg --output found.json`. It finds
what `detector.load` finds with the same file, by the same rules written for NumPy; tests/test_runtime.py compares the two.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

FORMAT, KEY = "detector export 1", "detector"  # of the description in an exported file, and the name it has there
ENGINES, MAX_PIXELS = {".onnx": "onnxruntime", ".xml": "openvino"}, 89_478_485
FORMATS = "AVIF BMP DIB GIF JPEG JPEG2000 PNG PPM TGA TIFF WEBP".split()
SUFFIXES = """.avif .bmp .dib .gif .j2c .j2k .jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .pbm .pgm .png .pnm .ppm .tga .tif .tiff
    .webp""".split()


class WrongInput(ValueError):
    """Wrong input; the message, one line, names the file and says what to do."""

    def __str__(self) -> str:
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in super().__str__())


@dataclass(eq=False)
class Found:
    """What a detector finds in one picture of `size` (h, w): n objects, best first, in the pixels of that picture."""

    size: tuple[int, int]
    boxes: np.ndarray  # (n, 4) float32 xyxy
    scores: np.ndarray  # (n,) float32
    labels: np.ndarray  # (n,) int64, index into the classes of the detector
    names: list[str]  # n class names
    category_ids: list[int]  # n ids of the training annotations
    probabilities: np.ndarray | None = None  # (n, M, M) float16 of masks within their boxes; None: no masks
    mask_scores: np.ndarray | None = None  # (n,) of a detector that judges its masks
    keypoints: np.ndarray | None = None  # (n, J, 3) float32 x, y, score; None: no keypoints
    keypoint_names: list[str] | None = None  # J names, if they are known

    def masks(self) -> np.ndarray | None:
        """(n, h, w) bool, made anew by each call; None without masks."""
        return None if self.probabilities is None else np.array([*self._masks()], dtype=bool).reshape(-1, *self.size)

    def _masks(self) -> Iterator[np.ndarray]:
        """One mask (h, w) after the other: true where bilinear samples at the centres of pixels are at least a half."""
        for mask, (x1, y1, x2, y2) in zip(np.float32(self.probabilities), self.boxes.tolist()):
            down, across = _hat_weights(y1, y2, self.size[0], len(mask)), _hat_weights(x1, x2, self.size[1], len(mask))
            rows, columns, pasted = down.any(axis=1), across.any(axis=1), np.zeros(self.size, dtype=bool)
            pasted[np.ix_(rows, columns)] = down[rows] @ mask @ across[columns].T >= 0.5
            yield pasted

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results, as `detector infer` writes them; a mask is a `segmentation` in compressed run lengths."""
        low, high = np.split(self.boxes.astype(np.float64), 2, axis=1)
        columns: dict[str, Any] = {"category_id": self.category_ids, "bbox": np.hstack([low, high - low]).tolist()}
        columns |= {"score": self.scores.tolist(), "category_name": self.names}
        if self.probabilities is not None:
            columns["segmentation"] = map(run_length_code, self._masks())
        if self.mask_scores is not None:
            columns["mask_score"] = self.mask_scores.tolist()
        if self.keypoints is not None:
            columns["keypoints"] = [points.ravel().tolist() for points in self.keypoints]
            columns |= {"keypoint_names": [self.keypoint_names] * len(self.names)} if self.keypoint_names else {}
        return [{"image_id": image_id, **dict(zip(columns, row))} for row in zip(*columns.values())]


class Runtime:
    """An exported detector. Raises WrongInput for a file that is missing, damaged or not an export, or lacks its engine."""

    def __init__(self, path: str | Path):
        path = Path(path)
        if path.suffix not in ENGINES:
            raise WrongInput(f"{path}: ends in neither .onnx nor .xml; make one by `detector export CKPT --to onnx`")
        for file in [path, path.with_suffix(".bin")][: 1 + (path.suffix == ".xml")]:
            if not file.is_file():
                raise WrongInput(f"{file}: no such file; copy all that `detector export` wrote")
        try:
            description, self._run = _started(importlib.import_module(ENGINES[path.suffix]), str(path))
            if (card := json.loads(description or "{}")).get("format") != FORMAT:
                raise ValueError("not written by `detector export`")
            self.card, data = card, card["config"].get("data") or {}
            self.resize = data.get("resize") or {"short": 800, "long": 1333}
            self.max_pixels = data.get("max_pixels") or MAX_PIXELS
            self.names: list[str] = ["object"] if card["proposals_only"] else card["class_names"]
            self.ids: list[int] = [1] if card["proposals_only"] else card["category_ids"]
            self(np.zeros((8, 8, 3), dtype=np.uint8))  # what it says of itself is what it computes
        except ModuleNotFoundError as error:
            raise WrongInput(f"{path}: needs {error.name}, which is not installed: pip install {error.name}") from error
        except Exception as error:  # each engine has errors of its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise WrongInput(f"{path}: cannot be read ({reason}); export the checkpoint again") from error

    def __call__(self, picture: str | Path | Image.Image | np.ndarray, *, score: float = 0.0) -> Found:
        """What has at least this score in a file, a PIL image or a uint8 RGB array (h, w, 3). Raises WrongInput for others."""
        if not 0 <= score <= 1:
            raise ValueError(f"score={score}: expected a number in 0..1")
        pixels, (most_h, most_w) = read_pixels(picture, self.max_pixels), self.card["size"]
        h, w = pixels.shape[:2]
        factor = min(self.resize["long"] / max(h, w), np.max(self.resize["short"]) / min(h, w))
        size = max(1, int(h * factor + 0.5)), max(1, int(w * factor + 0.5))  # what the checkpoint makes of it
        factor = min(1.0, most_h / size[0], most_w / size[1])  # the graph may be smaller
        new_h, new_w = size if factor == 1 else [max(1, round(side * factor)) for side in size]
        step, least = self.card.get("divisor", 1), self.card.get("least_size") or (most_h, most_w)  # for several sizes
        padded = [max(low, -(-side // step) * step) for side, low in zip((new_h, new_w), least)]
        batch = np.zeros((self.card["batch"], 3, *padded), dtype=np.uint8)  # the image, once or several times
        batch[:, :, :new_h, :new_w] = resize_pixels(pixels, (new_h, new_w)).transpose(2, 0, 1)
        values = self._run(batch, np.array([[new_h, new_w]] * len(batch), dtype=np.int64))
        rows = {name: value[0] for name, value in zip(self.card["outputs"], values, strict=True)}
        keep = (rows["labels"] >= 0) & (rows["scores"] >= score)  # a row of label -1 holds nothing
        rows = {name: value[keep] for name, value in rows.items()}
        scale, labels = np.array([w / new_w, h / new_h], dtype=np.float32), rows["labels"].tolist()
        boxes = np.clip(rows["boxes"] * np.tile(scale, 2), 0, np.array([w, h, w, h], dtype=np.float32))
        names, ids = [self.names[label] for label in labels], [self.ids[label] for label in labels]
        found = Found((h, w), boxes, rows["scores"], rows["labels"], names, ids)
        if "masks" in rows:
            found.probabilities, found.mask_scores = rows["masks"].astype(np.float16), rows.get("mask_scores")
        if rule := self.card["keypoints"]:
            found.keypoints = read_heat_map_array(rows["heat_maps"], rows["boxes"], rule["scores"])
            found.keypoints[..., :2] = found.keypoints[..., :2] * scale - np.float32(rule["offset"])
            found.keypoint_names = self.card["pose"] and self.card["pose"]["names"]
        return found


def _started(engine: Any, path: str) -> tuple[str | None, Any]:
    """What the file at `path` says of itself, and the function (images, sizes) -> outputs of its graph."""
    if engine.__name__ == "onnxruntime":
        options = engine.SessionOptions()
        options.log_severity_level = 3  # errors: it warns of each constant that it folds
        session = engine.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        description = session.get_modelmeta().custom_metadata_map.get(KEY)
        return description, lambda images, sizes: session.run(None, {"images": images, "sizes": sizes})
    model = engine.Core().read_model(path)
    description = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
    compiled = engine.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})  # else perhaps in bfloat16
    return description, lambda *inputs: [np.array(x) for x in compiled(inputs).to_tuple()]


def read_pixels(picture: Any, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture as upright uint8 RGB (h, w, 3), alpha dropped. Raises the errors of `Runtime.__call__`."""
    Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS and max(Image.MAX_IMAGE_PIXELS, max_pixels)  # Pillow's own limit
    try:
        if isinstance(picture, str | Path) and not os.path.isfile(picture):  # reading a pipe could block
            raise FileNotFoundError("no such file")
        image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        image = image if isinstance(image, Image.Image) else Image.open(image, formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise ValueError(f"too large, {image.width} x {image.height} pixels; the limit is {max_pixels}")
        image.load()  # which may change its mode
        if image.mode[0] in "FI":
            raise ValueError(f"its pixels have more than 8 bits (mode {image.mode}); save it with 8")
        upright = ImageOps.exif_transpose(image)  # RGBA first: Pillow warns of a palette's transparency that is lost
        return np.asarray((upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB"))
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        name = picture if isinstance(picture, str | Path) else type(picture).__name__
        raise WrongInput(f"{name}: not a readable image ({type(error).__name__}: {error}); give another") from error


def resize_pixels(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (h, w, 3) -> uint8 of another size (h, w): antialiased bilinear, with PyTorch's weights of 16 bits."""
    # Pillow's have 22 bits: one level more or less in few pixels, and boxes up to a quarter of a pixel elsewhere
    for new in size[::-1]:  # first the columns, then the rows
        pixels = pixels.swapaxes(0, 1)
        if (old := len(pixels)) != new:
            reach, centres = max(old / new, 1.0), old / new * (np.arange(new) + 0.5)
            first = np.maximum((centres - reach + 0.5).astype(int), 0)
            last = np.minimum((centres + reach + 0.5).astype(int), old)
            places = first[:, None] + np.arange((last - first).max())  # (new, taps)
            weights = np.maximum(1 - np.abs(places - centres[:, None] + 0.5) / reach, 0) * (places < last[:, None])
            weights /= weights.sum(axis=1, keepdims=True)
            bits = next((b for b in range(22) if int(0.5 + weights.max() * 2 ** (b + 1)) >= 2**15), 22)
            total = np.full((new, *pixels.shape[1:]), 2**bits // 2, dtype=np.int32)
            for place, weight in zip(np.minimum(places, old - 1).T, (weights * 2**bits + 0.5).astype(np.int32).T):
                total += pixels[place] * weight[:, None, None]
            pixels = (total >> bits).clip(0, 255).astype(np.uint8)
    return pixels


def _hat_weights(low: float, high: float, pixels: int, cells: int) -> np.ndarray:
    """(pixels, cells) bilinear weights of a row of cells from `low` to `high` at the centres of pixels."""
    places = (np.arange(pixels) + 0.5 - low) / max(high - low, 1e-6) * cells - 0.5
    return np.maximum(1 - np.abs(places[:, None] - np.arange(cells)), 0).astype(np.float32)


def run_length_code(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths, as text, of a mask (h, w) bool."""
    borders = np.flatnonzero(np.diff(mask.ravel(order="F"), prepend=False))
    counts = np.diff(borders, prepend=0, append=mask.size).tolist()
    text = ""
    for count, before in zip(counts, [0, 0, 0, *counts[1:]]):  # from the fourth on, differences to the last but one
        rest, more = count - before, True
        while more:
            digit, rest = rest & 31, rest >> 5
            more = rest != (-1 if digit & 16 else 0)
            text += chr(48 + (digit | 32 * more))
    return {"size": list(mask.shape), "counts": text}


def read_heat_map_array(logits: np.ndarray, boxes: np.ndarray, scores: str) -> np.ndarray:
    """Heat maps (n, J, M, M) of the boxes (n, 4) -> (n, J, 3): the best place of each keypoint, and its score."""
    points = np.zeros((*logits.shape[:2], 3), dtype=np.float32)
    for row, maps, box in zip(points, logits, boxes):
        side = np.maximum(box[2:] - box[:2], 1)
        columns, rows = (_cubic_weights(int(np.ceil(pixels)), maps.shape[1]) for pixels in side)
        for point, cells in zip(row, maps):
            large = rows @ cells @ columns.T
            y, x = np.unravel_index(large.argmax(), large.shape)
            point[:2] = box[:2] + np.array([x + 0.5, y + 0.5]) * (side / np.ceil(side))
            point[2] = large[y, x] if scores == "logit" else 1 / np.exp(cells - large[y, x]).sum()  # its softmax
    return np.nan_to_num(points, posinf=0, neginf=0)


def _cubic_weights(new: int, cells: int) -> np.ndarray:
    """(new, cells) weights that enlarge a row of cells to `new` pixels by cubic convolution (Keys 1981, a = -0.75)."""
    places = (np.arange(new)[:, None] + 0.5) * (cells / new) - 0.5
    taps = np.floor(places).astype(int) + np.arange(-1, 3)
    x, a = np.abs(places - taps), -0.75
    values = np.where(x <= 1, ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a)
    weights = np.zeros((new, cells), dtype=np.float32)
    np.add.at(weights, (np.arange(new)[:, None], taps.clip(0, cells - 1)), values)
    return weights


def find_pictures(paths: Sequence[str]) -> list[tuple[Path, str]]:
    """Images, and those of folders, each once, with names from the deepest folder that has all. Raises WrongInput for none."""
    folders, files = [], []
    for place in map(Path, map(os.path.abspath, paths)):
        below = sorted(file.relative_to(place) for file in place.rglob("*") if file.suffix.lower() in SUFFIXES)
        shown = [place / name for name in below if not any(part.startswith(".") for part in name.parts)]
        if not (found := [place] if place.is_file() else shown):
            raise WrongInput(f"{place}: no image, nor a folder with one; give the path of an image or a folder")
        folders.append(place.parent if place.is_file() else place)
        files += found
    return [(file, file.relative_to(os.path.commonpath(folders)).as_posix()) for file in dict.fromkeys(files)]


def table(name: str, found: Found) -> str:
    """Aligned lines: a headline, and a row for each object."""
    name, width = name.encode(errors="replace").decode(), max(map(len, ["class", *found.names]))
    lines = [f"score  {'class':{width}}       x1       y1       x2       y2"] * bool(found.names)
    for score, label, box in zip(found.scores, found.names, found.boxes):
        lines.append(f"{score:5.3f}  {label:{width}}" + "".join(f"{side:9.1f}" for side in box))
    return "\n  ".join([f"{name}: {len(found.names)} objects", *lines])


def detect(model: Path, paths: Sequence[str], output: Path | None, score: float) -> None:
    """Print a table for each image; write the results. Raises WrongInput, at the end, for images that cannot be read."""
    pictures, results, failed = find_pictures(paths), [], 0  # type: tuple[list, list, int]
    if output is not None:
        own = not os.path.lexists(output) or output.read_text(errors="replace").startswith(('[{"file_name": ', "[]"))
        if not own or not os.access(output.absolute().parent, os.W_OK):
            raise WrongInput(f"{output}: not of an earlier run, or in no folder to write to; choose another --output")
    runtime = Runtime(model)
    for number, (path, name) in enumerate(pictures, start=1):
        try:
            found = runtime(path, score=score)
            print(table(name, found))
            results += [{"file_name": name, **row} for row in found.to_coco(number)]
        except WrongInput as error:
            failed += 1
            print(f"skipped: {error}", file=sys.stderr)
    if output is not None:
        output.write_text(json.dumps(results) + "\n", encoding="utf-8")
    if failed:
        raise WrongInput(f"{failed} of {len(pictures)} images could not be read, see above")


def main(argv: list[str] | None = None) -> int:
    """Detect objects in images; the exit status: 0 done, 2 wrong input, 130 Ctrl-C, 141 a lost reader."""
    parser = argparse.ArgumentParser("detector-runtime", description="Run an exported detector, without PyTorch.")
    add = parser.add_argument
    add("model", metavar="MODEL", type=Path, help="of `detector export`: .onnx (ONNX Runtime) or .xml (OpenVINO)")
    add("images", metavar="IMAGE", nargs="+", help="an image, or a folder with all below it")
    add("--output", metavar="FILE", type=Path, help="results in COCO form (JSON)")
    add("--score", type=float, default=0.5, help="the least score of a box, 0..1 (default: 0.5)")
    args = parser.parse_args(argv)
    if not 0 <= args.score <= 1:
        parser.error(f"--score must lie in 0..1, not {args.score}")
    try:
        detect(args.model, args.images, args.output, args.score)
    except BrokenPipeError:
        os._exit(141)  # a reader of the tables that stopped, as `head` does; Python would complain once more
    except (WrongInput, OSError, KeyboardInterrupt) as error:
        print(f"error: {error}" if str(error) else "stopped by SIGINT", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
