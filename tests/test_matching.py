"""Which candidate stands for which object (Faster R-CNN sec. 3.1.2), and which are drawn: by hand, by slow loops."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.modeling import matching as module
from detector.modeling.boxes import box_iou
from detector.modeling.matching import IGNORE, NEGATIVE, POSITIVE, Matching
from detector.modeling.sampling import Sampling
from detector.modeling.shapes import fixed_shapes

RPN = dict(pos_iou=0.7, neg_iou=0.3)  # with an ignore band
ROI = dict(pos_iou=0.5, neg_iou=0.5)  # without
NONE = torch.zeros(0, 4)


def assign(iou: torch.Tensor, **rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and matches by an IoU matrix."""
    return Matching(**rule).assign([iou], iou.shape[1], iou.device)


def assign_boxes(gt_boxes, candidates, *, crowd=None, **rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and matches by boxes."""
    return Matching(**rule)(gt_boxes, candidates, crowd)


def matrix(*rows: list[float]) -> torch.Tensor:
    """One row for each object, one column for each candidate."""
    return torch.tensor(rows)


def square(x: float, y: float, side: float = 10) -> list[float]:
    return [x, y, x + side, y + side]


def test_thresholds_and_an_object_that_nothing_touches():
    label, gt_index = assign(matrix([0.9, 0.5, 0.1, 0.0], [0.1, 0.2, 0.75, 0.0]), **RPN)
    assert label.tolist() == [POSITIVE, IGNORE, POSITIVE, NEGATIVE]
    assert gt_index[label == POSITIVE].tolist() == [0, 1]
    assert assign(matrix([0.7, 0.3, 0.29]), **RPN)[0].tolist() == [POSITIVE, IGNORE, NEGATIVE]
    assert assign(matrix([0.5, 0.49]), **ROI)[0].tolist() == [POSITIVE, NEGATIVE]
    for rule in (ROI, dict(pos_iou=0.5)):
        assert IGNORE not in assign(torch.rand(5, 200), **rule)[0]
    assert assign(matrix([0.8], [0.8]), **RPN)[1].tolist() == [0]  # of two equal objects the first
    touched, untouched = [0.8, 0.1, 0.0, 0.2], [0.0, 0.0, 0.0, 0.0]
    for iou in (matrix(touched), matrix(untouched, touched), matrix(touched, untouched, untouched)):
        for low_quality in ("keep_best_gt", "force_gt"):
            label, _ = assign(iou, **RPN, low_quality=low_quality)
            assert label.tolist() == [POSITIVE, NEGATIVE, NEGATIVE, NEGATIVE]


def test_without_objects_or_candidates_or_near_ones_all_is_background():
    boxes = torch.tensor([square(0, 0), square(50, 0), square(100, 0)])
    for low_quality in (None, "keep_best_gt", "force_gt"):
        for objects, candidates in ((0, 3), (2, 0), (0, 0)):
            rule = RPN | {"low_quality": low_quality}
            by_boxes = assign_boxes(boxes[:objects], boxes[:candidates] + 200, **rule, crowd=NONE)
            for label, gt_index in (assign(torch.zeros(objects, candidates), **rule), by_boxes):
                assert label.tolist() == [NEGATIVE] * candidates and gt_index.shape == (candidates,)
    candidates = torch.tensor([[-1e6, -1e6, -1e5, -1e5], [-1e9, -1e9, 1e9, 1e9]])
    assert assign_boxes(torch.tensor([square(0, 0)]), candidates, **ROI)[0].tolist() == [NEGATIVE, NEGATIVE]


def test_background_with_half_of_its_area_in_a_crowd_region_is_ignored():
    crowd = torch.tensor([[0.0, 0, 100, 100]])
    candidates = torch.tensor([square(20, 20), square(95, 20), square(96, 20), square(200, 20)])  # in, half, less, out
    assert assign_boxes(NONE, candidates, **RPN, crowd=crowd)[0].tolist() == [IGNORE, IGNORE, NEGATIVE, NEGATIVE]
    assert assign_boxes(candidates[:1], candidates[:1], **RPN, crowd=crowd)[0].tolist() == [POSITIVE]  # still an object
    two = torch.tensor([[0.0, 0, 4, 10], [6, 0, 10, 10]])  # do not add up
    assert assign_boxes(NONE, torch.tensor([square(0, 0)]), **RPN, crowd=two)[0].tolist() == [NEGATIVE]
    point = torch.tensor([[5.0, 5, 5, 5]])
    assert assign_boxes(NONE, point, **RPN, crowd=torch.tensor([square(0, 0)]))[0].tolist() == [NEGATIVE]


eighths = st.integers(0, 8).map(lambda i: i / 8)  # few values, exact in float32: many ties and hits of the thresholds
rows = st.integers(0, 5).flatmap(lambda p: st.lists(st.lists(eighths, min_size=p, max_size=p), max_size=4))
rules = st.fixed_dictionaries(
    {
        "pos_iou": st.sampled_from([0.5, 0.75]),
        "neg_iou": st.sampled_from([0.25, 0.5]),
        "low_quality": st.sampled_from([None, "keep_best_gt", "force_gt"]),
        "min_pos_iou": st.sampled_from([0.0, 0.25, 0.625]),
    }
)


def slow_assign(iou, candidates, *, pos_iou, neg_iou, low_quality, min_pos_iou):
    """The rules in words, one candidate and one object at a time."""
    label, gt_index = [], []
    for p in range(candidates):
        column = [row[p] for row in iou]
        best = max(column, default=0.0)
        label.append(POSITIVE if best >= pos_iou else NEGATIVE if best < neg_iou else IGNORE)
        gt_index.append(column.index(best) if column else 0)
    for g, row in enumerate(iou if low_quality else []):
        best = max(row, default=0.0)
        for p in range(candidates):
            if row[p] == best > 0 and best >= min_pos_iou:
                label[p] = POSITIVE
                gt_index[p] = g if low_quality == "force_gt" else gt_index[p]
    return label, gt_index


@given(rows, rules)
def test_equals_a_loop(iou, rule):
    candidates = len(iou[0]) if iou else 3
    label, gt_index = assign(torch.tensor(iou).reshape(len(iou), candidates), **rule)
    slow_label, slow_index = slow_assign(iou, candidates, **rule)
    assert label.tolist() == slow_label
    positive = label == POSITIVE
    assert gt_index[positive].tolist() == torch.tensor(slow_index)[positive].tolist()


grid = st.integers(0, 6).map(float)  # boxes on a coarse grid: many ties
boxes = st.lists(st.tuples(grid, grid, st.integers(1, 4), st.integers(1, 4)), max_size=7).map(
    lambda rows: torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows]).reshape(-1, 4)
)


@given(boxes, boxes, rules, st.sampled_from([1, 5, 8, 14]))
def test_blocks_of_objects_equal_the_whole_matrix(objects, candidates, rule, limit):
    whole = assign(box_iou(objects, candidates), **rule)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MATRIX_LIMIT", limit)
        label, gt_index = assign_boxes(objects, candidates, **rule)
    assert torch.equal(label, whole[0])
    assert torch.equal(gt_index, whole[1])


def test_no_block_of_the_matrix_is_larger_than_the_limit(monkeypatch):
    shapes = []
    monkeypatch.setattr(module, "box_iou", lambda a, b: (shapes.append(len(a) * len(b)), box_iou(a, b))[1])
    monkeypatch.setattr(module, "MATRIX_LIMIT", 1000)
    boxes = torch.rand(300, 4).sort(dim=1).values
    assign_boxes(boxes, boxes[:90], **RPN, low_quality="keep_best_gt")
    assert max(shapes) <= 1000 and sum(shapes) == 2 * 300 * 90  # seen twice: for the best, then for the forced ones


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(("objects", "candidates", "phase"), [(300, 250_000, "RPN"), (10_000, 12_000, "ROI")])
def test_thousands_of_objects_take_half_a_gigabyte_at_most(objects, candidates, phase):
    """The whole matrix with what is made on the way takes 1.2 and 2 GB, more with every object."""
    program = f"""
import torch
from test_matching import ROI, RPN, assign_boxes

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

rule = RPN | {{"low_quality": "keep_best_gt"}} if "{phase}" == "RPN" else ROI
boxes = torch.rand({candidates}, 4).sort(dim=1).values
assign_boxes(boxes[:9], boxes[:9], **rule)
before = peak()
assign_boxes(boxes[:{objects}], boxes, **rule)
print(peak() - before)
"""
    paths = os.pathsep.join(map(str, (Path(__file__).parents[1], Path(__file__).parent)))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert 64 < float(run.stdout) < 512  # MiB


def labels(positive: int = 0, negative: int = 0, ignore: int = 0) -> torch.Tensor:
    """So many of each, shuffled."""
    label = torch.tensor([POSITIVE] * positive + [NEGATIVE] * negative + [IGNORE] * ignore, dtype=torch.long)
    return label[torch.randperm(len(label))]


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(1, 12), st.floats(0, 1))
def test_each_index_once_and_of_the_right_label(positives, negatives, ignored, num, fraction):
    label = labels(positives, negatives, ignored)
    for fixed in (False, True):
        with fixed_shapes() if fixed else nullcontext():
            index, kind, slots = Sampling(num, fraction)(label)
        filled, most = kind != IGNORE, min(int(num * fraction), len(label))
        assert len(index.unique()) == len(index) == (min(num, len(label)) if fixed else filled.sum())
        assert torch.equal(label[index][filled], kind[filled]) and not (kind[slots:] == POSITIVE).any()
        positive, negative = ((kind == wanted).sum() for wanted in (POSITIVE, NEGATIVE))
        assert positive == min(positives, most) and negative == min(negatives, num - positive)
        assert slots == (most if fixed else positive)


@pytest.mark.parametrize("fixed", [False, True])
def test_the_draw_is_torchs_and_every_candidate_has_its_chance(fixed):
    label, sampling = labels(6, 20), Sampling(6, 0.5)
    with fixed_shapes() if fixed else nullcontext():
        torch.manual_seed(1)
        first = sampling(label)
        torch.manual_seed(1)
        assert torch.equal(first.rows, sampling(label).rows)
        drawn = torch.cat([sampling(label).rows for _ in range(200)])
    share = drawn.bincount(minlength=26) / 200
    assert ((share[label == POSITIVE] - 3 / 6).abs() < 0.15).all()  # 3 of 6 positives, 3 of 20 negatives in a draw
    assert ((share[label == NEGATIVE] - 3 / 20).abs() < 0.15).all()
