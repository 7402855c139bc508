"""What tiles bring and cost: AP of small objects in large drawn images, with and without; CPU seconds per megapixel; memory.

`PYTHONPATH=. python scripts/measure_tiles.py runs/tiles` draws 28 images of 1600 x 1600 pixels with about a hundred objects each,
most of them of 8 to 16 pixels, trains one small detector on the whole images and one on tiles, and prints a table. `--side 20000
--memory` prints the memory that one image of that side takes instead.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image

import detector
from detector.data.image import read_image
from detector.data.synthetic.raster import Canvas, belongs, rasterise
from detector.data.tiles import Tiles
from detector.device import describe_device

CLASSES = ("disc", "square", "triangle")
CELL = 200  # pixels of a field; an image is a patchwork of fields
MOST_OBJECTS = 3  # of a field
SIDES = ((8, 16), (8, 16), (8, 16), (17, 64))  # in pixels
COUNTS = {"train": 20, "val": 8}
TILE = 320
WHOLE = 533  # a third of an image of 1600 pixels, as a recipe of 1333 pixels sees one of 4000
CPU = torch.device("cpu")
BASE = {
    "_base_": "detector://_base_/faster_rcnn_r18_fpn_small.yaml",
    "model": {"backbone": {"width": 16}, "neck": {"width": 32}, "rpn": {"anchors": {"sizes": [[4], [8], [16], [32], [64]]}},
              "roi_head": {"box_head": {"width": 128}, "pool": {"canonical_size": 56}}},
    "train": {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.01, "batch_size": 4, "lr_batch": 4, "schedule": "cosine",
              "warmup_steps": 20, "clip_norm": 10.0, "evaluate_every": 100, "device": "cpu"},
}  # fmt: skip
RUNS = {  # name -> the size to which an image or a tile is resized, its tiles, its epochs: 205 megapixels each
    "whole images": {"data": {"resize": {"short": WHOLE, "long": WHOLE}}, "train": {"epochs": 36}},
    "tiles": {"data": {"resize": {"short": TILE, "long": TILE}, "tiles": {"size": TILE}}, "train": {"epochs": 2}},
}


def draw_field(rng: RandomState) -> tuple[np.ndarray, list[tuple[int, int, int, int, int]]]:
    """A field (CELL, CELL, 3) uint8, and class, x, y, width and height of its objects."""
    canvas = Canvas(rng, CELL, CELL)
    for _ in range(rng.randint(MOST_OBJECTS + 1)):
        least, most = SIDES[rng.randint(len(SIDES))]
        label, side = rng.randint(len(CLASSES)), rng.randint(least, most + 1)
        coverage = rasterise(CLASSES[label], side, side, rng.randint(-4, 5), 32)
        place = canvas.find_place(belongs(coverage))
        if place is not None:
            canvas.add(label, coverage, *place)
    return canvas.pixels(), [(one.label, *one.box) for one in canvas.drawn]


def draw_split(folder: Path, split: str, side: int) -> None:
    """Images in folder/split and boxes in folder/split.json, in COCO form."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(COUNTS[split]):
        pixels = np.zeros((side, side, 3), dtype=np.uint8)
        for top, left in itertools.product(range(0, side, CELL), repeat=2):
            field, objects = draw_field(RandomState([split == "val", number, top, left]))
            pixels[top : top + CELL, left : left + CELL] = field
            for label, x, y, w, h in objects:
                where = {"bbox": [left + x, top + y, w, h], "area": w * h, "iscrowd": 0}
                annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label, **where})
        Image.fromarray(pixels).save(folder / split / f"{number}.jpg", quality=95)
        images.append({"id": number, "file_name": f"{number}.jpg", "width": side, "height": side})
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES)]
    (folder / f"{split}.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )


def trained(folder: Path, name: str) -> Path:
    """The checkpoint of one of RUNS, which is trained unless it is there."""
    output = folder / name.replace(" ", "_")
    if not (output / "best.pth").exists():
        splits = {split: {"images": split, "annotations": f"{split}.json"} for split in COUNTS}
        content = {key: {**BASE[key], **RUNS[name].get(key, {})} for key in ("model", "train")}
        data = {"root": str(folder), "workers": 1, **splits, **RUNS[name]["data"]}
        began = time.monotonic()
        detector.train({"_base_": BASE["_base_"], **content, "data": data}, output)
        print(f"{name}: trained in {time.monotonic() - began:.0f} s")
    return output / "best.pth"


def seconds_per_megapixel(predictor: detector.Predictor, images: Sequence[Path], tiles: Tiles | None) -> float:
    """Of all processors, the least of two looks at each image, which is in memory; the median over the images."""
    found = []
    for path in images:
        image, seconds = read_image(path), []
        for _ in range(2):
            began = time.process_time()
            predictor(image, tiles=tiles)
            seconds.append(time.process_time() - began)
        found.append(min(seconds) / (image.shape[1] * image.shape[2] / 1e6))
    return float(np.median(found))


def compare(folder: Path, side: int) -> None:
    """Print a table."""
    for split in COUNTS:
        if not (folder / f"{split}.json").exists():
            draw_split(folder, split, side)
    rows = []
    for name, tiles in [("whole images", None), ("whole images", Tiles(WHOLE)), ("tiles", None),
                        ("tiles", Tiles(TILE)), ("tiles", Tiles(TILE, whole=False))]:  # fmt: skip
        predictor = detector.load(trained(folder, name), device="cpu")
        metrics = detector.evaluate(predictor, tiles=tiles)["bbox"]
        images = sorted((folder / "val").iterdir())[:3]
        seen, resized = tiles.sides[0] if tiles else side, max(predictor.resize.sides)
        rows.append((name, tiles or "none", resized / seen, metrics["AP"], metrics["AP50"], metrics["APs"], metrics["APm"],
                     seconds_per_megapixel(predictor, images, tiles)))  # fmt: skip
    print(f"\n{describe_device(CPU)}, torch {torch.__version__}\n")
    columns = [
        "trained on",
        "evaluated in",
        "magnification",
        "AP",
        "AP50",
        "AP small",
        "AP medium",
        "CPU s per megapixel",
    ]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, tiles, scale, *scores, seconds in rows:
        print(f"| {name} | {tiles} | {scale:.2f} | {' | '.join(f'{score:.3f}' for score in scores)} | {seconds:.2f} |")


def draw_large(path: Path, side: int) -> None:
    """One square image of fields, as a JPEG file."""
    fields = [draw_field(RandomState([2, number]))[0] for number in range(64)]
    rng, count = RandomState(0), -(-side // CELL)
    rows = [np.concatenate([fields[k] for k in rng.randint(64, size=count)], axis=1) for _ in range(count)]
    Image.fromarray(np.concatenate(rows)[:side, :side]).save(path, quality=90)


def measure_memory(folder: Path, side: int, tile: int, checkpoint: Path | None) -> None:
    """Print the peak memory and the time of `detector infer --tiles` for one image."""
    checkpoint, path = checkpoint or trained(folder, "tiles"), folder / f"large_{side}.jpg"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        drawing = multiprocessing.get_context("spawn").Process(target=draw_large, args=(path, side))
        drawing.start()  # in another process: Linux counts what this one has used as the next one's
        drawing.join()
    options = ["--output", folder / "found", "--tiles", tile, "--device", "cpu", f"data.max_pixels={side * side}"]
    command = [sys.executable, "-m", "detector", "infer", checkpoint, path, *options]
    running = subprocess.Popen([str(word) for word in command])
    usage = os.wait4(running.pid, 0)[2]
    print(
        f"{describe_device(CPU)}: {side} x {side} pixels, {side * side / 1e6:.0f} megapixels: peak "
        f"{usage.ru_maxrss / 2**20:.2f} GiB, {usage.ru_utime + usage.ru_stime:.0f} s of the processor"
    )


def main() -> None:
    """Draw, train, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the drawn images and the trainings; what is there is used again")
    parser.add_argument("--side", type=int, default=1600, help="of the images, in pixels (default: 1600)")
    parser.add_argument("--memory", action="store_true", help="measure the memory of one large image instead")
    parser.add_argument("--tile", type=int, default=TILE, help=f"of the one large image, in pixels (default: {TILE})")
    parser.add_argument(
        "--checkpoint", type=Path, help="of the detector whose memory is measured (default: that on tiles)"
    )
    args = parser.parse_args()
    if args.memory:
        measure_memory(args.folder, args.side, args.tile, args.checkpoint)
    else:
        compare(args.folder, args.side)


if __name__ == "__main__":
    main()
