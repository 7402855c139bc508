"""No neck: the coarsest map of the backbone is the pyramid, with 15 anchors a cell and one level to pool from."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny import picture, tiny_model

from detector.errors import ConfigError
from detector.modeling.necks.single import Single

ONE_LEVEL = {
    "neck": {"type": "single"},
    "rpn": {"anchors": {"sizes": [[16, 32, 64, 96, 128]]}},
    "roi_head": {"pool": {"levels": 1}},
}
MODELS = {"C5": {}, "dilated C5": {"backbone": {"dilated_c5": True}}, "narrow RPN": {"rpn": {"width": 16}}}
IMAGES = [picture(64, 96, seed=1)]


def one_level(**sections):
    merged = {key: ONE_LEVEL.get(key, {}) | sections.get(key, {}) for key in ONE_LEVEL | sections}
    return tiny_model(**merged)


def test_the_coarsest_map_is_handed_on_as_it_is():
    single = Single([256, 512, 1024, 2048], [4, 8, 16, 32])
    c = [torch.randn(1, 2, side, side) for side in (8, 4, 2, 1)]
    (p,) = single(c)
    assert p is c[-1]
    assert single.channels == [2048] and single.strides == [32] and not list(single.parameters())


@pytest.mark.parametrize("sections", MODELS.values(), ids=MODELS)
def test_all_anchors_lie_on_the_one_level(sections):
    model = one_level(**sections)
    (p,) = model.pyramid(torch.zeros(1, 3, 64, 96))
    stride = 16 if "backbone" in sections else 32
    assert p.shape == (1, 512, 64 // stride, 96 // stride)
    (logits,), (deltas,) = model.rpn.head([p])
    cells = 15 * (64 // stride) * (96 // stride)
    assert logits.shape == (1, cells) and deltas.shape == (1, cells, 4)
    (anchors,) = model.rpn.anchors([p], (64, 96))
    sides = ((anchors[:, 2:] - anchors[:, :2]).prod(dim=1)).sqrt().round()
    assert sides.unique().tolist() == [16, 32, 64, 96, 128]


@torch.no_grad()
def test_something_is_found():
    assert len(one_level().eval()(IMAGES)[0]) > 0


# --- parts that do not fit


def test_a_pool_of_more_levels_is_refused():
    with pytest.raises(ConfigError, match=r"model\.roi_head\.pool.*levels: 4.*the neck makes 1"):
        tiny_model(**(ONE_LEVEL | {"roi_head": {}}))


def test_anchors_of_more_levels_are_refused():
    with pytest.raises(ConfigError, match="5 lists of anchor sizes for 1 pyramid levels"):
        tiny_model(**(ONE_LEVEL | {"rpn": {}}))


def test_a_dilated_c5_has_no_level_of_its_own_in_a_pyramid():
    """The rule of levels would never read it."""
    with pytest.raises(ConfigError, match=r"\[4, 8, 16, 16\].*neck \{type: single\}"):
        tiny_model(backbone={"dilated_c5": True})
