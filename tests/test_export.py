"""An exported file finds what its checkpoint finds, says so itself, and is used in its place."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.exports import parity
from helpers.tiny import CONFIG, IDS, NAMES, assert_same_detections, picture, tiny_model
from PIL import Image

import detector
from detector.checkpoint import save_checkpoint
from detector.cli.export import main
from detector.config.inherit import merge
from detector.data.transforms import Resize
from detector.errors import CheckpointError, ConfigError, DetectorError
from detector.export import calibration, torch_files
from detector.export.calibration import CalibrationImages
from detector.export.card import Card
from detector.export.graph import DetectionGraph, padded
from detector.export.torch_files import is_compiled
from detector.runtime import Runtime

TINY = {"data": {"root": ".", "train": {"images": "i", "annotations": "a.json"}, "val": {"images": "i", "annotations": "a.json"},
                 "resize": {"short": 96, "long": 128}}}  # fmt: skip
SUFFIX = {"pt2": "model.pt2", "onnx": "model.onnx", "openvino": "model.xml"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with scores that are spread, `a.pth`, and three photographs."""
    folder = tmp_path_factory.mktemp("export")
    write_checkpoint(folder / "a.pth")
    (folder / "photos").mkdir()
    for i, size in enumerate([(90, 120), (96, 128), (120, 90)]):
        Image.fromarray(picture(*size, seed=i).permute(1, 2, 0).numpy()).save(folder / "photos" / f"{i}.png")
    return folder


def write_checkpoint(path: Path, **sections: Any) -> None:
    selection = {"selection": {"max_detections": 10}}
    sections = {"roi_head": selection} | sections
    model = tiny_model(**sections)
    for stage in getattr(model.roi_head, "stages", None) or [model.roi_head.stage]:
        torch.nn.init.normal_(stage.class_score.weight, std=0.05)
    config = {**CONFIG, "model": merge(CONFIG["model"], sections)} | TINY
    save_checkpoint(path, model=model, config=config, class_names=NAMES, category_ids=IDS)


def export(folder: Path, to: str, output: Path, *more: str) -> int:
    return main([str(folder / "a.pth"), "--to", to, "--output", str(output), "--check", str(folder / "photos"), *more])


@pytest.mark.slow
@pytest.mark.parametrize("to", ["pt2", "onnx", "openvino"])
def test_a_file_finds_what_the_checkpoint_finds_says_so_and_takes_its_place(
    folder: Path, tmp_path: Path, to: str, capsys
):
    pytest.importorskip({"pt2": "torch", "onnx": "onnxscript", "openvino": "openvino"}[to])
    output = tmp_path / "new" / SUFFIX[to]
    assert export(folder, to, output) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "the same"
    report = json.loads((output.parent / "report.json").read_text())
    assert report["ok"] and report["size"] == [96, 128] and report["images"] == 3 and report["both"] > 10
    assert report["only_checkpoint"] == report["only_export"] == 0 and report["largest"]["box"] < 0.01
    own = report["checkpoint_at_its_own_size"]
    assert own["images_made_smaller"] == 1 and own["images_that_differ"] == 1  # the tall one, which is padded, too
    exported, checkpoint = detector.load(output, trust=to == "pt2"), detector.load(folder / "a.pth", device="cpu")
    wide = str(folder / "photos" / "1.png")
    assert_same_detections(exported(wide), checkpoint(wide))
    assert exported(wide).names == checkpoint(wide).names and exported(wide).category_ids == IDS
    photos = sorted(str(path) for path in folder.glob("photos/*"))
    assert [len(found) for found in exported(photos)] == [len(exported(path)) for path in photos]


@pytest.mark.slow
def test_int8_is_calibrated_checked_by_a_rule_of_its_own_and_says_what_it_is(folder: Path, tmp_path: Path):
    pytest.importorskip("nncf")
    output = tmp_path / "a.xml"
    status = export(folder, "openvino", output, "--precision", "int8", "--calibrate", str(folder / "photos"))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["precision"] == "int8" and status == int(not report["ok"])
    text = output.read_text()
    assert text.count('type="FakeQuantize"') > 20
    loaded, found = detector.load(output), Runtime(output)(picture_of(folder))
    assert loaded.model.card.precision == "int8" and loaded(picture_of(folder)).names == found.names != []


