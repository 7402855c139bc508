"""What the page asks for: the list of images under a choice, and each image with its objects, detections and picture."""

from __future__ import annotations

import io
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from detector.browse.judged import COLUMNS, WRONG, Choice, Judged, check_same_truth
from detector.data.describe import short_names_of
from detector.insight.analysis import SHAPES
from detector.insight.errors import KINDS
from detector.insight.funnel import STEPS
from detector.insight.verdict import RANGES
from detector.protocols import DataSet

SIDE, QUALITY = 1600, 88  # of a picture: pixels of its longer side at most, of JPEG
ORDERS = ("errors", "split", "worse", "better")  # the last two: by what the second run has more or less


class Gallery:
    """The images of a split with what one or two runs found in them.

    Args:
        dataset: the images.
        runs: on the same images and objects, else DataError is raised.
    """

    def __init__(self, dataset: DataSet, runs: Sequence[Judged]):
        check_same_truth(runs)
        self.dataset, self.runs = dataset, list(runs)
        index, names = {int(number): i for i, number in enumerate(dataset.image_ids)}, short_names_of(dataset)
        self._index = [index[number] for number in runs[0].image_ids]
        self.names = [names[i] for i in self._index]
        self._outlined = next((run for run in runs if run.shape == "segm"), runs[0])
        self._lock = threading.Lock()  # one picture at a time in memory

    def __len__(self) -> int:
        return len(self.names)

    def start(self) -> dict[str, Any]:
        """What the page needs once: names of runs, classes and images, and what the words mean."""
        return {
            "runs": [run.name for run in self.runs],
            "judged": [SHAPES[run.shape] for run in self.runs],
            "classes": self.runs[0].names,
            "images": self.names,
            "sizes": list(RANGES),
            "kinds": KINDS,
            "steps": STEPS,
            "orders": ORDERS[: 2 * len(self.runs)],
        }

    def listed(self, choice: Choice, kind: str = "", order: str = "errors") -> dict[str, Any]:
        """The totals of each run, and the images that have something of a choice.

        A row is the number of an image and, of each run, right and wrong detections, unfound objects, and errors: those of the
        `kind`, or without one all wrong and unfound. With a kind only images with such errors are listed.
        """
        tables = [run.counts(choice) for run in self.runs]
        wrong = [table[:, WRONG].sum(axis=1) for table in tables]
        unfound = [table[:, -1] for table in tables]
        errors = [table[:, COLUMNS.index(kind)] if kind else w + u for table, w, u in zip(tables, wrong, unfound)]
        everything = choice.label < 0 and choice.size < 0
        has = errors if kind else [table.sum(axis=1) + everything for table in tables]
        rows = np.flatnonzero(sum(has))
        by = {"errors": -sum(errors), "split": np.zeros(len(self), dtype=int), "worse": errors[0] - errors[-1]}
        by["better"] = -by["worse"]
        rows = rows[np.argsort(by[order][rows], kind="stable")]
        columns = [c for table, w, u, e in zip(tables, wrong, unfound, errors) for c in (table[:, 0], w, u, e)]
        return {
            "totals": [dict(zip(COLUMNS, table.sum(axis=0).tolist())) for table in tables],
            "rows": np.stack([np.arange(len(self)), *columns], axis=1)[rows].tolist(),
        }

    def image(self, number: int) -> dict[str, Any]:
        """Objects and detections of an image, in its pixels."""
        height, width = self.dataset.sizes[self._index[number]]
        return {
            "name": self.names[number],
            "id": self.runs[0].image_ids[number],
            "width": int(width),
            "height": int(height),
            "objects": self._outlined.objects_of(number),
            "runs": [{"detections": run.detections_of(number), "lost": run.lost_of(number)} for run in self.runs],
        }

    def picture(self, number: int) -> bytes:
        """An image as JPEG, upright, its longer side at most SIDE. Raises DetectorError where it cannot be read any more."""
        file = io.BytesIO()
        with self._lock:
            picture = Image.fromarray(self.dataset.image(self._index[number]).permute(1, 2, 0).numpy())
            picture.thumbnail((SIDE, SIDE))
            picture.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()


def choice_of(query: Mapping[str, str], classes: int) -> tuple[Choice, str, str]:
    """Choice, kind and order that a query asks for. Raises ValueError for what there is not."""
    known = {"score", "label", "size", "kind", "order"}
    if unknown := query.keys() - known:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
    score, label, size = float(query.get("score", 0.5)), int(query.get("label", -1)), int(query.get("size", -1))
    kind, order = query.get("kind", ""), query.get("order", ORDERS[0])
    if not (0 <= score <= 1 and -1 <= label < classes and -1 <= size < len(RANGES)):
        raise ValueError("a number is out of its range")
    if order not in ORDERS or kind not in ("", *KINDS):
        raise ValueError("no such kind or order")
    return Choice(score, label, size), kind, order
