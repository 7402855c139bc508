"""FPN, the pyramids without one of its parts, and what is built on it: PANet's path, Libra's balance, AugFPN's residual."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.necks import NARROW, STRIDES, constant, identity_, maps, values
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from detector.modeling.necks.ablations import BottomUp, Finest, Hierarchy, TopDown
from detector.modeling.necks.augfpn import RATIOS, AugFPN, ResidualFeatureAugmentation
from detector.modeling.necks.bfp import BFP, NonLocal
from detector.modeling.necks.fpn import FPN
from detector.modeling.necks.panet import PANet
from detector.structures import Features


def identity_fpn(**settings) -> FPN:
    return identity_(FPN([1, 1, 1, 1], STRIDES, width=1, **settings))


def test_levels_add_what_lies_above_them_and_further_ones_are_pooled_or_made_of_c5_or_p5():
    assert values(identity_fpn()(constant(1, 10, 100, 1000))) == [[1111], [1110], [1100], [1000], [1000]]
    assert values(identity_fpn(fuse="average")(constant(4, 0, 0, 8))) == [[3], [2], [4], [8], [8]]
    c = constant(0, 0, 0, 0)
    c[3] = torch.arange(15.0).reshape(1, 1, 3, 5)
    assert identity_fpn()(c)[-1][0, 0].tolist() == [[0, 2, 4], [10, 12, 14]]
    for extra, expected in (("c5", 7.0), ("p5", 21.0)):
        fpn = identity_fpn(extra=extra)
        nn.init.constant_(fpn.lateral[-1].conv.weight, 3)
        assert fpn(constant(0, 0, 0, 7))[-2].unique().tolist() == [expected]
    fpn = identity_fpn(extra="c5")
    assert values(fpn(constant(0, 0, 0, -1))[-2:]) == [[-1], [0]]
    assert values(fpn(constant(0, 0, 0, 1))[-2:]) == [[1], [1]]
    fpn = FPN(NARROW, [4, 8, 16, 16], width=8)
    assert fpn.strides == [4, 8, 16, 16, 32]
    assert fpn(maps([(16, 16), (8, 8), (4, 4), (4, 4)]))[-1].shape == (2, 8, 2, 2)


def test_the_function_is_torchvisions():
    ours, theirs = FPN(NARROW, STRIDES, width=12), FeaturePyramidNetwork(NARROW, 12)
    for layers, blocks in ((ours.lateral, theirs.inner_blocks), (ours.output, theirs.layer_blocks)):
        for layer, block in zip(layers, blocks, strict=True):
            block[0].load_state_dict(layer.conv.state_dict())
    c = maps()
    expected = theirs(dict(enumerate(c))).values()
    for p, other in zip(ours(c), expected):
        torch.testing.assert_close(p, other)


def like_fpn(fpn: FPN, neck: nn.Module, levels: slice = slice(None)) -> nn.Module:
    """The neck with the weights of an FPN's same parts; `levels` of those with laterals, or outputs, that it has."""
    for name in ("lateral", "output"):
        ours, theirs = getattr(neck, name, []), getattr(fpn, name)
        part = theirs if len(ours) == len(theirs) else theirs[levels]
        for layer, other in zip(ours, part, strict=True):
            layer.load_state_dict(other.state_dict())
    return neck


