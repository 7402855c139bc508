"""Mask Scoring R-CNN: the IoU that is learnt, scores, sizes."""

from __future__ import annotations

import pytest
import torch
from helpers.golden_rules import golden
from helpers.necks import count
from pycocotools import mask as rle

from detector import distributed
from detector.modeling.roi_heads.mask_iou_head import MaskIoUConvFC, mask_iou_target, share_inside
from detector.modeling.roi_heads.mask_scoring import MaskScoringBranch
from detector.structures import Batch, Detections


def bitmap(counts: str, size: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(rle.decode({"counts": counts.encode(), "size": list(size)}))


def recorded_logits() -> torch.Tensor:
    """The README's formula (6, 4, 28, 28)."""
    r, k, i, j = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (6, 4, 28, 28)), indexing="ij")
    return (3 * torch.sin(0.37 * (r + 1) + 0.21 * (k + 1) * i) * torch.cos(0.17 * (r + 2) * j + k)).float()


def test_the_target_is_the_recorded_one():
    """The logits are compared with 0.5; and a region that sees half of an object does not see its whole."""
    functions = golden("masks/functions_masks")
    rows, drawn, expected = functions["mask_loss"], functions["rasterise"], functions["mask_iou_target"]
    pairs = list(zip(rows["shapes"], rows["regions"], strict=True))
    canvases = torch.stack([bitmap(drawn["canvas_rle"][shape], drawn["canvas"]) for shape, _ in pairs])
    targets = [drawn["targets"][f"{shape}|{region}"]["mm_bitmap"] for shape, region in pairs]
    logits = recorded_logits()[range(6), rows["classes"]]
    boxes, index = torch.tensor([drawn["regions"][region] for _, region in pairs]), torch.arange(6)
    share = share_inside(canvases, index, boxes)
    torch.testing.assert_close(share, torch.tensor(expected["mm_area_ratio"]))
    found = mask_iou_target(logits, torch.stack([bitmap(t, (28, 28)) for t in targets]), share)
    torch.testing.assert_close(found, torch.tensor(expected["mm_target"]))
    back = share_inside(canvases.flip(0), index.flip(0), boxes)
    assert back.equal(share)


def test_a_perfect_mask_whose_region_covers_its_object_has_the_target_1():
    target = torch.zeros(1, 28, 28)
    target[:, 4:20, 3:9] = 1
    assert mask_iou_target(20 * target - 10, target, torch.ones(1)).item() == pytest.approx(1)
    assert mask_iou_target(20 * target - 10, target, torch.full((1,), 0.5)).item() == pytest.approx(0.5)


def test_a_region_without_object_teaches_nothing(monkeypatch: pytest.MonkeyPatch):
    head = MaskIoUConvFC(4, 14, 3, conv_width=4, width=4)
    iou = torch.tensor([0.5, 0.9], requires_grad=True)
    assert head.loss(iou, torch.tensor([0.0, 0.4])).item() == pytest.approx(0.5 * 0.25)
    assert head.loss(iou, torch.zeros(2)).item() == 0
    monkeypatch.setattr(distributed, "global_normalizer", lambda count: count + 3)  # as if others had some, too
    assert head.loss(iou, torch.tensor([0.0, 0.4])).item() == pytest.approx(0.5 * 0.25 / 4)
    assert head.eval().loss(iou, torch.tensor([0.0, 0.4])).item() == pytest.approx(0.5 * 0.25)


def test_a_mask_is_scored_by_class_and_iou_or_with_0():
    found = [Detections(torch.tensor([[0.0, 0, 9, 9], [5, 5, 9, 9]]), torch.tensor([0.8, 0.5]), torch.tensor([1, 0]))]
    iou = torch.tensor([[0.1, 0.5, 0.2], [torch.nan, 0.3, 0.4]])
    branch = MaskScoringBranch(None, lambda x: torch.zeros(len(x), 3, 28, 28), lambda x, logits: iou)
    (scored,) = branch.detect(torch.zeros(2, 4, 14, 14), found, Batch(torch.zeros(1, 3, 16, 16), [(16, 16)]))
    assert scored.masks.scores.tolist() == pytest.approx([0.4, 0]) and torch.equal(scored.scores, found[0].scores)


def test_as_many_parameters_as_published():
    with torch.device("meta"):
        assert count(MaskIoUConvFC(256, 14, 80)) == 16_340_304
