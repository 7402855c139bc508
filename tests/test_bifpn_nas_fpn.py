"""BiFPN and NAS-FPN: constants by hand, the published tables of nodes and cells as slow oracles, pooling and resizing."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.necks import NARROW, ODD, STRIDES, constant, identity_, maps, values
from helpers.tiny import tiny_model
from torch import Tensor, nn

from detector.errors import ConfigError
from detector.modeling.necks.bifpn import BiFPN, BiFPNLayer, fast_normalised, pool_same, pool_symmetric
from detector.modeling.necks.nas_fpn import NASFPN, PyramidNetwork, halve_ceil, halve_floor, resize

FIRST = [2, 3]


def identity_bifpn(**settings) -> BiFPN:
    """Every convolution is the identity, and so is swish for large numbers."""
    return identity_(BiFPN([1, 1, 1, 1], STRIDES, width=1, **{"repeats": 1, "fuse": "sum"} | settings))


def fusion(n: int, fuse: str = "fast") -> nn.Module:
    """A node where n maps of one channel meet, whose convolution is the identity."""
    neck = identity_bifpn(fuse=fuse)
    return neck.layers[0].down[0] if n == 2 else neck.layers[0].up[0]


def test_sums_of_one_layer():
    """T6 = 2c, T5 = 3c, T4 = b + 3c, O3 = a + b + 3c, and up again. C2 does not count."""
    a, b, c = 1e2, 1e4, 1e6
    o = [a + b + 3 * c, a + 3 * b + 6 * c, a + 3 * b + 10 * c, a + 3 * b + 13 * c, a + 3 * b + 14 * c]
    assert values(identity_bifpn(first_level=3)(constant(7e6, a, b, c))) == [[x] for x in o]
    a, b, c, d = 1e2, 1e3, 1e4, 1e6
    o2, o3 = a + b + c + 2 * d, a + 3 * b + 2 * c + 4 * d
    o4, o5, o6 = a + 3 * b + 4 * c + 6 * d, a + 3 * b + 4 * c + 9 * d, a + 3 * b + 4 * c + 10 * d
    assert values(identity_bifpn()(constant(a, b, c, d))) == [[o2], [o3], [o4], [o5], [o6]]


def test_swish_comes_before_the_convolution_and_weights_are_a_softmax_or_normalised_and_not_negative():
    assert fast_normalised(torch.tensor([-3.0, 1.0, 4.0])).tolist() == pytest.approx([0, 1 / 5.0001, 4 / 5.0001])
    assert fast_normalised(torch.tensor([-1.0, 0.0])).tolist() == [0, 0]
    node = fusion(2, "softmax")
    node.weight.data = torch.tensor([0.0, math.log(3)])
    assert node(torch.full((1, 1, 4, 4), 1000.0), torch.full((1, 1, 4, 4), 2000.0)).unique().tolist() == [
        pytest.approx(1750)
    ]
    node, x = fusion(2, "sum"), torch.full((1, 1, 4, 4), -0.5)
    assert node(x, x).unique().tolist() == [pytest.approx(-1 / (1 + math.e))]
    node.conv[1].norm = nn.BatchNorm2d(1).eval()
    nn.init.constant_(node.conv[1].norm.bias, -7)
    assert node(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)).unique().tolist() == [-7]


def test_p6_and_p7_are_pooled():
    c = constant(0, 0, 0, 0)
    c[3] = torch.full((1, 1, 8, 8), -1.0)
    c[3][0, 0, 3, 3] = 5
    neck, seen = identity_bifpn(first_level=3), {}
    neck.layers[0].register_forward_pre_hook(lambda _, args: seen.update(p=args[0], again=args[1]))
    c[1:3] = [torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 16, 16)]
    neck(c)
    assert seen["p"][3].flatten().nonzero().numel() == 16 and seen["p"][3].max() == 5
    assert (seen["p"][3] == 5).nonzero()[:, 2:].tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]  # around pixel 3
    assert seen["p"][4].tolist() == [[[[5, 5], [5, 5]]]]
    assert seen["again"][3] is seen["p"][3] and seen["again"][4] is seen["p"][4]


def test_the_pass_up_has_separate_laterals():
    """All but the finest of the backbone's maps; without them nothing changes on the way down."""
    for first in FIRST:
        neck, c = BiFPN(NARROW, STRIDES, width=8, first_level=first, repeats=1).eval(), maps()
        assert len(neck.lateral_down) == 6 - first and len(neck.lateral_up) == 5 - first
        before = neck(c)
        for lateral in neck.lateral_up:
            nn.init.zeros_(lateral.conv.weight)
        after = neck(c)
        assert torch.equal(before[0], after[0])
        assert not any(torch.equal(b, a) for b, a in zip(before[1:], after[1:]))


# the authors' nodes: level, inputs; 0..4 are the layer's inputs P3..P7, a node's own number follows in order
NODES = [
    (6, (3, 4)), (5, (2, 5)), (4, (1, 6)), (3, (0, 7)), (4, (1, 7, 8)), (5, (2, 6, 9)), (6, (3, 5, 10)), (7, (4, 11)),
]  # fmt: skip


