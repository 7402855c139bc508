"""Exported files without PyTorch: `detector.runtime` finds what the predictor finds in the same file, and stands alone."""

import ast
import functools
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import CONFIG, IDS, NAMES, picture, predictor_of, tiny_model
from PIL import Image
from pycocotools import mask as coco_mask

import detector
from detector import runtime
from detector.config.inherit import merge
from detector.data import image
from detector.data.transforms import Resize
from detector.errors import DetectorError
from detector.export import card
from detector.export.engines import TARGETS
from detector.export.exported import Eager, over
from detector.export.graph import DetectionGraph, padded
from detector.export.run import card_of, write
from detector.inference.predictor import Predictor
from detector.modeling.roi_heads.heat_maps import read_heat_maps
from detector.records.region_masks import RegionMasks
from detector.runtime import Runtime, WrongInput, main

SOURCE = Path(runtime.__file__)
SHAPES = {  # masks and keypoints, ten rows
    "roi_head": {
        "selection": {"max_detections": 10}, "mask_head": {"width": 16},
        "keypoint_head": {"width": 16, "convs": 1, "keypoints": 3},
    }
}  # fmt: skip
SPLIT = {"images": "i", "annotations": "a.json"}
DATA = {"root": ".", "train": SPLIT, "val": SPLIT, "resize": {"short": 96, "long": 128}}


