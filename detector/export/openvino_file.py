"""OpenVINO models."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detector.export.card import KEY, Batches, Card
from detector.export.graph import INPUTS
from detector.export.onnx_file import OnnxFile
from detector.export.packages import optional, quiet
from detector.progress import Progress

LAYERS_OF_OPENVINO = {
    "Convolution", "ConvolutionBackpropData", "DeformableConvolution", "GroupConvolution", "GroupConvolutionBackpropData",
    "MatMul",
}  # fmt: skip
LEFT_ALONE = {"Constant", "Parameter", "Result"}  # by the quantiser


class OpenVinoFile:
    """An OpenVINO model: .xml with its weights beside it in .bin."""

    suffix, runs_code, precisions, takes_sizes = ".xml", False, ("float32", "float16", "int8"), True

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
    def check(precision: str) -> None:
        """Raise ConfigError if a package is missing."""
        for module in ("openvino", "onnx", "onnxscript"):
            optional(module, "openvino")
        if precision == "int8":
            optional("nncf", "int8")

    @staticmethod
    def files(path: Path) -> list[Path]:
        """What `write` makes."""
        return [path, path.with_suffix(".bin")]

    @staticmethod
    def write(
        graph: nn.Module, inputs: tuple[Tensor, Tensor], card: Card, path: Path, calibration: Batches = ()
    ) -> None:
        """Translate the graph by way of ONNX, which OpenVINO reads best."""
        openvino = optional("openvino", "openvino")
        with tempfile.TemporaryDirectory() as folder, quiet():
            OnnxFile.write(graph, inputs, replace(card, precision="float32"), Path(folder) / "graph.onnx")
            rules = [optional("openvino.frontend.onnx", "openvino").ConversionExtension("DeformConv", deformable)]
            model = openvino.convert_model(Path(folder) / "graph.onnx", extension=rules)
            if card.precision == "float16":
                halve_openvino_weights(model)
            if card.precision == "int8":
                model = quantized(model, calibration)
            model.set_rt_info(card.dumps(), [KEY])
            openvino.save_model(model, path, compress_to_fp16=False)


def deformable(node: Any) -> list[Any]:
    """ONNX's DeformConv without a mask in OpenVINO's operators, for which its reader of ONNX has no rule."""
    operators: Any = optional("openvino.opset8", "openvino")
    x, weight, offset, bias = (node.get_input(i) for i in range(4))
    strides, pads, dilations = (list(node.get_attribute(name)) for name in ("strides", "pads", "dilations"))
    group, offset_group = node.get_attribute("group"), node.get_attribute("offset_group")
    y = operators.deformable_convolution(
        x, offset, weight, strides, pads[:2], pads[2:], dilations, group=group, deformable_group=offset_group,
        bilinear_interpolation_pad=True,
    )  # fmt: skip
    shift = operators.reshape(bias, np.array([1, -1, 1, 1]), special_zero=False)
    return [operators.add(y, shift).output(0)]


def halve_openvino_weights(model: Any) -> None:
    """Store the weights of an openvino.Model in float16, as `halve_onnx_weights` does in the other format."""
    operators: Any = optional("openvino.opset13", "openvino")
    for layer in model.get_ops():
        if layer.get_type_name() in LAYERS_OF_OPENVINO:
            weight = layer.input(1).get_source_output().get_node()
            if weight.get_type_name() == "Constant":
                half = operators.constant(weight.data.astype(np.float16))
                layer.input(1).replace_source_output(operators.convert(half, "f32").output(0))


def quantized(model: Any, calibration: Batches) -> Any:
    """The model with layers in int8, whose ranges come from the batches; by NNCF (min-max and bias correction)."""
    nncf = optional("nncf", "int8")
    with Progress(total=len(calibration), unit="batch", desc="calibrate") as bar:

        def inputs(batch: tuple[Tensor, Tensor]) -> dict[str, np.ndarray]:
            bar.update()
            return dict(zip(INPUTS, (x.numpy() for x in batch), strict=True))

        dataset, alone = nncf.Dataset(calibration, inputs), nncf.IgnoredScope(names=outside_the_network(model))
        return nncf.quantize(model, dataset, subset_size=len(calibration), ignored_scope=alone)


def outside_the_network(model: Any) -> list[str]:
    """Names of operations that compute with boxes and scores: 256 values are too few for a coordinate.

    The network has maps of rank 4, and layers with their activations. ScatterNDUpdate joins the regions of all levels: beyond it
    the quantiser would reach RoIAlign, and the layer that reads the regions would stay in float32.
    """
    return [
        operation.get_friendly_name()
        for operation in model.get_ops()
        if operation.get_type_name() == "ScatterNDUpdate"
        or (
            operation.get_type_name() not in {*LEFT_ALONE, "MatMul", "Relu"}
            and any(x.get_partial_shape().rank.get_length() != 4 for x in operation.outputs())
        )
    ]
