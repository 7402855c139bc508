"""Keypoint R-CNN: cells and places of keypoints, the loss, which regions learn, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.golden_rules import golden
from helpers.necks import count
from torchvision.models.detection import roi_heads as theirs

from detector.modeling.roi_heads.heat_maps import heat_map_cells, read_heat_maps
from detector.modeling.roi_heads.keypoint_head import KeypointBranch, KeypointConvUpsample
from detector.modeling.roi_heads.pool import RoIPool
from detector.modeling.roi_heads.stage import Regions
from detector.records.keypoints import Keypoints
from detector.structures import Detections, Target


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
    head = KeypointConvUpsample(4, keypoints=3, convs=1, width=4)
    loss = head.loss(recorded_maps(), cells, valid, images=1)
    matched = [torch.arange(len(boxes))]
    torch.testing.assert_close(loss, theirs.keypointrcnn_loss(recorded_maps(), [boxes], [xyv], matched))
    assert loss.item() == pytest.approx(recorded["tv_loss"]["loss"], rel=1e-6)
    fixed = KeypointConvUpsample(4, keypoints=3, convs=1, width=4, positives_per_image=2, weight=0.5)
    torch.testing.assert_close(
        fixed.loss(recorded_maps(), cells, valid, images=2), loss * valid.sum() * 0.5 / (2 * 3 * 2)
    )
    flat = head.loss(torch.zeros(6, 3, 56, 56), cells, valid, images=1)
    assert flat.item() == pytest.approx(math.log(56**2))


def test_as_many_parameters_as_published():
    with torch.device("meta"):
        head = KeypointConvUpsample(256)
    assert (count(head.convs), count(head.upsample)) == (17_698_816, 139_281)


# --- the branch

BOX = [10.0, 10, 30, 40]


def branch() -> KeypointBranch:
    torch.manual_seed(0)
    return KeypointBranch(RoIPool([4], [8], levels=1, size=14), KeypointConvUpsample(4, keypoints=2, convs=1, width=4))


def one_object(points: list[list[float]]) -> Target:
    return Target(
        torch.tensor([BOX]), torch.zeros(1, dtype=torch.int64), keypoints=Keypoints.of(torch.tensor([points]))
    )


def regions(*boxes: list[float]) -> Regions:
    zeros = torch.zeros(len(boxes), dtype=torch.int64)
    return Regions(torch.tensor(boxes).view(-1, 4), zeros, zeros, zeros.bool())


def test_a_region_without_a_visible_keypoint_inside_teaches_nothing():
    """A border counts as inside. What is not visible, or outside, does not."""
    level = [torch.randn(1, 4, 8, 12)]
    on_border = one_object([[30.0, 40, 1], [20, 20, 0]])
    alone = branch().losses(level, [regions(BOX)], [on_border])["roi_keypoint"]
    others = branch().losses(level, [regions(BOX, [0.0, 0, 29, 39], [15.0, 15, 25, 25])], [on_border])["roi_keypoint"]
    assert alone.item() == others.item() > 0
    nothing = branch().losses(level, [regions([0.0, 0, 29, 39])], [on_border])["roi_keypoint"]
    assert nothing.item() == 0 and nothing.requires_grad


def test_the_other_divisor_does_not_depend_on_what_is_visible():
    level, fixed = [torch.randn(1, 4, 8, 12)], branch()
    fixed.head.positives_per_image = 3
    one, two = one_object([[20.0, 20, 2], [0, 0, 0]]), one_object([[20.0, 20, 2], [20, 20, 2]])
    mean, total = (b.losses(level, [regions(BOX)], [one])["roi_keypoint"].item() for b in (branch(), fixed))
    assert total == pytest.approx(mean / (3 * 2))
    assert fixed.losses(level, [regions(BOX)], [two])["roi_keypoint"].item() > 1.5 * total


def test_detections_get_keypoints_inside_their_boxes_and_none_gets_none():
    boxes = torch.tensor([BOX, [2.0, 3, 8.5, 9.25]])
    found = [Detections(boxes, torch.ones(2), torch.zeros(2, dtype=torch.int64))]
    (some,), (none,) = (branch().detect([torch.randn(1, 4, 8, 12)], f) for f in (found, [found[0][:0]]))
    points = some.keypoints.points
    assert points.shape == (2, 2, 2) and ((points > boxes[:, None, :2]) & (points < boxes[:, None, 2:])).all()
    assert none.keypoints.points.shape == (0, 2, 2) and none.keypoints.scores.shape == (0, 2)
    (blind,) = branch().detect([torch.full((1, 4, 8, 12), torch.nan)], found)  # a NaN is no JSON
    assert blind.keypoints.points.isfinite().all() and blind.keypoints.scores.tolist() == [[0, 0], [0, 0]]


def test_a_target_with_another_number_of_keypoints_is_named():
    with pytest.raises(ValueError, match="target 0: the model learns 2 keypoints, and there are 3 of each object"):
        branch().losses([torch.randn(1, 4, 8, 12)], [regions(BOX)], [one_object([[20.0, 20, 2]] * 3)])
