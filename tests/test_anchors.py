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


def test_a_ratio_is_height_over_width_and_keeps_the_area():
    wide, square, tall = cell_anchors([32], [0.25, 1, 4]).tolist()
    assert wide == [-32, -8, 32, 8]
    assert square == [-16, -16, 16, 16]
    assert tall == [-8, -32, 8, 32]
    w, h = (cell_anchors([32, 64], RATIOS)[:, 2:] * 2).unbind(dim=1)
    torch.testing.assert_close(w * h, torch.tensor([32.0**2] * 3 + [64.0**2] * 3))
    torch.testing.assert_close(h / w, torch.tensor(RATIOS * 2))
    assert cell_anchors([1, 3, 5], [1], rounded=True)[:, 2].tolist() == [0, 2, 2]  # 0.5, 1.5, 2.5


def test_sizes_come_first_and_ratio_major_is_the_other_order_of_the_same_anchors():
    ratio_major = cell_anchors([8, 16], [1, 4], ratio_major=True)
    assert (ratio_major[:, 2:] * 2).prod(dim=1).tolist() == [64, 256, 64, 256]
    assert torch.equal(ratio_major, cell_anchors([8, 16], [1, 4])[[0, 2, 1, 3]])


def test_a_map_of_two_by_three_cells_and_the_offset_of_its_centres():
    cell = torch.tensor([[-1.0, -2, 1, 2]])
    assert grid_anchors(cell, 2, 3, stride=(10, 10)).tolist() == [
        [-1, -2, 1, 2], [9, -2, 11, 2], [19, -2, 21, 2],  # x first
        [-1, 8, 1, 12], [9, 8, 11, 12], [19, 8, 21, 12],
    ]  # fmt: skip
    cell = cell_anchors([32], RATIOS)
    moved = grid_anchors(cell, 2, 2, stride=(8, 8), offset=0.5)
    assert torch.equal(moved, grid_anchors(cell, 2, 2, stride=(8, 8)) + 4)


def test_row_of_anchor_a_in_cell_y_x():
    """(y * W + x) * A + a: the order in which the RPN flattens its maps (see test_rpn.py)."""
    height, width, cell = 3, 4, cell_anchors([16, 32], RATIOS)
    anchors = grid_anchors(cell, height, width, stride=(8, 16))
    for y, x, a in itertools.product(range(height), range(width), range(len(cell))):
        row = (y * width + x) * len(cell) + a
        assert anchors[row].tolist() == (cell[a] + torch.tensor([16 * x, 8 * y, 16 * x, 8 * y])).tolist()


def test_a_pyramid_has_one_size_for_each_level():
    sizes = [(64, 96), (32, 48), (16, 24), (8, 12), (4, 6)]
    levels = AnchorGenerator(PYRAMID)(maps(*sizes), (256, 384))
    assert [len(level) for level in levels] == [h * w * 3 for h, w in sizes]
    for level, size, stride in zip(levels, (32, 64, 128, 256, 512), PYRAMID, strict=True):
        assert level[1].tolist() == [-size / 2, -size / 2, size / 2, size / 2]  # ratio 1
        assert centres(level)[3].tolist() == [stride, 0]


def test_the_stride_of_a_level_is_constant_unless_it_is_taken_from_the_image():
    """The P6 of 800 x 1088 pixels has 13 x 17 cells: torchvision steps by 800 // 13 = 61 and 1088 // 17 = 64."""
    sizes = [(200, 272), (100, 136), (50, 68), (25, 34), (13, 17)]
    constant = AnchorGenerator(PYRAMID)(maps(*sizes), (800, 1088))[-1].reshape(13, 17, 3, 4)
    divided = AnchorGenerator(PYRAMID, strides_from_image=True)(maps(*sizes), (800, 1088))[-1].reshape(13, 17, 3, 4)
    assert centres(constant[1, 1]).tolist() == [[64, 64]] * 3
    assert centres(divided[1, 1]).tolist() == [[64, 61]] * 3


