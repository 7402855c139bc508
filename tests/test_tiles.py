"""Tiles: where they lie, what a detector finds in them, and how parts of objects at their borders become one."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import CONFIG, DATA, assert_same_detections, built, columns, picture, predictor_of, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import detector
from detector.config.inherit import merge
from detector.data.tiles import TileGrid, Tiles, TrainingTiles
from detector.export.exported import Eager, over
from detector.export.graph import DetectionGraph
from detector.export.run import card_of
from detector.inference.predictor import Predictor, TiledPredictor
from detector.inference.tile_merge import are_cut, merge_windows
from detector.inference.tta import TTAPredictor
from detector.modeling.boxes import box_iou
from detector.records.region_masks import RegionMasks
from detector.structures import Detections, Proposals

SIZED = DATA | {"resize": {"short": 64, "long": 200}}


def predictor(kind: type[Predictor] = Predictor, data: dict = SIZED, **sections) -> Predictor:
    return predictor_of(tiny_model(**sections), merge(CONFIG, {"model": sections, "data": data}), kind)


# Where tiles lie


@pytest.mark.parametrize(
    ("grid", "image", "expected"),
    [
        (TileGrid(8), (5, 7), [(0, 0, 5, 7)]),  # an image smaller than a tile is one tile
        (TileGrid(8), (8, 8), [(0, 0, 8, 8)]),
        (TileGrid(4, 0), (4, 8), [(0, 0, 4, 4), (0, 4, 4, 4)]),  # a multiple
        (TileGrid(4, 0), (4, 9), [(0, 0, 4, 4), (0, 4, 4, 4), (0, 5, 4, 4)]),  # the last is moved inward
        (
            TileGrid(4, 0.25),
            (3, 10),
            [(0, 0, 3, 4), (0, 3, 3, 4), (0, 6, 3, 4)],
        ),  # lower than a tile; steps of 3 end at 10
        (TileGrid((4, 6), 0.5), (6, 6), [(0, 0, 4, 6), (2, 0, 4, 6)]),  # height first
        (TileGrid(4, 0), (6, 6), [(0, 0, 4, 4), (0, 2, 4, 4), (2, 0, 4, 4), (2, 2, 4, 4)]),  # row by row
        (TileGrid(2, 0.99), (1, 4), [(0, 0, 1, 2), (0, 1, 1, 2), (0, 2, 1, 2)]),  # a step of at least a pixel
    ],
)
def test_the_tiles_of_an_image(grid, image, expected):
    assert grid.windows(image) == expected


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 70), st.integers(1, 70), st.floats(0, 0.95))
def test_tiles_cover_the_image_have_one_size_and_share_what_was_asked_for(height, width, tile_h, tile_w, overlap):
    windows = TileGrid((tile_h, tile_w), overlap).windows((height, width))
    covered = torch.zeros(height, width, dtype=torch.bool)
    for top, left, h, w in windows:
        assert (h, w) == (min(tile_h, height), min(tile_w, width))
        assert 0 <= top <= height - h and 0 <= left <= width - w
        covered[top : top + h, left : left + w] = True
    assert covered.all() and len(set(windows)) == len(windows)
    lefts = sorted({left for _, left, _, _ in windows})
    assert all(a + min(tile_w, width) - b >= overlap * min(tile_w, width) - 1 for a, b in zip(lefts, lefts[1:]))


def test_the_whole_image_is_one_more_view_unless_it_is_the_only_tile_or_not_wanted():
    assert Tiles(4, 0).views((4, 8)) == [(0, 0, 4, 8), (0, 0, 4, 4), (0, 4, 4, 4)]
    assert Tiles(4, 0, whole=False).views((4, 8)) == [(0, 0, 4, 4), (0, 4, 4, 4)]
    assert Tiles(8).views((4, 8)) == [(0, 0, 4, 8)]
    assert str(Tiles((480, 640), 0.25)) == "tiles of 640 x 480 pixels, overlap 0.25, and the whole image"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0,), "size: expected a whole number in 1"),
        (((640,),), "a list of 2"),
        ((640, 1), "overlap: expected a number at least 0 and below 1, got 1"),
        ((640, -0.1), "overlap: "),
    ],
)
def test_what_makes_no_tiles_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        Tiles(*arguments)
    with pytest.raises(ValueError, match="keep: "):
        TrainingTiles(640, keep=1.5)


# How detections become one


def rows(*boxes: tuple[float, ...]) -> Detections:
    """x1, y1, x2, y2, score, label."""
    table = torch.tensor(boxes).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].long())


def test_a_border_cuts_a_box_unless_the_image_ends_there():
    boxes = torch.tensor([[0.0, 40, 20, 60], [40, 0, 60, 20], [80, 40, 100, 60], [40, 80, 60, 100], [40, 40, 60, 60]])
    assert are_cut(boxes, (0, 0, 100, 100), (100, 100)).tolist() == [False] * 5
    assert are_cut(boxes, (0, 0, 100, 100), (100, 200)).tolist() == [False, False, True, False, False]
    assert are_cut(boxes, (50, 50, 100, 100), (200, 200)).tolist() == [True, True, True, True, False]
    near = torch.tensor([[1.0, 40, 20, 60], [2.0, 40, 20, 60]])  # a box reaches what it ends a hundredth of a tile from
    assert are_cut(near, (0, 50, 100, 100), (100, 150)).tolist() == [True, False]


LEFT, RIGHT = (0, 0, 100, 100), (0, 80, 100, 100)  # of an image 180 wide; they share 20 pixels


def merged(left: Detections, right: Detections, iou: float = 0.5, **options) -> list[list[float]]:
    return listed(merge_windows([left, right], [LEFT, RIGHT], (100, 180), iou=iou, **options))


def listed(found: Detections) -> list[list[float]]:
    """x1, y1, x2, y2, score, label of each."""
    entries = zip(*(column.tolist() for column in columns(found)))
    return [[*box, round(score, 5), label] for box, score, label in entries]


def test_the_part_of_an_object_that_a_border_cuts_gives_way_to_the_whole_object_even_if_its_score_is_higher():
    # 75..95 is whole on the left; on the right, which begins at 80, 15 of its 20 pixels are seen
    whole, part = (75, 10, 95, 30, 0.6, 1), (0, 10, 15, 30, 0.9, 1)
    assert merged(rows(whole), rows(part)) == [[75, 10, 95, 30, 0.6, 1]]
    other_class = (0, 10, 15, 30, 0.9, 2)
    assert merged(rows(whole), rows(other_class)) == [[80, 10, 95, 30, 0.9, 2], [75, 10, 95, 30, 0.6, 1]]
    assert len(merged(rows(whole), rows(other_class), across_classes=True)) == 1
    # half of it, whose IoU is not above 0.5
    assert merged(rows((70, 10, 90, 30, 0.6, 1)), rows((0, 10, 10, 30, 0.9, 1))) == [[70, 10, 90, 30, 0.6, 1]]


def test_a_small_object_within_a_large_one_is_no_part_of_it():
    large, small = (40, 0, 99.5, 90, 0.9, 0), (5, 10, 15, 30, 0.5, 0)  # the large one is cut, the small one whole
    assert len(merged(rows(large), rows(small))) == 2
    assert len(merged(rows((40, 0, 98, 90, 0.9, 0)), rows(small))) == 2  # both whole


def test_an_object_that_both_tiles_show_whole_is_found_once_with_its_best_box():
    assert merged(rows((82, 10, 98, 30, 0.6, 1)), rows((3, 11, 18, 30, 0.8, 1))) == [[83, 11, 98, 30, 0.8, 1]]
    assert len(merged(rows((82, 10, 98, 30, 0.6, 1)), rows((3, 11, 18, 30, 0.8, 1)), iou=0.95)) == 2


def test_within_one_window_the_models_own_suppression_has_decided():
    close = rows((10, 10, 30, 30, 0.9, 1), (11, 10, 31, 30, 0.8, 1))
    assert len(merged(close, rows())) == 2 and merged(rows(), rows()) == []


def slow_merge(found: list[Detections], windows: list, image: tuple[int, int], iou: float) -> set[tuple[float, ...]]:
    """The rule of `merge_windows`, box by box."""
    entries = []
    for view, (d, window) in enumerate(zip(found, windows)):
        for (*box, score, label), cut in zip(listed(d.placed(window, image)), are_cut(d.boxes, window, image).tolist()):
            entries.append((cut, -score, len(entries), view, label, tuple(box)))
    kept: list = []
    for entry in sorted(entries):
        if not any(same_object(entry, other, iou) for other in kept):
            kept.append(entry)
    return {(*box, -score, label) for _, score, _, _, label, box in kept}


def same_object(a: tuple, b: tuple, iou: float) -> bool:
    (cut_a, _, _, view_a, label_a, p), (cut_b, _, _, view_b, label_b, q) = a, b
    shared = max(0.0, min(p[2], q[2]) - max(p[0], q[0])) * max(0.0, min(p[3], q[3]) - max(p[1], q[1]))
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (p, q))
    part = (cut_a and area_a <= area_b) or (cut_b and area_b <= area_a)
    whole = min(area_a, area_b) if part else area_a + area_b - shared
    return view_a != view_b and label_a == label_b and shared > iou * whole


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.5]), st.booleans())
def test_merging_is_what_a_loop_over_all_boxes_gives(seed, iou, whole):
    torch.manual_seed(seed)
    image = (120, 150)
    windows = Tiles(50, 0.3, whole=whole).views(image)
    found = []
    for _, _, h, w in windows:
        low = torch.rand(12, 2) * torch.tensor([w, h]) * 0.9
        high = torch.minimum(low + 4 + torch.rand(12, 2) * 30, torch.tensor([w, h]).float())
        found.append(Detections(torch.cat([low, high], dim=1), torch.rand(12), torch.randint(2, (12,))))
    left = merge_windows(found, windows, image, iou=iou)
    assert {tuple(row) for row in listed(left)} == slow_merge(found, windows, image, iou)
    assert len(left) < 12 * len(windows)
    assert (left.scores.diff() <= 0).all()


def test_a_mask_and_every_other_field_follow_their_tile():
    masks = RegionMasks(torch.rand(1, 28, 28), torch.tensor([[10.0, 20, 50, 70]]), (100, 100))
    part = Detections(masks.boxes, torch.tensor([0.9]), torch.tensor([0]), masks=masks)
    [window] = [(30, 80, 100, 100)]
    placed = part.placed(window, (200, 300))
    assert placed.masks.size == (200, 300) and torch.equal(placed.boxes, placed.masks.boxes)
    canvas = torch.zeros(1, 200, 300, dtype=torch.bool)
    canvas[:, 30:130, 80:180] = masks.paste()
    assert torch.equal(placed.masks.paste(), canvas) and masks.paste().any()


# What a predictor finds


def by_hand(plain: Predictor, image: Tensor, tiles: Tiles) -> Detections:
    windows = tiles.views(tuple(image.shape[1:]))
    found = [plain(image[:, top : top + h, left : left + w]) for top, left, h, w in windows]
    return merge_windows(found, windows, tuple(image.shape[1:]), iou=0.5)


@pytest.mark.parametrize("tiles", [Tiles(64, 0), Tiles((96, 64), 0, whole=False)], ids=str)
def test_a_predictor_on_tiles_finds_what_it_finds_in_each_part(tiles):
    plain, image = predictor(), picture(96, 128)
    found = plain(image, tiles=tiles)
    assert_same_detections(found, by_hand(plain, image, tiles))
    assert found.names and found.category_ids and len(found) > 100  # more than the limit of a tile
    assert (
        len(plain(image, tiles=tiles, max_detections=7)) == 7
        and plain(image, tiles=tiles, score=0.5).scores.min() >= 0.5
    )
    assert found.boxes.min() >= 0 and (found.boxes <= torch.tensor([128, 96, 128, 96])).all()
    again = plain(image, tiles=tiles)
    assert torch.equal(found.boxes, again.boxes) and torch.equal(found.scores, again.scores)


def test_an_image_of_one_tile_gives_what_it_gives_without_tiles():
    plain, image = predictor(), picture(60, 80)
    expected, found = plain(image), plain(image, tiles=80)
    assert torch.equal(found.boxes, expected.boxes) and torch.equal(found.scores, expected.scores)


def test_the_model_sees_a_batch_of_equal_tiles_at_a_time_and_one_picture_is_read_at_a_time():
    plain = predictor()
    shapes: list[list[tuple[int, ...]]] = []
    call = plain.model.detect
    plain.model.detect = lambda images, given: (
        shapes.append([tuple(i.shape[1:]) for i in images]) or call(images, given)
    )
    read: list[int] = []

    def pictures():
        for seed in range(3):
            read.append(len(shapes))
            yield picture(64, 128, seed)

    tiles = Tiles(64, 0, whole=False)
    assert len(list(plain.stream(pictures(), tiles=tiles, batch=1))) == 3
    assert shapes == [[(64, 64)]] * 6 and read == [0, 2, 4]
    shapes.clear()
    list(plain.stream(picture(64, 192), tiles=tiles, batch=2))
    assert shapes == [[(64, 64)] * 2, [(64, 64)]]
    assert isinstance(plain.tiled(64), TiledPredictor) and plain.tiled(64).tiled(32).tiles == Tiles(32)


def test_what_the_detector_says_of_suppression_holds_across_tiles():
    rule = {"selection": {"class_agnostic_nms": True, "nms_iou": 0.3}}
    found = predictor(roi_head=rule)(picture(120, 170), tiles=Tiles(96, 0.5, whole=False))
    middle = found[~are_cut(found.boxes, (0, 0, 120, 170), (240, 340))]
    assert (box_iou(middle.boxes, middle.boxes).fill_diagonal_(0) <= 0.3 + 1e-6).all() and len(middle) > 20


def test_test_time_augmentation_sees_every_tile():
    views, image, tiles = predictor(TTAPredictor, SIZED | {"tta": {"scales": [1, 1.25]}}), picture(64, 96), Tiles(64, 0)
    assert_same_detections(views(image, tiles=tiles), by_hand(views, image, tiles))


def test_an_exported_file_sees_every_tile_at_its_own_size():
    plain, graph = predictor(), DetectionGraph(predictor().model, portable=False).eval()
    outputs = list(graph.find(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), torch.tensor([[64, 64]])))
    exported = over(Eager(graph, card_of(plain, outputs, (64, 64), 1)))
    image, tiles = picture(64, 128), Tiles(64, 0, whole=False)
    assert_same_detections(exported(image, tiles=tiles), plain(image, tiles=tiles))
    assert len(exported(picture(64, 100), tiles=(64, 80))) > 0  # fits into it smaller


def test_masks_of_tiles_lie_in_the_whole_picture():
    torch.manual_seed(0)
    config = merge(CONFIG, {"data": SIZED, "model": {"roi_head": {"mask_head": {"width": 16}}}})
    plain, image, tiles = predictor_of(built(config), config), picture(64, 128), Tiles(64, 0, whole=False)
    found = plain(image, tiles=tiles)
    assert found.masks.size == (64, 128) and torch.equal(found.masks.boxes, found.boxes) and len(found) > 20
    right = plain(image[:, :, 64:])
    pasted = found.masks.paste()[found.boxes[:, 0] >= 64]
    assert len(pasted) and not pasted[:, :, :64].any()
    own = {tuple(row) for row in right.masks.paste().flatten(1).int().tolist()}
    assert {tuple(row) for row in pasted[:, :, 64:].flatten(1).int().tolist()} <= own


def test_proposals_of_tiles_are_the_best_of_all_and_given_ones_are_those_of_each_tile():
    plain, image = predictor(), picture(64, 128)
    tiled = plain.tiled(Tiles(64, 0, whole=False))
    [found] = tiled.detect([image], [(64, 128)])
    alone = [plain.detect([image[:, :, x : x + 64]], [(64, 64)])[0].proposals for x in (0, 64)]
    assert found.proposals.scores[0].item() == pytest.approx(max(p.scores.max().item() for p in alone), abs=1e-5)
    assert len(found.proposals) > max(map(len, alone)) and found.proposals.boxes[:, 2].max() > 64
    given = Proposals(torch.tensor([[5.0, 9, 60, 50], [70, 20, 120, 60]]), torch.tensor([1.0, 0.0]))
    seen: list[list[list[list[float]]]] = []

    def detect(images: list[Tensor], sizes: list, regions: list[Proposals]) -> list[Detections]:
        seen.append([p.boxes.tolist() for p in regions])
        return [rows() for _ in images]

    plain.detect = detect
    [found] = tiled.detect([image], [(64, 128)], [given])
    assert seen == [[[[5, 9, 60, 50]], [[6, 20, 56, 60]]]] and found.proposals is given


def test_tiles_are_public():
    assert detector.Tiles is Tiles