def test_pyramids_without_a_part_are_those_of_an_fpn_without_it():
    fpn, c = FPN(NARROW, STRIDES, width=8), maps()
    (p2,) = like_fpn(fpn, Finest(NARROW, STRIDES, width=8), slice(1))(c)
    torch.testing.assert_close(p2, fpn(c)[0])
    fpn, c = FPN(NARROW, STRIDES, width=8), maps()
    top_down = like_fpn(fpn, TopDown(NARROW, STRIDES, width=8), slice(3, None))
    for lateral in fpn.lateral[:3]:
        nn.init.zeros_(lateral.conv.weight), nn.init.zeros_(lateral.conv.bias)
    for p, other in zip(top_down(c), fpn(c), strict=True):
        torch.testing.assert_close(p, other)
    fpn, c = FPN(NARROW, STRIDES, width=8), maps()
    p = like_fpn(fpn, BottomUp(NARROW, STRIDES, width=8))(c)
    for i in range(4):
        alone = FPN(NARROW[: i + 1], STRIDES[: i + 1], width=8)
        for name in ("lateral", "output"):
            for layer, other in zip(getattr(alone, name), getattr(fpn, name)):
                layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(p[i], alone(c[: i + 1])[i])
    torch.testing.assert_close(p[4], alone(c)[4])
    bottom_up, hierarchy, c = BottomUp(NARROW, STRIDES, width=8), Hierarchy(NARROW, STRIDES, width=8), maps()
    hierarchy.lateral.load_state_dict(bottom_up.lateral.state_dict())
    m = hierarchy(c)
    for p, output, x in zip(bottom_up(c), bottom_up.output, m):
        torch.testing.assert_close(p, output(x))
    assert torch.equal(m[4], m[3][..., ::2, ::2])


def identity_panet(*, output: float = 1.0, form: str = "mmdetection") -> PANet:
    """One channel; every convolution is the identity, the outputs of the path times a factor."""
    panet = identity_(PANet([1, 1, 1, 1], STRIDES, width=1, form=form))
    for layer in panet.output:
        nn.init.constant_(layer.conv.weight[:, :, 1, 1], output)
    return panet


def test_panets_path_goes_on_from_the_sum_or_the_output_by_every_second_pixel_or_is_refused():
    # C = 1, 0, 0, 1 makes P = 2, 1, 1, 1, and S2 = P2, S3 = P3 + S2, ...; outputs are those sums, here times ten.
    # In the authors' form N3 = 10 (1 + 2), N4 = 10 (1 + 30), N5 = 10 (1 + 310).
    c = constant(1, 0, 0, 1)
    assert values(identity_panet()(c)) == [[2], [3], [4], [5], [5]]
    assert values(identity_panet(output=10)(c)) == [[2], [30], [40], [50], [50]]
    assert values(identity_panet(output=10, form="authors")(c)) == [[2], [30], [310], [3110], [3110]]
    for form in ("mmdetection", "authors"):  # without norms there is no activation
        assert values(identity_panet(form=form)(constant(-1, 0, 0, -1))) == [[-2], [-3], [-4], [-5], [-5]]
    c = constant(0, 0, 0, 0)
    c[0][0, 0, 4, 6] = 1  # even row and column: seen by a convolution with only a centre
    c[0][0, 0, 5, 5] = 1  # odd: not seen
    n3 = identity_panet()(c)[1][0, 0]
    assert n3.nonzero().tolist() == [[2, 3]]
    # A dilated C5 has the size of C4.
    with pytest.raises(ValueError, match="16, 16"):
        PANet(NARROW, [4, 8, 16, 16])
    with pytest.raises(ValueError, match="at least two maps"):
        PANet([8], [16])
    with pytest.raises(ValueError, match="form: authors"):
        PANet(NARROW, STRIDES, norm="group")


def test_the_authors_norms_are_followed_by_a_relu_on_the_path_alone():
    """Written out: N_l+1 = relu(gn(g(P_l+1 + relu(gn(d(N_l)))))), and the FPN below it has no ReLU."""
    panet = PANet(NARROW, STRIDES, width=32, form="authors", norm="group")
    for parameter in panet.parameters():
        nn.init.normal_(parameter, std=0.3)  # gains and shifts, too

    def layer(x, part, stride):
        conv, norm = part.conv, part.norm
        assert conv.bias is not None and norm.num_groups == 32
        x = F.conv2d(x, conv.weight, conv.bias, stride=stride, padding=1)
        return F.group_norm(x, 32, norm.weight, norm.bias).clamp(min=0)

    c = maps()
    expected = panet.fpn(c)[:4]
    for i in range(3):
        s = expected[i + 1] + layer(expected[i], panet.down[i], 2)
        expected[i + 1] = layer(s, panet.output[i], 1)
    found = panet(c)
    for n, other in zip(found[:4], expected, strict=True):
        torch.testing.assert_close(n, other)
    assert found[0].min() < 0 and all(n.min() == 0 for n in found[1:4])


