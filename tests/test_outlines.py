"""Outlines: pixels as pycocotools and two references draw them; boxes, areas, indexing and geometry by hand."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
import torch
from helpers.golden_rules import golden
from pycocotools import mask as coco_mask

from detector.records.geometry import tight_boxes
from detector.records.outlines import Outlines
from detector.records.raster import runs_bitmap, runs_of_bitmap, runs_of_counts

SQUARE = [[10.0, 10, 30, 10, 30, 20, 10, 20]]
PARTS = [[1.0, 1, 5, 1, 5, 5, 1, 5], [20.0, 20, 40, 20, 40, 30]]


def crc(bitmap: torch.Tensor) -> int:
    return zlib.crc32(np.ascontiguousarray(bitmap.numpy()).tobytes())


def some_runs(h: int = 30, w: int = 50) -> dict:
    """The part x in 5..15, y in 10..20 of an image, uncompressed."""
    bitmap = np.zeros((h, w), np.uint8)
    bitmap[10:20, 5:15] = 1
    return {"size": [h, w], "counts": runs_of_bitmap(bitmap).tolist()}


@pytest.mark.parametrize("image", [0, 1])
def test_bitmaps_are_the_recorded_ones_whatever_the_form(image: int):
    truth = golden("masks/functions_masks")["ground_truth"][image]
    rle = truth["uncompressed_rle_of_5"]
    compressed = coco_mask.frPyObjects(rle, *rle["size"]) | {"size": rle["size"]}
    compressed["counts"] = compressed["counts"].decode()
    made = Outlines.of([*truth["polygons"], rle, compressed], truth["size"])
    bitmaps = made.bitmaps(tuple(truth["size"]))
    assert bitmaps.sum((1, 2)).tolist() == [*truth["bitmap_area"], *truth["bitmap_area"][5:] * 2]
    assert [crc(b) for b in bitmaps] == [*truth["bitmap_crc32"], *truth["bitmap_crc32"][5:] * 2]
    assert (made[:6].boxes() - torch.tensor(truth["boxes"])).abs().max() < 0.01
    assert made.segmentations() == [*truth["polygons"], compressed, compressed]
    assert [coco_mask.area(r) for r in made.rle()] == bitmaps.sum((1, 2)).tolist()


@pytest.mark.parametrize(("key", "least"), [("d2_polygon", 0.1), ("mm_polygon", 1.0)])
def test_targets_of_regions_are_exactly_the_recorded_ones(key: str, least: float):
    record = golden("masks/functions_masks")["rasterise"]
    h, w = record["canvas"]
    names, regions = list(record["shapes"]), list(record["regions"])
    outlines = Outlines.of(list(record["shapes"].values()), (h, w))
    boxes = torch.tensor([record["regions"][region] for region in regions for _ in names])
    if key == "mm_polygon":  # MMDetection moves the regions into the canvas first
        boxes = boxes.clamp(min=0).minimum(torch.tensor([w, h, w, h]))
    rows = torch.arange(len(names)).repeat(len(regions))
    made = outlines.in_boxes(boxes, rows, 28, least)
    for i, (region, name) in enumerate((region, name) for region in regions for name in names):
        counts = record["targets"][f"{name}|{region}"][key]
        expected = coco_mask.decode({"size": [28, 28], "counts": counts.encode()})
        assert (made[i].numpy() == expected).all(), (name, region)


def test_targets_of_run_lengths_are_pooled():
    """As Detectron2 does it with bitmaps; a recorded canvas is given as run lengths."""
    record = golden("masks/functions_masks")["rasterise"]
    names = list(record["canvas_rle"])
    size = record["canvas"]
    outlines = Outlines.of([{"size": size, "counts": record["canvas_rle"][n]} for n in names], size)
    for region, box in record["regions"].items():
        made = outlines.in_boxes(torch.tensor([box] * len(names)), torch.arange(len(names)), 28)
        for name, target in zip(names, made):
            expected = coco_mask.decode(
                {"size": [28, 28], "counts": record["targets"][f"{name}|{region}"]["d2_bitmap"]}
            )
            assert (target.numpy() == expected).all(), (name, region)


def test_indexing_and_joining_keep_each_outline():
    values = [SQUARE, some_runs(), PARTS, []]
    outlines = Outlines.of(values, (30, 50))
    whole = outlines.bitmaps((30, 50))
    for rows, same in (([2, 0],) * 2, (slice(1, 3),) * 2, (torch.tensor([True, False, True, True]),) * 2, ([3],) * 2,
                       (slice(0, 0),) * 2, (-1, [3]), (slice(None, None, -1), [3, 2, 1, 0])):  # fmt: skip
        assert torch.equal(outlines[rows].bitmaps((30, 50)), whole[same])
    again = Outlines.joined([outlines[2:], outlines[:1], outlines[:0], outlines[1:2]])
    assert torch.equal(again.bitmaps((30, 50)), whole[[2, 3, 0, 1]])
    assert [len(v) for v in again.segmentations()] == [2, 0, 1, 2]
    assert Outlines.of([], (4, 4)).bitmaps((4, 4)).shape == (0, 4, 4)
    assert Outlines.of([], (4, 4)).boxes().shape == (0, 4)


def test_boxes_and_areas():
    outlines = Outlines.of([SQUARE, PARTS, some_runs(), []], (30, 50))
    assert outlines.boxes().tolist() == [[10, 10, 30, 20], [1, 1, 40, 30], [5, 10, 15, 20], [0, 0, 0, 0]]
    assert outlines.areas().tolist() == [200, 16 + 100, 100, 0]


def test_the_box_of_run_lengths_is_that_of_their_pixels():
    rng = np.random.default_rng(2)
    for density in (0.0, 0.02, 0.1, 0.9) * 5:
        bitmap = torch.from_numpy((rng.random((1, *rng.integers(1, 9, 2))) < density).astype(np.uint8))
        assert torch.equal(Outlines.of_bitmaps(bitmap).boxes(), tight_boxes(bitmap))
    counts = [700, 0, 8, 2, 0, 0, 790]  # a run of no pixel is none
    assert Outlines.of([{"size": [30, 50], "counts": counts}], (30, 50)).boxes().tolist() == [[23, 18, 24, 20]]


def test_the_box_of_a_polygon_is_that_of_its_part_inside_the_image():
    triangle = [[-10.0, 5, 10, 15, -10, 25]]  # crosses x = 0 at y = 10 and y = 20
    around = [[-10.0, -10, 60, -10, 60, 40, 40, 40, 40, 10, -10, 10]]  # covers two corners
    corner = [[-10.0, 4, 4, -10, -10, -10]]  # passes the corner (0, 0) outside
    outlines = Outlines.of([triangle, around, corner], (30, 50))
    assert outlines.boxes().tolist() == [[0, 10, 10, 20], [0, 0, 50, 30], [0, 0, 0, 0]]
    rng = np.random.default_rng(0)
    for _ in range(100):  # a box is that of the drawn pixels, up to the width of a pixel
        star = Outlines.of([[(rng.random(10) * 100 - 30).tolist()]], (40, 40))
        drawn = Outlines.of_bitmaps(star.bitmaps((40, 40))).boxes()
        inside = (drawn[:, :2] - star.boxes()[:, :2]).min() > -1.01 and (
            star.boxes()[:, 2:] - drawn[:, 2:]
        ).min() > -1.01
        assert inside or not drawn.any()


def test_an_outline_is_drawable_that_has_an_area_in_its_image():
    yes = [SQUARE, [[]] + SQUARE, [[-5.0, -5, 5, -5, 5, 5]], some_runs(), {"size": [30, 50], "counts": [0, 1500]}]
    bare = [{"size": [30, 50], "counts": counts} for counts in ([1500], [700, 0, 800])]
    beyond = [[[50.0, 0, 60, 0, 60, 9]], [[0.0, -9, 9, -9, 9, 0]]]
    no = [[], [[]], [[1.0, 1, 5, 5]], [[9.0, 9] * 4], [[3.0, 9, 6, 9, 9, 9]], *beyond, *bare]
    outlines = Outlines.of([*no, *yes, *no], (30, 50))
    assert outlines.drawable().tolist() == [False] * len(no) + [True] * len(yes) + [False] * len(no)
    assert (outlines.bitmaps((30, 50)).flatten(1).any(dim=1) == outlines.drawable()).all()
    assert Outlines.of([], (4, 4)).drawable().shape == Outlines.of(no[:2], (4, 4))[:0].drawable().shape == (0,)


@pytest.mark.parametrize("value", [SQUARE, PARTS, some_runs()])
def test_outlines_follow_their_image(value: object):
    """Polygons move by coordinates, run lengths pixel by pixel: what is drawn afterwards is the moved drawing."""
    outlines = Outlines.of([value], (30, 50))
    drawn = outlines.bitmaps((30, 50))
    assert torch.equal(outlines.mirrored(50).bitmaps((30, 50)), drawn.flip(-1))
    assert torch.equal(outlines.flipped(30).bitmaps((30, 50)), drawn.flip(-2))
    cut = outlines.cropped((5, 8, 12, 20))
    assert torch.equal(cut.bitmaps((12, 20)), drawn[:, 5:17, 8:28]) and cut.sizes.tolist() == [[12, 20]]
    large = outlines.resized((30, 50), (60, 100))
    doubled = drawn.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (large.bitmaps((60, 100)) != doubled).sum() <= (20 if value is PARTS else 0)  # a slanted edge
    assert torch.equal(outlines.to("cpu").bitmaps((30, 50)), drawn)


def test_compressed_counts_are_read_as_pycocotools_reads_them():
    rng = np.random.default_rng(1)
    for _ in range(50):
        bitmap = (rng.random(rng.integers(1, 60, 2)) < rng.random()).astype(np.uint8)
        counts = coco_mask.encode(np.asfortranarray(bitmap))["counts"]
        assert (runs_bitmap(runs_of_counts(counts), bitmap.shape) == bitmap).all()
        assert runs_of_counts(counts).tolist() == runs_of_bitmap(bitmap).tolist()


@pytest.mark.parametrize(
    ("counts", "fault"),
    [("0P", "is cut"), ("a b", "characters"), ("ooooooooo0", "40 bits"), ([3, 3], "6 pixels"), ([10, -1], "9 pixels"),
     ("", "0 pixels")],
)  # fmt: skip
def test_malformed_run_lengths_are_refused(counts: object, fault: str):
    with pytest.raises(ValueError, match=fault):
        Outlines.of([{"size": [3, 3], "counts": counts}], (3, 3))
    with pytest.raises(ValueError, match="has the size 3 x 4"):
        Outlines.of([{"size": [3, 4], "counts": [12]}], (3, 3))
