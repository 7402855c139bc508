"""When two detectors find the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from detector.export.agreement import TOLERANCES, Agreement, agreement
from detector.records.keypoints import Keypoints
from detector.records.region_masks import RegionMasks
from detector.structures import Detections

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


def test_a_lower_precision_has_limits_of_its_own():
    half, int8 = TOLERANCES["float16"], TOLERANCES["int8"]
    near = replace(FOUND, boxes=BOXES + torch.tensor([0, 0, 0, 0.4]))
    assert agree(FOUND, near, tolerance=half).ok and not agree(FOUND, near).ok
    assert agree(FOUND, replace(FOUND, boxes=BOXES + 0.6), tolerance=half).beyond == 3
    low = replace(FOUND, scores=torch.tensor([0.8, 0.4, 0.3]))
    found = agree(FOUND, low, tolerance=int8)  # 0.9, 0.5 and 0.1 before: the last is below a half in both
    assert found.both == 2 and found.ok and found.score == pytest.approx(0.1, abs=1e-6)
    assert agree(FOUND, replace(FOUND, scores=FOUND.scores - 0.3), tolerance=int8).beyond == 2
    assert agree(FOUND, replace(FOUND, boxes=BOXES + 1.5), tolerance=int8).ok  # an IoU above a half
    alone = agree(FOUND, FOUND[1:], tolerance=int8)
    assert alone.unlike == alone.only_first == 1 and agree(FOUND, FOUND[:2], tolerance=int8).only_first == 0


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