def tiny_predictor() -> Predictor:
    return predictor_of(tiny_model(**SHAPES), {**CONFIG, "model": merge(CONFIG["model"], SHAPES), "data": DATA})


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file whose graph PyTorch runs: a real export takes as long as all these tests, and is in the slow one."""
    path, there = tmp_path / "model.onnx", eager()
    path.touch()

    def run(images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [x.numpy() for x in there.model.engine(torch.from_numpy(images), torch.from_numpy(sizes))]

    started = runtime._started
    stand_in = (there.model.card.dumps(), run)
    monkeypatch.setattr(
        runtime, "_started", lambda engine, name: stand_in if name == str(path) else started(engine, name)
    )
    monkeypatch.setattr(detector, "load", lambda path: there)
    return path


@functools.cache
def eager() -> Predictor:
    """The predictor over that graph."""
    pytest.importorskip("onnxruntime")
    predictor = tiny_predictor()
    graph = DetectionGraph(predictor.model, portable=False).eval()
    with torch.no_grad():
        outputs = list(graph.find(*padded([torch.zeros(3, 96, 128, dtype=torch.uint8)], (96, 128))))
    return over(Eager(graph, card_of(predictor, outputs, (96, 128), 1)))


def odd_images() -> dict[str, bytes]:
    """Content of files that readers stumble over, by name."""
    pixels = Image.fromarray(picture(90, 120).permute(1, 2, 0).numpy())
    turned = Image.Exif()
    turned[image.ORIENTATION] = 6
    tall = pixels.convert("RGBA")
    tall.putalpha(100)
    cases: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("a.png", pixels, {}), ("turned.jpg", pixels, {"exif": turned}),
        ("palette.png", pixels.convert("P"), {"transparency": 3}),
        ("alpha.png", tall, {}), ("dot.png", pixels.crop((0, 0, 1, 1)), {}), ("wide.png", pixels.resize((900, 9)), {}),
        ("grey.tif", pixels.convert("L"), {}), ("cmyk.jpg", pixels.convert("CMYK"), {}), ("bits.png", pixels.convert("1"), {}),
    ]  # fmt: skip
    files = {}
    for name, shown, options in cases:
        content = io.BytesIO()
        kind = {"jpg": "JPEG", "png": "PNG", "tif": "TIFF"}[name.split(".")[1]]
        shown.save(content, kind, **options)
        files[name] = content.getvalue()
    return files


def assert_same(found: runtime.Found, expected: Any, pixels: float = 0.05) -> None:
    assert found.labels.tolist() == expected.labels.tolist() and found.names == expected.names
    assert np.allclose(found.boxes, expected.boxes, atol=pixels) and np.allclose(
        found.scores, expected.scores, atol=1e-3
    )
    rows, others = found.to_coco(7), expected.to_coco(7)
    assert [list(row) for row in rows] == [list(row) for row in others]
    # not the pixels: of an untrained head most are a half, and rounding decides
    assert np.allclose(found.probabilities, expected.masks.probabilities, atol=1e-3)
    assert np.allclose(found.keypoints, expected.keypoints.scored(), atol=0.01)
    assert [row["category_id"] for row in rows] == [row["category_id"] for row in others] == found.category_ids


def test_it_finds_what_the_predictor_finds_whatever_the_picture_is(model: Path, tmp_path: Path):
    here, there = Runtime(model), detector.load(model)
    counts = []
    for name, content in odd_images().items():
        (tmp_path / name).write_bytes(content)
        expected, found = there(str(tmp_path / name)), here(tmp_path / name)
        assert_same(found, expected)
        counts.append(len(found.names))
    assert max(counts) == 10
    assert_same(here(str(tmp_path / "a.png"), score=0.3), there(str(tmp_path / "a.png"), score=0.3))
    array = picture(64, 80, seed=2).permute(1, 2, 0).numpy()
    assert_same(here(array), there(array))
    assert_same(here(Image.fromarray(array)), there(array))
    for score in (-0.1, 2, float("nan")):
        with pytest.raises(ValueError, match="score="):
            here(array, score=score)


@pytest.mark.parametrize("size", [(30, 40), (200, 17), (96, 128), (1, 1), (3, 700)])
def test_resized_pixels_are_the_predictors(size: tuple[int, int]):
    pixels = picture(*size, seed=1)
    expected = Resize(96, 128).resize_within(pixels, (96, 128)).permute(1, 2, 0).numpy()
    found = runtime.resize_pixels(pixels.permute(1, 2, 0).numpy(), expected.shape[:2])
    # torch computes with 16-bit weights where the processor has AVX2, and with floating-point numbers elsewhere
    assert np.abs(found.astype(int) - expected).max() <= ("AVX" not in torch.backends.cpu.get_cpu_capability())


def test_masks_and_their_run_lengths_are_the_predictors():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(6, 28, 28, generator=generator).half()
    boxes = torch.tensor(
        [[3.2, 4, 50, 40], [0, 0, 60, 45], [-9, 2, 8, 70], [5, 5, 5, 5], [59, 44, 60, 45], [80, 80, 90, 90.0]]
    )
    expected = RegionMasks(masks, boxes, (45, 60))
    found = runtime.Found((45, 60), boxes.numpy(), np.zeros(6), np.zeros(6), ["a"] * 6, [1] * 6, masks.numpy())
    assert (found.masks() == expected.paste().numpy()).mean() > 0.9999
    codes = [row["segmentation"] for row in found.to_coco(1)]
    decoded = [coco_mask.decode({**code, "counts": code["counts"].encode()}) for code in codes]
    assert (np.stack(decoded) == found.masks()).all()
    for corner in (np.ones((4, 5), bool), np.zeros((4, 5), bool), np.eye(400, dtype=bool)):
        reference = coco_mask.encode(np.asfortranarray(corner.astype(np.uint8)))
        assert runtime.run_length_code(corner) == {**reference, "counts": reference["counts"].decode()}
    empty = runtime.Found((4, 5), np.zeros((0, 4)), np.zeros(0), np.zeros(0), [], [], np.zeros((0, 28, 28)))
    assert empty.masks().shape == (0, 4, 5) and empty.to_coco(1) == []


@pytest.mark.parametrize("scores", ["softmax", "logit"])
def test_keypoints_are_the_predictors(scores: str):
    logits = torch.randn(4, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[3.2, 4, 50, 40], [0, 0, 90, 120.5], [5, 5, 5, 5], [7, 7, 8.5, 100]])
    places, values = read_heat_maps(logits, boxes, scores)
    found = runtime.read_heat_map_array(logits.numpy(), boxes.numpy(), scores)
    assert np.allclose(found[..., :2], places, atol=1e-3) and np.allclose(found[..., 2], values, rtol=1e-3, atol=1e-5)


def test_the_command_prints_a_table_and_writes_what_infer_writes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder, output = tmp_path / "photos", tmp_path / "found.json"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.png", "deep/b.jpg", ".hidden.png", "deep/c.PNG"):
        kind = "JPEG" if name.endswith("jpg") else "PNG"
        Image.fromarray(picture(90, 120).permute(1, 2, 0).numpy()).save(folder / name, kind)
    (folder / "notes.txt").write_text("none")
    arguments = [str(model), str(folder), "--output", str(output), "--score", "0.1"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown if "objects" in line] == ["a.png", "deep/b.jpg", "deep/c.PNG"]
    assert len({len(line) for line in shown if line.startswith("  ")}) == 1
    rows = json.loads(output.read_text())
    assert {row["category_id"] for row in rows} <= {*IDS} and {row["category_name"] for row in rows} <= {*NAMES}
    assert [*rows[0]] == [
        "file_name",
        "image_id",
        "category_id",
        "bbox",
        "score",
        "category_name",
        "segmentation",
        "keypoints",
    ]
    assert {(row["image_id"], row["file_name"]) for row in rows} == {(1, "a.png"), (2, "deep/b.jpg"), (3, "deep/c.PNG")}
    (folder / "a.png").write_bytes((folder / "a.png").read_bytes()[:300])
    assert main(arguments) == 2  # an earlier result is written over; the other images are in it
    said = capsys.readouterr()
    assert "skipped: " in said.err and "a.png: not a readable image" in said.err and "1 of 3 images" in said.err
    assert {row["image_id"] for row in json.loads(output.read_text())} == {2, 3}
    output.write_text("mine")
    assert main(arguments) == 2 and output.read_text() == "mine"
    assert "choose another --output" in capsys.readouterr().err


def test_wrong_files_are_one_line_that_names_them(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("openvino")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    (tmp_path / "a.xml").write_bytes(b"<net/>")
    for name, message in [
        ("none.onnx", "no such file"), ("a.pt2", "ends in neither"), ("bad.onnx", "cannot be read"),
        ("a.xml", r"a\.bin: no such"),
    ]:  # fmt: skip
        with pytest.raises(WrongInput, match=message) as error:
            Runtime(tmp_path / name)
        assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "a.bin").write_bytes(b"")
    foreign(tmp_path / "foreign.onnx")
    for name, message in [("a.xml", "cannot be read"), ("foreign.onnx", "not written by `detector export`")]:
        with pytest.raises(WrongInput, match=message):
            Runtime(tmp_path / name)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(WrongInput, match="needs onnxruntime, which is not installed: pip install onnxruntime"):
        Runtime(model)


def foreign(path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", 1, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=opset), path)


def test_wrong_pictures_are_one_line_where_the_predictor_has_one(model: Path, tmp_path: Path):
    here, there = Runtime(model), detector.load(model)
    good = odd_images()["turned.jpg"]
    files = {"cut.jpg": good[:400], "text.jpg": b"text", "empty.png": b""}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Image.fromarray(np.ones((9, 9), np.float32)).save(tmp_path / "real.tif")
    for name in [*files, "real.tif", "missing.jpg", "."]:
        with pytest.raises(WrongInput, match="not a readable image") as error:
            here(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
        if name != ".":
            with pytest.raises(DetectorError):
                there(str(tmp_path / name))
    Image.fromarray(np.ones((9, 9), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(WrongInput, match="save it with 8"):
        here(tmp_path / "deep.png")
    here.max_pixels = 100
    with pytest.raises(WrongInput, match="too large, 120 x 90 pixels; the limit is 100"):
        here(picture(90, 120).permute(1, 2, 0).numpy())


def test_it_stands_alone_and_its_constants_are_those_of_the_package():
    tree = ast.parse(SOURCE.read_text())
    named = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0] for node in named}
    assert roots - sys.stdlib_module_names == {"numpy", "PIL"}
    assert (runtime.FORMAT, runtime.KEY) == (card.FORMAT, card.KEY)
    assert runtime.MAX_PIXELS == image.MAX_PIXELS and tuple(runtime.FORMATS) == image.FORMATS
    assert sorted(runtime.SUFFIXES) == sorted(image.SUFFIXES)
    assert runtime.ENGINES == {".onnx": "onnxruntime", ".xml": "openvino"}


WITHOUT = """
import runpy, sys
sys.modules |= dict.fromkeys(["torch", "torchvision", "pycocotools", "yaml", "tqdm"])  # None: the import fails
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_a_copy_of_the_file_runs_where_torch_cannot_be_imported(target: str, tmp_path: Path):
    """With masks and keypoints."""
    pytest.importorskip({"onnx": "onnxscript", "openvino": "openvino"}[target])
    path = tmp_path / f"model{TARGETS[target].suffix}"
    write(tiny_predictor(), TARGETS[target], path, (96, 128), 1)
    (tmp_path / "runtime.py").write_bytes(SOURCE.read_bytes())
    Image.fromarray(picture(90, 120).permute(1, 2, 0).numpy()).save(tmp_path / "a.png")
    command = [sys.executable, "-c", WITHOUT, tmp_path / "runtime.py", path, tmp_path / "a.png", "--score", "0.05"]
    command += ["--output", tmp_path / "found.json"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=clean)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())
    expected = detector.load(path)(str(tmp_path / "a.png"), score=0.05).to_coco(1)
    assert len(rows) == len(expected) > 5 and [*rows[0]] == ["file_name", *expected[0]]
    for row, other in zip(rows, expected):
        assert np.allclose(row["bbox"], other["bbox"], atol=0.05) and row["score"] == pytest.approx(
            other["score"], abs=1e-3
        )
        assert row["segmentation"]["size"] == other["segmentation"]["size"]
        assert np.allclose(row["keypoints"][::3], other["keypoints"][::3], atol=0.5)
