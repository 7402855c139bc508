"""All necks of the dictionary: shapes, strides, parameters, gradients, precision, folding and ranges.

A neck that is added to `NECKS` is tested here with its default options. The tables below list further options, the levels,
and the connections of the published necks. Detectors with them are trained in test_systems.py.
"""

import copy
import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple, get_args

import pytest
import torch
from helpers.necks import (
    CHANNELS,
    EVEN,
    NARROW,
    ODD,
    ONE_PIXEL,
    STRIDES,
    assert_all_learn,
    assert_folds,
    assert_mixes,
    count,
    half,
    maps,
)
from torch import nn

from detector.modeling.parts import NECKS
from detector.schema.ranges import Range
from detector.schema.signatures import parameters_of

LARGE = [(75, 93), (38, 47), (19, 24), (10, 12)]
SIZES = [EVEN, ODD, LARGE, ONE_PIXEL, [(7, 5), (4, 3), (2, 2), (1, 1)], [(9, 3), (5, 2), (3, 1), (2, 1)]]


def grid(**choices: tuple) -> list[dict[str, Any]]:
    return [dict(zip(choices, values)) for values in product(*choices.values())]


# neck -> options that are tested; of other necks the defaults
OPTIONS = {
    "fpn": [
        *grid(extra=("pool", "c5", "m5", "p5"), norm=(None, "batch", "group"), width=(32,)),
        {"fuse": "average", "extra": "p5", "extra_relu": False},
    ],
    "panet": [{}, {"form": "authors"}, {"form": "authors", "norm": "group", "width": 32}],
    "bifpn": [
        *grid(first_level=(2, 3), fuse=("fast", "softmax", "sum"), separable=(True, False), repeats=(2,)),
        *grid(first_level=(2, 3), pool_padding=("same",), bias=(False,), repeats=(1,)),
    ],
    "nas_fpn": grid(form=("authors", "mmdetection"), norm=("batch", None), stacks=(2,)),
    "bfp": grid(refine=("non_local", "conv")),
}

# numbers of the finest and the coarsest level, where they are not 2 and 6
FIRST_LAST = {"nas_fpn": (3, 7), "single": (5, 5), "finest": (2, 2)}

# neck -> whether level P_k depends on map C_j; P6 and P7 depend on the maps that P5 depends on
CONNECTIONS: dict[str, Callable[[int, int], bool]] = {
    **dict.fromkeys(["panet", "bifpn", "bfp", "finest"], lambda k, j: True),
    **dict.fromkeys(["fpn", "augfpn"], lambda k, j: j >= k),
    **dict.fromkeys(["bottom_up", "hierarchy"], lambda k, j: j == k),
    **dict.fromkeys(["top_down", "single"], lambda k, j: j == 5),
    "nas_fpn": lambda k, j: j > 2,
}

LATERALS, OUTPUT = 984_064, 590_080  # parameters of an FPN: all four laterals, one output
GAINS_AND_SHIFTS = 8 * 256  # of eight norms, beyond the eight biases that they replace
PARAMETERS = [  # of the published architectures, on a ResNet-50
    ("fpn", {}, 3_344_384),
    ("fpn", {"norm": "group"}, 3_344_384 + GAINS_AND_SHIFTS),
    ("panet", {}, 3_344_384 + 3_540_480),
    ("panet", {"form": "authors"}, 3_344_384 + 3_540_480),
    ("panet", {"form": "authors", "norm": "group"}, 3_344_384 + GAINS_AND_SHIFTS + 3_543_552),
    ("bifpn", {"width": 64, "repeats": 3, "first_level": 3}, 675_001),
    ("bifpn", {"width": 64, "repeats": 3, "first_level": 3, "bias": False}, 675_001 - (6 + 3 * 8) * 64),
    ("bifpn", {"width": 160, "repeats": 6, "first_level": 3}, 2_716_594),
    ("bifpn", {"repeats": 3, "first_level": 3}, 3_879_481),
    ("bifpn", {"repeats": 6, "first_level": 3}, 5_526_130),
    ("nas_fpn", {"form": "mmdetection"}, 29_990_144),
    ("nas_fpn", {}, 29_990_144 - 132_096),
    ("augfpn", {}, 3_344_384 + 1_573_632 + 203_779),
    ("bfp", {"refine": "conv"}, 3_344_384 + 590_080),
    ("bfp", {"refine": "non_local"}, 3_344_384 + 4 * 65_792),
    ("single", {}, 0),
    ("bottom_up", {}, LATERALS + 4 * OUTPUT),
    ("top_down", {}, 2048 * 256 + 256 + 4 * OUTPUT),
    ("finest", {}, LATERALS + OUTPUT),
    ("hierarchy", {}, LATERALS),
]


