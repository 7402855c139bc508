"""Box mathematics: truth by hand, invariants, a slow oracle, empties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.modeling.boxes import box_area, box_iou, clip_boxes, decode, encode, intersection, is_larger_than

RPN, ROI = (1, 1, 1, 1), (10, 10, 5, 5)
NONE = torch.zeros(0, 4)

corner = st.floats(-500, 1500, width=32)
side = st.floats(0.5, 800, width=32)
box = st.builds(lambda x, y, w, h: (x, y, x + w, y + h), corner, corner, side, side)
boxes = st.lists(box, max_size=6).map(lambda rows: torch.tensor(rows).reshape(-1, 4))


def test_a_reversed_box_has_no_area():
    assert box_area(torch.tensor([[2.0, 3, 5, 7], [5, 3, 2, 7], [5, 7, 2, 3]])).tolist() == [12, 0, 0]


def test_iou_by_hand():
    a = torch.tensor([[0.0, 0, 4, 4], [2, 2, 4, 4]])
    b = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4], [9, 9, 10, 10]])  # same, half, touching, apart
    assert intersection(a, b).tolist() == [[16, 8, 0, 0], [4, 4, 0, 0]]
    expected = torch.tensor([[1, 8 / 24, 0, 0], [4 / 16, 4 / 16, 0, 0]])
    torch.testing.assert_close(box_iou(a, b), expected)
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert box_iou(point, point).tolist() == [[0]]  # and not NaN


@given(boxes, boxes)
def test_iou_equals_a_loop(a, b):
    for row, first in zip(box_iou(a, b).tolist(), a.tolist()):
        for value, second in zip(row, b.tolist()):
            w = min(first[2], second[2]) - max(first[0], second[0])
            h = min(first[3], second[3]) - max(first[1], second[1])
            shared = max(w, 0) * max(h, 0)
            areas = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (first, second))
            assert value == pytest.approx(shared / (areas - shared), abs=1e-4)


@given(boxes, boxes)
def test_iou_is_symmetric_and_within_0_and_1(a, b):
    iou = box_iou(a, b)
    assert torch.equal(iou, box_iou(b, a).T)
    assert ((iou >= 0) & (iou <= 1 + 1e-6)).all()


def test_clip_takes_x_to_the_width_and_y_to_the_height():
    clipped = clip_boxes(torch.tensor([[-5.0, -6, 50, 60], [1, 2, 3, 4], [90, 90, 99, 99]]), (20, 30))  # (h, w)
    assert clipped.tolist() == [[0, 0, 30, 20], [1, 2, 3, 4], [30, 20, 30, 20]]


def test_is_larger_than():
    rows = [
        [0, 0, 2, 2],
        [0, 0, 2, 1],
        [0, 0, 0, 5],
        [0, 0, 5, 0],
        [3, 3, 1, 9],
        [0, 0, math.inf, 2],
        [0, 0, math.nan, 2],
    ]
    boxes = torch.tensor(rows, dtype=torch.float32)
    assert is_larger_than(boxes, 2).tolist() == [True] + [False] * 6
    assert is_larger_than(boxes, 0).tolist() == [True] * 2 + [False] * 5  # asks for some area nevertheless


def test_encode_by_hand():
    source, goal = torch.tensor([[10.0, 10, 30, 50]]), torch.tensor([[20.0, 10, 40, 30]])  # 20 x 40 -> 20 x 20
    expected = torch.tensor([[10 / 20, -10 / 40, 0, math.log(0.5)]])
    torch.testing.assert_close(encode(source, goal), expected)
    torch.testing.assert_close(encode(source, goal, ROI), expected * torch.tensor(ROI))


def test_decode_by_hand():
    source = torch.tensor([[10.0, 10, 30, 50]])
    torch.testing.assert_close(decode(torch.zeros(1, 4), source), source)
    deltas = torch.tensor([[0.5, -0.25, math.log(2), math.log(0.5)]])
    torch.testing.assert_close(decode(deltas, source), torch.tensor([[10.0, 10, 50, 30]]))
    torch.testing.assert_close(decode(deltas * torch.tensor(ROI), source, ROI), torch.tensor([[10.0, 10, 50, 30]]))


@given(st.lists(st.tuples(box, box), max_size=5), st.sampled_from([RPN, ROI]))
def test_decode_undoes_encode(pairs, weights):
    source, goal = (torch.tensor([p[i] for p in pairs]).reshape(-1, 4) for i in (0, 1))
    small = (goal[:, 2:] - goal[:, :2] <= 62 * (source[:, 2:] - source[:, :2])).all(dim=1)  # beyond that decode clamps
    decoded = decode(encode(source, goal, weights), source, weights)
    torch.testing.assert_close(decoded[small], goal[small], atol=0.01, rtol=1e-4)


def test_no_box_grows_more_than_62_and_a_half_fold_and_shrinking_is_bounded_on_request():
    grown = decode(torch.tensor([[0, 0, 50.0, 1e30]]), torch.tensor([[0.0, 0, 16, 16]]))
    torch.testing.assert_close(grown, torch.tensor([[-492.0, -492, 508, 508]]))
    source, deltas = torch.tensor([[0.0, 0, 1000, 1000]]), torch.tensor([[0, 0, -50.0, -50]])
    assert box_area(decode(deltas, source)).item() < 1e-9
    assert box_area(decode(deltas, source, clamp_both=True)).item() == pytest.approx(16**2, rel=1e-3)


def test_decode_broadcasts_over_leading_dimensions():
    source = torch.tensor([[0.0, 0, 10, 10], [5, 5, 9, 9]])
    deltas = torch.randn(3, 2, 4)
    assert torch.equal(decode(deltas, source.expand(3, 2, 4))[1], decode(deltas[1], source))


def test_empties():
    some = torch.tensor([[0.0, 0, 4, 4]])
    assert box_area(NONE).shape == (0,)
    assert box_iou(NONE, some).shape == (0, 1) and box_iou(some, NONE).shape == (1, 0)
    assert clip_boxes(NONE, (5, 5)).shape == encode(NONE, NONE).shape == decode(NONE, NONE).shape == (0, 4)
    assert is_larger_than(NONE, 0).shape == (0,)
