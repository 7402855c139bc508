"""Suppression: soft-NMS by hand, against a slow oracle, and as an option of the RoI head."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tiny import grouped

from detector.modeling.boxes import box_iou
from detector.modeling.nms import soft_nms, suppress
from detector.modeling.roi_heads.pool import RoIPool
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.structures import Detections

A, B, C = [0.0, 0, 20, 20], [10.0, 0, 30, 20], [50.0, 30, 80, 50]  # A and B overlap by a third, C stands alone
SETTINGS = dict(iou=0.3, min_score=0.01, limit=100)


def soft(boxes, scores, group=None, **settings) -> tuple[list[int], list[float]]:
    boxes, scores = torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores)
    group = torch.zeros(len(boxes), dtype=torch.long) if group is None else torch.tensor(group)
    index, score = soft_nms(boxes, scores, group, **(SETTINGS | settings))
    return index.tolist(), score.tolist()


def test_linear_decay_takes_the_share_of_the_overlap():
    index, scores = soft([A, B, C], [0.6, 0.9, 0.3], kind="linear")
    assert index == [1, 0, 2]
    assert scores == pytest.approx([0.9, 0.6 * (1 - 1 / 3), 0.3])


def test_linear_decay_begins_at_the_threshold():
    assert soft([A, B], [0.6, 0.9], kind="linear", iou=0.34)[1] == pytest.approx([0.9, 0.6])
    assert soft([A, A], [0.6, 0.9], kind="linear", iou=1.0)[0] == [1]  # equal boxes: nothing is left of the lesser


def test_gaussian_decay_spares_nobody_who_overlaps():
    index, scores = soft([A, B, C], [0.6, 0.9, 0.3], kind="gaussian", iou=0.9)
    assert index == [1, 0, 2]
    assert scores == pytest.approx([0.9, 0.6 * math.exp(-((1 / 3) ** 2) / 0.5), 0.3])


def test_a_box_that_has_lost_too_much_is_gone_and_decays_nobody():
    assert soft([A, B, C], [0.6, 0.9, 0.3], kind="linear", min_score=0.41)[0] == [1]
    assert soft([A, B, C], [0.6, 0.9, 0.3], kind="linear", min_score=0.3)[0] == [1, 0, 2]
    shifted = [5.0, 0, 25, 20]  # overlaps both; after B (0.6) it has 0.12 left and would cost A another 0.6
    index, scores = soft([A, B, shifted], [0.6, 0.9, 0.3], kind="linear", min_score=0.2)
    assert index == [1, 0] and scores[1] == pytest.approx(0.4)


def test_boxes_of_different_groups_do_not_see_each_other():
    assert soft([A, A], [0.6, 0.9], [0, 1], kind="linear")[1] == pytest.approx([0.9, 0.6])


def test_nothing_in_nothing_out():
    assert soft([], [], kind="linear") == soft([], [], kind="gaussian") == ([], [])


def slow_soft_nms(boxes, scores, group, kind, iou, min_score) -> list[tuple[int, float]]:
    """All that is left is looked at again after every choice."""
    overlap, left, out = box_iou(boxes, boxes).tolist(), dict(enumerate(scores.tolist())), []
    while left:
        best = max(left, key=left.get)
        out.append((best, left.pop(best)))
        for i in list(left):
            o = overlap[best][i] if group[i] == group[best] else 0.0
            left[i] *= math.exp(-o * o / 0.5) if kind == "gaussian" else (1 - o if o >= iou else 1)
            if left[i] < min_score:
                del left[i]
    return out


@pytest.mark.parametrize("kind", ["linear", "gaussian"])
def test_soft_nms_equals_a_slow_oracle(kind):
    low = torch.rand(80, 2) * 60
    boxes = torch.cat([low, low + 10 + 30 * torch.rand(80, 2)], dim=1)
    scores, group = torch.rand(80) * 0.9 + 0.1, torch.randint(0, 3, (80,))
    for limit in (1000, 7):
        index, score = soft_nms(boxes, scores, group, kind=kind, iou=0.3, min_score=0.05, limit=limit)
        expected = slow_soft_nms(boxes, scores, group, kind, 0.3, 0.05)[:limit]
        assert index.tolist() == [i for i, _ in expected] and len(expected) > min(limit, 15) - 1
        torch.testing.assert_close(score, torch.tensor([s for _, s in expected]))


def test_the_best_come_first_and_only_so_many():
    boxes, rule = torch.tensor([A, B, C]).repeat(30, 1) + torch.rand(90, 4), dict(iou=0.95, min_score=0.01, limit=9)
    for kind in ("hard", "linear", "gaussian"):
        index, scores = suppress(boxes, torch.rand(90), torch.zeros(90), kind=kind, **rule)
        assert len(index) == len(scores) == 9 == len(set(index.tolist()))
        assert (scores.diff() <= 0).all()


# --- as options of the head


def detect(scores: list[list[float]], boxes: list[list[float]], **settings) -> Detections:
    box_head = torch.nn.Identity()
    box_head.width = 1
    head = RoIHead(RoIPool([1], [4], levels=1), box_head, 2, **grouped(RoIHead, **settings))
    return head.postprocess(
        torch.tensor(scores).log(), torch.zeros(len(boxes), 2, 4), [torch.tensor(boxes)], [(60, 90)]
    )[0]  # fmt: skip


SCORES = [[0.6, 0.0, 0.4], [0.0, 0.9, 0.1]]  # A is of class 0, B of class 1


def test_classes_suppress_each_other_only_where_suppression_is_class_agnostic():
    assert detect(SCORES, [A, B], nms_iou=0.3).labels.tolist() == [1, 0]
    assert detect(SCORES, [A, B], nms_iou=0.3, class_agnostic_nms=True).labels.tolist() == [1]
    assert detect(SCORES, [A, B], nms_iou=0.34, class_agnostic_nms=True).labels.tolist() == [1, 0]


def test_soft_scores_are_reported_with_the_labels_of_their_boxes():
    found = detect(SCORES, [A, B], nms="linear", nms_iou=0.3, class_agnostic_nms=True)
    assert found.labels.tolist() == [1, 0] and found.boxes.tolist() == [B, A]
    assert found.scores.tolist() == pytest.approx([0.9, 0.4])
    assert len(detect(SCORES, [A, B], nms="linear", nms_iou=0.3, class_agnostic_nms=True, soft_min_score=0.5)) == 1
    assert detect(SCORES, [A, B], nms="linear", nms_iou=0.3).scores.tolist() == pytest.approx([0.9, 0.6])


def test_a_least_score_of_zero_is_refused():
    """Soft suppression never ends at zero: what is gone would come back."""
    with pytest.raises(ValueError, match="soft_min_score"):
        detect(SCORES, [A, B], soft_min_score=0.0)
