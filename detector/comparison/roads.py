"""The same detectors by other roads: compiled, in ONNX Runtime, in OpenVINO. For inference on the CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.comparison.candidates import (
    BenchmarkInput,
    OwnCandidate,
    Setup,
    Stopwatch,
    TorchvisionCandidate,
    make_candidate,
)
from detector.data.image import read_image
from detector.export.card import Card
from detector.export.engines import BY_SUFFIX, TARGETS, open_engine
from detector.export.exported import Eager, over
from detector.export.graph import DetectionGraph
from detector.export.packages import optional, quiet
from detector.export.run import card_of, write
from detector.inference.predictor import Predictor, to_original
from detector.modeling.preprocess import round_up
from detector.records.geometry import Size
from detector.structures import Detections, image_size

ROADS = ["float32", "compiled", "onnx", "openvino", "torchvision", "torchvision in onnx", "torchvision in openvino"]


class ExportCandidate:
    """A predictor over a graph of one size, such as an exported file."""

    device = torch.device("cpu")

    def __init__(self, predictor: Predictor):
        self.predictor = predictor

    @torch.no_grad()  # a compiler would take the tensors of inference_mode for others, and begin again
    def infer(self, sample: BenchmarkInput, watch: Stopwatch) -> Detections:
        """One image from the file to detections, whose masks are pasted."""
        predictor = self.predictor
        image = watch("decode", predictor.read, sample.path)
        prepared = watch("pre", predictor.prepare, image)
        [found] = watch("model", predictor.model.detect, [prepared])
        result = watch("post", to_original, found, prepared, image_size(image))
        if result.masks is not None:
            watch("post", result.masks.paste)
        return result


class CompiledEngine(Eager):
    """The graph by torch.compile, in one piece, its weights packed for this processor, which takes a minute or more."""

    def __init__(self, graph: DetectionGraph, card: Card):
        compiled: Any = torch.compile(graph, fullgraph=True)
        super().__init__(compiled, card)
        with torch.no_grad(), quiet(), torch._inductor.config.patch(freezing=True):
            self(*blank(card.size))


class TorchvisionFile:
    """torchvision's detector in another engine, by its own exporter."""

    device = torch.device("cpu")

    def __init__(self, setup: Setup, engine: str):
        model = TorchvisionCandidate(setup).model
        folders = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        with folders as folder, quiet(), torch.no_grad():
            path = Path(folder) / "torchvision.onnx"
            torch.onnx.export(model, ([torch.rand(3, *setup.size)],), path, dynamo=False)  # as torchvision documents it
            if engine == "onnx":
                runtime = optional("onnxruntime", "onnx")
                session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
                [entry] = session.get_inputs()
                self.run = lambda x: session.run(None, {entry.name: x.numpy()})
            else:
                openvino = optional("openvino", "openvino")
                compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
                self.run = lambda x: list(compiled((x.numpy(),)).values())

    def infer(self, sample: BenchmarkInput, watch: Stopwatch) -> Detections:
        """One image from the file to detections, without masks: they stay within their boxes."""
        image = watch("decode", read_image, sample.path)
        x = watch("pre", lambda: image.float() / 255)
        boxes, labels, scores = (torch.from_numpy(found.copy()) for found in watch("model", self.run, x)[:3])
        return Detections(boxes, scores, labels - 1)


def road(setup: Setup, name: str, *, training: bool = False) -> Any:
    """The candidate of this name: one of ROADS, "bfloat16", or an exported file.

    Raises ConfigError if an engine is not installed, or if torchvision has no such model.
    """
    if Path(name).suffix in BY_SUFFIX:
        return ExportCandidate(over(open_engine(Path(name), trust=True)))
    maker, _, engine = name.rpartition(" in ")
    if maker:
        return TorchvisionFile(setup, engine)
    if name == "compiled" or name in TARGETS:
        return own_road(setup, name)
    return make_candidate(setup, name, training=training)


def own_road(setup: Setup, name: str) -> ExportCandidate:
    """This project's detector, compiled or in an engine, for images of the size of the setup."""
    eager = OwnCandidate(setup, "float32")
    predictor = eager.predictor
    predictor.resize = eager.resize
    size = round_up(setup.size, predictor.model.preprocess.divisor)
    if name == "compiled":
        graph = DetectionGraph(predictor.model, portable=False).eval()
        with torch.no_grad():
            outputs = list(graph.find(*blank(size)))  # which also makes the anchors of this size
        return ExportCandidate(with_engine(predictor, CompiledEngine(graph, card_of(predictor, outputs, size, 1))))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # an engine may still read the file
        path = Path(folder) / f"model{TARGETS[name].suffix}"
        write(predictor, TARGETS[name], path, size, 1)
        return ExportCandidate(with_engine(predictor, open_engine(path)))


def blank(size: Size) -> tuple[Tensor, Tensor]:
    """The inputs of a graph: one black image (1, 3, H, W), and its size (1, 2)."""
    return torch.zeros(1, 3, *size, dtype=torch.uint8), torch.tensor([size])


def with_engine(predictor: Predictor, engine: Any) -> Predictor:
    """The predictor over another engine, which resizes as before."""
    exported = over(engine)
    exported.prepare = predictor.resize.resize_image
    return exported
