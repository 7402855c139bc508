"""Anchors: their shapes in one cell, their places on the map, their order, and how often they are made."""

import copy
import pickle

import pytest
import torch

from detector.modeling.anchors import AnchorGenerator, cell_anchors, inside_border, inside_padding

RATIOS = (0.5, 1.0, 2.0)  # height / width
PYRAMID = (4, 8, 16, 32, 64)  # the strides of P2..P6


def maps(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    """One empty feature map for every (h, w)."""
    return [torch.zeros(1, 0, h, w) for h, w in sizes]


def centres(anchors: torch.Tensor) -> torch.Tensor:
    return (anchors[:, :2] + anchors[:, 2:]) / 2


def test_anchors_that_inference_made_serve_a_training():
    generator = AnchorGenerator([4], [[8]])
    with torch.inference_mode():
        [made] = generator(maps((2, 3)), (8, 12))
    shift = torch.zeros(4, requires_grad=True)
    (made * shift).sum().backward()  # of an inference tensor this is an error
    assert torch.equal(shift.grad, made.sum(dim=0))


def test_rounded_anchors_equal_torchvisions():
    for size, wide, half in ((32, 23, 11), (64, 45, 23), (128, 91, 45), (256, 181, 91), (512, 362, 181)):
        sides = (wide, half), (size // 2, size // 2), (half, wide)
        assert cell_anchors([size], RATIOS, rounded=True).tolist() == [[-x, -y, x, y] for x, y in sides]
    assert cell_anchors([1, 3, 5], [1], rounded=True)[:, 2].tolist() == [0, 2, 2]  # 0.5, 1.5, 2.5
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


def test_anchors_are_made_once_for_a_map_size_a_level_a_step_and_a_device_and_again_in_a_copy():
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
    generator, p = AnchorGenerator(PYRAMID), maps((16, 16), (8, 8), (4, 4), (2, 2), (1, 1))
    expected = generator(p, (64, 64))
    for clone in (copy.deepcopy(generator), pickle.loads(pickle.dumps(generator))):
        assert all(torch.equal(a, b) for a, b in zip(clone(p, (64, 64)), expected, strict=True))


def test_anchors_inside_the_border_and_centred_inside_the_padding():
    # On the left and above the border itself is inside, on the right and below it is not.
    anchors = torch.tensor([[0.0, 0, 59, 39], [-1, 0, 59, 39], [0, 0, 60, 39], [0, 0, 59, 41], [20, 10, 30, 20]])
    size = (40, 60)  # (h, w)
    assert inside_border(anchors, size, border=0).tolist() == [True, False, False, False, True]
    assert inside_border(anchors, size, border=1).tolist() == [True, True, True, False, True]
    assert inside_border(anchors[:0], size, border=0).shape == (0,)
    # The centre decides, to a hundredth of a pixel, which is what float32 may lose of it.
    rows = [[-5.0, -5, 5, 5], [50, 10, 69.9999, 20], [50, 10, 69, 20], [10, 35, 20, 45], [10, 30, 20, 45]]
    anchors = torch.tensor(rows)
    assert inside_padding(anchors, (40, 60)).tolist() == [True, False, True, False, True]
    assert inside_padding(anchors[:0], (40, 60)).shape == (0,)
