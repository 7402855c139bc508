"""The mask branch: targets against recorded numbers, the loss by hand, the head's shapes and first weights, empties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from helpers.golden_rules import bitmaps_of, golden, ground_truth, outlines_of, relative_error
from helpers.tiny import CONFIG, EMPTY, IMAGES, TARGETS, batch_of, drawn, gradients, tiny_model, unmoved, with_bitmaps
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from detector.config.config import build_detector, parse_config
from detector.config.inherit import merge
from detector.errors import ConfigError
from detector.modeling.boxes import clip_boxes
from detector.modeling.roi_heads.mask_branch import MaskBranch, of_class, with_masks
from detector.modeling.roi_heads.mask_head import ConvUpsample
from detector.modeling.roi_heads.mask_targets import MaskTargets, bitmap_shares
from detector.modeling.roi_heads.stage import Regions
from detector.structures import Detections, Target

SIDE = 28


def regions_of(boxes: Tensor, rows: Tensor, labels: Tensor | None = None) -> Regions:
    labels = torch.zeros_like(rows) if labels is None else labels
    return Regions(boxes, labels, rows, torch.zeros(len(rows), dtype=torch.bool))


# --- targets


def recorded_targets() -> tuple[dict[str, Any], Tensor, Tensor]:
    """The record, the bitmaps (shapes, h, w), and the boxes of its regions."""
    record = golden("functions_masks")["rasterise"]
    bitmaps = bitmaps_of(list(record["shapes"].values()), tuple(record["canvas"]))
    for found, (name, counts) in zip(bitmaps, record["canvas_rle"].items(), strict=True):
        expected = coco_mask.decode({"size": record["canvas"], "counts": counts})
        assert np.array_equal(found.numpy(), expected), name
    return record, bitmaps, torch.tensor(list(record["regions"].values()))


@pytest.mark.parametrize("framework", ["d2", "mm"])
def test_binary_targets_of_bitmaps_are_the_recorded_ones(framework):
    record, bitmaps, boxes = recorded_targets()
    if framework == "mm":  # which clips them to the canvas of the bitmaps
        boxes = clip_boxes(boxes, tuple(record["canvas"]))
    for row, shape in enumerate(record["shapes"]):
        regions = regions_of(boxes, torch.full((len(boxes),), row))
        found = MaskTargets()(regions, Target(boxes, boxes[:, 0].long(), masks=bitmaps), SIDE, tuple(record["canvas"]))
        for got, region in zip(found, record["regions"], strict=True):
            counts = record["targets"][f"{shape}|{region}"][f"{framework}_bitmap"]
            expected = coco_mask.decode({"size": [SIDE, SIDE], "counts": counts})
            assert np.array_equal(got.numpy(), expected), (shape, region)


def test_soft_targets_are_torchvisions():
    record, bitmaps, boxes = recorded_targets()
    for row, shape in enumerate(record["shapes"]):
        found = bitmap_shares(bitmaps, boxes, torch.full((len(boxes),), row), SIDE, aligned=False)
        for got, region in zip(found, record["regions"], strict=True):
            expected = record["targets"][f"{shape}|{region}"]["tv_soft"]
            values = got.flatten()[torch.tensor(record["tv_soft_idx"])]
            assert torch.allclose(values, torch.tensor(expected["values"]), atol=1e-5)
            assert float(got.mean()) == pytest.approx(expected["mean"], abs=1e-5)


def test_a_padded_canvas_is_read_beyond_the_image():
    """A region at the image's edge: its last cells read the padding, zeros, where the canvas is the batch."""
    regions = regions_of(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0]))
    target = Target(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([0]), masks=torch.ones(1, 10, 10, dtype=torch.uint8))
    inside, padded = (
        MaskTargets(soft=True, padded=wanted)(regions, target, SIDE, (32, 32))[0] for wanted in (False, True)
    )
    assert float(inside.min()) == pytest.approx(1) == float(padded[:-1, :-1].min()) and padded[-1].max() < 0.9


def test_the_ground_truth_of_the_recorded_models():
    for target, size, record in zip(
        ground_truth(), ((256, 352), (320, 288)), golden("functions_masks")["ground_truth"], strict=True
    ):
        assert outlines_of(target["boxes"]) == record["polygons"]
        assert bitmaps_of(record["polygons"], size).sum(dim=(1, 2)).tolist() == record["bitmap_area"]


