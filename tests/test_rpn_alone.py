"""An RPN without a second stage: what it learns, reports, and how it is scored."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

import pytest
import torch
from helpers.tiny import CONFIG, IMAGES, built, picture
from helpers.training import CLASSES, draw_set, script, train, write_config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import detector
from detector.checkpoint import read_checkpoint
from detector.config.config import parse_config
from detector.config.inherit import merge
from detector.data.settings import build_dataset
from detector.errors import ConfigError
from detector.evaluation.coco import evaluate_results
from detector.evaluation.run import evaluate_predictor
from detector.evaluation.scope import METRICS
from detector.modeling.rcnn import GeneralizedRCNN
from detector.modeling.roi_heads.proposals_only import BestProposals, ProposalsOnly
from detector.structures import Proposals


def rpn_alone(**sections) -> GeneralizedRCNN:
    model = built(merge(CONFIG, {"model": {"roi_head": "none", **sections}}))
    with torch.no_grad():
        model.rpn.deltas.weight.normal_(std=0.05)
    return model


# --- the model


@torch.no_grad()
def test_its_detections_are_its_best_proposals():
    model = rpn_alone(rpn={"selection": {"post_nms": [300, 300]}}).eval()
    for found in model.detect(IMAGES):
        proposals = found.proposals
        assert len(found) == 100 < len(proposals.boxes)
        assert torch.equal(found.boxes, proposals.boxes[:100]) and found.boxes.dtype == torch.float32
        assert torch.equal(found.scores, proposals.scores[:100].sigmoid())
        assert found.labels.tolist() == [0] * 100 and found.labels.dtype == torch.int64


def test_as_many_are_reported_as_there_are():
    head = ProposalsOnly(3, selection=BestProposals(max_detections=2))
    rows = Proposals(torch.rand(3, 4), torch.tensor([2.0, 0.0, -1.0]))
    first, none = head.detect([], [rows, Proposals(torch.zeros(0, 4), torch.zeros(0))], None)
    assert first.scores.tolist() == pytest.approx([0.8807970779778823, 0.5])
    assert none.boxes.shape == (0, 4) and none.labels.shape == (0,)
    with pytest.raises(ValueError, match="max_detections"):
        ProposalsOnly(3, selection=BestProposals(max_detections=0))


def test_a_section_that_nothing_would_read_is_refused():
    for name, section in (("pool", {"size": 7}), ("box_head", {"width": 8})):
        with pytest.raises(ConfigError, match=rf"model\.roi_head\.{name}: this type of roi_head has none"):
            parse_config({"model": {"roi_head": {"type": "none", name: section}}}, trust=True)
    with pytest.raises(ConfigError, match=r"model\.roi_head\.selection\.nms_iou: unknown key"):
        parse_config({"model": {"roi_head": {"type": "none", "selection": {"nms_iou": 0.5}}}}, trust=True)


def test_a_type_alone_replaces_a_section_that_names_none():
    """One word on the command line is enough, whatever the base says of the second stage."""
    for section in ("none", {"type": "none"}):
        assert isinstance(built({"model": {"num_classes": 2, "roi_head": section}}).roi_head, ProposalsOnly)


# --- as one class


def test_the_score_as_one_class_is_that_of_cocos_evaluation_without_categories(tmp_path: Path):
    generator = torch.Generator().manual_seed(0)
    annotations, results = [], []
    for image in range(1, 9):
        for _ in range(6):
            x, y, w, h = (torch.rand(4, generator=generator) * torch.tensor([80, 80, 70, 70]) + 8).tolist()
            kind = {"category_id": len(annotations) % 3 + 4, "iscrowd": int(len(annotations) % 11 == 0)}
            own = {"id": len(annotations) + 1, "image_id": image, "bbox": [x, y, w, h], "area": w * h}
            annotations.append(own | kind)
            score = float(torch.rand((), generator=generator))
            moved = [x + 3, y - 2, w, h * 1.1]
            results.append({"image_id": image, "category_id": 1, "bbox": moved, "score": score})
    images = [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in range(1, 9)]
    content = {"images": images, "annotations": annotations, "info": {}}
    content["categories"] = [{"id": i, "name": f"c{i}"} for i in (4, 5, 6)]
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = evaluate_results(tmp_path / "a.json", results, as_one_class=True)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(tmp_path / "a.json")
        oracle = COCOeval(truth, truth.loadRes([r | {"category_id": 4} for r in results]), "bbox")
        oracle.params.useCats = 0
        oracle.evaluate()
        oracle.accumulate()
        oracle.summarize()
    assert found["bbox"] == pytest.approx(dict(zip(METRICS, oracle.stats)), abs=1e-12)
    assert 0.1 < found["bbox"]["AP"] < 0.9
    assert found["per_class"] == {"object": {"AP": found["bbox"]["AP"], "AP50": found["bbox"]["AP50"]}}
    some = evaluate_results(tmp_path / "a.json", results, category_ids=[4, 5], as_one_class=True)
    assert some["bbox"]["AR100"] < 1 and some["bbox"]["AP"] < found["bbox"]["AP"]  # what is of class 6 counts as wrong


# --- a whole training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("rpn")
    assert train(write_config(folder / "tiny.yaml", data), folder / "run", ["model.roi_head=none"]) == 0
    return folder / "run"


def test_the_table_has_its_two_losses_and_the_best_is_chosen_by_recall(finished: Path):
    with open(finished / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert not any(name.startswith("roi") for name in table[0])
    for row in table:
        if row["loss"]:
            parts = float(row["rpn_objectness"]) + float(row["rpn_box"])
            assert float(row["loss"]) == pytest.approx(parts, rel=1e-4)
    assert all(float(row["AR1000"]) >= float(row["AP"]) for row in table if row["AP"])
    best = max(float(row["AR1000"]) for row in table if row["AR1000"])
    assert read_checkpoint(finished / "best.pth")["training"]["best"] == pytest.approx(best, abs=1e-5)
    log = (finished / "train.log").read_text()
    assert "best.pth is chosen by the AR1000 of proposals" in log and f"best AR1000 {best:.3f}" in log


def test_best_is_kept_from_the_epoch_of_most_recall(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch):
    """Though its AP falls."""
    scores = iter([(0.9, 0.2), (0.5, 0.6), (0.4, 0.5)])

    def score(*args, **options):
        ap, ar = next(scores)
        return {"bbox": dict.fromkeys(METRICS, ap), "proposals": {"AR1000": ar}}, []

    monkeypatch.setattr("detector.training.validate.evaluate_predictor", score)
    config = write_config(tmp_path / "tiny.yaml", data)
    assert train(config, tmp_path / "run", ["model.roi_head=none", "train.epochs=3"]) == 0
    assert read_checkpoint(tmp_path / "run/best.pth")["training"] == {"step": 6, "best": 0.6}


def test_a_stopped_training_goes_on(tmp_path: Path, data: Path, finished: Path):
    config = write_config(tmp_path / "tiny.yaml", data)
    assert train(config, tmp_path / "run", ["model.roi_head=none", "train.epochs=1"]) == 0
    assert train(config, tmp_path / "run", ["model.roi_head=none", "--resume"]) == 0
    a, b = (read_checkpoint(folder / "last.pth")["model"] for folder in (tmp_path / "run", finished))
    assert [key for key in a if not torch.equal(a[key], b[key])] == []


def test_it_is_evaluated_as_one_class(finished: Path, tmp_path: Path, capsys):
    arguments = [str(finished / "best.pth"), "--trust", "--device", "cpu", "--output", str(tmp_path)]
    assert script("evaluate").main(arguments) == 0
    printed = capsys.readouterr().out
    assert "all classes are one" in printed and "AR1000" in printed and "square" not in printed
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]  # its boxes have no category
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics) == ["bbox", "per_class", "proposals"] and list(metrics["per_class"]) == ["object"]
    predictor = detector.load(finished / "best.pth", trust=True, device="cpu")
    dataset = build_dataset(predictor.config.data, "val", class_names=predictor.class_names)
    assert evaluate_predictor(predictor, dataset, workers=0, progress=False)[0] == metrics


def test_pictures_show_objects(finished: Path, data: Path, tmp_path: Path):
    output = tmp_path / "out"
    arguments = [str(finished / "best.pth"), str(data / "images"), "--output", str(output), "--score", "0", "--trust"]
    assert script("infer").main(arguments) == 0
    found = json.loads((output / "detections.json").read_text())
    assert {row["category_id"] for row in found} == {1} and len(list(output.glob("*.png"))) == 8
    predictor = detector.load(finished / "best.pth", trust=True, device="cpu")
    assert set(predictor(picture(64, 96)).names) == {"object"}
    assert predictor.class_names == list(CLASSES)  # those of the data stay known


def test_a_whole_detector_cannot_take_its_weights_silently(finished: Path, data: Path, tmp_path: Path, capsys):
    config = write_config(tmp_path / "tiny.yaml", data)
    assert train(config, tmp_path / "run", ["--init-from", finished / "best.pth"]) == 2
    assert "made for another architecture; missing: roi_head." in capsys.readouterr().err
