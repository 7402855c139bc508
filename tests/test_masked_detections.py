"""Detections with masks and keypoints: exports, choosing rows, printing, drawing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from detector.inference.drawing import class_colour, draw_detections
from detector.inference.predictor import to_original
from detector.records.keypoints import Keypoints
from detector.records.region_masks import RegionMasks
from detector.structures import Detections

BOXES = torch.tensor([[10.0, 20, 70, 80], [30, 40, 50, 60], [0, 0, 8, 8]])
SIZE = (100, 120)


def masked(boxes: Tensor = BOXES) -> Detections:
    n = len(boxes)
    points = boxes[:, None, :2] + torch.arange(17.0)[None, :, None] * torch.tensor([3.0, 2])
    keypoints = Keypoints(points, torch.ones(n, 17, dtype=torch.int64), torch.linspace(0.1, 0.9, 17).repeat(n, 1))
    masks = RegionMasks(torch.ones(n, 28, 28), boxes, SIZE)
    scores, labels = torch.linspace(0.9, 0.5, n), torch.arange(n) % 3
    return Detections(boxes, scores, labels, ["a", "b", "c"], category_ids=[3, 5, 9], masks=masks, keypoints=keypoints)


def test_results_hold_masks_and_keypoints_as_coco_does():
    rows = json.loads(json.dumps(masked().to_coco(7)))
    for row, (x1, y1, x2, y2) in zip(rows, BOXES.int().tolist(), strict=True):
        expected = np.zeros(SIZE, dtype=np.uint8)
        expected[y1:y2, x1:x2] = 1
        assert np.array_equal(coco_mask.decode(row["segmentation"]), expected)
        assert row["keypoints"][:6] == pytest.approx([x1, y1, 0.1, x1 + 3, y1 + 2, 0.15])
        assert len(row["keypoints"]) == 51
    plain = json.loads(json.dumps(masked().to_dict()))
    assert plain["segmentation"] == [row["segmentation"] for row in rows]
    assert plain["keypoints"] == [row["keypoints"] for row in rows]
    assert masked(BOXES[:0]).to_coco(7) == [] and masked(BOXES[:0]).to_dict()["segmentation"] == []


def test_rows_are_chosen_with_their_masks_and_keypoints():
    found = masked().sort("area", descending=False).filter(classes=["b", "c"])
    assert found.boxes.tolist() == BOXES[[2, 1]].tolist()
    assert found.masks.boxes.tolist() == BOXES[[2, 1]].tolist() and found.masks.size == SIZE
    assert found.keypoints.points[:, 0].tolist() == BOXES[[2, 1], :2].tolist()
    assert repr(found).splitlines()[0] == "Detections: 2 (1 c, 1 b), with masks and keypoints"
    assert [len(one.masks) for one in found] == [1, 1]


def test_pandas_and_supervision():
    pytest.importorskip("pandas", reason="needs pandas: pip install pandas")
    pytest.importorskip("supervision", reason="needs supervision: pip install supervision")
    table = masked().to_pandas()
    assert table.loc[1, "segmentation"] == masked().masks.rle()[1] and len(table.loc[0, "keypoints"]) == 51
    found = masked().to_supervision()
    assert np.array_equal(found.mask, masked().masks.paste().numpy()) and found.data["keypoints"].shape == (3, 17, 3)
    assert masked(BOXES[:0]).to_supervision().mask.shape == (0, *SIZE)


def test_masks_and_keypoints_move_to_the_original_image():
    found = to_original(masked(), torch.zeros(3, *SIZE), (200, 240))
    assert found.masks.size == (200, 240) and found.masks.probabilities.dtype == torch.float16
    assert found.masks.paste()[1].nonzero().aminmax(dim=0).max.tolist() == [119, 99]
    assert torch.equal(found.keypoints.points, 2 * masked().keypoints.points)


def drawn(found: Detections, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.from_numpy(np.asarray(draw_detections(torch.full((3, *size), 128, dtype=torch.uint8), found)).copy())


def test_masks_are_translucent_and_the_smallest_is_on_top():
    found = masked()
    found.keypoints = None
    pixels = drawn(found).float()
    for place, row in (((70, 60), 0), ((55, 40), 1)):
        expected = 0.6 * 128 + 0.4 * torch.tensor(class_colour(row))
        assert (pixels[place] - expected).abs().max() <= 1
    assert torch.equal(pixels[45, 100], torch.full((3,), 128.0))
    found.masks = RegionMasks(torch.zeros(3, 28, 28), BOXES, SIZE)  # empty ones
    assert torch.equal(drawn(found)[70, 60], torch.full((3,), 128, dtype=torch.uint8))


def test_only_visible_keypoints_are_drawn():
    found = masked(BOXES[:1])
    found.masks = None
    bare = drawn(Detections(found.boxes, found.scores, found.labels, found.class_names))
    x, y = found.keypoints.points[0, 5].int().tolist()
    assert drawn(found)[y, x].tolist() == [255, 255, 255] != bare[y, x].tolist()
    found.keypoints.visible[:] = 0
    assert torch.equal(drawn(found), bare)


def test_a_crowd_hides_no_more_than_one_object():
    boxes = torch.rand(600, 2) * 300
    boxes = torch.cat([boxes, boxes + 60], dim=1)
    found = Detections(boxes, torch.ones(600), torch.zeros(600, dtype=torch.int64), ["a"])
    found.masks = RegionMasks(torch.ones(600, 28, 28), boxes, (400, 400))
    checks = (torch.arange(400)[:, None] // 20 + torch.arange(400) // 20) % 2 * 200
    picture = draw_detections(checks.to(torch.uint8).expand(3, -1, -1).clone(), found)
    light = torch.from_numpy(np.asarray(picture).copy()).float().mean(dim=2)
    assert light[checks > 0].mean() - light[checks == 0].mean() > 25


@pytest.mark.parametrize("rows", [1, 7, 50])
def test_a_large_picture_is_drawn_in_bands_to_the_same_pixels(rows: int, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(rows)
    low = torch.rand(12, 2) * torch.tensor([1000.0, 500])
    boxes = torch.cat([low, low + 20 + torch.rand(12, 2) * 200], dim=1).minimum(torch.tensor([1000.0, 500, 1000, 500]))
    size = (500, 1000)
    masks = RegionMasks(F.interpolate(torch.rand(12, 1, 5, 5), size=28, mode="bilinear")[:, 0], boxes, size)
    found = Detections(boxes, torch.rand(12), torch.arange(12) % 3, ["a", "b", "c"], masks=masks)
    whole = drawn(found, size)
    monkeypatch.setattr("detector.inference.mask_drawing.BAND", rows * 1000)
    assert torch.equal(drawn(found, size), whole) and (whole != 128).any()