def test_as_many_lists_of_sizes_as_levels_and_as_many_anchors_in_a_cell():
    with pytest.raises(ValueError, match="2 lists of anchor sizes for 3 pyramid levels"):
        AnchorGenerator((4, 8, 16), ((32,), (64,)))
    with pytest.raises(ValueError, match="the same number of sizes"):
        AnchorGenerator((4, 8), ((32, 40), (64,)))
    assert AnchorGenerator(PYRAMID).per_cell == 3
    assert AnchorGenerator([16], [[32, 64, 128, 256, 512]]).per_cell == 15
    assert AnchorGenerator([8], [[32]])(maps((0, 5)), (0, 40))[0].shape == (0, 4)


def test_anchors_are_made_once_for_a_map_size_a_level_a_step_and_a_device():
    generator = AnchorGenerator((4, 8), ((32,), (64,)))
    first = generator(maps((8, 8), (4, 4)), (32, 32))
    other = generator(maps((8, 6), (4, 3)), (32, 24))
    again = generator(maps((8, 8), (4, 4)), (32, 32))
    assert all(a is b for a, b in zip(first, again))
    assert [len(level) for level in other] == [8 * 6 * 3, 4 * 3 * 3]
    small, large = AnchorGenerator((8, 8), ((32,), (64,)))(maps((4, 4), (4, 4)), (32, 32))
    assert torch.equal(large[:3], 2 * small[:3])
    generator = AnchorGenerator([64], [[32]], strides_from_image=True)
    assert centres(generator(maps((13, 13)), (800, 800))[0])[3].tolist() == [61, 0]
    assert centres(generator(maps((13, 13)), (832, 832))[0])[3].tolist() == [64, 0]
    generator = AnchorGenerator([8], [[32]])
    on_cpu = generator(maps((4, 4)), (32, 32))[0]
    elsewhere = generator([torch.zeros(1, 0, 4, 4, device="meta")], (32, 32))[0]
    assert (on_cpu.device.type, elsewhere.device.type) == ("cpu", "meta")
    assert generator(maps((4, 4)), (32, 32))[0] is on_cpu


def test_a_first_use_under_inference_mode_does_not_spoil_training():
    generator = AnchorGenerator([8], [[32]])
    with torch.inference_mode():
        generator(maps((4, 4)), (32, 32))
    anchors = generator(maps((4, 4)), (32, 32))[0]
    deltas = torch.zeros(len(anchors), 4, requires_grad=True)
    (deltas * anchors).sum().backward()  # an inference tensor cannot be saved for the backward pass
    assert not anchors.requires_grad and torch.equal(deltas.grad, anchors)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda generator: pickle.loads(pickle.dumps(generator))])
def test_a_copy_makes_the_same_anchors(clone):
    generator = AnchorGenerator(PYRAMID)
    p = maps((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))
    expected = generator(p, (64, 64))
    assert all(torch.equal(a, b) for a, b in zip(clone(generator)(p, (64, 64)), expected, strict=True))


def test_inside_of_the_border_and_with_the_centre_inside():
    """On the left and above the border itself is inside_border, on the right and below it is not."""
    anchors = torch.tensor([[0.0, 0, 59, 39], [-1, 0, 59, 39], [0, 0, 60, 39], [0, 0, 59, 41], [20, 10, 30, 20]])
    size = (40, 60)  # (h, w)
    assert inside_border(anchors, size, border=0).tolist() == [True, False, False, False, True]
    assert inside_border(anchors, size, border=1).tolist() == [True, True, True, False, True]
    assert inside_border(anchors[:0], size, border=0).shape == (0,)
    # The centre decides, to a hundredth of a pixel, which is what float32 may lose of it.
    anchors = torch.tensor(
        [[-5.0, -5, 5, 5], [50, 10, 69.9999, 20], [50, 10, 69, 20], [10, 35, 20, 45], [10, 30, 20, 45]]
    )
    assert inside_padding(anchors, (40, 60)).tolist() == [True, False, True, False, True]
    assert inside_padding(anchors[:0], (40, 60)).shape == (0,)
