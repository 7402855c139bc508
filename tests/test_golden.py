"""Our models give the recorded numbers of the references', layer by layer, down to detections, losses and gradients."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers.golden_models import (
    GIVEN_PROPOSALS,
    KEYPOINT_MODELS,
    MASK_MODELS,
    MODELS,
    NOISE_ALONE,
    OTHER_MASKS,
    build,
    checkpoint_of,
    images_of,
    keypoint_errors,
    loss_pairs,
    mask_errors,
    masks_of,
    match_detections,
    outputs,
    partners,
    pixel_errors,
    proposals_of,
    recorded,
    reference,
    targets_of,
    train_as_torchvision,
)
from helpers.golden_rules import golden, match_sets, record_errors, relative_error, shared
from torch import Tensor

import detector
from detector.interop.names import rename
from detector.modeling.rcnn import GeneralizedRCNN

pytestmark = pytest.mark.slow  # in every clone test_recorded_detections.py tries a few of these numbers quickly
WITH_BRANCHES = MASK_MODELS.keys() | KEYPOINT_MODELS
# norms of the batch in training, recorded without them as well
BATCH_NORM = ("tv_fasterrcnn_resnet50_fpn_v2", "tv_maskrcnn_resnet50_fpn_v2", "mm_faster_rcnn_r50_nasfpn")


def cases(names):
    """Names and cases. Models with masks or keypoints find the boxes of another file; a single image of theirs is tried once."""
    batches = [(name, "batch") for name in names]
    singles = [(name, "single") for name in names if name not in WITH_BRANCHES]
    # scope: all tests of a model follow one another, and it is built once
    return pytest.mark.parametrize(("name", "case"), [*batches, *singles], scope="module")


each_model = cases(MODELS)


def test_every_recorded_model_is_compared():
    for folder, models in (("golden", MODELS.keys() - WITH_BRANCHES), ("golden/masks", WITH_BRANCHES)):
        files = {path.stem for path in shared(folder).glob("*.json")}
        assert {name for name in files if name.startswith(("tv_", "d2_", "mm_"))} == set(models)


def assert_records(found: list[Tensor], records: list[dict], name: str) -> None:
    for level, record in zip(found, records, strict=True):
        values, moments = record_errors(level, record)
        assert values < MODELS[name].maps and moments < MODELS[name].moments


@each_model
def test_maps(name, case):
    found, expected = outputs(name, case), recorded(name, case)
    assert list(found.batch.images.shape) == expected["input_shape"]
    assert_records(found.maps, list(expected["maps"].values()), name)


@cases([name for name in MODELS if name not in GIVEN_PROPOSALS])
def test_rpn_outputs(name, case):
    found, expected = outputs(name, case), recorded(name, case)
    assert_records(found.objectness, expected["rpn_objectness"], name)
    assert_records(found.deltas, expected["rpn_deltas"], name)


@each_model
def test_proposals(name, case):
    limit, is_logit = MODELS[name], golden(name)["profile"].get("rpn_score_out", "logit") == "logit"
    for found, expected in zip(outputs(name, case).proposals, recorded(name, case)["proposals"], strict=True):
        assert len(found.boxes) == expected["count"]
        best = torch.tensor(expected["boxes"]), torch.tensor(expected["scores"]), torch.zeros(len(expected["boxes"]))
        every = found.boxes, found.scores if is_logit else found.scores.sigmoid(), torch.zeros(len(found.boxes))
        score = limit.proposal_logit if is_logit else limit.proposal_sigmoid
        assert match_sets(every, best, px=limit.proposal_px, score=score).unmatched == 0


@each_model
def test_logits_and_deltas_of_the_first_regions(name, case):
    expected, limit = recorded(name, case)["roi_first4"], MODELS[name]
    for stage, ((logits, deltas), record) in enumerate(zip(outputs(name, case).first4, expected, strict=True)):
        want_logits, want_deltas = torch.tensor(record["cls"]), torch.tensor(record["deltas"])
        if name.startswith("tv_"):  # there the background comes first, with deltas that nothing reads
            want_logits, want_deltas = want_logits.roll(-1, dims=1), want_deltas[:, 4:]
        logit, delta = limit.later_first4 if stage else limit.first4
        assert torch.allclose(logits, want_logits, rtol=0, atol=logit)
        assert torch.allclose(deltas.flatten(1), want_deltas, rtol=0, atol=delta)


@each_model
def test_detections(name, case):
    """mmdetection reports boxes without an area, one of them here; ours does not."""
    for found, expected in zip(outputs(name, case).detections, recorded(name, case)["detections"], strict=True):
        match = match_detections(name, found, expected)
        assert match.unmatched == 0 and len(found) == match.number


@cases(MASK_MODELS)
def test_masks(name, case):
    for found, expected in zip(outputs(name, case).detections, recorded(name, case)["detections"], strict=True):
        values, moments = mask_errors(name, found, expected)
        assert values < MODELS[name].mask and moments < MODELS[name].mask_moments


@cases(MASK_MODELS)
def test_pasted_masks(name, case):
    """By the reference's own way and threshold. Beside 1 % of a mask's union, two pixels may differ."""
    pairs = zip(outputs(name, case).detections, recorded(name, case)["detections"], strict=True)
    errors = [error for found, expected in pairs for error in pixel_errors(name, found, expected)]
    of_one, of_all = MODELS[name].pixels
    assert all(wrong <= max(2, of_one * union) for wrong, union in errors)
    assert sum(wrong for wrong, _ in errors) <= of_all * sum(union for _, union in errors)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in GIVEN_PROPOSALS], scope="module")
def test_a_loaded_checkpoint_detects_the_same(name):
    """Through the door that users take, with the norms folded into the convolutions."""
    [image], [expected] = images_of(name, "single"), recorded(name, "single")["detections"]
    size = [f"data.resize.short={min(image.shape[1:])}", f"data.resize.long={max(image.shape[1:])}"]
    found = detector.load(checkpoint_of(name), overrides=size, device="cpu")(image)
    match = match_detections(name, found, expected)
    assert match.unmatched == 0 and len(found) == match.number


def losses_of(name, case):
    """Of every model its batch; beside an image without objects one of each framework, the others with the longest tests."""
    few = case == "batch" or name in ("tv_maskrcnn_resnet50_fpn_v2", "d2_cascade_mask_rcnn_R_50_FPN", "mm_htc_r50_fpn")
    return pytest.param(name, case, marks=[] if few else pytest.mark.longest)


@pytest.mark.parametrize(
    ("name", "case"), [losses_of(n, c) for c in ("batch", "empty") for n in MODELS], scope="module"
)
def test_losses_and_gradients(name, case):
    """Sampling takes everything. torchvision's batch norms use batch statistics even in frozen stages; ours do not."""
    model = copy.deepcopy(build(name))
    train_as_torchvision(model) if name.startswith("tv_") else model.train()
    check_losses(model, name, case)


