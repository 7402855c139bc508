"""Box mathematics and suppression: truth by hand, invariants, slow oracles, empties, and the options of the RoI head."""

import math

import pytest
import torch
from helpers.tiny import grouped
from hypothesis import given
from hypothesis import strategies as st

from detector.modeling.boxes import box_area, box_iou, clip_boxes, decode, encode, intersection, is_larger_than
from detector.modeling.nms import soft_nms, suppress
from detector.modeling.padded import Padded
from detector.modeling.roi_heads.pool import RoIPool
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.structures import Detections, Proposals

RPN, ROI = (1, 1, 1, 1), (10, 10, 5, 5)
NONE = torch.zeros(0, 4)

corner = st.floats(-500, 1500, width=32)
side = st.floats(0.5, 800, width=32)
box = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), corner, corner, side, side)
boxes = st.lists(box, max_size=6).map(lambda rows: torch.tensor(rows).reshape(-1, 4))


def test_areas_ious_clipped_boxes_and_least_sides_by_hand_also_of_none():
    assert box_area(torch.tensor([[2.0, 3, 5, 7], [5, 3, 2, 7], [5, 7, 2, 3]])).tolist() == [12, 0, 0]
    a = torch.tensor([[0.0, 0, 4, 4], [2, 2, 4, 4]])
    b = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [9, 9, 10, 10]])  # same, half, touching, apart
    assert intersection(a, b).tolist() == [[16, 8, 0, 0], [4, 4, 0, 0]]
    expected = torch.tensor([[1, 8 / 24, 0, 0], [4 / 16, 4 / 16, 0, 0]])
    torch.testing.assert_close(box_iou(a, b), expected)
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert box_iou(point, point).tolist() == [[0]]  # and not NaN
    clipped = clip_boxes(torch.tensor([[-5.0, -6, 50, 60], [1, 2, 3, 4], [90, 90, 99, 99]]), (20, 30))  # (h, w)
    assert clipped.tolist() == [[0, 0, 30, 20], [1, 2, 3, 4], [30, 20, 30, 20]]
    infinite, unknown = [0, 0, math.inf, 2], [0, 0, math.nan, 2]
    rows = [[0, 0, 2, 2], [0, 0, 2, 1], [0, 0, 0, 5], [0, 0, 5, 0], [3, 3, 1, 9], infinite, unknown]
    boxes = torch.tensor(rows, dtype=torch.float32)
    assert is_larger_than(boxes, 2).tolist() == [True] + [False] * 6
    assert is_larger_than(boxes, 0).tolist() == [True] * 2 + [False] * 5  # asks for some area nevertheless
    some = torch.tensor([[0.0, 0, 4, 4]])
    assert box_area(NONE).shape == (0,)
    assert box_iou(NONE, some).shape == (0, 1) and box_iou(some, NONE).shape == (1, 0)
    assert clip_boxes(NONE, (5, 5)).shape == encode(NONE, NONE).shape == decode(NONE, NONE).shape == (0, 4)
    assert is_larger_than(NONE, 0).shape == (0,)


@given(boxes, boxes)
def test_iou_equals_a_loop(a, b):
    for row, first in zip(box_iou(a, b).tolist(), a.tolist()):
        for value, second in zip(row, b.tolist()):
            w = min(first[2], second[2]) - max(first[0], second[0])
            h = min(first[3], second[3]) - max(first[1], second[1])
            shared = max(w, 0) * max(h, 0)
            areas = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (first, second))
            assert value == pytest.approx(shared / (areas - shared), abs=1e-4)


def test_encode_by_hand_and_how_far_a_decoded_box_may_grow_or_shrink():
    source, goal = torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([[20.0, 10, 40, 30]])  # 20 x 40 -> 20 x 20
    expected = torch.tensor([[10 / 20, -10 / 40, 0, math.log(0.5)]])
    torch.testing.assert_close(encode(source, goal), expected)
    torch.testing.assert_close(encode(source, goal, ROI), expected * torch.tensor(ROI))
    grown = decode(torch.tensor([[0, 0, 50.0, 1e30]]), torch.tensor([[0.0, 0, 16, 16]]))
    torch.testing.assert_close(grown, torch.tensor([[-492.0, -492, 508, 508]]))
    source, deltas = torch.tensor([[0.0, 0, 1000, 1000]]), torch.tensor([[0, 0, -50.0, -50]])
    assert box_area(decode(deltas, source)).item() < 1e-9
    assert box_area(decode(deltas, source, clamp_both=True)).item() == pytest.approx(16**2, rel=1e-3)


@given(st.lists(st.tuples(box, box), max_size=5), st.sampled_from([RPN, ROI]))
def test_decode_undoes_encode(pairs, weights):
    source, goal = (torch.tensor([p[i] for p in pairs]).reshape(-1, 4) for i in (0, 1))
    small = (goal[:, 2:] - goal[:, :2] <= 62 * (source[:, 2:] - source[:, :2])).all(dim=1)  # beyond that decode clamps
    decoded = decode(encode(source, goal, weights), source, weights)
    torch.testing.assert_close(decoded[small], goal[small], atol=0.01, rtol=1e-4)