class Case(NamedTuple):
    """A neck with some options."""

    name: str
    options: dict[str, Any]

    def make(self) -> nn.Module:
        small = {"width": 8} if "width" in parameters_of(NECKS[self.name]) else {}
        return NECKS[self.name](NARROW, STRIDES, **small | self.options)

    def started(self) -> nn.Module:
        """A narrow one as after a training step: a new non-local block is the identity and its inner layers have no gradient."""
        neck = self.make()
        for p in neck.refine.parameters() if self.name == "bfp" else ():
            nn.init.normal_(p, std=0.3)
        return neck

    def first_last(self) -> tuple[int, int]:
        """Numbers of its finest and its coarsest level; a neck that is not in the tables may have others than 2 and 6."""
        if self.name not in CONNECTIONS:
            return tuple(int(math.log2(self.make().strides[i])) for i in (0, -1))
        shift = self.options.get("first_level", 2) - 2
        first, last = FIRST_LAST.get(self.name, (2, 6))
        return first + shift, last + shift + (self.options.get("extra", "pool") != "pool")

    def sizes(self, c: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The sizes of its levels for maps of the sizes `c`."""
        every = list(c)
        rounded_down = (self.name, self.options.get("form")) == ("nas_fpn", "mmdetection")
        while len(every) < 6:
            size = every[-1]
            every.append(tuple(max(1, side // 2) for side in size) if rounded_down else half(size))
        first, last = self.first_last()
        return every[first - 2 : last - 1]

    def unread(self) -> int:
        """How many of the finest maps it does not read, or only their sizes."""
        reads = CONNECTIONS.get(self.name, CONNECTIONS["bfp"])
        finest = min(j for j in range(2, 6) if reads(j, j)) - 2
        return max(finest, self.options.get("first_level", 2) - 2)


CASES = [Case(name, options) for name in NECKS for options in OPTIONS.get(name, [{}])]
each_case = pytest.mark.parametrize(
    "case", CASES, ids=[", ".join([c.name, *(f"{k}={v}" for k, v in c.options.items())]) for c in CASES]
)
each_neck = pytest.mark.parametrize("name", NECKS)


def test_the_tables_name_necks():
    assert {*OPTIONS, *FIRST_LAST, *CONNECTIONS, *(name for name, _, _ in PARAMETERS)} <= NECKS.keys()


@pytest.mark.parametrize(("name", "options", "number"), PARAMETERS)
def test_as_many_parameters_as_published(name, options, number):
    with torch.device("meta"):
        assert count(NECKS[name](CHANNELS, STRIDES, **options)) == number


@each_case
@torch.no_grad()
def test_levels_have_the_shapes_that_strides_and_channels_promise(case):
    neck = case.make().to(memory_format=torch.channels_last).eval()
    first, last = case.first_last()
    assert neck.strides == [2**level for level in range(first, last + 1)]
    width = case.options.get("width", 8) if "width" in parameters_of(NECKS[case.name]) else NARROW[-1]
    assert neck.channels == [width] * len(neck.strides)
    for sizes in SIZES:
        p = neck(maps(sizes))
        assert [x.shape for x in p] == [(2, width, *size) for size in case.sizes(sizes)]
        assert all(x.isfinite().all() for x in p)


@each_neck
def test_as_many_maps_as_the_neck_was_made_for(name):
    if name == "single":
        pytest.skip("reads only the last map")
    with pytest.raises((ValueError, RuntimeError), match=r"zip|channels"):
        Case(name, {}).make()(maps()[:3])


@each_case
def test_every_parameter_and_every_map_has_a_gradient(case):
    assert_all_learn(case.started().eval(), maps(ODD), unread=case.unread())


@each_case
def test_every_parameter_has_a_finite_gradient_in_training(case):
    """None would stop distributed training. The gradient of a bias before a batch norm is 0."""
    neck = case.started().train()
    sum((p * torch.randn_like(p)).sum() for p in neck(maps())).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in neck.parameters())
    assert all(p.grad.any() for p in neck.parameters() if p.ndim > 1)


@each_case
def test_a_level_depends_on_the_maps_that_its_paper_connects(case):
    neck, c = case.started().eval(), maps(ODD)
    connected = CONNECTIONS.get(case.name)
    for stride, p in zip(neck.strides, neck(c), strict=True):
        weighed = (p * torch.randn_like(p)).sum()  # the plain sum behind a norm is constant
        reached = torch.autograd.grad(weighed, c, retain_graph=True, allow_unused=True)
        found = [grad is not None and bool(grad.any()) for grad in reached]
        level = min(int(math.log2(stride)), 5)
        if connected is None:
            assert any(found)
        else:
            lowest = case.options.get("first_level", 2)
            assert found == [j >= lowest and connected(level, j) for j in range(2, 6)], f"stride {stride}"


@each_case
@torch.no_grad()
def test_it_is_deterministic_and_leaves_its_maps_as_they_are(case):
    torch.manual_seed(3)
    neck = case.make().eval()
    torch.manual_seed(3)
    again = case.make().eval()
    state = again.state_dict()
    assert all(torch.equal(a, state[key]) for key, a in neck.state_dict().items())
    c = maps(ODD)
    before = copy.deepcopy(c)
    p = neck(c)
    assert all(torch.equal(a, b) for a, b in zip(c, before))
    for a, b, other in zip(p, neck(c), again(c), strict=True):
        assert torch.equal(a, b) and torch.equal(a, other)


@each_case
@torch.no_grad()
def test_an_image_does_not_depend_on_its_neighbours_in_an_inference_batch(case):
    neck, c = case.make().eval(), maps(ODD)
    alone = [neck([x[i : i + 1] for x in c]) for i in range(2)]
    for together, *images in zip(neck(c), *alone, strict=True):
        torch.testing.assert_close(together, torch.cat(images), rtol=1e-4, atol=1e-5)


@each_case
def test_folded_norms_keep_the_function(case):
    with torch.no_grad():
        assert_folds(case.make(), maps(ODD))


@each_case
def test_mixed_precision_keeps_maps_in_bfloat16_and_channels_last(case):
    if case.name == "single" or case.options.get("norm") == "group":
        pytest.skip("single returns its input; a group norm makes maps contiguous")
    with torch.no_grad():
        assert_mixes(case.make(), maps(EVEN))


def ranges(hint: Any) -> list[Range]:
    """The ranges in an annotation."""
    return [hint] if isinstance(hint, Range) else [found for part in get_args(hint) for found in ranges(part)]


@each_neck
def test_numbers_out_of_range_are_refused_by_name(name):
    for option, parameter in parameters_of(NECKS[name]).items():
        for allowed in ranges(parameter.annotation):
            for number in (allowed.low - 1, allowed.high + 1):
                with pytest.raises(ValueError, match=f"{option}: expected .*got {number}"):
                    NECKS[name](NARROW, STRIDES, **{option: int(number)})