def slow_layer(layer: BiFPNLayer, p: list[Tensor]) -> list[Tensor]:
    """Node by node, with weights as numbers."""
    fusions = [layer.down[i] for i in (3, 2, 1, 0)] + list(layer.up)
    found = [(level, x) for level, x in enumerate(p, start=3)]
    for (level, inputs), node in zip(NODES, fusions, strict=True):
        size = p[level - 3].shape[-2:]
        total, norm = torch.zeros_like(p[level - 3]), sum(max(w, 0) for w in node.weight.tolist()) + 1e-4
        for i, w in zip(inputs, node.weight.tolist(), strict=True):
            at, x = found[i]
            x = layer.pool(x) if at < level else F.interpolate(x, size=size) if at > level else x
            total += max(w, 0) / norm * x
        found.append((level, node.conv(total * total.sigmoid())))
    return [x for _, x in found[-5:]]


def test_layers_are_the_authors_table_of_nodes_and_read_the_outputs_of_the_one_before():
    layer = BiFPN(NARROW, STRIDES, width=8).layers[0].eval()
    for node in [*layer.down, *layer.up]:
        nn.init.uniform_(node.weight, -0.3, 1)
    p = [torch.randn(2, 8, *size) for size in [*ODD, (2, 1)]]
    for found, expected in zip(layer(p, p), slow_layer(layer, p), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    neck, c = BiFPN(NARROW, STRIDES, width=8, repeats=2).eval(), maps()
    first, second = neck.layers
    neck.layers = nn.ModuleList([first])
    expected = second(neck(c), neck(c))
    neck.layers = nn.ModuleList([first, second])
    assert all(torch.equal(p, q) for p, q in zip(neck(c), expected, strict=True))


def slow_pool(x: Tensor, before: list[int]) -> Tensor:
    """3x3 windows of a map (H, W), every second pixel; `before`: how far the first one begins outside, per axis."""
    height, width = (-(-side // 2) for side in x.shape)
    out = torch.zeros(height, width)
    for i in range(height):
        for j in range(width):
            y, z = 2 * i - before[0], 2 * j - before[1]
            out[i, j] = x[max(y, 0) : y + 3, max(z, 0) : z + 3].max()
    return out


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 3), (4, 4), (5, 5), (6, 7), (7, 8), (8, 1)])
def test_pooling(size):
    x = torch.randn(*size) - 10  # all negative: padding must not win
    total = [max((-(-side // 2) - 1) * 2 + 3 - side, 0) for side in size]  # TensorFlow's rule; the larger half behind
    assert torch.equal(pool_same(x[None, None])[0, 0], slow_pool(x, [t // 2 for t in total]))
    assert torch.equal(pool_symmetric(x[None, None])[0, 0], slow_pool(x, [1, 1]))


def test_the_authors_batch_norm_and_initial_weights():
    norms = [m for m in BiFPN(NARROW, STRIDES, width=8, repeats=2).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 8 + 2 * 8 and {m.eps for m in norms} == {1e-3}
    neck = BiFPN(NARROW, STRIDES, width=64, repeats=1, separable=False)
    weight = neck.layers[0].up[0].conv.conv.weight
    assert weight.var().item() == pytest.approx(1 / (64 * 9), rel=0.05)  # Glorot: 2 / (fan_in + fan_out)
    assert neck.layers[0].up[0].weight.tolist() == [1, 1, 1]


def test_maps_that_they_cannot_use_are_refused():
    # A dilated C5 has the size of C4; without a C2 there is no P2.
    for first, strides in ((2, [4, 8, 16, 16]), (3, [4, 8, 16, 16]), (2, [8, 16, 32])):
        with pytest.raises(ValueError, match=f"levels from P{first} need maps of strides .*8, 16, 32"):
            BiFPN(NARROW[-len(strides) :], strides, width=8, first_level=first)
    for strides in ([4, 8, 16, 16], [8, 16]):
        with pytest.raises(ValueError, match=r"of strides \[8, 16, 32\]"):
            NASFPN(NARROW[-len(strides) :], strides, width=8)
    with pytest.raises(ConfigError, match="neck does not fit: NAS-FPN"):
        tiny_model(neck={"type": "nas_fpn"}, backbone={"dilated_c5": True})


FORMS = ["authors", "mmdetection"]


def identity_nas_fpn(**settings) -> NASFPN:
    """One channel; every convolution is the identity."""
    return identity_(NASFPN([1, 1, 1, 1], STRIDES, width=1, norm=None, **{"stacks": 1} | settings))


def test_stacks_follow_one_another_and_leave_their_inputs_as_they_were():
    a = identity_nas_fpn(stacks=3)(constant(0, 0, 0, 100, finest=32))
    once = identity_nas_fpn()
    expected = once.stacks[0](once.stacks[0](once(constant(0, 0, 0, 100, finest=32))))
    assert all(torch.equal(x, y) for x, y in zip(a, expected, strict=True))
    # The in-place ReLU changes only maps that the cell made.
    neck, p = NASFPN(NARROW, STRIDES, width=8, stacks=1).eval(), [torch.randn(2, 8, 16 >> i, 32 >> i) for i in range(5)]
    before = [x.clone() for x in p]
    neck.stacks[0](p)
    assert all(torch.equal(x, y) for x, y in zip(p, before))


def test_p6_and_p7_are_convolved_before_pooling_in_mmdetections_form():
    neck = identity_nas_fpn(form="mmdetection")
    for extra in neck.extra:
        extra.conv.weight.data.fill_(-1)
    seen = []
    neck.stacks[0].register_forward_pre_hook(lambda _, args: seen.extend(args[0]))
    c = constant(0, 0, 0, 0, finest=32)
    c[3] = torch.arange(16.0).reshape(1, 1, 4, 4)
    neck(c)
    assert seen[3].tolist() == [[[[0, -2], [-8, -10]]]] and seen[4].tolist() == [[[[10]]]]  # max of -C5, then of -P6


def test_resizing_repeats_the_nearest_pixel_or_takes_the_maximum_of_blocks_and_halving_rounds_both_ways():
    # Zeros go around what does not fit: five columns into two blocks of three, one zero behind; four of two, one before.
    x, like = torch.tensor([[[[1.0, 2]]]]), torch.zeros(1, 1, 2, 5)
    assert resize(x, like)[0, 0].tolist() == [[1, 1, 1, 2, 2]] * 2
    x = torch.arange(32.0).reshape(1, 1, 4, 8)
    assert resize(x, torch.zeros(1, 1, 2, 2))[0, 0].tolist() == [[11, 15], [27, 31]]
    assert resize(x, torch.zeros(1, 1, 1, 2))[0, 0].tolist() == [[27, 31]]
    x = torch.tensor([[[[-5.0, -1, -3, -2, -4]]]])
    assert resize(x, torch.zeros(1, 1, 1, 2)).flatten().tolist() == [-1, 0]
    assert resize(x, torch.zeros(1, 1, 1, 4)).flatten().tolist() == [0, -1, -2, 0]
    assert resize(x.mT, torch.zeros(1, 1, 2, 1)).flatten().tolist() == [-1, 0]
    for side, ceil, floor in [(1, [0], [0]), (2, [1], [1]), (3, [1, 2], [1]), (5, [1, 3, 4], [1, 3])]:
        x = torch.arange(float(side)).reshape(1, 1, 1, side)
        assert halve_ceil(x).flatten().tolist() == ceil and halve_floor(x).flatten().tolist() == floor
        assert halve_ceil(x.mT).flatten().tolist() == ceil and halve_floor(x.mT).flatten().tolist() == floor


# the searched cells: level, operation, inputs; 0..4 are P3..P7, a cell's own number follows in order
CELLS = [
    ("gp_64_4", 4, (3, 1)), ("sum_44_4", 4, (5, 1)), ("sum_43_3", 3, (6, 0)), ("sum_34_4", 4, (7, 6)),
    ("gp_43_5", 5, (8, 7)), ("gp_54_7", 7, (9, 6)), ("gp_75_6", 6, (10, 9)),
]  # fmt: skip


def slow_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Of (N, C, H, W), where one size divides the other."""
    h, w = x.shape[-2:]
    if h < height:
        return torch.stack([x[..., i * h // height, :] for i in range(height)], dim=-2)[
            ..., [j * w // width for j in range(width)]
        ]
    return x.unflatten(-1, (width, w // width)).unflatten(-3, (height, h // height)).amax(dim=(-1, -3))


def slow_stack(stack: PyramidNetwork, p: list[Tensor], form: str) -> list[Tensor]:
    """The rule of the search: an input that no cell has read is added when an output of its level is made."""
    found, unread = list(zip(range(3, 8), p)), set(range(5))
    for cell, level, inputs in CELLS:
        height, width = p[level - 3].shape[-2:]
        high, low = sorted(inputs, key=lambda i: -found[i][0])
        high, low = (slow_resize(found[i][1], height, width) for i in (high, low))
        unread -= set(inputs)
        if cell.startswith("sum"):
            out = high + low
        elif form == "authors":
            out = high + low / (1 + (-high.flatten(2).max(dim=2).values[..., None, None]).exp())
        else:
            out = low + high / (1 + (-low.mean(dim=3).mean(dim=2)[..., None, None]).exp())
        for i in [i for i in unread if found[i][0] == level]:
            out, unread = out + found[i][1], unread - {i}
        module = getattr(stack, cell)
        found.append((level, module.norm(F.conv2d(out.clamp(min=0), module.conv.weight, module.conv.bias, padding=1))))
    outputs = dict(found[7:])  # of two P4 the later one
    return [outputs[level] for level in range(3, 8)]


@pytest.mark.parametrize("form", FORMS)
def test_a_stack_is_the_searched_table_of_cells(form):
    stack = NASFPN(NARROW, STRIDES, width=8, stacks=1, form=form).stacks[0].eval()
    p = [torch.randn(2, 8, 16 >> i, 32 >> i) for i in range(5)]
    for found, expected in zip(stack(p), slow_stack(stack, p, form), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