@pytest.mark.parametrize("name", BATCH_NORM, scope="module")
def test_losses_and_gradients_on_running_statistics(name):
    check_losses(copy.deepcopy(build(name)), name, "batch_bn_eval")


@cases(KEYPOINT_MODELS)
def test_keypoints(name, case):
    """Three of a file may lie elsewhere: the maximum of a map jumps where two cells are nearly equal."""
    pairs = zip(outputs(name, case).detections, recorded(name, case)["detections"], strict=True)
    moved, errors = zip(*(keypoint_errors(name, found, expected) for found, expected in pairs))
    assert sum(moved) <= 3 and max(errors) < KEYPOINT_MODELS[name]


@cases(["mm_ms_rcnn_r50_fpn"])
def test_scores_of_masks(name, case):
    """MMDetection multiplies the detections' scores; here these stay, and the masks have scores of their own."""
    for found, expected in zip(outputs(name, case).detections, recorded(name, case)["detections"], strict=True):
        masks = found.masks[partners(name, found, expected)]
        torch.testing.assert_close(masks.scores, torch.tensor(expected["scores"]), rtol=0, atol=1e-2)


@cases(["mm_htc_r50_fpn"])
@torch.no_grad()
def test_the_semantic_branch(name, case):
    expected = recorded(name, case)["semantic"]
    head = build(name).roi_head.semantic_head
    x = head(outputs(name, case).maps)
    assert_records([head.logits(x), head.embed(x)], [expected["logits"], expected["embedding"]], name)


@pytest.mark.parametrize(("name", "case"), OTHER_MASKS, scope="module")
def test_losses_and_gradients_of_masks_in_another_form(name, case):
    model = copy.deepcopy(build(name)).train()
    for mask in masks_of(model):
        mask.head.targets = replace(mask.head.targets, source=OTHER_MASKS[name, case])
    check_losses(model, name, case)


def check_losses(model: GeneralizedRCNN, name: str, case: str) -> None:
    expected, limit = golden(name)["losses"][case], MODELS[name]
    images = images_of(name, "batch")
    losses = model(images, targets_of(name, empty_second=case == "empty"), proposals=proposals_of(name, images))
    for loss, want in loss_pairs(name, losses, expected):
        error, bound = abs(loss - want), 1e-3 if want == expected["terms"].get("loss_mask_iou") else limit.loss
        assert error < 1e-6 if want < 0.01 else error < bound * want
    sum(losses.values()).backward()
    check_gradients(model, name, expected)


def check_gradients(model: GeneralizedRCNN, name: str, expected: dict) -> None:
    norms = {key: p.grad.double().norm() for key, p in model.named_parameters() if p.requires_grad}
    assert len(norms) == expected["parameters_with_grad"]
    every = float(torch.stack(list(norms.values())).norm())
    assert relative_error(every, expected["grad_norm_all"]) < MODELS[name].gradient
    for theirs, norm in expected["grad_norms"].items():
        ours = next(key for key in rename(theirs, reference(name).rows) if key in norms)
        if theirs.endswith(NOISE_ALONE):
            assert norms[ours] < 1e-5 * norms[ours.replace("bias", "weight")]
            continue
        assert relative_error(float(norms[ours]), norm, below=0) < MODELS[name].gradient
