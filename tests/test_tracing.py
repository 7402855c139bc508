"""Borders of bitmaps: drawn again they give the bitmap."""

from __future__ import annotations

import numpy as np

from detector.data.tracing import borders, one_polygon
from detector.records.raster import polygon_bitmap


def test_a_hole_and_two_parts_by_hand():
    bitmap = np.zeros((5, 8), np.uint8)
    bitmap[1:4, 1:4] = bitmap[1, 6] = 1
    bitmap[2, 2] = 0
    outer, holes = borders(bitmap)
    assert [p.tolist() for p in outer] == [[[1, 1], [4, 1], [4, 4], [1, 4]], [[6, 1], [7, 1], [7, 2], [6, 2]]]
    assert len(holes) == 1 and {tuple(c) for c in holes[0].tolist()} == {(2, 2), (3, 2), (2, 3), (3, 3)}
    assert borders(np.zeros((3, 3))) == ([], [])


def test_borders_drawn_again_give_the_bitmap():
    rng = np.random.default_rng(0)
    for _ in range(200):
        bitmap = (rng.random(rng.integers(1, 14, 2)) < rng.random()).astype(np.uint8)
        outer, holes = borders(bitmap)
        drawn = np.zeros_like(bitmap)
        for part in outer + holes:
            drawn ^= polygon_bitmap([part], bitmap.shape)
        assert (drawn == bitmap).all()
        if outer and not holes:
            assert (polygon_bitmap(outer, bitmap.shape) == bitmap).all()


def test_one_polygon_has_the_area_of_all_parts():
    bitmap = np.zeros((40, 60), np.uint8)
    bitmap[5:20, 5:20] = bitmap[10:30, 30:50] = bitmap[35:38, 2:9] = 1
    joined = polygon_bitmap([one_polygon(borders(bitmap)[0])], (40, 60))
    assert (joined >= bitmap).all() and (joined != bitmap).sum() < 40  # a line may touch pixels beside it
