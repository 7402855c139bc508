"""AR of proposals: truth by hand, and COCOeval without categories as the oracle."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from detector.evaluation.proposals import claim, proposal_recall

NAMES = [f"AR{limit}{size}" for limit in (100, 1000) for size in ("", "s", "m", "l")]


def write(path: Path, boxes: dict[int, list[list[float]]], crowd: int = 0, category: int = 1) -> Path:
    """An annotation file of xywh boxes by image id; the first `crowd` of all are crowds."""
    flat = [(image, box) for image, there in boxes.items() for box in there]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 1000, "height": 1000} for i in boxes],
        "categories": [{"id": 1, "name": "cell"}, {"id": category, "name": "other"}][: 1 + (category != 1)],
        "annotations": [
            {"id": i, "image_id": image, "bbox": box, "area": box[2] * box[3], "iscrowd": int(i <= crowd)}
            | {"category_id": category if i % 2 else 1}
            for i, (image, box) in enumerate(flat, start=1)
        ],
    }
    path.write_text(json.dumps(content))
    return path


def oracle(annotations: Path, proposals: dict[int, Tensor]) -> dict[str, float]:
    """The same by pycocotools alone."""
    results = [
        {"image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1 - rank / 1e4}
        for image, boxes in proposals.items()
        for rank, (x1, y1, x2, y2) in enumerate(boxes.tolist())
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.useCats = 0
        evaluation.params.maxDets = [100, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"]  # (T, 1, areas, limits)
    means = recall.mean(axis=(0, 1)).T.ravel()
    return dict(zip(NAMES, means.tolist()))


def test_by_hand(tmp_path: Path) -> None:
    """One small, one medium and one large object; the large one is found too late for the first 100."""
    annotations = write(tmp_path / "a.json", {5: [[0, 0, 10, 10], [20, 0, 40, 40], [100, 100, 200, 200]]})
    boxes = torch.tensor([[900.0, 900.0, 950.0, 950.0]]).repeat(150, 1)
    boxes[3] = torch.tensor([0.0, 0.0, 10.0, 10.0])  # exact
    boxes[7] = torch.tensor([20.0, 0.0, 60.0, 25.0])  # IoU 0.625: 3 of 10 thresholds
    boxes[120] = torch.tensor([100.0, 100.0, 300.0, 300.0])
    expected = [1.3 / 3, 1, 0.3, 0, 2.3 / 3, 1, 0.3, 1]
    assert proposal_recall(annotations, {5: boxes}) == pytest.approx(dict(zip(NAMES, expected)))


def test_a_proposal_claims_one_object_and_the_best() -> None:
    iou = np.array([[0.7, 0.9], [0.8, 0.6]])
    rank = claim(iou)
    assert rank[0].tolist() == [1, 0]  # at 0.5 the first takes the second object
    assert rank[5].tolist() == [1, 0] and rank[8].tolist() == [np.inf, 0] and rank[9].tolist() == [np.inf, np.inf]
    assert claim(np.array([[0.9], [0.9]]))[0].tolist() == [0]
    assert claim(np.array([[0.9, 0.9]]))[0].tolist() == [np.inf, 0]  # COCO: the last of equals


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(tmp_path: Path, seed: int) -> None:
    """Crowds, two classes, objects on the borders between sizes, crowded images, more than 1000 proposals."""
    rng = np.random.default_rng(seed)
    objects, proposals = {}, {}
    for image, (g, r) in enumerate([(12, 1100), (3, 40), (0, 20), (5, 0), (30, 300)], start=1):
        corner = rng.integers(0, 150, (g, 2))
        size = rng.choice([8, 16, 32, 48, 96, 130], (g, 2))
        xywh = np.concatenate([corner, size], axis=1).astype(float)
        objects[image] = xywh.tolist()
        near = xywh[rng.integers(0, g, r)] if g else rng.integers(1, 100, (r, 4)).astype(float)
        near = near + rng.integers(-8, 9, (r, 4)) * rng.integers(0, 2, (r, 1))  # many are exact or tied
        xyxy = np.concatenate([near[:, :2], near[:, :2] + near[:, 2:].clip(1)], axis=1)
        proposals[image] = torch.from_numpy(xyxy).float()
    annotations = write(tmp_path / "a.json", objects, crowd=5, category=9)
    expected = oracle(annotations, proposals)
    assert 0.2 < expected["AR100"] < expected["AR1000"] <= 1  # the case is not trivial
    assert proposal_recall(annotations, proposals) == pytest.approx(expected, abs=1e-12)


def test_only_the_chosen_classes_and_images_count(tmp_path: Path) -> None:
    annotations = write(tmp_path / "a.json", {1: [[0, 0, 10, 10], [50, 50, 10, 10]], 2: [[0, 0, 10, 10]]}, category=9)
    found = {1: torch.tensor([[50.0, 50.0, 60.0, 60.0]])}
    assert proposal_recall(annotations, found)["AR100"] == pytest.approx(0.5)
    assert proposal_recall(annotations, found, [1])["AR100"] == pytest.approx(1)
    assert proposal_recall(annotations, found, [9])["AR100"] == 0


def test_nothing_proposed_and_nothing_there(tmp_path: Path) -> None:
    annotations = write(tmp_path / "a.json", {1: [[0, 0, 10, 10]], 2: []})
    none = torch.zeros(0, 4)
    missed = proposal_recall(annotations, {1: none, 2: none})
    assert missed["AR100"] == missed["AR1000s"] == 0 and missed["AR100l"] == -1
    assert set(proposal_recall(annotations, {2: torch.ones(3, 4)}).values()) == {-1}
    assert set(proposal_recall(annotations, {}).values()) == {-1}
