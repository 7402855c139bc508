"""ONNX models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector.export.card import KEY, Batches, Card
from detector.export.graph import INPUTS
from detector.export.packages import optional, quiet
from detector.export.torch_files import traced

LAYERS = {"Conv", "ConvTranspose", "DeformConv", "Gemm", "MatMul"}  # whose second input are weights


class OnnxFile:
    """An ONNX model (.onnx), run by ONNX Runtime."""

    suffix, runs_code, precisions, takes_sizes = ".onnx", False, ("float32", "float16"), True

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
    def check(precision: str) -> None:
        """Raise ConfigError if a package is missing."""
        for module in ("onnx", "onnxscript", "onnxruntime"):
            optional(module, "onnx")

    @staticmethod
    def files(path: Path) -> list[Path]:
        """What `write` makes."""
        return [path]

    @staticmethod
    def write(
        graph: nn.Module, inputs: tuple[Tensor, Tensor], card: Card, path: Path, calibration: Batches = ()
    ) -> None:
        """Trace the graph and translate it."""
        onnx = optional("onnx", "onnx")
        optional("onnxscript", "onnx")
        with quiet():
            program: Any = torch.onnx.export(
                traced(graph, inputs, card),
                inputs,
                dynamo=True,
                verbose=False,
                input_names=list(INPUTS),
                output_names=card.outputs,
            )
            model = program.model_proto
        if card.precision == "float16":
            halve_onnx_weights(model)
        onnx.helper.set_model_props(model, {KEY: card.dumps()})
        onnx.save(model, path)


def halve_onnx_weights(model: Any) -> None:
    """Store the weights of an onnx.ModelProto in float16, each with a node that makes it float32 again.

    ONNX Runtime does this once, when it reads the file, and computes in float32. Anchors and biases keep their digits.
    """
    onnx = optional("onnx", "onnx")
    weights = {node.input[1] for node in model.graph.node if node.op_type in LAYERS}
    casts = []
    for tensor in model.graph.initializer:
        if tensor.name in weights and tensor.data_type == onnx.TensorProto.FLOAT:
            name = f"{tensor.name}.float16"
            casts.append(onnx.helper.make_node("Cast", [name], [tensor.name], to=onnx.TensorProto.FLOAT))
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), name))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