@pytest.mark.slow
def test_one_file_takes_images_of_several_sizes(folder: Path, tmp_path: Path, capsys):
    output = tmp_path / "a.pt2"
    assert export(folder, "pt2", output, "--dynamic") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("1 x 3 x 96..128 x 96..128 -> boxes, scores, labels") and said[-1] == "the same"
    own = json.loads((tmp_path / "report.json").read_text())["checkpoint_at_its_own_size"]
    assert own["images_made_smaller"] == 0 and own["images_that_differ"] == 0
    exported, checkpoint = detector.load(output, trust=True), detector.load(folder / "a.pth", device="cpu")
    for photo in sorted(folder.glob("photos/*.png")):  # wide and tall
        assert_same_detections(exported(str(photo)), checkpoint(str(photo)))


def test_without_a_compiler_native_code_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    def none() -> str:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch_files, "get_cpp_compiler", none)
    assert export(folder, "aoti", tmp_path / "a.pt2") == 2
    assert "--to aoti needs a C++ compiler" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert export(folder, "aoti", tmp_path / "a.pt2", "--dynamic") == 2
    assert "--dynamic: not for aoti" in capsys.readouterr().err and not is_compiled(folder / "a.pth")


def picture_of(folder: Path) -> str:
    return str(folder / "photos" / "1.png")


def test_a_precision_that_an_engine_lacks_is_refused_with_those_that_have_it(folder: Path, tmp_path: Path, capsys):
    for to, name, precision, remedy in [
        ("pt2", "a.pt2", "float16", "choose --to onnx or openvino"),
        ("onnx", "a.onnx", "int8", "choose --to openvino"),
    ]:
        assert export(folder, to, tmp_path / name, "--precision", precision) == 2
        assert f"--precision {precision}: not for {to}; {remedy}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        export(folder, "openvino", tmp_path / "a.xml", "--calibrate", str(folder / "photos"))
    assert "--calibrate is for --precision int8" in capsys.readouterr().err
    predictor = detector.load(folder / "a.pth", device="cpu")
    with pytest.raises(DetectorError, match="or name images for int8 by --calibrate"):
        CalibrationImages(predictor, [], (96, 128), 1)
    assert list(tmp_path.iterdir()) == []


def test_calibration_takes_images_evenly_and_in_whole_batches(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    predictor = detector.load(folder / "a.pth", device="cpu")
    [(images, sizes)] = CalibrationImages(predictor, [str(folder / "photos")], (96, 128), 4)
    assert images.shape == (4, 3, 96, 128) and sizes.tolist() == [[96, 128]] * 3 + [[96, 72]]
    monkeypatch.setattr(calibration, "ENOUGH", 2)
    two = CalibrationImages(predictor, [str(folder / "photos")], (96, 128), 1)
    assert two.groups == [[0], [1]] and len(list(two)) == 2 and two[0][0].shape == (1, 3, 96, 128)


def test_a_difference_ends_with_1_and_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    found = DetectionGraph.forward

    def moved(self: DetectionGraph, *inputs: Any) -> tuple:
        boxes, *others = found(self, *inputs)
        return boxes + 0.1 * self.portable, *others

    monkeypatch.setattr(DetectionGraph, "forward", moved)
    assert export(folder, "pt2", tmp_path / "a.pt2") == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("NOT the same in 3 images, such as ")
    report = json.loads((tmp_path / "report.json").read_text())
    assert not report["ok"] and report["largest"]["box"] == pytest.approx(
        0.125, abs=1e-3
    )  # in the tall image, which is 1.25 as large


def test_wrong_input_is_one_line_and_nothing_is_written(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "report.json").write_text("mine")
    (tmp_path / "blank").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "blank" / "a.png")
    for output, more, message in [
        ("a.onnx", [], "a file for pt2 ends in .pt2"),
        ("taken/a.pt2", [], "report.json: exists already and is not written over"),
        ("a.pt2", ["model.nothing=1"], "model.nothing"),
        ("a.pt2", ["--split", "nonsense"], "nonsense"),
    ]:
        assert export(folder, "pt2", tmp_path / output, *more) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and message in error
    assert {path.name for path in tmp_path.rglob("*")} == {"taken", "report.json", "blank", "a.png"}