# --- loss


def branch(**options: Any) -> MaskBranch:
    return MaskBranch(None, ConvUpsample(4, 14, 4, width=4, convs=1, **options))


@pytest.mark.parametrize(
    ("key", "targets"), [("tv", MaskTargets(aligned=False, soft=True)), ("mm_bitmap", MaskTargets())]
)
def test_loss_and_gradient_are_the_recorded_ones(key, targets):
    record, functions = golden("functions_masks")["mask_loss"], golden("functions_masks")["rasterise"]
    r, k, i, j = np.meshgrid(range(6), range(4), range(SIDE), range(SIDE), indexing="ij")
    formula = 3 * np.sin(0.37 * (r + 1) + 0.21 * (k + 1) * i) * np.cos(0.17 * (r + 2) * j + k)
    logits = torch.from_numpy(formula.astype(np.float32)).requires_grad_()
    boxes = torch.tensor([functions["regions"][name] for name in record["regions"]])
    boxes = clip_boxes(boxes, tuple(functions["canvas"])) if key == "mm_bitmap" else boxes
    masks = bitmaps_of([functions["shapes"][name] for name in record["shapes"]], tuple(functions["canvas"]))
    labels = torch.tensor(record["classes"])
    regions = regions_of(boxes, torch.arange(6), labels)
    loss = branch(targets=targets).loss(logits, [regions], batch_of((60, 80)), [Target(boxes, labels, masks=masks)])
    loss.backward()
    assert relative_error(float(loss.detach()), record[key]["loss"]) < 1e-5
    assert relative_error(float(logits.grad.norm()), record[key]["grad_norm"]) < 1e-5
    idx = torch.tensor(record["logits"]["idx"])
    assert torch.allclose(logits.grad.flatten()[idx], torch.tensor(record[key]["grad"]), atol=1e-9)


def test_the_loss_of_zeros_is_ln_2_and_moves_the_objects_class_alone():
    logits = torch.zeros(2, 3, SIDE, SIDE, requires_grad=True)
    box = torch.tensor([[2.0, 2, 30, 30]])
    target = Target(box, torch.tensor([1]), masks=torch.ones(1, 64, 96, dtype=torch.uint8))
    regions = regions_of(box.repeat(2, 1), torch.zeros(2).long(), torch.tensor([1, 1]))
    loss = branch().loss(logits, [regions], batch_of((64, 96)), [target])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(2))
    assert logits.grad[:, 1].ne(0).all() and not logits.grad[:, [0, 2]].any()


