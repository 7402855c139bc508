"""PANet's bottom-up path over an FPN: by hand, in both forms."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.necks import NARROW, STRIDES, constant, identity_, maps, values
from torch import nn

from detector.modeling.necks.fpn import FPN
from detector.modeling.necks.panet import PANet


def identity_panet(*, down: float = 1.0, output: float = 1.0, form: str = "mmdetection") -> PANet:
    """One channel; every convolution is the identity, those of the path times a factor."""
    panet = identity_(PANet([1, 1, 1, 1], STRIDES, width=1, form=form))
    with torch.no_grad():
        for layers, factor in ((panet.down, down), (panet.output, output)):
            for layer in layers:
                layer.conv.weight *= factor
    return panet


def test_every_level_adds_what_lies_below_it():
    """C = 1, 0, 0, 1 makes P = 2, 1, 1, 1, and N2 = P2, N3 = P3 + N2, ..."""
    assert values(identity_panet()(constant(1, 0, 0, 1))) == [[2], [3], [4], [5], [5]]


def test_the_path_goes_on_from_the_sum_and_not_from_the_output():
    """With outputs times ten, S = 2, 3, 4, 5 as before: mmdetection's form."""
    assert values(identity_panet(output=10)(constant(1, 0, 0, 1))) == [[2], [30], [40], [50], [50]]


def test_the_authors_path_goes_on_from_the_output():
    """P = 2, 1, 1, 1; N3 = 10 (1 + 2), N4 = 10 (1 + 30), N5 = 10 (1 + 310)."""
    levels = identity_panet(output=10, form="authors")(constant(1, 0, 0, 1))
    assert values(levels) == [[2], [30], [310], [3110], [3110]]


@pytest.mark.parametrize("form", ["mmdetection", "authors"])
def test_there_is_no_activation_on_a_path_without_norms(form):
    assert values(identity_panet(form=form)(constant(-1, 0, 0, -1))) == [[-2], [-3], [-4], [-5], [-5]]


def test_going_down_takes_every_second_pixel():
    c = constant(0, 0, 0, 0)
    c[0][0, 0, 4, 6] = 1  # even row and column: seen by a convolution with only a centre
    c[0][0, 0, 5, 5] = 1  # odd: not seen
    n3 = identity_panet()(c)[1][0, 0]
    assert n3.nonzero().tolist() == [[2, 3]]


def test_without_its_path_it_is_an_fpn():
    panet, fpn = PANet(NARROW, STRIDES, width=8), FPN(NARROW, STRIDES, width=8)
    fpn.load_state_dict(panet.fpn.state_dict())
    for layer in [*panet.down, *panet.output]:
        nn.init.zeros_(layer.conv.weight), nn.init.zeros_(layer.conv.bias)
    for layer in panet.output:
        nn.init.dirac_(layer.conv.weight)
    c = maps()
    for n, p in zip(panet(c), fpn(c), strict=True):
        torch.testing.assert_close(n, p)


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


def test_the_path_needs_every_level_at_half_the_size_of_the_one_before():
    """A dilated C5 has the size of C4."""
    with pytest.raises(ValueError, match="16, 16"):
        PANet(NARROW, [4, 8, 16, 16])


def test_one_map_has_no_path():
    with pytest.raises(ValueError, match="at least two maps"):
        PANet([8], [16])


def test_a_norm_is_the_authors():
    with pytest.raises(ValueError, match="form: authors"):
        PANet(NARROW, STRIDES, norm="group")
