"""An exported file finds what its checkpoint finds, says so itself, and is used in its place."""

import json
from dataclasses import replace
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
from detector.errors import CheckpointError, ConfigError
from detector.export.agreement import Agreement, agreement
from detector.export.card import Card
from detector.export.engines import check_card
from detector.export.graph import DetectionGraph, padded
from detector.records.keypoints import Keypoints
from detector.records.region_masks import RegionMasks
from detector.structures import Detections

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


BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 70]])
FOUND = Detections(BOXES, torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0, 1, 1]))


def agree(first: Detections, second: Detections, limit: int = 100, **more: Any) -> Agreement:
    return agreement("a", first, second, threshold=0.05, limit=limit, **more)


def test_agreement_of_hand_made_detections():
    same = agree(FOUND, FOUND)
    assert same.ok and same.both == 3 and same.box == same.score == 0
    assert agree(FOUND, FOUND[[2, 0, 1]]) == same
    for change, box, score in [
        ({"boxes": BOXES + torch.tensor([0, 0, 0, 0.04])}, 0.04, 0.0),
        ({"scores": FOUND.scores - 5e-4}, 0.0, 5e-4),
    ]:
        near = agree(FOUND, replace(FOUND, **change))
        assert near.ok and near.box == pytest.approx(box, abs=1e-5) and near.score == pytest.approx(score, abs=1e-6)
    assert not agree(FOUND, replace(FOUND, boxes=BOXES + torch.tensor([0, 0, 0, 0.06]))).ok
    assert not agree(FOUND, replace(FOUND, scores=FOUND.scores - 2e-3)).ok
    assert agree(FOUND[:0], FOUND[:0]) == Agreement("a")


def test_what_one_has_alone_is_excused_only_at_the_threshold_and_in_the_last_of_full_rows():
    for first, second in [(FOUND[:1], FOUND[:0]), (FOUND, FOUND[:2]), (FOUND[1:], FOUND), (FOUND[:0], FOUND)]:
        assert not agree(first, second).ok and not agree(second, first).ok
    for change in ({"labels": torch.tensor([0, 1, 0])}, {"boxes": BOXES + torch.tensor([[0.0], [0], [100]])}):
        other = agree(FOUND, replace(FOUND, **change))
        assert not other.ok and other.only_first == other.only_second == 1 and other.at_a_limit == 0
    last = agree(FOUND, FOUND[:2], limit=3)
    assert last.ok and last.only_first == last.at_a_limit == 1
    assert not agree(FOUND, FOUND[1:], limit=3).ok
    low = replace(FOUND, scores=torch.tensor([0.9, 0.5, 0.0505]))
    assert agree(low, FOUND[:2]).ok and not agree(low, FOUND[:1]).ok


def test_a_box_of_equal_score_that_nms_had_to_choose_from_is_a_tie():
    twin = replace(FOUND, boxes=BOXES + torch.tensor([[3.0], [0], [0]]) * torch.tensor([0, 0, 1, 0]))
    both = Detections.joined([FOUND, twin[:1]])
    assert not agree(FOUND, twin).ok and not agree(FOUND, twin, candidates=lambda: FOUND).ok
    tie = agree(FOUND, twin, candidates=lambda: both)
    assert tie.ok and tie.ties == 1 and tie.box == 0
    better = replace(both, scores=torch.tensor([0.9, 0.5, 0.1, 0.7]))
    assert not agree(FOUND, twin, candidates=lambda: better).ok


def test_masks_their_scores_and_keypoints_are_compared():
    def with_shapes(cell: float, score: float, x: float) -> Detections:
        masks = RegionMasks(torch.full((3, 4, 4), cell), BOXES, (90, 90), FOUND.scores - score)
        points = Keypoints(torch.full((3, 2, 2), x), torch.ones(3, 2), torch.ones(3, 2))
        return replace(FOUND, masks=masks, keypoints=points)

    given = with_shapes(0.5, 0, 7)
    for other, name, value in [
        (with_shapes(0.6, 0, 7), "mask", 0.1),
        (with_shapes(0.5, 0.01, 7), "score", 0.01),
        (with_shapes(0.5, 0, 9), "keypoint", 2),
    ]:
        found = agree(given, other)
        assert not found.ok and getattr(found, name) == pytest.approx(value, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target"),
    [("htc", "openvino"), ("keypoints", "onnx"), ("keypoints", "openvino"), ("sac", "openvino"), ("soft_nms", "onnx")],
)
def test_detectors_of_all_kinds_find_the_same_in_other_engines(name: str, target: str, tmp_path: Path):
    """The others are in the table of docs/export.md (tests/export_table.py)."""
    pytest.importorskip({"onnx": "onnxscript", "openvino": "openvino"}[target])
    found = parity(name, target, tmp_path)
    assert found.ok and found.both >= 10 and found.box < 0.01 and found.score < 1e-4
