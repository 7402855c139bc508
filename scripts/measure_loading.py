"""Cost of annotations of the size of COCO's: seconds to load, and memory, also of the processes that load images."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset, get_worker_info

from detector.cli.arguments import CommandParser
from detector.cli.ending import ending
from detector.data.coco import CocoDataset
from detector.errors import DetectorError

IMAGES, BOXES, CLASSES = 118_000, 860_000, 80  # of COCO train2017, nearly
POINTS = 24  # of an outline, on average: the file has COCO's size
WORKERS = (0, 2, 4)
BATCH = 16
MIB = 2**20


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = CommandParser(prog="measure_loading.py", description=__doc__)
    parser.add_argument(
        "--fields", nargs="+", default=[], help="also hold these for a model: outlines, masks, keypoints"
    )
    parser.add_argument("annotations", nargs="?", type=Path, help="a COCO file (default: one of COCO's size is made)")
    return parser.parse_args(argv)


def write_annotations(path: Path) -> None:
    """A file of IMAGES, BOXES and their outlines, in a few pieces at a time."""
    rng = np.random.default_rng(0)
    image = {"width": 640, "height": 480, "license": 1, "date_captured": "2013-11-14 17:02:52"}
    url = "http://images.cocodataset.org/train2017/{:012}.jpg"
    images = ({"id": i, "file_name": f"{i:012}.jpg", "coco_url": url.format(i), **image} for i in range(IMAGES))
    categories = ({"id": i, "name": f"class {i}"} for i in range(CLASSES))
    with open(path, "w", encoding="utf-8") as file:
        for head, entries in (
            ('{"images": [', images), ('], "categories": [', categories), ('], "annotations": [', objects(rng))
        ):  # fmt: skip
            file.write(head)
            for i, entry in enumerate(entries):
                file.write((", " if i else "") + json.dumps(entry))
        file.write("]}")


def objects(rng: np.random.Generator) -> Iterator[dict]:
    """Boxes in images at random, each with an outline of its own length."""
    owners, classes = rng.integers(IMAGES, size=BOXES).tolist(), rng.integers(CLASSES, size=BOXES).tolist()
    boxes = (rng.random((BOXES, 4)) * [400, 300, 200, 150] + 1).round(2).tolist()
    outlines = (rng.random(2 * POINTS * 1000) * 500).round(2).tolist()
    lengths = (2 * rng.integers(3, 2 * POINTS - 3, size=BOXES)).tolist()
    for i, (owner, label, box, length) in enumerate(zip(owners, classes, boxes, lengths)):
        outline = outlines[(start := i % 40_000) : start + length]
        place = {"image_id": owner, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        yield {"id": i, **place, "segmentation": [outline]}


def memory() -> dict[str, float]:
    """Memory of this process in MiB: resident, its share of it (PSS), and the part that no other process shares."""
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    kib = {name.rstrip(":"): int(number) for name, number, *_ in lines}
    own = kib["Private_Clean"] + kib["Private_Dirty"]
    return {"resident": kib["Rss"] / 1024, "share": kib["Pss"] / 1024, "own": own / 1024}


class Targets(Dataset):
    """The objects of every image without the image, with the worker that read them and its memory."""

    def __init__(self, dataset: CocoDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[int, float | None]:
        target, name = self.dataset.target(i), self.dataset.file_names[i]
        worker = get_worker_info()
        measured = memory()["own"] if i // BATCH % 400 < (1 if worker is None else worker.num_workers) else None
        return (0 if worker is None else worker.id), measured if len(name) + len(target.boxes) else None


def walk(dataset: CocoDataset, workers: int) -> list[tuple[float, float]]:
    """Private MiB of every process, at its first targets and after all of them."""
    seen: dict[int, list[float]] = {}
    for batch in DataLoader(Targets(dataset), BATCH, num_workers=workers, collate_fn=list):
        for worker, own in batch:
            if own is not None:
                seen.setdefault(worker, []).append(own)
    return [(own[0], own[-1]) for own in seen.values()]


def measure(path: Path, fields: list[str]) -> None:
    """Print seconds and memory; this process must have loaded nothing before."""
    before, began, worked = memory(), time.perf_counter(), time.process_time()
    dataset = CocoDataset(path.parent, path, fields=fields)
    seconds, of_processor, after = time.perf_counter() - began, time.process_time() - worked, memory()
    took = f"{seconds:.1f} s, {of_processor:.1f} s of them at work"
    print(f"{dataset.report}\n{path.stat().st_size / MIB:.0f} MiB of JSON loaded in {took}\n")
    print(f"{'':14}{'resident':>10}{'share':>10}{'own':>10}  MiB")
    for name, row in (("before", before), ("loaded", after), ("added", {k: after[k] - before[k] for k in after})):
        print(f"{name:14}" + "".join(f"{row[k]:10.1f}" for k in ("resident", "share", "own")))
    print(f"\n{'workers':>7}{'at first':>12}{'in the end':>12}  MiB private to each, on average")
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more processes than cores
    for workers in WORKERS:
        first, last = np.mean(walk(dataset, workers), axis=0)
        print(f"{workers:7}{first:12.1f}{last:12.1f}")


def measure_in_child(args: argparse.Namespace) -> int:
    """Measure a given file in this process, or a made one in a child, which holds nothing else; the exit status."""
    if not os.path.exists("/proc/self/smaps_rollup"):
        raise DetectorError("this system does not say what processes share: no /proc/self/smaps_rollup")
    if args.annotations is not None:
        measure(args.annotations, args.fields)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.json"
        write_annotations(path)
        fields = ["--fields", *args.fields] if args.fields else []
        return subprocess.run([sys.executable, __file__, path, *fields]).returncode


def main(argv: list[str] | None = None) -> int:
    """Measure; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        end.status = measure_in_child(args)
    return end.status


if __name__ == "__main__":
    sys.exit(main())
