"""The whole detector: its public surface, one image or many, nothing to learn or to find, and bad input."""

import copy
import itertools
import math

import pytest
import torch
from helpers.tiny import (
    CLASSES,
    EMPTY,
    IMAGES,
    TARGETS,
    assert_same_detections,
    gradients,
    picture,
    target,
    tiny_model,
    unmoved,
)

from detector.structures import Detections, Target

LOSSES = ["rpn_objectness", "rpn_box", "roi_class", "roi_box"]
MODELS = {
    "fpn": {},
    "panet": {"neck": {"type": "panet", "width": 32}},
    "batch norms, nothing frozen": {
        "backbone": {"norm": "batch", "frozen_stages": 0},
        "neck": {"norm": "batch"},
        "roi_head": {"box_head": {"type": "conv_fc", "convs": 1, "conv_width": 32, "width": 32, "norm": "batch"}},
    },
    "class-agnostic, bgr, two rpn convolutions": {
        "preprocess": {"order": "bgr"},
        "rpn": {"convs": 2},
        "roi_head": {"class_agnostic": True},
    },
}
each_model = pytest.mark.parametrize("sections", MODELS.values(), ids=MODELS)


@pytest.fixture(scope="module")
def model():
    """For tests that do not change it."""
    return tiny_model().eval()


def assert_nothing(found: Detections) -> None:
    assert found.boxes.shape == (0, 4) and found.scores.shape == found.labels.shape == (0,)


@torch.no_grad()
def test_detections_are_boxes_scores_and_labels_best_first_and_come_with_their_proposals(model):
    for image, found in zip(IMAGES, model(IMAGES), strict=True):
        assert 0 < len(found) <= 100
        assert found.boxes.shape == (len(found), 4) and found.scores.shape == found.labels.shape == (len(found),)
        assert found.boxes.dtype == found.scores.dtype == torch.float32 and found.labels.dtype == torch.int64
        assert (found.scores.diff() <= 0).all() and found.scores.min() > 0.05 and found.scores.max() <= 1
        assert 0 <= found.labels.min() and found.labels.max() < CLASSES
        h, w = image.shape[1:]
        assert found.boxes.min() >= 0 and found.boxes[:, 2].max() <= w and found.boxes[:, 3].max() <= h
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


@torch.no_grad()
@each_model
def test_an_image_is_detected_alike_alone_and_among_others(sections):
    """Whether a neighbour has the same size, the same padded size, or neither; and in the order of the input."""
    model = tiny_model(**sections).eval()
    images = [picture(64, 96, seed=1), picture(128, 64, seed=2), picture(60, 90, seed=3), picture(64, 96, seed=4)]
    for image, found in zip(images, model(images), strict=True):
        assert_same_detections(found, model([image])[0])
    assert_same_detections(model(images[::-1])[0], model(images)[3])


@torch.no_grad()
def test_detection_gives_the_same_twice_and_in_a_copy_and_does_not_change_the_model(model):
    before = copy.deepcopy(model.state_dict())
    first = model(IMAGES)
    for a, b, c in zip(first, model(IMAGES), copy.deepcopy(model)(IMAGES), strict=True):
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores)
        assert_same_detections(c, a)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(after[k], v) for k, v in before.items())
    first, _ = model.detect(IMAGES)
    proposals = first.proposals
    assert torch.equal(first.boxes, model(IMAGES)[0].boxes)
    assert 0 < len(proposals.boxes) == len(proposals.scores) <= 1000
    assert (proposals.scores.diff() <= 0).all()


@torch.no_grad()
def test_no_images_no_proposals_and_no_scores_above_the_threshold_are_no_detections(model):
    assert model([]) == []
    assert_nothing(tiny_model(roi_head={"selection": {"score_threshold": 1.0}}).eval()(IMAGES)[0])
    for found in tiny_model(rpn={"selection": {"min_size": 1000.0}}).eval().detect(IMAGES):
        assert len(found.proposals) == 0
        assert_nothing(found)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = model(IMAGES[:1])
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert len(found) > 0 and found.boxes.isfinite().all()


def test_targets_may_be_dictionaries_or_records_and_boxes_of_any_number_type():
    model, seen = tiny_model(), []
    other = [[t | {"boxes": t["boxes"].to(dtype)} for t in TARGETS] for dtype in (torch.float64, torch.int64)]
    for targets in (TARGETS, [Target.of(t) for t in TARGETS], *other):
        torch.manual_seed(3)
        seen.append(model(IMAGES, targets))
    assert seen == seen[:1] * 4 and {loss.dtype for losses in seen for loss in losses.values()} == {torch.float32}