def test_a_file_that_is_not_an_export_is_refused(folder: Path, tmp_path: Path):
    for suffix in (".onnx", ".pt2", ".xml"):
        path = tmp_path / f"a{suffix}"
        with pytest.raises(CheckpointError, match="no such file"):
            detector.load(path)
        path.write_bytes(b"not a model")
    with pytest.raises(CheckpointError, match=r"a\.bin: no such file"):
        detector.load(tmp_path / "a.xml")
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="may run code in it; if you trust its origin, add --trust"):
        detector.load(tmp_path / "a.pt2")
    for path, module in (
        (tmp_path / "a.pt2", "torch"),
        (tmp_path / "a.onnx", "onnxruntime"),
        (tmp_path / "a.xml", "openvino"),
    ):
        pytest.importorskip(module)
        with pytest.raises(CheckpointError, match="export the checkpoint again"):
            detector.load(path, trust=True)
    with pytest.raises(CheckpointError, match="not written by `detector export`"):
        Card.loads('{"format": "another"}', path)


def test_what_the_file_computes_cannot_be_changed(tmp_path: Path):
    for options in ({"overrides": ["model.rpn.convs=2"]}, {"device": "cuda"}, {"precision": "bfloat16"}):
        with pytest.raises(ConfigError, match="an exported file runs on the CPU and as it is, without "):
            detector.load(tmp_path / "a.onnx", **options)


def test_the_graph_pads_as_the_preprocessor_does_and_an_empty_image_has_no_labels():
    model = tiny_model(preprocess={"order": "bgr"}).eval()
    images = [picture(60, 64), picture(64, 50, seed=1)]
    batch = model.preprocess.batch(images, torch.device("cpu"), torch.float32)
    graph = DetectionGraph(model, portable=False).eval()
    made = graph._batch(*padded(images, (64, 64)))
    assert torch.equal(made.images, batch.images)
    model.roi_head.stage.class_score.bias.data[-1] = 1e4  # all background
    with torch.no_grad():
        boxes, scores, labels = graph(*padded(images, (64, 64)))
    assert (labels == -1).all() and not boxes.any() and not scores.any()


def test_an_image_is_made_smaller_only_where_it_does_not_fit():
    rule = Resize(96, 128)
    for size, limit, expected in [
        ((90, 120), (96, 128), (96, 128)),
        ((120, 90), (96, 128), (96, 72)),
        ((10, 90), (64, 64), (7, 64)),
    ]:
        assert tuple(rule.resize_within(picture(*size), limit).shape[1:]) == expected
    assert torch.equal(rule.resize_within(picture(90, 120), (999, 999)), rule.resize_image(picture(90, 120)))


def test_the_old_roads_say_which_one_leads_there():
    model, images = tiny_model().eval(), [picture(64, 64)]
    for road in (lambda: torch.jit.trace(model, (images,)), lambda: torch.jit.script(model)):
        with pytest.raises(RuntimeError, match="use `detector export CKPT --to onnx"):
            road()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("keypoints", "onnx"),
        ("keypoints", "openvino"),
        *(
            pytest.param(*case, marks=pytest.mark.longest)
            for case in (("htc", "openvino"), ("sac", "openvino"), ("soft_nms", "onnx"))
        ),
    ],
)
def test_detectors_of_all_kinds_find_the_same_in_other_engines(name: str, target: str, tmp_path: Path):
    """The others are in the table of docs/export.md (tests/export_table.py)."""
    pytest.importorskip({"onnx": "onnxscript", "openvino": "openvino"}[target])
    found = parity(name, target, tmp_path)
    assert found.ok and found.both >= 10 and found.box < 0.01 and found.score < 1e-4