def levels(*numbers: float) -> list[Tensor]:
    """P2..P6 of one channel, each filled with one number."""
    return constant(*numbers, finest=32)


def one_channel(refine: str = "non_local") -> BFP:
    """Its refinement is the identity: as built, or by a convolution with only a centre (and a ReLU)."""
    neck = BFP([1, 1, 1, 1], STRIDES, width=1, refine=refine)
    if refine == "conv":
        nn.init.dirac_(neck.refine.conv.weight)
    return neck


def test_every_level_of_an_fpn_gets_the_mean_of_all_through_a_convolution_with_a_relu():
    for refine in ("non_local", "conv"):
        assert values(one_channel(refine).balance(levels(1, 2, 3, 4, 10))) == [[5], [6], [7], [8], [14]]
    assert values(one_channel("conv").balance(levels(-1, -2, -3, -4, -10))) == [[-1], [-2], [-3], [-4], [-10]]
    neck, fpn, c = BFP(NARROW, STRIDES, width=8), FPN(NARROW, STRIDES, width=8), maps()
    fpn.load_state_dict(neck.fpn.state_dict())
    for found, expected in zip(neck(c), neck.balance(fpn(c)), strict=True):
        torch.testing.assert_close(found, expected)


def test_finer_levels_hand_in_and_coarser_ones_get_the_largest_pixels_and_others_are_repeated():
    # Of 4 x 4 pixels of P2 and 2 x 2 of P3 the largest go to a pixel of P4; one of P5 lies over 2 x 2, one of P6 4 x 4.
    p = levels(0, 0, 0, 0, 0)
    p[0][0, 0, :4, :4] = -1
    p[0][0, 0, 3, 2] = 50  # pixel (0, 0) of P4
    p[1][0, 0, 2, 1] = 500  # pixel (1, 0)
    p[3][0, 0, 0, 1] = 5  # pixels (0..1, 2..3)
    p[4][0, 0, 1, 1] = 5000  # pixels (4..7, 4..7)
    expected = torch.zeros(8, 8)
    expected[0, 0], expected[1, 0], expected[:2, 2:4], expected[4:, 4:] = 10, 100, 1, 1000
    found = one_channel().balance(p)
    assert torch.equal(found[2][0, 0], expected)
    assert torch.equal((found[1] - p[1])[0, 0], expected.repeat_interleave(2, 0).repeat_interleave(2, 1))
    p = levels(0, 0, 0, 0, 0)
    p[2][0, 0, 3, 1] = 5  # the mean is 1 in this pixel of P4
    p2, p3, p4, p5, p6 = (x[0, 0] for x in one_channel().balance(p))
    assert p2.nonzero().amin(dim=0).tolist() == [12, 4] and p2.nonzero().amax(dim=0).tolist() == [15, 7]
    assert p2.sum() == 16 and p3.sum() == 4 and p4.sum() == 6
    assert p5.nonzero().tolist() == [[1, 0]] and p6.nonzero().tolist() == [[0, 0]] and p5.max() == p6.max() == 1


