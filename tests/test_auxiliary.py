"""Consistent supervision: against loops over levels and regions, nothing of it at inference, and who may have it."""

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import CLASSES, IMAGES, TARGETS, batch_of, grouped, target, tiny_model, to_target
from torch import Tensor

from detector.errors import ConfigError
from detector.modeling.boxes import encode
from detector.modeling.roi_heads.auxiliary import AuxiliaryRoIHead
from detector.modeling.roi_heads.box_head import TwoFC
from detector.modeling.roi_heads.pool import AllLevelPool, RoIPool
from detector.modeling.roi_heads.roi_head import to_rois
from detector.structures import Features, Proposals, Target

CHANNELS, STRIDES = [4] * 5, [4, 8, 16, 32, 64]
BATCH = batch_of((64, 96), (64, 96))
OBJECTS = [to_target((8, 8, 40, 50, 0), (50, 20, 90, 60, 2)), to_target()]
BOXES = torch.tensor([[10, 10, 40, 48], [52, 18, 88, 64], [0, 0, 20, 20], [60, 0, 90, 30], [5, 5, 90, 60.0]])
PROPOSALS = [Proposals(BOXES, torch.zeros(5)), Proposals(BOXES[:3] + 2, torch.zeros(3))]

SYSTEM = {  # AugFPN in full
    "neck": {"type": "augfpn", "width": 32},
    "roi_head": {"type": "auxiliary", "pool": {"type": "soft"}, "box_head": {"width": 32}},
}


def make_head(pool=None, lateral_strides=STRIDES[:4], **settings) -> AuxiliaryRoIHead:
    def new_box_head() -> TwoFC:
        return TwoFC(4, 7, width=8)

    pool = RoIPool(CHANNELS, STRIDES) if pool is None else pool
    return AuxiliaryRoIHead(
        pool, new_box_head(), new_box_head, CLASSES, lateral_strides, **grouped(AuxiliaryRoIHead, **settings)
    )


def levels(seed: int = 0) -> Features:
    """P2..P6 and M2..M5 of two images of 64 x 96 pixels."""
    random = torch.Generator().manual_seed(seed)
    p = [torch.randn(2, 4, -(-64 // s), -(-96 // s), generator=random).requires_grad_() for s in STRIDES]
    raw = [torch.randn(x.shape, generator=random).requires_grad_() for x in p[:4]]
    return Features(p, raw)


def spread(head: AuxiliaryRoIHead) -> AuxiliaryRoIHead:
    """With scores and deltas that tell regions apart."""
    for part in (head.stage, head.auxiliary):
        for layer in (part.class_score, part.box_delta):
            torch.nn.init.normal_(layer.weight, std=0.3)
    return head


def losses(head: AuxiliaryRoIHead, p: list[Tensor], objects: list[Target] = OBJECTS) -> dict[str, Tensor]:
    return head.losses(p, PROPOSALS, BATCH, objects)


@pytest.mark.parametrize("settings", [{}, {"beta": 1.0, "auxiliary_weight": 2.0, "class_agnostic": True}])
def test_the_losses_are_those_of_every_level_added_up(settings):
    head, p = spread(make_head(**settings)), levels()
    found = losses(head, p)
    regions = head.stage.sample([r.boxes for r in PROPOSALS], OBJECTS)  # everything is taken
    boxes, labels = torch.cat([r.boxes for r in regions]), torch.cat([r.labels for r in regions])
    matched = torch.cat([t.boxes[r.gt_index] if len(t) else r.boxes for r, t in zip(regions, OBJECTS)])
    class_sum = box_sum = 0.0
    for level, stride in zip(p.laterals, STRIDES):
        one_level = RoIPool([4], [stride], levels=1)
        maps = one_level([level], to_rois([r.boxes for r in regions]))
        for x, box, label, goal in zip(maps, boxes, labels, matched, strict=True):
            features = head.auxiliary.box_head(x[None])
            class_sum += F.cross_entropy(head.auxiliary.class_score(features)[0], label)
            if label < CLASSES:
                own = 0 if settings.get("class_agnostic") else label
                deltas = head.auxiliary.box_delta(features)[0].view(-1, 4)[own]
                d = (deltas - encode(box[None], goal[None], (10, 10, 5, 5))[0]).abs()
                beta = settings.get("beta", 0.0)
                box_sum += torch.where(d < beta, 0.5 * d**2 / max(beta, 1e-9), d - 0.5 * beta).sum()
    weight = settings.get("auxiliary_weight", 0.25) / len(labels)
    torch.testing.assert_close(found["aux_class"], weight * class_sum)
    torch.testing.assert_close(found["aux_box"], weight * box_sum)
    assert found["aux_box"] > 0


def test_the_regions_are_those_of_the_main_head():
    head = make_head(batch_per_image=4)  # fewer than there are: which ones is chance
    seen = []
    for pool in (head.pool, head.lateral_pool):
        pool.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    losses(head, levels())
    main, auxiliary = seen
    assert len(main) == 4 + 3 and torch.equal(main, auxiliary)


def test_the_auxiliary_head_is_another_one_and_learns_from_every_raw_level():
    head, p = spread(make_head()), levels()
    found = losses(head, p)
    (found["aux_class"] + found["aux_box"]).backward()
    own = {id(x) for x in head.auxiliary.parameters()}
    for name, parameter in head.named_parameters():
        assert (parameter.grad is not None and parameter.grad.any()) == (id(parameter) in own), name
    assert all(x.grad.any() for x in p.laterals) and all(x.grad is None for x in p)


@torch.no_grad()
def test_in_evaluation_mode_nothing_of_it_runs_or_is_read_for_detections_or_losses():
    model = tiny_model(**SYSTEM).eval()
    before = model(IMAGES)
    head = model.roi_head
    for module in (head.auxiliary, head.auxiliary.box_head, head.lateral_pool):
        module.register_forward_pre_hook(lambda *_: pytest.fail("the auxiliary head ran"))
    for parameter in head.auxiliary.parameters():
        parameter.fill_(torch.nan)
    for a, b in zip(before, model(IMAGES), strict=True):
        assert len(a) > 0 and torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores)
    assert list(model(IMAGES, TARGETS)) == ["rpn_objectness", "rpn_box", "roi_class", "roi_box"]


def test_without_regions_there_is_nothing_to_learn():
    model = tiny_model(**SYSTEM, rpn={"selection": {"min_size": 1000.0}})
    found = model(IMAGES, [target(), target()])
    sum(found.values()).backward()
    assert found["aux_class"] == found["aux_box"] == 0
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_pyramids_pools_and_settings_that_it_cannot_learn_from_are_refused():
    # Another neck than augfpn; or augfpn where its laterals stay within the recursion, where it fits without this head.
    augfpn = {"neck": {"type": "augfpn", "width": 32}, "pyramid": {"type": "recursive"}}
    for others in ({}, augfpn):
        with pytest.raises(ConfigError, match=r"neck augfpn in a plain pyramid; set .* model\.pyramid\.type=plain, or"):
            tiny_model(roi_head=SYSTEM["roi_head"], **others)
    assert len(tiny_model(**augfpn)(IMAGES, TARGETS)) == 4
    with pytest.raises(ValueError, match="by_level and soft"):
        make_head(AllLevelPool(CHANNELS, STRIDES))
    with pytest.raises(ValueError, match="AuxiliaryRoIHead: auxiliary_weight"):
        make_head(auxiliary_weight=-1.0)
    model = tiny_model(**SYSTEM)
    model.pyramid.neck.eval()
    with pytest.raises(ValueError, match="eval mode"):
        model(IMAGES, TARGETS)