@each_model
def test_every_trainable_parameter_has_a_gradient(sections):
    """None would stop distributed training; a parameter that nothing ever reads would be None."""
    model = tiny_model(**sections)
    # P6 reaches no RoI and no object here is as large as its anchors, so every parameter that is left learns
    assert unmoved(gradients(model, IMAGES, TARGETS)) == []
    for images, targets in ((IMAGES, [EMPTY, EMPTY]), (IMAGES, [TARGETS[0], EMPTY]), (IMAGES[:1], [EMPTY])):
        gradients(model, images, targets)


def test_without_proposals_the_objects_themselves_are_learnt():
    model = tiny_model(rpn={"selection": {"min_size": 1000.0}})
    losses = model(IMAGES, TARGETS)
    assert losses["roi_class"] > 0 and losses["roi_box"] > 0
    nothing = model(IMAGES, [EMPTY, EMPTY])
    sum(nothing.values()).backward()
    assert nothing["roi_class"] == nothing["roi_box"] == 0
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_first_use_in_evaluation_or_inference_mode_changes_no_statistics_and_spoils_no_training():
    model = tiny_model(backbone={"norm": "batch", "frozen_stages": 0}).eval()
    before = copy.deepcopy(model.state_dict())
    assert list(model(IMAGES, TARGETS)) == LOSSES
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model = tiny_model()
    with torch.inference_mode():
        model(IMAGES)
        model(IMAGES, TARGETS)
    sum(model(IMAGES, TARGETS).values()).backward()
    assert model.rpn.deltas.weight.grad.any()


@torch.no_grad()
def test_a_crowd_region_leaves_the_training_of_both_stages_and_an_object_may_reach_beyond_the_image():
    every = {"sampling": {"batch_per_image": 10_000}}  # so that chance has no part
    model, crowd = tiny_model(rpn=every, roi_head=every), torch.tensor([[50.0, 0, 96, 64]])
    plain, with_crowd = (model(IMAGES[:1], [target((5, 5, 40, 50, 0)) | given]) for given in ({}, {"crowd": crowd}))
    for name in ("rpn_objectness", "roi_class"):
        assert with_crowd[name] != plain[name]
    outside = target((-20, -20, 50, 150, 0)) | {"crowd": torch.tensor([[50.0, 0, 90, 60]])}
    assert all(loss.isfinite() for loss in tiny_model()(IMAGES[:1], [outside]).values())


@torch.no_grad()
def test_weights_that_are_not_numbers_detect_nothing_and_do_not_crash(model):
    parts = ["pyramid.backbone.conv1", "pyramid.neck.lateral.3.conv", "rpn.objectness", "rpn.deltas"]
    parts += [f"roi_head.stage.{name}" for name in ("box_head.fc1", "class_score", "box_delta")]
    for part, value in itertools.product(parts, (math.nan, math.inf)):
        broken = copy.deepcopy(model)
        broken.get_submodule(part).weight.fill_(value)
        for found in broken.detect(IMAGES):
            assert_nothing(found)
            assert found.proposals.boxes.isfinite().all()
    model = tiny_model().eval()  # one weight alone
    model.roi_head.stage.box_delta.weight[0] = math.nan  # dx of class 0
    found = model(IMAGES)[0]
    assert len(found) > 0 and found.boxes.isfinite().all() and 0 not in found.labels


def test_training_on_weights_that_are_not_numbers_says_so_in_the_losses():
    model = tiny_model()
    with torch.no_grad():
        model.pyramid.neck.output[0].conv.weight.fill_(math.nan)
    assert not sum(model(IMAGES, TARGETS).values()).isfinite()


def test_a_target_that_cannot_be_learnt_is_refused_and_every_image_needs_one(model):
    good, area = target((8, 8, 40, 50, 0)), "a box is not finite or has no area"
    none = torch.zeros(0, dtype=torch.long)
    for bad, message in (
        (target((8, 8, math.nan, 50, 0)), area), (target((8, 8, math.inf, 50, 0)), area),
        (target((40, 8, 8, 50, 0)), area), (target((8, 8, 8, 50, 0)), area),
        *((target((8, 8, 40, 50, label)), r"labels must lie in 0\.\.2") for label in (CLASSES, -1)),
        (good | {"labels": torch.zeros(1)}, "labels must .* int64, not torch.float32"),
        (good | {"labels": torch.zeros(2, dtype=torch.long)}, "boxes .* do not fit"),
        (good | {"labels": torch.tensor(0)}, "boxes .* do not fit"), (good | {"boxes": torch.ones(1, 5)}, "boxes .* do not fit"),
        ({"boxes": torch.zeros(0), "labels": none}, "boxes .* do not fit"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"target 1: {message}"):
            model(IMAGES, [TARGETS[0], bad])
    with pytest.raises(ValueError, match="2 images with 1 targets"):
        model(IMAGES, TARGETS[:1])
    with pytest.raises(ValueError, match="0 images with 0 targets"):
        model([], [])