def test_a_branch_learns_two_masks_by_heart():
    """A disc of one class and its complement of another, of the same features."""
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    disc = ((x - 13.5) ** 2 + (y - 13.5) ** 2 < 80).to(torch.uint8)
    box = torch.tensor([[0.0, 0, SIDE, SIDE]]).repeat(2, 1)
    target = Target(box, torch.tensor([0, 2]), masks=torch.stack([disc, 1 - disc]))
    one, features = branch(), torch.randn(1, 4, 14, 14).repeat(2, 1, 1, 1)
    optimizer = torch.optim.Adam(one.parameters(), lr=0.02)
    regions = [regions_of(box, torch.arange(2), target.labels)]
    for _ in range(300):
        loss = one.losses(features, regions, batch_of((SIDE, SIDE)), [target])["roi_mask"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = one.probabilities(features, target.labels) >= 0.5
    assert float((found == target.masks.bool()).float().mean()) > 0.97


# --- the head


def test_parameter_counts_of_the_reference_heads():
    """masks.md's table: K = 80 of Detectron2 and MMDetection, 91 rows of torchvision, with bias or norm; C4."""

    def count(*args: int, **options: Any) -> int:
        return sum(p.numel() for p in ConvUpsample(*args, **options).parameters())

    assert count(256, 14, 80) == 2_643_280 and count(256, 14, 91) == 2_646_107
    assert count(256, 14, 91, norm="batch") == 2_647_131
    assert count(2048, 7, 80, convs=0) == 2048 * 256 * 4 + 256 + 20_560
    assert count(256, 14, 80, class_agnostic=True) == 2_360_320 + 262_400 + 257


def test_first_weights():
    """Variance 2 / fan_out, where torch takes the first axis of a transposed convolution's weight for it."""
    wide = (2 / (256 * 9)) ** 0.5
    for init, std in (("detectron2", 0.001), ("mmdetection", (2 / 80) ** 0.5), ("torchvision", (2 / 80) ** 0.5)):
        torch.manual_seed(0)
        head = ConvUpsample(256, 14, 80, init=init)
        assert float(head.convs[0].conv.weight.detach().std()) == pytest.approx(wide, rel=0.01)
        assert float(head.deconv.weight.detach().std()) == pytest.approx((2 / (256 * 4)) ** 0.5, rel=0.01)
        assert float(head.predictor.weight.detach().std()) == pytest.approx(std, rel=0.02)
        assert not head.convs[0].conv.bias.any() and bool(head.deconv.bias.any()) == (init == "torchvision")


def test_the_mask_of_a_detection_is_that_of_its_class():
    logits = torch.arange(3.0)[None, :, None, None].expand(2, 3, 4, 4)
    assert of_class(logits, torch.tensor([2, 0]))[:, 0, 0].tolist() == [2, 0]
    assert of_class(logits[:, 1:2], torch.tensor([2, 0]))[:, 0, 0].tolist() == [1, 1]
    boxes = torch.tensor([[0.0, 0, 8, 8]])
    found = [Detections(boxes[:n], torch.ones(n), torch.zeros(n).long()) for n in (1, 0)]
    first, second = with_masks(found, torch.full((1, 4, 4), 0.7), batch_of((64, 96), (32, 48)))
    assert (
        first.masks.size == (64, 96) and first.masks.boxes.equal(boxes) and first.masks.probabilities.shape == (1, 4, 4)
    )
    assert second.masks.size == (32, 48) and len(second.masks) == 0


# --- in a detector


HEAD = {"mask_head": {"width": 16}}
FEW = {"sampling": {"batch_per_image": 32}}  # regions: their heads are slow
SYSTEMS = {
    "standard": {"roi_head": HEAD},
    "class_agnostic": {"roi_head": {"mask_head": {"width": 16, "class_agnostic": True}}},
    "group": {"roi_head": {"mask_head": {"width": 32, "norm": "group"}}},
    "batch": {"roi_head": {"mask_head": {"width": 16, "norm": "batch"}}},
    "cascade": {"roi_head": HEAD | {"type": "cascade"}},
    "cascade_each": {"roi_head": HEAD | {"type": "cascade", "mask_heads": "each"}},
    "panet": {"roi_head": {"pool": {"type": "all_levels"}, "box_head": {"type": "adaptive_two_fc", "width": 32},
                           "mask_head": {"type": "adaptive_fused", "width": 64}}},
    # the IoU of a mask without a cell above one half, as Detectron2's first weights give, teaches nothing
    "scoring": {"roi_head": {"mask_head": {"width": 16, "init": "mmdetection"},
                             "mask_iou_head": {"conv_width": 16, "width": 32}}},
    "auxiliary": {"neck": {"type": "augfpn"}, "roi_head": HEAD | FEW | {"type": "auxiliary"}},
    "c4": {
        "backbone": {"stages": 3}, "neck": {"type": "single"}, "rpn": {"anchors": {"sizes": [[16, 32, 64]]}},
        "roi_head": FEW | {"pool": {"type": "by_level", "levels": 1, "size": 6}, "box_head": {"type": "res5"},
                     "mask_head": {"width": 16, "convs": 0}},
    },
    "dc5": {
        "backbone": {"dilated_c5": True}, "neck": {"type": "single"}, "rpn": {"anchors": {"sizes": [[16, 32, 64]]}},
        "roi_head": HEAD | {"pool": {"type": "by_level", "levels": 1}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_weight_of_the_branch_learns_from_objects_and_none_from_nothing(name):
    model = tiny_model(**SYSTEMS[name]).train()
    targets = drawn(TARGETS, IMAGES)
    moved = gradients(model, IMAGES, targets)
    mask = {key: grad for key, grad in moved.items() if ".mask" in key}
    assert len(mask) >= 4 and unmoved(mask) == []
    empty = drawn([EMPTY, EMPTY], IMAGES)
    losses = model(IMAGES, empty)
    assert all(float(loss.detach()) == 0 for key, loss in losses.items() if key.startswith("roi_mask"))
    still = {key: grad for key, grad in gradients(model, IMAGES, empty).items() if ".mask" in key}
    assert unmoved(still) == list(still)  # zeros, but there


@pytest.mark.parametrize("name", ["standard", "c4", "cascade_each"])
def test_every_detection_has_a_mask_in_its_box_and_the_boxes_are_those_without(name):
    model = tiny_model(**SYSTEMS[name]).eval()
    with_mask = model(IMAGES)
    side = 6 if name == "c4" else 28
    for found, image in zip(with_mask, IMAGES, strict=True):
        assert len(found) > 0 and found.masks.probabilities.shape == (len(found), side, side)
        assert found.masks.boxes.equal(found.boxes) and found.masks.size == tuple(image.shape[1:])
    if name == "cascade_each":
        model.roi_head.masks = nn.ModuleList()
    else:
        model.roi_head.mask = None
    for found, expected in zip(model(IMAGES), with_mask, strict=True):
        assert found.masks is None and found.boxes.equal(expected.boxes) and found.scores.equal(expected.scores)


def test_a_cascades_masks_are_the_mean_of_its_heads():
    model = tiny_model(**SYSTEMS["cascade_each"]).eval()
    masks = model.roi_head.masks
    every = model(IMAGES)[0].masks.probabilities
    one_by_one = []
    for mask in masks:
        model.roi_head.masks = nn.ModuleList([mask])
        one_by_one.append(model(IMAGES)[0].masks.probabilities)
    assert torch.allclose(torch.stack(one_by_one).mean(dim=0), every, atol=1e-6)


def test_c4_reads_res5_once_in_training_and_gives_what_reading_it_again_would():
    model = tiny_model(**SYSTEMS["c4"]).train()
    calls = []
    model.roi_head.stage.box_head.layer4.register_forward_hook(lambda *_: calls.append(1))
    targets = drawn(TARGETS, IMAGES)
    model(IMAGES, targets)
    assert len(calls) == 1 and not [key for key in model.state_dict() if key.startswith("roi_head.mask.pool")]


def test_what_training_reads_is_known_of_the_configuration_and_of_the_model():
    for head, fields in (
        (None, set()), ({}, {"masks"}), ({"targets": {"source": "outlines"}}, {"outlines"}),
    ):  # fmt: skip
        model = merge(CONFIG, {"model": {"roi_head": {"mask_head": head}}})
        assert parse_config(model, trust=False).model.target_fields == fields
        assert tiny_model(roi_head={"mask_head": head}).target_fields == fields


def test_masks_that_do_not_fit_are_one_message():
    model = tiny_model(**SYSTEMS["standard"]).train()
    image, target = IMAGES[0], with_bitmaps(TARGETS[0], IMAGES[0])
    for change, message in (
        ({"masks": None}, "target 0: this model learns from `masks`, and there is none"),
        ({"masks": target["masks"][:1]}, "masks must be (2, 64, 96) uint8"),
        ({"masks": target["masks"][:, :-1]}, "masks must be (2, 64, 96) uint8"),
        ({"masks": target["masks"].float()}, "not (2, 64, 96) float32"),
    ):
        with pytest.raises(ValueError, match=r"target 0") as error:
            model([image], [target | change])
        assert message in str(error.value)


def test_a_pool_without_a_head_and_a_head_that_nothing_holds_are_errors():
    for section, message in (
        ({"mask_pool": {"size": 7}}, "mask_pool: nothing reads it; add model.roi_head.mask_head"),
        ({"type": "none", "mask_head": {}}, r"model\.roi_head\.mask_head: this type of roi_head has none"),
        ({"mask_head": {}, "mask_pool": {"type": "all_levels"}}, r"mask_pool: gives 4 maps a region"),
        ({"mask_head": {"conv": 2}}, r"mask_head\.conv: unknown key"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_detector(
                parse_config({"model": {"num_classes": 3, "roi_head": section}}, trust=False), pretrained=False
            )


def test_the_masks_pool_is_the_boxes_pool_with_larger_regions_unless_it_says_otherwise():
    own = {"type": "by_level", "samples": 1, "canonical_size": 56}
    pool = tiny_model(roi_head={"pool": own} | HEAD).roi_head.mask.pool
    assert (pool.size, pool.samples, pool.canonical_size) == (14, 1, 56)
    pool = tiny_model(roi_head={"pool": own, "mask_pool": {"size": 10, "samples": 2}} | HEAD).roi_head.mask.pool
    assert (pool.size, pool.samples, pool.canonical_size) == (10, 2, 56)
