"""Hybrid Task Cascade: the semantic branch, interleaving, the flow of mask features."""

from __future__ import annotations

import pytest
import torch
from helpers.golden_rules import golden
from helpers.necks import count

from detector.modeling.roi_heads.semantic_head import SemanticHead
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
    head = SemanticHead([4] * 2, [4, 8], classes=7, width=8)
    head.logits = torch.nn.Identity()
    loss = head.loss(logits, [semantic_target(m) for m in maps], (32, 40))
    assert loss.item() == pytest.approx(golden("masks/functions_masks")["semantic_loss"]["mm_loss"], rel=1e-6)


def test_a_map_is_needed():
    head = SemanticHead([4] * 2, [4, 8], width=8)
    with pytest.raises(ValueError, match="target 0: no semantic map"):
        head.loss(torch.zeros(1, 8, 4, 4), [semantic_target(None)], (32, 32))


def test_the_semantic_branch_has_as_many_parameters_as_published():
    with torch.device("meta"):
        assert count(SemanticHead([256] * 5, [4, 8, 16, 32, 64])) == 2_802_103
