"""A new field of a record goes from the annotation file to the results, though no line of the program names it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny import CONFIG, picture, tiny_model
from helpers.training import draw_split
from torch import Tensor

from detector.config.config import parse_config
from detector.data.coco import CocoDataset
from detector.data.loader import train_loader
from detector.data.transforms import Compose, HorizontalFlip, LargeScaleJitter, Resize
from detector.inference.folder import find_images, infer_images
from detector.inference.predictor import Predictor
from detector.inference.tta import TTAPredictor
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.records.record import boxes_field, rows_field
from detector.structures import Batch, Detections, Proposals, Target


@dataclass
class TaggedTarget(Target):
    """Objects with the id of their annotation, and their boxes once more: a field of rows and one of geometry."""

    tag: Tensor = rows_field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    twin: Tensor = boxes_field(default_factory=lambda: torch.zeros(0, 4))


@dataclass
class TaggedDetections(Detections):
    """Detections with a number and with their boxes once more."""

    tag: Tensor = rows_field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    twin: Tensor = boxes_field(default_factory=lambda: torch.zeros(0, 4))


class TaggedDataset(CocoDataset):
    """Reads the tag of each object from the annotation file."""

    def target(self, i: int) -> TaggedTarget:
        found, image_id = super().target(i), int(self.image_ids[i])
        tags = {
            (a["image_id"], *a["bbox"][:2]): a["id"]
            for a in json.loads(self.annotation_file.read_text())["annotations"]
        }
        tag = torch.tensor([tags[image_id, x, y] for x, y, _, _ in found.boxes.tolist()])
        return TaggedTarget(**vars(found), tag=tag, twin=found.boxes)


class TaggedRoIHead(RoIHead):
    """Gives each detection a tag that follows from its score."""

    def losses(
        self, p: list[Tensor], proposals: list[Proposals], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        self.seen = [(r, t) for r, t in zip(self.stage.sample([x.boxes for x in proposals], targets), targets)]
        return super().losses(p, proposals, batch, targets)

    def detect(self, p: list[Tensor], proposals: list[Proposals], batch: Batch) -> list[Detections]:
        return [
            TaggedDetections(**vars(d), tag=tag(d.scores), twin=d.boxes) for d in super().detect(p, proposals, batch)
        ]


def tag(scores: Tensor) -> Tensor:
    return (scores * 1e6).long()


@pytest.fixture(scope="module")
def model() -> Any:
    model = tiny_model()
    model.roi_head.__class__ = TaggedRoIHead
    return model


@pytest.mark.parametrize("workers", [0, 1])
def test_a_field_of_the_target_reaches_the_regions_that_the_head_learns_from(tmp_path: Path, model: Any, workers: int):
    draw_split(tmp_path, "train", 6)
    transform = Compose([HorizontalFlip(1.0), LargeScaleJitter(90, 0.7, 1.3), Resize([64, 80], 160), HorizontalFlip()])
    dataset = TaggedDataset(tmp_path / "images", tmp_path / "train.json", transform=transform)
    label_of = {
        tag: label
        for i in range(6)
        for tag, label in zip(dataset.target(i).tag.tolist(), dataset.target(i).labels.tolist())
    }
    loader = train_loader(dataset, 2, workers, seed=0)
    positives = 0
    for images, targets, _ in loader:
        model.train()(images, targets)
        for regions, target in model.roi_head.seen:
            positive = regions.labels < model.roi_head.num_classes
            tags = target.tag[regions.gt_index[positive]].tolist()
            assert [label_of[tag] for tag in tags] == regions.labels[positive].tolist()
            assert torch.equal(target.twin, target.boxes)
            positives += len(tags)
    assert positives > 20


@pytest.mark.parametrize("kind", [Predictor, TTAPredictor])
def test_a_field_of_the_detections_reaches_the_results(tmp_path: Path, model: Any, kind: type[Predictor]):
    config = parse_config(
        CONFIG,
        [
            "data.root=.",
            "data.train={images: a, annotations: b}",
            "data.val={images: a, annotations: b}",
            "data.tta.scales=[0.5, 1]",
            "data.resize={short: 96, long: 160}",
        ],
        trust=False,
    )
    predictor = kind(model, config, ["a", "b", "c"], [3, 7, 11], device="cpu")
    found = predictor(picture(64, 96))
    assert isinstance(found, TaggedDetections) and len(found) > 10
    assert torch.equal(found.tag, tag(found.scores)) and torch.equal(found.twin, found.boxes)

    draw_split(tmp_path, "train", 2)
    score = float(found.scores.median())
    jobs = find_images([str(tmp_path / "images")], tmp_path / "out")
    results, failed = infer_images(predictor, jobs, tmp_path / "out", score=score, batch_size=2)
    assert results and not failed and json.loads((tmp_path / "out" / "detections.json").read_text()) == results
    for row in results:
        assert row["score"] >= score and row["tag"] == int(tag(torch.tensor(row["score"])))
        x, y, w, h = row["bbox"]
        assert row["twin"] == pytest.approx([x, y, x + w, y + h])


def test_a_target_may_be_a_plain_dictionary():
    boxes, labels = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)
    made = Target.of({"boxes": boxes, "labels": labels})
    assert made.boxes is boxes and made.labels is labels and made.crowd.shape == (0, 4)
    assert Target.of(made) is made


def test_names_are_aligned_with_labels_and_a_bare_model_gives_none():
    found = Detections(torch.zeros(2, 4), torch.tensor([0.9, 0.8]), torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="call the predictor"):
        _ = found.names
    found.class_names = ["cat", "dog"]
    assert len(found) == 2 and found.names == found.cpu().names == ["dog", "cat"]


def test_a_record_changes_as_a_whole():
    boxes = torch.tensor([[10.0, 10, 20, 30], [90, 0, 120, 10], [200, 200, 220, 210]])
    target = TaggedTarget(boxes, torch.tensor([0, 1, 2]), boxes[1:], tag=torch.tensor([5, 6, 7]), twin=boxes)
    left = target.clipped((100, 100))
    assert left.tag.tolist() == [5, 6] and left.twin.tolist() == left.boxes.tolist() == [
        [10, 10, 20, 30],
        [90, 0, 100, 10],
    ]
    assert left.crowd.tolist() == [[90, 0, 100, 10]]
    half = target.resized((100, 100), (50, 200))
    assert half.twin.tolist()[0] == half.boxes.tolist()[0] == [20, 5, 40, 15] and half.crowd.tolist()[0] == [
        180,
        0,
        240,
        5,
    ]
    assert target.mirrored(100).twin.tolist()[0] == [80, 10, 90, 30]
    both = TaggedTarget.joined([target[:1], target[2:]])
    assert both.tag.tolist() == [5, 7] and both.twin.tolist() == both.boxes.tolist()
    other = TaggedTarget(
        boxes.long(), torch.tensor([0, 1, 2], dtype=torch.int32), tag=target.tag > 5, twin=boxes.double()
    )
    types = {name: value.dtype for name, value in vars(other.to("cpu")).items() if value is not None}
    assert types == dict.fromkeys(("boxes", "crowd", "twin"), torch.float32) | {
        "labels": torch.int64,
        "tag": torch.bool,
    }
    moved = target.to("cpu")
    assert {f.name: type(getattr(moved, f.name)) for f in fields(moved)}["tag"] is Tensor and len(moved.crowd) == 2


def test_a_filler_has_no_rows_in_any_field(tmp_path: Path):
    draw_split(tmp_path, "train", 3)
    dataset = TaggedDataset(tmp_path / "images", tmp_path / "train.json")
    targets = [t for _, ts, _ in train_loader(dataset, 2, 0, seed=0, rank=1, world=2) for t in ts]
    assert any(len(t) == 0 for t in targets) and all(len(t.tag) == len(t.twin) == len(t) for t in targets)
