"""Masks of detections: pasted by hand and by `grid_sample`, as recorded of the references, and as run lengths."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.golden_rules import golden
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from detector.records.pasting import Patch
from detector.records.region_masks import RegionMasks
from detector.records.region_masks import _binary as binary

CANVAS = (90, 120)


def masks_of(boxes: list[list[float]], probabilities: Tensor | None = None) -> RegionMasks:
    return RegionMasks(
        torch.ones(len(boxes), 28, 28) if probabilities is None else probabilities, torch.tensor(boxes), CANVAS
    )


def random_masks() -> RegionMasks:
    corners = torch.rand(40, 2, 2) * torch.tensor([150.0, 120]) - 15
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    noise = F.interpolate(torch.randn(40, 1, 7, 7), size=28, mode="bicubic")[:, 0]
    return RegionMasks((3 * noise).sigmoid(), boxes, CANVAS)


def test_a_mask_of_ones_fills_its_box_alone():
    boxes = [[10.0, 20, 30, 60], [0, 0, 120, 90], [-15.5, -6.25, 40, 50], [200, 200, 240, 220], [50, 50, 50, 80]]
    pasted = masks_of(boxes).paste()
    assert pasted[0, 20:60, 10:30].all() and pasted[0].sum() == 20 * 40
    assert pasted[1].sum() == 90 * 120 - 4 and not pasted[1, [0, 0, -1, -1], [0, -1, 0, -1]].any()  # zeros around it
    assert pasted[2, :50, :40].all() and pasted[2].sum() == 40 * 50
    assert not pasted[3:].any()
    assert masks_of(boxes)[:0].paste().shape == (0, *CANVAS) and masks_of(boxes)[:0].rle() == []


def test_a_probability_of_exactly_a_half_is_mask():
    values = torch.tensor([[0.5, torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)), 1.0]])
    assert binary(Patch(0, 0, values)).values.tolist() == [[True, False, True]]


def test_sampling_equals_grid_sample():
    masks = random_masks()
    y, x = torch.meshgrid(torch.arange(90) + 0.5, torch.arange(120) + 0.5, indexing="ij")
    x1, y1, x2, y2 = masks.boxes[:, :, None, None].unbind(dim=1)
    grid = torch.stack([(x - x1) / (x2 - x1) * 2 - 1, (y - y1) / (y2 - y1) * 2 - 1], dim=-1)
    expected = F.grid_sample(masks.probabilities[:, None], grid, align_corners=False)[:, 0]
    assert (masks.probability_maps() - expected).abs().max() < 3e-6
    assert (masks.paste() != (expected >= 0.5)).sum() <= 1


def test_the_other_way_is_torchvisions():
    masks = random_masks()
    expected = paste_masks_in_image(masks.probabilities[:, None], masks.boxes, CANVAS)[:, 0]
    assert torch.equal(masks.probability_maps("torchvision"), expected)
    with pytest.raises(ValueError, match="sampled, torchvision"):
        masks.paste("nearest")


@pytest.mark.parametrize(("mode", "reference"), [("sampled", "d2"), ("sampled", "mm"), ("torchvision", "tv")])
def test_pasting_gives_the_recorded_pixels(mode: str, reference: str):
    record = golden("masks/functions_masks")["paste"]
    masks = masks_of([record["boxes"][box] for _, box in record["pairs"]],
                     torch.stack([recorded_mask(name) for name, _ in record["pairs"]]))  # fmt: skip
    expected = torch.stack([from_rle(one["rle"]) for one in record[reference]])
    assert (masks.paste(mode) != expected).sum() <= 1
    differing = (masks.halved().paste(mode) != expected).sum()
    assert differing <= 0.0015 * expected.sum()  # the tolerance for all masks of a reference model


def recorded_mask(name: str) -> Tensor:
    if name == "ones":
        return torch.ones(28, 28)
    k, i, j = int(name.removeprefix("wave")), np.arange(28)[:, None], np.arange(28)
    wave = 0.5 + 0.5 * np.sin(0.31 * (k + 1) * i + 0.7 * k + 0.2) * np.cos(0.23 * (k + 2) * j - 0.4 * k)
    return torch.from_numpy(wave.round(4)).float()


def from_rle(counts: str) -> Tensor:
    return torch.from_numpy(coco_mask.decode({"size": list(CANVAS), "counts": counts})).bool()


@pytest.mark.parametrize("mode", ["sampled", "torchvision"])
def test_run_lengths_are_those_of_the_pasted_image(mode: str):
    full = [[-40.0, -40, 160, 130], [20, -10, 60, 100], [0, 0, 1, 90], [119, 0, 120, 90]]  # runs over whole columns
    masks = RegionMasks.joined([random_masks(), masks_of(full)])
    columns = np.asfortranarray(masks.paste(mode).permute(1, 2, 0).numpy().astype(np.uint8))
    assert [m["counts"].encode() for m in masks.rle(mode)] == [m["counts"] for m in coco_mask.encode(columns)]
    assert masks.rle(mode)[0]["size"] == list(CANVAS)


def test_a_mirrored_image_has_mirrored_masks():
    masks = random_masks()
    assert (masks.mirrored(120).paste() != masks.paste().flip(-1)).sum() <= 2
    assert (masks.flipped(90).paste() != masks.paste().flip(-2)).sum() <= 2
    twice = masks.resized(CANVAS, (180, 240))
    assert twice.size == (180, 240) and twice.paste().shape == (40, 180, 240)


def test_run_lengths_take_less_memory_than_an_image():
    boxes = torch.tensor([[-50.0, -50, 6050, 4050]]).repeat(100, 1)
    boxes[1:, 2:] /= 8
    masks = RegionMasks(torch.rand(100, 28, 28), boxes, (4000, 6000)).halved()
    assert sum(value.nbytes for value in masks.row_fields().values()) < 1e6
    tracemalloc.start()  # of NumPy; a strip in PyTorch takes 5 MB
    found = masks.rle()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4000 * 6000 / 2
    whole = np.asfortranarray(masks[0].paste()[0].numpy().astype(np.uint8))
    assert found[0]["counts"].encode() == coco_mask.encode(whole)["counts"]
