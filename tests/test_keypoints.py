"""Keypoint R-CNN: cells and places of keypoints, the loss, which regions learn, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.golden_rules import golden
from helpers.necks import count
from torchvision.models.detection import roi_heads as theirs

from detector.modeling.roi_heads.heat_maps import heat_map_cells, read_heat_maps
from detector.modeling.roi_heads.keypoint_head import KeypointHead
from detector.records.keypoints import Keypoints


@pytest.fixture(scope="module")
def recorded() -> dict:
    return golden("masks/functions_masks")["keypoints"]


def recorded_maps() -> torch.Tensor:
    """The maps of the README's formula (6, 3, 56, 56)."""
    r, k, i, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (6, 3, 56, 56)), indexing="ij")
    maps = 4 * torch.sin(0.11 * (r + 1) * i + 0.5 * k) + 3 * torch.cos(0.13 * (k + 1) * j - 0.2 * r)
    maps += 0.8 * torch.sin(0.9 * i) * torch.cos(0.8 * j) + 0.011 * i * (k - 1) - 0.007 * j
    return maps.float()


def test_cells_are_the_recorded_ones(recorded):
    keypoints = Keypoints.of(torch.tensor(recorded["keypoints"]))
    cells, valid = heat_map_cells(keypoints, torch.tensor(recorded["rois"]), 56)
    assert cells.tolist() == recorded["target"]["index"] and valid.long().tolist() == recorded["target"]["valid"]


@pytest.mark.parametrize("scores, read, key", [("logit", "tv_read", "score"), ("softmax", "d2_read", "score")])
def test_places_and_scores_are_the_recorded_ones(recorded, scores, read, key):
    points, found = read_heat_maps(recorded_maps(), torch.tensor(recorded["rois"]), scores)
    torch.testing.assert_close(points, torch.tensor(recorded[read]["xy"]), rtol=0, atol=1e-4)
    torch.testing.assert_close(found, torch.tensor(recorded[read][key]), rtol=1e-4, atol=1e-5)


def test_places_are_torchvisions_for_many_boxes_and_equal_ones():
    torch.manual_seed(0)
    boxes = torch.rand(30, 2).repeat(1, 2) * 50 + torch.cat([torch.zeros(30, 2), torch.rand(30, 2) * 90], dim=1)
    boxes[20:] = boxes[10:20]  # equal sizes
    maps = 3 * torch.randn(30, 2, 56, 56)
    want, want_scores = theirs.heatmaps_to_keypoints(maps, boxes)
    points, scores = read_heat_maps(maps, boxes, "logit")
    torch.testing.assert_close(points, want[..., :2])
    torch.testing.assert_close(scores, want_scores)
    assert read_heat_maps(maps[:0], boxes[:0], "softmax")[0].shape == (0, 2, 2)


def test_the_loss_is_torchvisions_and_the_recorded_one(recorded):
    boxes, xyv = torch.tensor(recorded["rois"]), torch.tensor(recorded["keypoints"])
    cells, valid = heat_map_cells(Keypoints.of(xyv), boxes, 56)
    head = KeypointHead(4, keypoints=3, convs=1, width=4)
    loss = head.loss(recorded_maps(), cells, valid, images=1)
    matched = [torch.arange(len(boxes))]
    torch.testing.assert_close(loss, theirs.keypointrcnn_loss(recorded_maps(), [boxes], [xyv], matched))
    fixed = KeypointHead(4, keypoints=3, convs=1, width=4, positives_per_image=2, weight=0.5)
    torch.testing.assert_close(
        fixed.loss(recorded_maps(), cells, valid, images=2), loss * valid.sum() * 0.5 / (2 * 3 * 2)
    )
    flat = head.loss(torch.zeros(6, 3, 56, 56), cells, valid, images=1)
    assert flat.item() == pytest.approx(math.log(56**2))


def test_as_many_parameters_as_published():
    with torch.device("meta"):
        head = KeypointHead(256)
    assert (count(head.convs), count(head.upsample)) == (17_698_816, 139_281)
