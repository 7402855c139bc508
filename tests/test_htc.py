"""Hybrid Task Cascade: the semantic branch, interleaving, the flow of mask features."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.golden_rules import golden
from helpers.necks import count
from helpers.tiny import EMPTY, IMAGES, TARGETS, drawn, gradients, tiny_model, unmoved

from detector import distributed
from detector.errors import ConfigError
from detector.modeling.roi_heads.semantic_head import SemanticConvs
from detector.modeling.roi_heads.stage import Stage, to_rois
from detector.structures import Target


def semantic_target(labels: torch.Tensor) -> Target:
    return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), semantic=labels)


def test_the_semantic_loss_is_the_recorded_one():
    """Divided by all cells, not by the labelled ones."""
    n, c, y, x = torch.meshgrid(*(torch.arange(k, dtype=torch.float64) for k in (2, 7, 4, 5)), indexing="ij")
    logits = (2 * torch.sin(0.9 * c + 0.7 * y + n) * torch.cos(1.1 * x - 0.3 * c)).float()
    y, x = torch.meshgrid(torch.arange(32), torch.arange(40), indexing="ij")
    maps = [
        torch.where((x + 2 * y) % 50 < 12, 255, (3 * (x // 6) + 2 * (y // 5) + i) % 7).to(torch.uint8) for i in (0, 1)
    ]
    head = SemanticConvs([4] * 2, [4, 8], classes=7, width=8)
    head.logits = torch.nn.Identity()
    loss = head.loss(logits, [semantic_target(m) for m in maps], (32, 40))
    assert loss.item() == pytest.approx(golden("masks/functions_masks")["semantic_loss"]["mm_loss"], rel=1e-6)


def test_the_cells_of_all_processes_divide_the_semantic_loss(monkeypatch):
    head = SemanticConvs([4] * 2, [4, 8], classes=2, width=8)
    head.logits = torch.nn.Identity()
    arguments = torch.zeros(1, 2, 4, 4), [semantic_target(torch.zeros(32, 32, dtype=torch.uint8))], (32, 32)
    assert head.loss(*arguments).item() == pytest.approx(0.2 * math.log(2))
    monkeypatch.setattr(distributed, "global_normalizer", lambda cells: 3 * cells)
    assert head.loss(*arguments).item() == pytest.approx(0.2 * math.log(2) / 3)
    assert head.eval().loss(*arguments).item() == pytest.approx(0.2 * math.log(2))


def test_a_map_is_needed():
    head = SemanticConvs([4] * 2, [4, 8], width=8)
    with pytest.raises(ValueError, match="target 0: no semantic map"):
        head.loss(torch.zeros(1, 8, 4, 4), [semantic_target(None)], (32, 32))


def test_the_semantic_branch_has_as_many_parameters_as_published():
    with torch.device("meta"):
        assert count(SemanticConvs([256] * 5, [4, 8, 16, 32, 64])) == 2_802_103


# --- the cascade

HEADS = {
    "type": "htc", "box_head": {"type": "two_fc", "width": 32}, "pool": {"type": "by_level", "canonical_size": 56},
    "mask_head": {"width": 32},
}  # fmt: skip
SEMANTIC = HEADS | {"semantic_head": {"classes": 3, "width": 32, "convs": 1}}


def targets(*rows: list[dict]) -> list[dict]:
    return drawn(list(rows), IMAGES)


@pytest.mark.parametrize("heads", [HEADS, SEMANTIC], ids=["without", "with semantics"])
@pytest.mark.parametrize("rows", [TARGETS, [EMPTY, EMPTY]], ids=["objects", "none"])
def test_every_parameter_has_a_gradient(heads, rows):
    found = gradients(tiny_model(roi_head=heads), IMAGES, targets(*rows))
    assert rows[0] is EMPTY or unmoved(found) == []


@torch.no_grad()
def test_without_flow_and_semantics_the_masks_are_those_of_the_last_head_alone():
    """The features of the heads before it say nothing then; the embedding is zero after its ReLU."""
    model = tiny_model(roi_head=SEMANTIC).eval()
    head, last = model.roi_head, model.roi_head.masks[-1]
    for layer in (*head.flow, head.semantic_head.embedding):
        layer.conv.weight.zero_()
        layer.conv.bias.zero_()
    batch = model.preprocess.batch(IMAGES[:1], torch.device("cpu"), torch.float32)
    p = model.pyramid(batch.images)
    (found,) = head.detect(p, model.rpn.propose(p, batch), batch)
    assert len(found) > 0
    plain = last.probabilities(last.pool.pool(p, to_rois([found.boxes])), found.labels)
    torch.testing.assert_close(found.masks.probabilities, plain)


@torch.no_grad()
def test_features_pass_from_head_to_head():
    model = tiny_model(roi_head=HEADS).eval()
    before = model(IMAGES)[0].masks.probabilities
    model.roi_head.masks[0].head.convs[0].conv.bias += 1
    assert not torch.allclose(model(IMAGES)[0].masks.probabilities, before, atol=1e-4)


def test_masks_learn_from_the_boxes_that_the_stage_has_refined(monkeypatch):
    """Each stage samples twice: for its boxes, and once these are refined, for its masks; the next stage starts there."""
    model, sample, sampled = tiny_model(roi_head=HEADS), Stage.sample, []

    def noted(stage, boxes, objects):
        sampled.append(boxes)
        return sample(stage, boxes, objects)

    monkeypatch.setattr(Stage, "sample", noted)
    model.train()(IMAGES, targets(*TARGETS))
    first, refined, second, again, *_ = sampled
    assert len(sampled) == 6
    assert all(a.equal(b) for a, b in zip(refined, second)) and not refined[0].equal(first[0])
    assert not again[0].requires_grad and not again[0].equal(second[0])


def test_a_mask_head_without_features_to_pass_on_is_refused():
    adaptive = {"mask_head": {"type": "adaptive_fused", "width": 64}, "mask_pool": {"type": "all_levels"}}
    for heads in (HEADS | adaptive, {key: value for key, value in HEADS.items() if key != "mask_head"}):
        with pytest.raises(ConfigError, match="add mask_head"):
            tiny_model(roi_head=heads)
