"""Files of each engine: what they say of themselves, weights of float16, native code."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import picture
from torchvision.ops import deform_conv2d

import detector
from detector.errors import CheckpointError
from detector.export.card import Card
from detector.export.engines import check_card, open_engine
from detector.export.graph import padded
from detector.export.onnx_file import halve_onnx_weights
from detector.export.openvino_file import deformable, halve_openvino_weights, outside_the_network
from detector.export.torch_files import CompiledFile, is_compiled


class Rows(torch.nn.Module):
    """A graph of one detection, the mean of the pixels."""

    def forward(self, images: torch.Tensor, sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
        mean = images.float().mean(dim=(1, 2, 3))[:, None]
        return torch.stack([mean] * 4, dim=2), mean / 255, torch.zeros_like(mean, dtype=torch.int64)


@pytest.mark.slow
def test_compiled_code_is_a_pt2_file_that_is_told_apart_and_needs_trust(tmp_path: Path):
    path = tmp_path / "a.pt2"
    CompiledFile.check("float32")
    CompiledFile.write(Rows(), padded([picture(8, 8)], (8, 8)), Fake().card, path)
    assert is_compiled(path)
    with pytest.raises(CheckpointError, match="may run code in it; if you trust its origin, add --trust"):
        detector.load(path)
    engine = open_engine(path, trust=True)
    assert isinstance(engine, CompiledFile) and engine.card == Fake().card
    boxes, scores, labels = engine(*padded([torch.full((3, 8, 8), 51, dtype=torch.uint8)], (8, 8)))
    assert boxes.tolist() == [[[51.0] * 4]] and scores.tolist() == [[pytest.approx(0.2)]] and labels.tolist() == [[0]]


def test_weights_are_halved_and_nothing_else():
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    weight, bias = (np.random.default_rng(0).random(shape, dtype=np.float32) for shape in ((4, 3, 1, 1), (4,)))
    node = onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"])
    values = [onnx.helper.make_tensor_value_info(n, 1, [1, c, 2, 2]) for n, c in (("x", 3), ("y", 4))]
    tensors = [onnx.numpy_helper.from_array(a, n) for a, n in ((weight, "w"), (bias, "b"))]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], tensors)
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])
    halve_onnx_weights(model)
    onnx.checker.check_model(model)
    assert [(t.name, t.data_type) for t in model.graph.initializer] == [("w.float16", 10), ("b", 1)]
    x = np.ones((1, 3, 2, 2), np.float32)
    [found] = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )
    assert np.allclose(found[0, :, 0, 0], weight.astype(np.float16).astype(np.float32).sum((1, 2, 3)) + bias, atol=1e-6)


def test_openvino_weights_are_halved_and_boxes_are_kept_from_the_quantiser(tmp_path: Path):
    openvino, operators = pytest.importorskip("openvino"), pytest.importorskip("openvino.opset13")
    x = operators.parameter([1, 3, 4, 4], np.float32, name="x")
    weight = np.random.default_rng(0).random((8, 3, 1, 1), dtype=np.float32)
    maps = operators.convolution(x, operators.constant(weight), [1, 1], [0, 0], [0, 0], [1, 1])
    rows = operators.reshape(maps, operators.constant(np.array([32, 4])), False)
    boxes = operators.add(rows, operators.constant(np.full((32, 4), 1000.3, np.float32)))
    boxes.set_friendly_name("boxes")
    rows.set_friendly_name("rows")
    model = openvino.Model([boxes], [x], "m")
    assert sorted(outside_the_network(model)) == ["boxes", "rows"]
    halve_openvino_weights(model)
    openvino.save_model(model, tmp_path / "a.xml", compress_to_fp16=False)
    assert (tmp_path / "a.xml").read_text().count('element_type="f16"') == 1
    found = openvino.compile_model(tmp_path / "a.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
        np.ones((1, 3, 4, 4), np.float32)
    )
    half = weight.astype(np.float16).astype(np.float32).sum((1, 2, 3))
    assert np.allclose(found[0].reshape(8, 16)[:, 0], half + np.float32(1000.3), atol=1e-3)


class Fake:
    """An engine that returns one row an image, and its description."""

    def __init__(self, **card: Any) -> None:
        given = {
            "class_names": ["a"],
            "category_ids": [1],
            "config": {},
            "size": (8, 8),
            "batch": 1,
            "proposals_only": False,
        }
        self.card = Card(**given | {"outputs": ["boxes", "scores", "labels"]} | card)

    def __call__(self, images: torch.Tensor, sizes: torch.Tensor) -> list[torch.Tensor]:
        n = len(images)
        return [torch.zeros(n, 1, 4), torch.zeros(n, 1), torch.zeros(n, 1, dtype=torch.int64)]


def test_a_description_that_does_not_fit_the_graph_is_refused():
    check_card(Fake())
    for card in (
        {"batch": 0}, {"batch": 10**9}, {"batch": "1"}, {"size": (0, 8)}, {"size": (10**6, 10**6)}, {"class_names": []},
        {"class_names": "a"}, {"class_names": ["a", "b"]}, {"class_names": [1]}, {"category_ids": ["1"]}, {"outputs": ["boxes"]},
        {"class_names": ["a", "b"], "category_ids": [1, 1]}, {"outputs": ["boxes", "labels", "scores", "masks"]},
        {"outputs": ["scores", "boxes", "labels"]}, {"keypoints": {"scores": "logit", "offset": 0.0}},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            check_card(Fake(**card))


def test_a_graph_for_several_sizes_wants_the_least_multiple_that_holds_all_images():
    card = Fake(size=(160, 160), least_size=(96, 96), divisor=32).card
    for sizes, expected in [
        ([(90, 97)], (96, 128)), ([(96, 96)], (96, 96)), ([(1, 1)], (96, 96)), ([(97, 20), (20, 160)], (128, 160)),
    ]:  # fmt: skip
        assert card.padded_size([torch.zeros(3, *size) for size in sizes]) == expected
    assert Fake(size=(160, 160)).card.padded_size([torch.zeros(3, 1, 1)]) == (160, 160)
    assert Card.loads(card.dumps(), Path("a")) == card


@pytest.mark.parametrize(("stride", "dilation", "bias"), [(1, 1, False), (2, 1, True), (1, 3, True)])
def test_openvino_computes_deformable_convolutions(stride: int, dilation: int, bias: bool, tmp_path: Path):
    """By a rule of this project: its reader of ONNX has none."""
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    offset = torch.nn.Conv2d(4, 18, 3, stride, padding=dilation, dilation=dilation)
    weight, shift = torch.randn(8, 4, 3, 3) / 6, torch.randn(8) if bias else None
    places = offset.stride, offset.padding, offset.dilation

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return deform_conv2d(x, 3 * offset(x), weight, shift, *places)

    x = torch.randn(1, 4, 20, 24)
    torch.onnx.export(Layer().eval(), (x,), tmp_path / "layer.onnx", dynamo=True, verbose=False)
    rule = pytest.importorskip("openvino.frontend.onnx").ConversionExtension("DeformConv", deformable)
    model = openvino.convert_model(tmp_path / "layer.onnx", extension=[rule])
    with torch.no_grad():
        want = Layer()(x)
    [found] = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x.numpy()).values()
    torch.testing.assert_close(torch.from_numpy(found), want, rtol=0, atol=1e-4)
