"""The engines that run exported files: PyTorch, ONNX Runtime, OpenVINO, and native code by PyTorch's compiler.

A target is a class: `write(graph, inputs, card, path, calibration)` makes the `files` of a path in one of its `precisions`, and
`target(path)` is an Engine. A new one is a class and a line in TARGETS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from detector.errors import CheckpointError, DetectorError
from detector.export.card import Card
from detector.export.onnx_file import OnnxFile
from detector.export.openvino_file import OpenVinoFile
from detector.export.packages import quiet
from detector.export.torch_files import CompiledFile, TorchFile, is_compiled


class Engine(Protocol):
    """An exported file, ready to run."""

    card: Card

    def __call__(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """The arguments of `DetectionGraph.find`, and its values."""


TARGETS: dict[str, type[Any]] = {"pt2": TorchFile, "onnx": OnnxFile, "openvino": OpenVinoFile, "aoti": CompiledFile}
MOST_PIXELS = 10**9  # of a batch
RANKS = {"boxes": 3, "scores": 2, "labels": 2, "masks": 4, "mask_scores": 2, "heat_maps": 5}
BY_SUFFIX = {target.suffix: target for target in (TorchFile, OnnxFile, OpenVinoFile)}


def open_engine(path: Path, *, trust: bool = False) -> Engine:
    """An exported file, ready to run on the CPU, after a first run on a blank image.

    Raises CheckpointError for one that is missing, damaged or not an export.
    """
    target = CompiledFile if is_compiled(path) else BY_SUFFIX[path.suffix]
    for file in target.files(path):
        if not file.is_file():
            raise CheckpointError(f"{file}: no such file")
    if target.runs_code and not trust:
        raise CheckpointError(
            f"{path}: reading a {path.suffix} file may run code in it; if you trust its origin, add --trust, or trust=True"
        )
    try:
        with quiet():
            engine = target(path)
        check_card(engine)
    except DetectorError:
        raise
    except Exception as error:  # each engine has errors of its own
        lines = [
            line
            for line in str(error).splitlines()
            if line.strip() and not line.startswith(("Exception from", "Check"))
        ]
        raise CheckpointError(
            f"{path}: cannot be read ({lines[0].strip() if lines else type(error).__name__}); export the checkpoint again"
        ) from error
    return engine


def check_card(engine: Engine) -> None:
    """Run a blank image. Raises ValueError where what the file says of itself is not what it computes."""
    card = engine.card
    (h, w), count = card.size, card.batch
    if not (isinstance(count, int) and 1 <= count and 1 <= h and 1 <= w and count * h * w <= MOST_PIXELS):
        raise ValueError(f"no size of a graph: {count} images of {h} x {w} pixels")
    names, ids = card.class_names, card.category_ids
    if not (isinstance(names, list) and isinstance(ids, list) and len(names) == len(ids) == len({*ids}) > 0):
        raise ValueError("class names and category ids do not fit")
    if not all(isinstance(name, str) for name in names) or not all(isinstance(number, int) for number in ids):
        raise ValueError("class names are texts, category ids are whole numbers")
    h, w = card.least_size or card.size
    found = engine(torch.zeros(count, 3, h, w, dtype=torch.uint8), torch.tensor([[h, w]] * count))
    ranks = dict(zip(card.outputs, (x.ndim for x in found), strict=True))
    rows = {tuple(x.shape[:2]) for x in found}
    if (
        {name: RANKS.get(name) for name in ranks} != ranks
        or not {"boxes", "scores", "labels"} <= ranks.keys()
        or len(rows) != 1
    ):
        raise ValueError(f"the outputs are not {', '.join(card.outputs)}")
    if ("heat_maps" in ranks) != (card.keypoints is not None):
        raise ValueError("heat maps without a rule of reading them, or the reverse")
