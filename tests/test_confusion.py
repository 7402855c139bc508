"""What objects are taken for, and trust in scores, by hand."""

from pathlib import Path

import numpy as np
import pytest
from helpers.insight import scored

from detector.insight.confusion import calibration, confusion_matrix
from detector.insight.errors import errors_of

OBJECT, FAR = (10, 10, 40, 40), (120, 120, 40, 40)


def matrix(path: Path, objects: list, rows: list, least: float = 0.0) -> list[list[int]]:
    found = errors_of(scored(path / "a.json", objects, rows).counts["bbox"])
    return confusion_matrix(found, found.scores >= least).tolist()


def test_the_matrix_of_two_classes_and_the_background(tmp_path: Path):
    objects = [(1, 1, OBJECT), (1, 2, FAR), (2, 1, OBJECT), (2, 3, FAR)]
    rows = [(1, 1, OBJECT, 0.9), (1, 1, FAR, 0.8), (2, 2, (60, 60, 20, 20), 0.7), (2, 3, FAR, 0.3)]
    #                                          a  b  c  background
    assert matrix(tmp_path, objects, rows) == [[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0]]
    # from 0.5 on the last one is not taken, and its object is not found
    assert matrix(tmp_path, objects, rows, 0.5)[2] == [0, 0, 0, 1]


def test_an_object_is_taken_once(tmp_path: Path):
    rows = [(1, 2, OBJECT, 0.9), (1, 3, OBJECT, 0.8), (1, 1, OBJECT, 0.7)]
    assert matrix(tmp_path, [(1, 1, OBJECT)], rows) == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
    # without the right one the better of the others takes it
    assert matrix(tmp_path, [(1, 1, OBJECT)], rows[:2]) == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]


def test_rows_sum_to_the_objects_of_each_class(tmp_path: Path):
    rng = np.random.default_rng(0)
    objects = [(int(i), int(k), (*rng.uniform(0, 150, 2).tolist(), 30.0, 30.0)) for i, k in rng.integers(1, 3, (30, 2))]
    rows = [(i, int(rng.integers(1, 4)), box, float(rng.random())) for i, _, box in objects]
    found = np.array(matrix(tmp_path, objects, rows, 0.3))
    counts = [sum(k == one for _, k, _ in objects) for one in (1, 2, 3)]
    assert found[:3].sum(axis=1).tolist() == counts


def test_calibration_by_hand_and_of_scores_that_are_true():
    scores, right = np.array([0.95, 0.95, 0.15, 0.15, 1.0]), np.array([True, False, False, False, True])
    found = calibration(scores, right)
    assert found.counts.tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 3]
    assert found.precision[9] == pytest.approx(2 / 3) and found.scores[9] == pytest.approx(2.9 / 3)
    assert found.error == pytest.approx((3 * abs(2.9 / 3 - 2 / 3) + 2 * 0.15) / 5)
    rng = np.random.default_rng(0)
    scores = rng.random(50_000)
    assert calibration(scores, rng.random(50_000) < scores).error < 0.01
    assert calibration(scores, rng.random(50_000) < scores**2).error > 0.1
    assert np.isnan(calibration(np.zeros(0), np.zeros(0, dtype=bool)).error)
