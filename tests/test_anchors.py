"""Anchors: their shapes in one cell, their places on the map, their order, and how often they are made."""

import copy
import itertools
import pickle

import pytest
import torch

from detector.modeling.anchors import AnchorGenerator, cell_anchors, grid_anchors, inside_border, inside_padding

RATIOS = (0.5, 1.0, 2.0)  # height / width
PYRAMID = (4, 8, 16, 32, 64)  # the strides of P2..P6


def maps(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    """One empty feature map for every (h, w)."""
    return [torch.zeros(1, 0, h, w) for h, w in sizes]


def centres(anchors: torch.Tensor) -> torch.Tensor:
    return (anchors[:, :2] + anchors[:, 2:]) / 2


def test_a_size_is_the_root_of_the_area_and_a_ratio_is_height_over_width():
    assert cell_anchors([32], [0.25, 1, 4]).tolist() == [[-32, -8, 32, 8], [-16, -16, 16, 16], [-8, -32, 8, 32]]
    w, h = (cell_anchors([32, 64], RATIOS)[:, 2:] * 2).unbind(dim=1)
    torch.testing.assert_close(w * h, torch.tensor([32.0**2] * 3 + [64.0**2] * 3))
    torch.testing.assert_close(h / w, torch.tensor(RATIOS * 2))


def test_ratios_change_fastest_or_sizes_do_with_ratio_major():
    cell, ratio_major = cell_anchors([8, 16], [1, 4]), cell_anchors([8, 16], [1, 4], ratio_major=True)
    assert (cell[:, 2:] * 2).prod(dim=1).tolist() == [64, 64, 256, 256]
    assert (ratio_major[:, 2:] * 2).prod(dim=1).tolist() == [64, 256, 64, 256]
    assert torch.equal(ratio_major, cell[[0, 2, 1, 3]])


def test_torchvision_rounds_half_the_width_and_height_to_even():
    for size, wide, half in ((32, 23, 11), (64, 45, 23), (128, 91, 45), (256, 181, 91), (512, 362, 181)):
        sides = (wide, half), (size // 2, size // 2), (half, wide)
        assert cell_anchors([size], RATIOS, rounded=True).tolist() == [[-x, -y, x, y] for x, y in sides]
    assert cell_anchors([1, 3, 5], [1], rounded=True)[:, 2].tolist() == [0, 2, 2]  # 0.5, 1.5, 2.5


def test_a_map_of_two_by_three_cells():
    assert grid_anchors(torch.tensor([[-1.0, -2, 1, 2]]), 2, 3, stride=(10, 10)).tolist() == [
        [-1, -2, 1, 2], [9, -2, 11, 2], [19, -2, 21, 2],  # x first
        [-1, 8, 1, 12], [9, 8, 11, 12], [19, 8, 21, 12],
    ]  # fmt: skip


def test_anchor_a_of_cell_y_x_has_its_row_and_its_centre_there():
    """(y * W + x) * A + a: the order in which the RPN flattens its maps (see test_rpn.py)."""
    height, width, cell = 3, 4, cell_anchors([16, 32], RATIOS)
    anchors = grid_anchors(cell, height, width, stride=(8, 16))
    for y, x, a in itertools.product(range(height), range(width), range(len(cell))):
        found = anchors[(y * width + x) * len(cell) + a]
        assert centres(found[None]).tolist() == [[16 * x, 8 * y]]
        assert found.tolist() == (cell[a] + torch.tensor([16 * x, 8 * y, 16 * x, 8 * y])).tolist()


def test_the_offset_moves_every_centre_by_that_part_of_a_stride():
    cell = cell_anchors([32], RATIOS)
    moved = grid_anchors(cell, 2, 2, stride=(8, 8), offset=0.5)
    assert torch.equal(moved, grid_anchors(cell, 2, 2, stride=(8, 8)) + 4)


def test_a_pyramid_has_one_size_for_each_level():
    sizes = [(64, 96), (32, 48), (16, 24), (8, 12), (4, 6)]
    levels = AnchorGenerator(PYRAMID)(maps(*sizes), (256, 384))
    assert [len(level) for level in levels] == [h * w * 3 for h, w in sizes]
    for level, size, stride in zip(levels, (32, 64, 128, 256, 512), PYRAMID, strict=True):
        assert level[1].tolist() == [-size / 2, -size / 2, size / 2, size / 2]  # ratio 1
        assert centres(level)[3].tolist() == [stride, 0]
    assert AnchorGenerator(PYRAMID).per_cell == 3
    assert AnchorGenerator([16], [[32, 64, 128, 256, 512]]).per_cell == 15
    assert AnchorGenerator([8], [[32]])(maps((0, 5)), (0, 40))[0].shape == (0, 4)


def test_the_stride_of_a_level_is_constant_unless_it_is_taken_from_the_image():
    """The P6 of 800 x 1088 pixels has 13 x 17 cells: torchvision steps by 800 // 13 = 61 and 1088 // 17 = 64."""
    sizes = [(200, 272), (100, 136), (50, 68), (25, 34), (13, 17)]
    for divided, y in ((False, 64), (True, 61)):
        p6 = AnchorGenerator(PYRAMID, strides_from_image=divided)(maps(*sizes), (800, 1088))[-1].reshape(13, 17, 3, 4)
        assert centres(p6[1, 1]).tolist() == [[64, y]] * 3


def test_equals_torchvision():
    from torchvision.models.detection.anchor_utils import AnchorGenerator as Theirs
    from torchvision.models.detection.image_list import ImageList

    p, sizes = maps((24, 39), (12, 20), (6, 10)), ((32, 40), (64, 80), (128, 160))
    theirs = Theirs(sizes, aspect_ratios=(RATIOS,) * 3)
    ours = AnchorGenerator((4, 8, 16), sizes, rounded=True, ratio_major=True, strides_from_image=True)
    expected = theirs(ImageList(torch.zeros(1, 3, 96, 156), [(96, 156)]), p)
    assert torch.equal(torch.cat(ours(p, (96, 156))), expected[0])


def test_every_level_has_sizes_and_all_have_equally_many():
    with pytest.raises(ValueError, match="2 lists of anchor sizes for 3 pyramid levels"):
        AnchorGenerator((4, 8, 16), ((32,), (64,)))
    for sizes, ratios in ((((32, 40), (64,)), RATIOS), (((), ()), RATIOS), (((32,), (64,)), ())):
        with pytest.raises(ValueError, match="the same number of sizes"):
            AnchorGenerator((4, 8), sizes, ratios)


def test_anchors_are_made_once_for_a_map_size_a_level_a_step_and_a_device():
    generator = AnchorGenerator((8, 8), ((32,), (64,)))
    first = generator(maps((8, 8), (8, 8)), (64, 64))
    assert torch.equal(first[1][:3], 2 * first[0][:3])  # levels of equal map size are kept apart
    assert [len(level) for level in generator(maps((8, 6), (4, 3)), (64, 48))] == [8 * 6 * 3, 4 * 3 * 3]
    elsewhere = generator([x.to("meta") for x in maps((8, 8), (8, 8))], (64, 64))
    assert (first[0].device.type, elsewhere[0].device.type) == ("cpu", "meta")
    assert all(a is b for a, b in zip(first, generator(maps((8, 8), (8, 8)), (64, 64)), strict=True))
    generator = AnchorGenerator([64], [[32]], strides_from_image=True)
    for side, step in ((800, 61), (832, 64)):
        assert centres(generator(maps((13, 13)), (side, side))[0])[3].tolist() == [step, 0]


def test_a_copy_makes_the_same_anchors():
    generator, p = AnchorGenerator(PYRAMID), maps((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))
    expected = generator(p, (64, 64))
    for clone in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
        assert all(torch.equal(a, b) for a, b in zip(clone(p, (64, 64)), expected, strict=True))


def test_anchors_inside_the_border():
    """On the left and above the border itself is inside, on the right and below it is not."""
    anchors = torch.tensor([[0.0, 0, 59, 39], [-1, 0, 59, 39], [0, 0, 60, 39], [0, 0, 59, 41], [20, 10, 30, 20]])
    size = (40, 60)  # (h, w)
    assert inside_border(anchors, size, border=0).tolist() == [True, False, False, False, True]
    assert inside_border(anchors, size, border=1).tolist() == [True, True, True, False, True]
    assert inside_border(anchors[:0], size, border=0).shape == (0,)


def test_anchors_centred_inside_the_padding():
    """The centre decides, to a hundredth of a pixel, which is what float32 may lose of it."""
    rows = [[-5.0, -5, 5, 5], [50, 10, 69.9999, 20], [50, 10, 69, 20], [10, 35, 20, 45], [10, 30, 20, 45]]
    anchors = torch.tensor(rows)
    assert inside_padding(anchors, (40, 60)).tolist() == [True, False, True, False, True]
    assert inside_padding(anchors[:0], (40, 60)).shape == (0,)
