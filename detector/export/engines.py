"""The engines that run exported files, one for each suffix: PyTorch, ONNX Runtime, OpenVINO.

A target is a class: `write(graph, inputs, card, path)` makes the `files` of a path, and `target(path)` is an Engine. A new one
is a class here and a line in TARGETS.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from detector.errors import CheckpointError, ConfigError, DetectorError
from detector.export.card import KEY, Card
from detector.export.graph import INPUTS


class Engine(Protocol):
    """An exported file, ready to run."""

    card: Card

    def __call__(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """The arguments of `DetectionGraph.find`, and its values."""


def optional(module: str, extra: str) -> Any:
    """An optional package. Raises ConfigError if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"needs {module}, which is not installed: pip install 'detector[{extra}]'") from error


class TorchFile:
    """A program of torch.export (.pt2), for Python and for compilers that start from it."""

    suffix, runs_code, modules = ".pt2", True, ()

    def __init__(self, path: Path):
        found = {KEY: ""}
        self.run = torch.export.load(path, extra_files=found).module()
        self.card = Card.loads(found[KEY], path)

    def __call__(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        return list(self.run(images, sizes))

    @staticmethod
    def files(path: Path) -> list[Path]:
        """What `write` makes."""
        return [path]

    @staticmethod
    def write(graph: nn.Module, inputs: tuple[Tensor, Tensor], card: Card, path: Path) -> None:
        """Trace the graph and save it."""
        with quiet():
            torch.export.save(traced(graph, inputs), path, extra_files={KEY: card.dumps()})


class OnnxFile:
    """An ONNX model (.onnx), run by ONNX Runtime."""

    suffix, runs_code, modules = ".onnx", False, ("onnx", "onnxscript", "onnxruntime")

    def __init__(self, path: Path):
        runtime = optional("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.log_severity_level = 3  # errors: it warns of each constant that it folds
        self.session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.card = Card.loads(self.session.get_modelmeta().custom_metadata_map.get(KEY), path)

    def __call__(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        found = self.session.run(None, dict(zip(INPUTS, (images.numpy(), sizes.numpy()), strict=True)))
        return [torch.from_numpy(x) for x in found]

    @staticmethod
    def files(path: Path) -> list[Path]:
        """What `write` makes."""
        return [path]

    @staticmethod
    def write(graph: nn.Module, inputs: tuple[Tensor, Tensor], card: Card, path: Path) -> None:
        """Trace the graph and translate it."""
        onnx = optional("onnx", "onnx")
        optional("onnxscript", "onnx")
        with quiet():
            program: Any = torch.onnx.export(
                traced(graph, inputs),
                inputs,
                dynamo=True,
                verbose=False,
                input_names=list(INPUTS),
                output_names=card.outputs,
            )
            model = program.model_proto
        onnx.helper.set_model_props(model, {KEY: card.dumps()})
        onnx.save(model, path)


class OpenVinoFile:
    """An OpenVINO model: .xml with its weights beside it in .bin."""

    suffix, runs_code, modules = ".xml", False, ("openvino", "onnx", "onnxscript")

    def __init__(self, path: Path):
        openvino = optional("openvino", "openvino")
        model = openvino.Core().read_model(path)
        described = model.has_rt_info([KEY])
        self.card = Card.loads(model.get_rt_info([KEY]).astype(str) if described else None, path)
        # without the hint it computes in bfloat16 where the processor has instructions for it
        self.compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def __call__(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        found = self.compiled((images.numpy(), sizes.numpy()))
        return [torch.from_numpy(np.array(found[i])) for i in range(len(self.card.outputs))]

    @staticmethod
    def files(path: Path) -> list[Path]:
        """What `write` makes."""
        return [path, path.with_suffix(".bin")]

    @staticmethod
    def write(graph: nn.Module, inputs: tuple[Tensor, Tensor], card: Card, path: Path) -> None:
        """Translate the graph by way of ONNX, which OpenVINO reads best."""
        openvino = optional("openvino", "openvino")
        with tempfile.TemporaryDirectory() as folder, quiet():
            OnnxFile.write(graph, inputs, card, Path(folder) / "graph.onnx")
            model = openvino.convert_model(Path(folder) / "graph.onnx")
            model.set_rt_info(card.dumps(), [KEY])
            openvino.save_model(model, path, compress_to_fp16=False)


TARGETS: dict[str, type[Any]] = {"pt2": TorchFile, "onnx": OnnxFile, "openvino": OpenVinoFile}
MOST_PIXELS = 10**9  # of a batch
RANKS = {"boxes": 3, "scores": 2, "labels": 2, "masks": 4, "mask_scores": 2, "heat_maps": 5}
BY_SUFFIX = {target.suffix: target for target in TARGETS.values()}


def open_engine(path: Path, *, trust: bool = False) -> Engine:
    """An exported file, ready to run on the CPU, after a first run on a blank image.

    Raises CheckpointError for one that is missing, damaged or not an export.
    """
    target = BY_SUFFIX[path.suffix]
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


@torch.no_grad()
def traced(graph: nn.Module, inputs: tuple[Tensor, Tensor]) -> torch.export.ExportedProgram:
    """The graph of fixed shapes as torch.export sees it."""
    with quiet():
        return torch.export.export(graph, inputs, strict=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' progress reports, and their warnings about their own code."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
