"""Names and lines of keypoints: from the annotation file through training and checkpoint to what is found and drawn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.tiny import CONFIG, DATA, built, picture, predictor_of
from PIL import Image
from torch import nn

import detector
from detector.checkpoint import save_checkpoint
from detector.config.config import load_config, parse_config
from detector.config.inherit import merge
from detector.config.match_data import with_num_classes
from detector.data.settings import build_dataset
from detector.errors import CheckpointError, ConfigError, DataError
from detector.evaluation.coco import evaluate_results
from detector.evaluation.reach import scoring_limits
from detector.files import load_tensors
from detector.inference.drawing import draw_detections
from detector.inference.predictor import Predictor
from detector.inference.tta import TTAPredictor, best_keypoints
from detector.modeling.roi_heads.heat_maps import heat_map_cells
from detector.modeling.roi_heads.keypoint_head import KeypointBranch
from detector.recipe import Scoring
from detector.records.keypoints import PERSON, Keypoints, Pose
from detector.structures import Detections

POSE = Pose(["top", "right", "left"], [(0, 1), (0, 2)])
MODEL = {"roi_head": {"keypoint_head": {"keypoints": 3, "width": 16, "convs": 2}}}
POINTED = merge(CONFIG, {"model": MODEL, "data": DATA | {"resize": {"short": 64, "long": 200}, "tta": {"scales": [1]}}})


def predictor(kind: type[Predictor], **options: Any) -> Predictor:
    torch.manual_seed(0)
    return predictor_of(built(POINTED), POINTED, kind, **options)


def test_a_checkpoint_says_what_its_keypoints_mean(tmp_path: Path):
    given: dict[str, Any] = {"model": built(POINTED), "config": POINTED}
    given |= {"class_names": ["a", "b", "c"], "category_ids": [1, 2, 3]}
    save_checkpoint(tmp_path / "a.pth", **given, pose=POSE)
    save_checkpoint(tmp_path / "bare.pth", **given)
    loaded, bare = (detector.load(tmp_path / name, device="cpu") for name in ("a.pth", "bare.pth"))
    assert loaded.pose == POSE and bare.pose is None
    found = loaded(picture(64, 96))
    assert len(found) > 0 and found.keypoints.pose == POSE
    assert all(row["keypoint_names"] == POSE.names for row in found.to_coco(7))
    assert found.to_dict()["keypoint_names"] == [POSE.names] * len(found)
    assert "keypoint_names" not in bare(picture(64, 96)).to_coco(7)[0]
    content = load_tensors(tmp_path / "a.pth")
    for wrong in ({"names": ["a"], "skeleton": [[0, 1]]}, ["a"], {"names": ["a"]}):
        torch.save(content | {"pose": wrong}, tmp_path / "damaged.pth")
        with pytest.raises(CheckpointError, match="damaged: pose"):
            detector.load(tmp_path / "damaged.pth")


@pytest.mark.parametrize("pose", [POSE, None])
def test_left_and_right_change_places_in_mirrored_views(pose: Pose | None):
    image, views = picture(96, 128), predictor(TTAPredictor, pose=pose)
    found = views(image)
    seen = []
    for flip in (False, True):
        given = views.prepare(image.flip(-1) if flip else image)[0]
        there = (found.mirrored(128) if flip else found).resized((96, 128), tuple(given.shape[1:]))
        [one] = views.model.complete([given], [there])
        points = one.keypoints.resized(tuple(given.shape[1:]), (96, 128))
        order = [0, 2, 1] if flip else [0, 1, 2]
        x, y = points.points[:, order].unbind(dim=-1)
        seen.append(
            Keypoints(torch.stack([128 - x if flip else x, y], dim=-1), points.visible, points.scores[:, order])
        )
    assert (seen[0].scores - seen[1].scores).abs().max() > 1e-6
    expected = best_keypoints(seen) if pose is not None else seen[0]
    assert len(found) > 5 and (expected.points - found.keypoints.points).abs().max() < 0.01


def test_a_head_of_another_number_of_keypoints_is_refused_before_training():
    config = parse_config(POINTED, trust=False)
    data: Any = SimpleNamespace(class_names=["a", "b", "c"], annotation_file="a.json", pose=POSE)
    assert with_num_classes(config, data).model.num_classes == 3
    data.pose = PERSON
    with pytest.raises(ConfigError, match=r"keypoints: 3, but a.json has 17 keypoints \(nose, .*set it to 17"):
        with_num_classes(config, data)


def test_lines_are_those_of_the_skeleton():
    points = torch.tensor([[[20.0, 20], [80, 20], [20, 80]]])
    keypoints = Keypoints(points, torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 3), POSE)
    found = Detections(torch.tensor([[10.0, 10, 90, 90]]), torch.tensor([0.9]), torch.tensor([0]), keypoints=keypoints)
    image = torch.full((3, 100, 100), 128, dtype=torch.uint8)

    def touched(keypoints: Keypoints) -> list[bool]:
        drawn = draw_detections(image, replace(found, keypoints=keypoints))
        return [drawn.getpixel(place) != (128, 128, 128) for place in ((50, 20), (20, 50), (50, 50))]

    assert touched(keypoints) == [True, True, False]
    assert touched(replace(keypoints, pose=Pose(POSE.names, [(1, 2)]))) == [False, False, True]
    assert touched(replace(keypoints, pose=None)) == [False, False, False]
    person = Keypoints(torch.zeros(0, 17, 2), torch.zeros(0, 17))
    assert person.skeleton == PERSON.skeleton and len(PERSON.skeleton) == 19 and PERSON.swap()[5:7] == [6, 5]


def test_keypoints_of_another_order_are_not_scored(tmp_path: Path):
    truth = tmp_path / "a.json"
    truth.write_text(
        '{"images": [{"id": 1, "file_name": "a.png", "height": 50, "width": 50}], "categories": [{"id": 1, "name": "a", '
        '"keypoints": ["left", "right"]}], "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "area": 400, '
        '"bbox": [5, 5, 20, 20], "keypoints": [10, 10, 2, 20, 20, 2]}]}'
    )
    one = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "score": 1.0, "keypoints": [10, 10, 1, 20, 20, 1]}
    for named in ({}, {"keypoint_names": ["left", "right"]}):
        assert evaluate_results(truth, [one | named])["keypoints"]["AP"] == pytest.approx(1)
    with pytest.raises(DataError, match=r"result 0.*same order"):
        evaluate_results(truth, [one | {"keypoint_names": ["right", "left"]}])
    assert scoring_limits(truth, [1], Scoring(), ["keypoints"], Pose(["left", "right"], [])) == []
    for names in (["right", "left"], ["left"]):  # said before the first image
        with pytest.raises(DataError, match=r"keypoints of the model: their names.*same order"):
            scoring_limits(truth, [1], Scoring(), ["keypoints"], Pose(names, []))


def test_half_a_pixel_is_added_where_keypoints_are_read_and_taken_off_where_they_are_written(tmp_path: Path):
    """As in Detectron2: a file numbers pixels. In an image of 56 pixels, a cell each, number 10 mirrored is number 45."""
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 56, 56], "keypoints": [10, 20, 2]}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 56, "width": 56}], "annotations": [entry],
        "categories": [{"id": 1, "name": "a", "keypoints": ["tip"]}],
    }  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(content))
    for offset, mirrored, doubled in ((0.5, 45, 21), (0.0, 46, 20)):
        head = {"keypoints": 1, "offset": offset}
        split = {"images": ".", "annotations": "a.json"}
        data = {"root": str(tmp_path), "train": split, "val": split}
        config = parse_config({"model": {"roi_head": {"keypoint_head": head}}, "data": data}, trust=False)
        options = {"fields": config.model.target_fields, "keypoint_offset": config.model.keypoint_offset}
        keypoints = build_dataset(config.data, "val", **options)[0][1].keypoints
        box = torch.tensor([[0.0, 0, 56, 56]])
        assert heat_map_cells(keypoints, box, 56)[0].item() == 20 * 56 + 10
        assert heat_map_cells(keypoints.mirrored(56), box, 56)[0].item() == 20 * 56 + mirrored
        assert heat_map_cells(keypoints.resized((56, 56), (112, 112)), 2 * box, 112)[0].item() % 112 == doubled
        assert keypoints.scored().tolist() == [[[10, 20, 2]]]
        maps = torch.zeros(1, 1, 56, 56)
        maps[0, 0, 20, 10] = 9
        branch = KeypointBranch(lambda *_: None, Fixed(maps, offset))
        found = Detections(box, torch.ones(1), torch.zeros(1, dtype=torch.int64), category_ids=[1])
        [found] = branch.detect([], [found])
        assert found.keypoints.points.tolist() == [[[10.5, 20.5]]]
        assert found.to_coco(1)[0]["keypoints"][:2] == [10.5 - offset, 20.5 - offset]
    assert load_config("detector://compat/detectron2_keypoint_rcnn_R_50_FPN.yaml").model.keypoint_offset == 0.5


class Fixed(nn.Module):
    """A head that gives these maps."""

    def __init__(self, maps: torch.Tensor, offset: float):
        super().__init__()
        self.maps, self.offset, self.scores = maps, offset, "softmax"

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.maps
