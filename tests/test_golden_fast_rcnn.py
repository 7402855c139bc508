"""Fast R-CNN on given proposals gives Detectron2's recorded numbers; the proposals follow from a formula."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from golden_models import PLAIN, build, framework, images_of
from golden_rules import golden, ground_truth, match_sets, record_errors, relative_error
from torch import Tensor

from detector.heads.roi_head import to_rois
from detector.interop.names import rename
from detector.structures import Proposals

NAME = "d2_fast_rcnn_R_50_FPN"
COUNT = 120  # of an image


def formula_proposals(height: int, width: int) -> Proposals:
    """Section 6 of the README of the golden files."""
    rows = [_formula_proposal(j, height, width) for j in range(COUNT)]
    table = torch.tensor(rows, dtype=torch.float64)
    return Proposals(table[:, :4].float(), table[:, 4].float())


def _formula_proposal(j: int, height: int, width: int) -> list[float]:
    side = 14 * (1 + 0.065 * j) ** (1 + 0.6 * _frac(0.3819660 * (j + 1)))
    ratio = 0.6 + 1.2 * _frac(0.7548777 * (j + 1))
    w, h = side * ratio, side / ratio
    cx, cy = width * _frac(0.6180340 * (j + 1)), height * _frac(0.5698403 * (j + 1))
    box = [max(0.0, cx - w / 2), max(0.0, cy - h / 2), min(width, cx + w / 2), min(height, cy + h / 2)]
    return [*(round(x, 3) for x in box), round(6 * _frac(0.2762 * (j + 1)) - 3 + 0.001 * j, 4)]


def _frac(t: float) -> float:
    return t - math.floor(t)


def given(case: str) -> list[Proposals]:
    return [formula_proposals(h, w) for _, h, w in golden(NAME)["cases"][case]["images"]]


@functools.cache
@torch.no_grad()
def maps(case: str) -> tuple:
    """The batch, which the images of a case share as they do in the reference, and its pyramid."""
    model = build(NAME)
    batch = model.pixels.batch(images_of(NAME, case), torch.device("cpu"), torch.float32)
    batch.proposals = given(case)
    return batch, model.pyramid(batch.images)


def test_the_formula_gives_the_proposals_of_the_readme_and_of_the_file():
    rows = formula_proposals(256, 352)
    assert [*rows.boxes[0].tolist(), rows.scores[0].item()] == pytest.approx(
        [207.007, 141.231, 228.089, 150.528, -1.3428]
    )
    assert [*rows.boxes[119].tolist(), rows.scores[119].item()] == pytest.approx([0, 0, 293.909, 236.718, -2.017])
    for case, record in golden(NAME)["cases"].items():
        for found, expected in zip(given(case), record["proposals"], strict=True):
            assert expected["count"] == COUNT
            torch.testing.assert_close(found.boxes[:50], torch.tensor(expected["boxes"]), rtol=0, atol=1e-4)
            torch.testing.assert_close(found.scores[:50], torch.tensor(expected["scores"]), rtol=0, atol=1e-5)


each_case = pytest.mark.parametrize("case", ["batch", "single"])


@pytest.mark.slow
@each_case
def test_maps(case):
    record = golden(NAME)["cases"][case]
    batch, p = maps(case)
    assert list(batch.images.shape) == record["input_shape"]
    for level, expected in zip(p, record["maps"].values(), strict=True):
        values, moments = record_errors(level, expected)
        assert values < PLAIN.maps and moments < PLAIN.moments


@pytest.mark.slow
@each_case
@torch.no_grad()
def test_logits_and_deltas_of_the_first_proposals(case):
    [expected] = golden(NAME)["cases"][case]["roi_first4"]
    _, p = maps(case)
    logits, deltas = build(NAME).roi_head.head(p, to_rois([given(case)[0].boxes[:4]]))
    torch.testing.assert_close(logits, torch.tensor(expected["cls"]), rtol=0, atol=PLAIN.first4[0])
    torch.testing.assert_close(deltas.flatten(1), torch.tensor(expected["deltas"]), rtol=0, atol=PLAIN.first4[1])


@pytest.mark.slow
@each_case
@torch.no_grad()
def test_detections(case):
    model, (batch, p) = build(NAME), maps(case)
    proposals = model.rpn.propose(p, batch)
    assert all((r.scores.diff() <= 0).all() and len(r.scores) == COUNT for r in proposals)  # best first
    for found, record in zip(
        model.roi_head.detect(p, proposals, batch), golden(NAME)["cases"][case]["detections"], strict=True
    ):
        expected = tuple(torch.tensor(record[key]) for key in ("boxes", "scores", "labels"))
        assert len(found) == len(expected[0])
        assert (
            match_sets((found.boxes, found.scores, found.labels), expected, px=PLAIN.px, score=PLAIN.score).unmatched
            == 0
        )


@pytest.mark.slow
@pytest.mark.parametrize("case", ["batch", "empty"])
def test_losses_and_gradients(case):
    """Two losses only: there is no RPN. Sampling takes everything."""
    expected, reference = golden(NAME)["losses"][case], framework(NAME)
    model = copy.deepcopy(build(NAME)).train()
    losses = model(images_of(NAME, "batch"), ground_truth(empty_second=case == "empty"), proposals=given("batch"))
    assert {reference.losses[name] for name in losses} == expected["terms"].keys()
    for name, loss in losses.items():
        assert relative_error(float(loss.detach()), expected["terms"][reference.losses[name]]) < PLAIN.loss
    total = sum(losses.values())
    assert relative_error(float(total.detach()), expected["total"]) < PLAIN.loss
    total.backward()
    check_gradients(dict(model.named_parameters()), expected)


def check_gradients(parameters: dict[str, Tensor], expected: dict) -> None:
    norms = {key: p.grad.double().norm() for key, p in parameters.items() if p.requires_grad}
    assert len(norms) == expected["parameters_with_grad"]
    assert relative_error(float(torch.stack(list(norms.values())).norm()), expected["grad_norm_all"]) < PLAIN.gradient
    for theirs, norm in expected["grad_norms"].items():
        ours = next(key for key in rename(theirs, framework(NAME).rows) if key in norms)
        assert relative_error(float(norms[ours]), norm, below=0) < PLAIN.gradient