A, B, C = [0.0, 0, 20, 20], [10.0, 0, 30, 20], [50.0, 30, 80, 50]  # A and B overlap by a third, C stands alone
SETTINGS = dict(iou=0.3, min_score=0.01, limit=100)


def soft(boxes, scores, group=None, **settings) -> tuple[list[int], list[float]]:
    boxes, scores = torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores)
    group = torch.zeros(len(boxes), dtype=torch.long) if group is None else torch.tensor(group)
    index, score, valid = soft_nms(boxes, scores, group, **(SETTINGS | settings))
    return index[valid].tolist(), score[valid].tolist()


def test_groups_do_not_see_each_other_and_the_best_come_first_and_only_so_many():
    assert soft([A, A], [0.6, 0.9], [0, 1], kind="linear")[1] == pytest.approx([0.9, 0.6])
    assert soft([], [], kind="linear") == soft([], [], kind="gaussian") == ([], [])
    boxes, rule = torch.tensor([A, B, C]).repeat(30, 1) + torch.rand(90, 4), dict(iou=0.95, min_score=0.01, limit=9)
    for kind in ("hard", "linear", "gaussian"):
        group, valid = torch.zeros(90, dtype=torch.long), torch.rand(90) < 0.8
        index, scores, left = suppress(boxes, torch.rand(90), group, valid, kind=kind, **rule)
        assert len(index) == len(scores) == 9 == len(set(index.tolist())) and left.all() and valid[index].all()
        assert (scores.diff() <= 0).all()


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
        index, score, valid = soft_nms(boxes, scores, group, kind=kind, iou=0.3, min_score=0.05, limit=limit)
        index, score = index[valid], score[valid]
        expected = slow_soft_nms(boxes, scores, group, kind, 0.3, 0.05)[:limit]
        assert index.tolist() == [i for i, _ in expected] and len(expected) > min(limit, 15) - 1
        torch.testing.assert_close(score, torch.tensor([s for _, s in expected]))


def test_linear_decay_begins_at_its_iou():
    boxes, scores = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 2]]), torch.tensor([0.75, 0.5])
    for iou, left in ((0.5, 0.25), (0.501, 0.5)):
        _, score, _ = soft_nms(boxes, scores, torch.zeros(2), kind="linear", iou=iou, min_score=0.05, limit=9)
        assert score.tolist() == [0.75, left]


def test_the_weakest_of_thousands_of_candidates_is_found():
    crowd = [[0, 0, 30, 30]] * 4200
    found = detect([[0.6, 0.1, 0.3]] * len(crowd) + [[0.3, 0.1, 0.6]], [*crowd, [50, 50, 80, 55]], score_threshold=0.2)
    assert found.boxes.tolist() == [[0, 0, 30, 30], [50, 50, 80, 55]]


def detect(scores: list[list[float]], boxes: list[list[float]], **settings) -> Detections:
    box_head = torch.nn.Identity()
    box_head.width = 1
    head = RoIHead(RoIPool([1], [4], levels=1), box_head, 2, **grouped(RoIHead, **settings))
    logits, deltas = torch.tensor(scores).log(), torch.zeros(len(boxes), 2, 4)
    rows = Padded.of([Proposals(torch.tensor(boxes), torch.zeros(len(boxes)))])
    return head.postprocess(logits, deltas, rows, [(60, 90)])[0]


SCORES = [[0.6, 0.0, 0.4], [0.0, 0.9, 0.1]]  # A is of class 0, B of class 1


def test_the_head_suppresses_within_classes_or_across_them_and_reports_soft_scores():
    assert detect(SCORES, [A, B], nms_iou=0.3).labels.tolist() == [1, 0]
    assert detect(SCORES, [A, B], nms_iou=0.3, class_agnostic_nms=True).labels.tolist() == [1]
    assert detect(SCORES, [A, B], nms_iou=0.34, class_agnostic_nms=True).labels.tolist() == [1, 0]
    found = detect(SCORES, [A, B], nms="linear", nms_iou=0.3, class_agnostic_nms=True)
    assert found.labels.tolist() == [1, 0] and found.boxes.tolist() == [B, A]
    assert found.scores.tolist() == pytest.approx([0.9, 0.4])
    assert len(detect(SCORES, [A, B], nms="linear", nms_iou=0.3, class_agnostic_nms=True, soft_min_score=0.5)) == 1
    assert detect(SCORES, [A, B], nms="linear", nms_iou=0.3).scores.tolist() == pytest.approx([0.9, 0.6])
    # Soft suppression never ends at zero: what is gone would come back.
    with pytest.raises(ValueError, match="soft_min_score"):
        detect(SCORES, [A, B], soft_min_score=0.0)