@torch.no_grad()
def test_the_attention_equals_slow_loops():
    block, x = NonLocal(4), torch.randn(2, 4, 3, 5)
    for conv in (block.theta, block.phi, block.g, block.out):
        nn.init.normal_(conv.weight), nn.init.normal_(conv.bias)
    found = block(x)
    for image, expected in zip(x, found, strict=True):
        pixels = [image[:, i, j] for i in range(3) for j in range(5)]

        def apply(conv: nn.Conv2d, pixel: Tensor) -> Tensor:
            return conv.weight[:, :, 0, 0] @ pixel + conv.bias

        for n, pixel in enumerate(pixels):
            theta = apply(block.theta, pixel)
            shares = [math.exp(float(theta @ apply(block.phi, other))) for other in pixels]
            seen = sum(share * apply(block.g, other) for share, other in zip(shares, pixels)) / sum(shares)
            torch.testing.assert_close(pixel + apply(block.out, seen), expected[:, n // 5, n % 5], rtol=1e-4, atol=1e-4)


def test_the_attention_begins_as_the_identity_and_can_learn():
    block, x = NonLocal(8), torch.randn(2, 8, 4, 6)
    assert torch.equal(block(x), x)
    (block(x) * torch.randn_like(x)).sum().backward()
    assert block.out.weight.grad.any()


ODD = [(75, 93), (38, 47), (19, 24), (10, 12)]


def slow_pool(x: Tensor, height: int, width: int) -> Tensor:
    """Adaptive average pooling of (C, H, W): bin i of n covers floor(i * H / n) .. ceil((i + 1) * H / n)."""
    _, h, w = x.shape
    out = torch.zeros(len(x), height, width)
    for i in range(height):
        for j in range(width):
            rows = slice(i * h // height, -(-(i + 1) * h // height))
            cols = slice(j * w // width, -(-(j + 1) * w // width))
            out[:, i, j] = x[:, rows, cols].mean(dim=(1, 2))
    return out


def slow_resize(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear; the centres of the corner pixels stay where they are."""
    _, h, w = x.shape
    out = torch.zeros(len(x), height, width)
    for i in range(height):
        for j in range(width):
            y, z = i * (h - 1) / max(height - 1, 1), j * (w - 1) / max(width - 1, 1)
            top, left = min(int(y), max(h - 2, 0)), min(int(z), max(w - 2, 0))
            below, right = min(top + 1, h - 1), min(left + 1, w - 1)
            dy, dx = y - top, z - left
            out[:, i, j] = (1 - dy) * ((1 - dx) * x[:, top, left] + dx * x[:, top, right]) + dy * (
                (1 - dx) * x[:, below, left] + dx * x[:, below, right]
            )
    return out


def slow_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """(C, H, W) -> (C', H, W), pixel by pixel, beyond the border 0."""
    pad = conv.padding[0]
    padded = F.pad(x, (pad,) * 4)
    out = torch.zeros(conv.out_channels, *x.shape[1:])
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            window = padded[:, i : i + 2 * pad + 1, j : j + 2 * pad + 1]
            out[:, i, j] = (conv.weight * window).sum(dim=(1, 2, 3)) + conv.bias
    return out


def slow_residual(module: ResidualFeatureAugmentation, c5: Tensor) -> Tensor:
    """(C, H, W) -> (width, H, W)."""
    _, h, w = c5.shape
    contexts = []
    for ratio, lateral in zip(RATIOS, module.lateral, strict=True):
        pooled = slow_pool(c5, max(1, int(h * ratio)), max(1, int(w * ratio)))
        contexts.append(slow_resize(slow_conv(pooled, lateral), h, w))
    hidden = slow_conv(torch.cat(contexts), module.attention[0]).clamp(min=0)
    weights = 1 / (1 + torch.exp(-slow_conv(hidden, module.attention[2])))
    out = torch.zeros_like(contexts[0])
    for k, context in enumerate(contexts):
        out += weights[k] * context
    return out


@torch.no_grad()
@pytest.mark.parametrize("size", [(25, 17), (10, 12), (6, 23), (3, 2), (1, 1)])
def test_the_residual_equals_slow_loops(size):
    assert tuple(RATIOS) == (0.1, 0.2, 0.3)
    module, c5 = ResidualFeatureAugmentation(6, 4), torch.randn(2, 6, *size)
    found = module(c5)
    for image, expected in zip(c5, found, strict=True):
        torch.testing.assert_close(slow_residual(module, image), expected, rtol=1e-4, atol=1e-5)


def test_laterals_are_returned_in_training_and_a_plain_list_of_the_same_levels_at_inference():
    neck, c = AugFPN(NARROW, STRIDES, width=8), maps(ODD)
    p = neck(c)
    assert type(p) is Features and neck.lateral_strides == STRIDES
    for found, lateral, x in zip(p.laterals, neck.lateral, c, strict=True):
        assert torch.equal(found, lateral(x))
    sum(lateral.sum() for lateral in p.laterals).backward()
    assert all(layer.weight.grad.any() for layer in neck.lateral)
    assert all(tensor.grad is None for part in (neck.residual, neck.output) for tensor in part.parameters())
    found = neck.eval()(c)
    assert type(found) is list
    assert all(torch.equal(a, b) for a, b in zip(p, found, strict=True))
