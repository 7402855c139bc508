"""PointRend: points by hand, a slow oracle of the losses, subdivision, finer outlines, names of two frameworks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.necks import count
from helpers.tiny import (
    CLASSES,
    CONFIG,
    DATA,
    EMPTY,
    IMAGES,
    TARGETS,
    batch_of,
    built,
    drawn,
    gradients,
    picture,
    predictor_of,
    tiny_model,
    unmoved,
)  # fmt: skip
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from detector.checkpoint import init_from
from detector.config.config import parse_config
from detector.config.inherit import merge
from detector.errors import ConfigError
from detector.evaluation.boundary import boundary
from detector.inference.tta import TTAPredictor
from detector.interop.recognise import FRAMEWORKS
from detector.modeling.roi_heads.coarse_mask_head import CoarseMaskHead
from detector.modeling.roi_heads.mask_targets import bitmap_shares
from detector.modeling.roi_heads.point_rend import PointMLP, PointRendBranch, RegionMaps
from detector.modeling.roi_heads.points import (
    PointSampling,
    Subdivision,
    grid_points,
    read_bitmaps,
    read_points,
)
from detector.modeling.roi_heads.pool import PointPool
from detector.modeling.roi_heads.stage import Regions
from detector.modeling.shapes import fixed_shapes
from detector.records.region_masks import RegionMasks
from detector.structures import Target

HEADS = {
    "mask_head": {"type": "coarse", "conv_width": 16, "width": 24},
    "mask_pool": {"type": "points"},
    "point_head": {"width": 20, "subdivision": {"points": 49}},
}
SYSTEMS = {
    "standard": HEADS,
    "predicted": HEADS | {"train_on_predicted_boxes": True},
    "cascade_each": HEADS | {"type": "cascade", "mask_heads": "each"},
}


def branch(channels: int = 5, classes: int = 3, stride: int = 4, **options: Any) -> PointRendBranch:
    torch.manual_seed(0)
    head = CoarseMaskHead(channels, 14, classes, conv_width=6, width=9)
    point_head = PointMLP(channels, classes, width=7, **options)
    for layer in (head.logits, point_head.predictor):  # first weights are near 0
        nn.init.normal_(layer.weight, std=0.5)
    return PointRendBranch(PointPool([channels], [stride]), head, point_head, stride)


def regions_of(boxes: Tensor, rows: Tensor, labels: Tensor) -> Regions:
    return Regions(boxes, labels, rows, torch.zeros(len(rows), dtype=torch.bool))


# --- points


def test_a_map_is_read_between_the_centres_of_its_cells_and_is_0_beyond():
    values = torch.tensor([[0.0, 1], [2, 3]])
    by_hand = {
        (0.5, 0.5): 0,
        (1, 1): 1.5,
        (1.5, 1): 2,
        (1.25, 0.5): 0.75,
        (2, 2): 0.75,
        (2, 0.5): 0.5,
        (-1, 1): 0,
        (2.6, 1): 0,
    }
    points = torch.tensor([list(by_hand)])
    expected = torch.tensor([list(by_hand.values())])
    found = read_points(values[None, None], torch.tensor([0]), points)
    torch.testing.assert_close(found[..., 0], expected)
    torch.testing.assert_close(read_bitmaps(values[None].byte(), torch.tensor([0]), points), expected)
    assert not read_bitmaps(values[None].byte(), torch.tensor([0]), torch.full((1, 1, 2), math.nan)).any()


def test_readings_are_those_of_grid_sample_and_so_are_their_gradients():
    torch.manual_seed(0)
    maps, rows = torch.randn(2, 3, 5, 7, requires_grad=True), torch.tensor([1, 0, 1])
    places = torch.rand(3, 40, 2) * 1.4 - 0.2  # in sides of the map, some outside
    expected = F.grid_sample(maps[rows], 2 * places[:, :, None] - 1, align_corners=False)[..., 0].transpose(1, 2)
    found = read_points(maps, rows, places * torch.tensor([7.0, 5]))
    with fixed_shapes(portable=True):  # as other engines compute it
        assert torch.allclose(read_points(maps, rows, places * torch.tensor([7.0, 5])), found, atol=1e-6)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    pairs = [torch.autograd.grad((read * weights).sum(), maps)[0] for read in (found, expected)]
    torch.testing.assert_close(*pairs)


def test_the_pool_reads_cell_centres_of_the_finest_level():
    """A map whose channels are its own coordinates in pixels; cells that reach beyond it read less."""
    y, x = torch.meshgrid(torch.arange(16.0) * 4 + 2, torch.arange(20.0) * 4 + 2, indexing="ij")
    pool = PointPool([2, 2], [4, 8], size=2)
    found = pool(
        [torch.stack([x, y])[None], torch.zeros(1, 2, 8, 10)], torch.tensor([[0.0, 8, 10, 40, 50], [0, -8, 4, 8, 60]])
    )
    assert found[0].tolist() == [[[16, 32], [16, 32]], [[20, 20], [40, 40]]]
    assert not found[1, :, :, 0].any() and found[1, 0, :, 1].tolist() == [4, 4]  # at x = -4 and x = 4
    assert pool([torch.zeros(1, 2, 16, 20)], torch.zeros(0, 5)).shape == (0, 2, 2, 2)


def test_training_draws_the_points_whose_logits_are_next_to_0_and_some_others():
    logits = torch.linspace(-3, 5, 49).view(1, 7, 7).repeat(2, 1, 1)  # changes its sign in one place
    torch.manual_seed(3)
    found = PointSampling(points=20, oversampling=3, uncertain=0.75)(logits)
    torch.manual_seed(3)
    many = torch.rand(2, 60, 2)
    for drawn_points, candidates, row in zip(found, many, logits, strict=True):
        values = read_points(row[None, None], torch.tensor([0]), 7 * candidates[None])[0, :, 0].abs()
        best = candidates[values.argsort()[:15]]
        assert {tuple(p) for p in drawn_points[:15].tolist()} == {tuple(p) for p in best.tolist()}
        assert not {tuple(p) for p in drawn_points[15:].tolist()} & {tuple(p) for p in candidates.tolist()}
    assert found.shape == (2, 20, 2) and PointSampling()(logits[:0]).shape == (0, 196, 2)


# --- subdivision


def disc(points: Tensor) -> Tensor:
    """(R, P, 2) -> (R, P), positive inside."""
    return 0.35 - (points - torch.tensor([0.48, 0.53])).norm(dim=-1)


def test_a_known_outline_becomes_exact_by_a_few_points_a_step():
    calls = []

    def logits_at(points: Tensor) -> Tensor:
        calls.append(points.shape[1])
        return disc(points)

    exact = disc(grid_points(224, torch.device("cpu"))[None]).view(1, 224, 224)
    found = Subdivision()(torch.zeros(1, 7, 7), logits_at)
    assert calls == [784] * 4  # of 28, 56, 112 and 224 cells a side
    assert ((found > 0) == (exact > 0)).all() and (found == exact).sum() >= 784
    torch.testing.assert_close(found, exact, atol=0.03, rtol=0)
    few = Subdivision(points=50)(torch.zeros(1, 7, 7), disc)
    assert ((few > 0) != (exact > 0)).sum() > 20  # the proof can fail
    every = Subdivision(steps=3, points=56**2)(torch.zeros(1, 7, 7), disc)
    assert every.equal(disc(grid_points(56, torch.device("cpu"))[None]).view(1, 56, 56))
    assert Subdivision()(torch.zeros(0, 7, 7), disc).shape == (0, 224, 224)


def test_masks_that_are_refined_in_parts_are_those_of_one_pass(monkeypatch):
    one = branch(subdivision=Subdivision(steps=2, points=100))
    p, boxes = [torch.randn(2, 5, 16, 24)], [torch.rand(3, 4) * 20 + torch.tensor([0.0, 0, 40, 30]), torch.zeros(0, 4)]
    x, labels = one.read(p, boxes), torch.tensor([2, 0, 1])
    whole = one.probabilities(x, labels)
    monkeypatch.setattr("detector.modeling.roi_heads.point_rend.POINT_LIMIT", 100)
    assert whole.shape == (3, 28, 28) and torch.allclose(one.probabilities(x, labels), whole, atol=1e-6)


# --- losses, by loops


def bilinear(values: Any, x: float, y: float) -> Any:
    """Of rows of cells whose centres are at 0.5, 1.5, ...; 0 beyond them."""
    total, left, top = 0.0, math.floor(x - 0.5), math.floor(y - 0.5)
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < len(values) and 0 <= column < len(values[0]):
                share = (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row))
                total = total + share * values[row][column]
    return total


def slow_losses(
    one: PointRendBranch, x: RegionMaps, points: Tensor, labels: list[int], masks: Tensor
) -> tuple[float, float]:
    """Coarse loss of masks that hold their whole regions or nothing of them, and the loss of points, one by one."""
    coarse = one.head(x.pooled)
    cells, values = [], []
    for r, (image, x1, y1, x2, y2) in enumerate(x.rois.tolist()):
        for u, v in points[r].tolist():
            px, py = x1 + u * (x2 - x1), y1 + v * (y2 - y1)
            level = x.finest[int(image)].permute(1, 2, 0)  # (H, W, C)
            side = coarse.shape[-1]
            guess = bilinear(coarse[r].permute(1, 2, 0), u * side, v * side)
            z = bilinear(level, px / one.stride, py / one.stride) + torch.zeros(level.shape[-1])
            for layer in one.point_head.layers:
                z = F.relu(layer.weight @ torch.cat([z, guess]) + layer.bias)
            last = one.point_head.predictor
            logit = (last.weight @ torch.cat([z, guess]) + last.bias)[labels[r]]
            inside = float(bilinear(masks[r].tolist(), px, py))
            values.append(float(F.binary_cross_entropy_with_logits(logit, torch.tensor(inside)).detach()))
        wanted = bitmap_shares(masks[r : r + 1], x.rois[r : r + 1, 1:], torch.tensor([0]), side, aligned=True)[0] >= 0.5
        cells.append(F.binary_cross_entropy_with_logits(coarse[r, labels[r]], wanted.float(), reduction="none"))
    return float(torch.stack(cells).mean().detach()), sum(values) / len(values)


def test_the_losses_are_those_of_an_oracle_that_goes_point_by_point(monkeypatch):
    one = branch(sampling=PointSampling(points=9))
    points = torch.rand(3, 9, 2)
    monkeypatch.setattr(PointSampling, "__call__", lambda self, logits: points[: len(logits)])
    masks = torch.zeros(3, 32, 48, dtype=torch.uint8)
    masks[0, 4:20, 10:33] = masks[1, 8:25, 2:7] = masks[2, 1:9, 30:] = 1
    boxes = torch.tensor([[8.0, 3, 30, 21], [1.5, 9, 12, 28], [28, -3, 47, 12]])
    labels, regions = torch.tensor([2, 0, 1]), []
    for rows in (torch.tensor([0, 1]), torch.tensor([2])):
        regions.append(regions_of(boxes[rows], torch.arange(len(rows)), labels[rows]))
    targets = [Target(boxes[:2], labels[:2], masks=masks[:2]), Target(boxes[2:], labels[2:], masks=masks[2:])]
    x = one.read([torch.randn(2, 5, 8, 12)], [r.boxes for r in regions])
    found = one.losses(x, regions, batch_of((32, 48), (32, 48), padded=(32, 48)), targets)
    coarse, fine = slow_losses(one, x, points, labels.tolist(), masks)
    assert found.keys() == {"roi_mask", "roi_mask_point"}
    assert float(found["roi_mask"].detach()) == pytest.approx(coarse, rel=1e-5)
    assert float(found["roi_mask_point"].detach()) == pytest.approx(fine, rel=1e-5)


def test_a_learnt_outline_is_finer_than_any_mask_of_28_cells():
    """A star with a hole; features that may take any value, as an overfitted pyramid's. Masks in pixels, by boundary IoU."""
    torch.manual_seed(0)
    side = 192
    y, x = torch.meshgrid(torch.arange(side) + 0.5 - 96, torch.arange(side) + 0.5 - 96, indexing="ij")
    away, angle = (x**2 + y**2).sqrt(), torch.atan2(y, x)
    star = ((away < 62 + 26 * torch.cos(9 * angle)) & (away > 14)).to(torch.uint8)[None]
    box, label = torch.tensor([[6.0, 6, 186, 186]]), torch.tensor([0])
    one, p2 = branch(8, 1, sampling=PointSampling(points=784)), nn.Parameter(torch.randn(1, 8, 48, 48))
    regions, target = [regions_of(box, label, label)], [Target(box, label, masks=star)]
    optimizer = torch.optim.Adam([*one.parameters(), p2], lr=0.02)
    for _ in range(150):
        losses = one.losses(one.read([p2], [box]), regions, batch_of((side, side), padded=(side, side)), target)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    with torch.no_grad():
        fine = one.probabilities(one.read([p2], [box]), label)
    best = bitmap_shares(star, box, label, 28, aligned=True)  # the share of each cell that is covered
    truth = boundary(RegionMasks(star.float(), torch.tensor([[0.0, 0, side, side]]), (side, side)).rle()[0])
    ours, coarse = (
        coco_mask.iou([boundary(RegionMasks(m, box, (side, side)).rle()[0])], [truth], [0]).item() for m in (fine, best)
    )
    assert ours > coarse + 0.03, (ours, coarse)


# --- in a detector


def test_parameter_counts_and_first_weights():
    """masks.md's table, K = 80."""
    head = CoarseMaskHead(256, 14, 80)
    assert count(head) == 262_400 + 12_846_080 + 1_049_600 + 4_018_000 == 18_176_080
    assert float(head.logits.weight.detach().std()) == pytest.approx(0.001, rel=0.01) and not head.logits.bias.any()
    assert count(PointMLP(256, 80)) == 3 * 86_272 + 26_960 == 285_776
    assert (CoarseMaskHead(8, 4, 2, conv_width=8, width=8, init="mmdetection").logits.weight == 0.001).all()
    reduced = CoarseMaskHead(12, 4, 2, conv_width=8, width=8)
    assert reduced.reduce.weight.shape == (8, 12, 1, 1) and reduced(torch.zeros(3, 12, 4, 4)).shape == (3, 2, 2, 2)
    with pytest.raises(ValueError, match="an odd number"):
        CoarseMaskHead(8, 7, 2)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_weight_learns_from_objects_and_none_from_nothing_and_masks_have_224_cells(name):
    model = tiny_model(roi_head=SYSTEMS[name]).train()
    targets, empty = drawn(TARGETS, IMAGES), drawn([EMPTY, EMPTY], IMAGES)
    moved = {key: grad for key, grad in gradients(model, IMAGES, targets).items() if ".mask" in key}
    assert len(moved) >= 16 and unmoved(moved) == []
    losses = model(IMAGES, empty)
    assert [float(loss.detach()) for key, loss in losses.items() if "roi_mask" in key] == [0] * (
        6 if "each" in name else 2
    )
    still = {key: grad for key, grad in gradients(model, IMAGES, empty).items() if ".mask" in key}
    assert unmoved(still) == list(still)  # zeros, but there
    for found, image in zip(model.eval()(IMAGES), IMAGES, strict=True):
        assert len(found) > 0 and found.masks.probabilities.shape == (len(found), 224, 224)
        assert found.masks.paste().shape == (len(found), *image.shape[1:])


def test_masks_learn_from_the_boxes_that_the_box_head_finds(monkeypatch):
    """Deltas of 0.1 widths to the right for the object's class, and others for the rest, which nothing reads."""
    model = tiny_model(roi_head=SYSTEMS["predicted"]).train()
    stage = model.roi_head.stage
    boxes = torch.tensor([[0.0, 0, 20, 10], [5, 5, 25, 45], [1, 1, 2, 2]])
    regions = Regions(boxes, torch.tensor([1, 0, CLASSES]), torch.tensor([1, 0, 0]), torch.zeros(3, dtype=torch.bool))
    deltas = torch.full((3, CLASSES, 4), 7.0)
    deltas[[0, 1], [1, 0]] = torch.tensor([1.0, 0, 0, 0])  # the coder's weight of dx is 10
    moved, none = stage.moved(deltas, [regions, regions[:0]])
    assert (
        moved.boxes.tolist() == [[2, 0, 22, 10], [7, 5, 27, 45]]
        and moved.gt_index.tolist() == [1, 0]
        and len(none) == 0
    )
    seen = []
    read = PointRendBranch.read
    monkeypatch.setattr(PointRendBranch, "read", lambda self, p, b: seen.append(b) or read(self, p, b))
    monkeypatch.setattr(type(stage), "moved", lambda self, deltas, regions: [r[:1] for r in regions])
    model(IMAGES, drawn(TARGETS, IMAGES))
    assert [len(b) for b in seen[0]] == [1, 1]


def test_views_of_an_image_are_averaged_at_224_cells():
    config = merge(CONFIG, {"model": {"roi_head": HEADS}, "data": DATA | {"resize": {"short": 64, "long": 200}}})
    once, twice = (
        predictor_of(built(torch.manual_seed(0) and one), one, TTAPredictor)
        for one in (merge(config, {"data": {"tta": {"scales": scales, "flip": False}}}) for scales in ([1], [1, 1]))
    )
    expected, found = once(picture(111, 149)), twice(picture(111, 149))
    assert len(found) == len(expected) > 5 and found.masks.probabilities.shape[1:] == (224, 224)
    assert (found.masks.probabilities.float() - expected.masks.probabilities.float()).abs().max() < 2e-3
    assert found.to_coco(1)[0]["segmentation"]["size"] == [111, 149]


def test_heads_that_do_not_fit_are_errors():
    for section, message in (
        ({"point_head": {}}, "point_head: refines the masks of mask_head {type: coarse}"),
        ({"point_head": {}, "mask_head": {}}, "point_head: refines the masks of mask_head {type: coarse}"),
        (HEADS | {"mask_iou_head": {}}, "without a mask_iou_head"),
        (HEADS | {"type": "htc"}, "passes on the features of mask heads"),
        (HEADS | {"mask_pool": {"type": "points", "size": 7}}, "an odd number"),
    ):
        with pytest.raises(ConfigError, match=message):
            built({"model": {"num_classes": 3, "roi_head": section}}, pretrained=False)
    assert parse_config(merge(CONFIG, {"model": {"roi_head": HEADS}}), trust=False).model.target_fields == {"masks"}


# --- names

COARSE = {"{}.reduce_channel_dim_conv", "{}.reduce_spatial_dim_conv", "{}.{}1", "{}.{}2", "{}.prediction"}
POINTS = {"fc1", "fc2", "fc3", "predictor"}
MM = {"downsample_conv.conv", "fcs.0", "fcs.1", "fc_logits"}
LAYERS = {  # framework, naming -> layers of both heads
    ("detectron2", "now"): {n.format("roi_heads.mask_head.coarse_head", "fc") for n in COARSE}
    | {f"roi_heads.mask_head.point_head.{n}" for n in POINTS},
    ("detectron2", "2020"): {n.format("roi_heads.mask_coarse_head", "coarse_mask_fc") for n in COARSE}
    | {f"roi_heads.mask_point_head.{n}" for n in POINTS},
    ("mmdetection", "now"): {f"roi_head.mask_head.{n}" for n in MM}
    | {f"roi_head.point_head.fcs.{i}.conv" for i in range(3)} | {"roi_head.point_head.fc_logits"},
}  # fmt: skip


@pytest.mark.parametrize(("framework", "naming"), LAYERS)
def test_weights_of_both_frameworks_go_in_and_out(framework, naming):
    """Their point heads are convolutions over points. MMDetection's coarse head has nothing that reduces channels."""
    wide = {} if framework == "detectron2" else {"mask_head": HEADS["mask_head"] | {"conv_width": 32}}
    state = tiny_model(roi_head=HEADS | wide).state_dict()
    names = FRAMEWORKS[framework]
    theirs = names.export_state(state)
    in_heads = {key for key in theirs if "mask" in key or "point_head" in key}
    if naming == "now":
        assert {key.rpartition(".")[0] for key in in_heads} == LAYERS[framework, naming]
    else:
        old = {"mask_head.coarse_head.fc": "mask_coarse_head.coarse_mask_fc", "mask_head.coarse_head": "mask_coarse_head",
               "mask_head.point_head": "mask_point_head"}  # fmt: skip
        for now, before in old.items():
            theirs = {key.replace(now, before): tensor for key, tensor in theirs.items()}
        assert {key.rpartition(".")[0] for key in theirs if "mask_" in key} == LAYERS[framework, naming]
    assert {t.shape[2:] for k, t in theirs.items() if "point" in k and k.endswith("weight")} == {(1,)}
    back = names.import_state(theirs, state)
    assert back.keys() == state.keys() and all(back[key].equal(state[key]) for key in state)


def test_other_classes_take_the_rows_and_columns_of_their_names():
    """What a point's layer does with the logit of a class moves with the class."""
    before, now = ["cat", "dog", "eel"], ["ant", "eel", "cat", "bee"]
    old = tiny_model(roi_head=HEADS)
    new = tiny_model(num_classes=4, roi_head=HEADS)
    fresh = {key: tensor.clone() for key, tensor in new.state_dict().items()}
    line = init_from(new, old.state_dict(), "x.pth", before, now)
    assert "rows of the predictor moved by name for 2 of 4 classes; afresh: ant, bee" in line
    mask, source = new.roi_head.mask, old.roi_head.mask
    logits, rows = mask.head.logits.weight.view(4, 49, -1), source.head.logits.weight.view(3, 49, -1)
    assert logits[[1, 2]].equal(rows[[2, 0]]) and logits[0].equal(
        fresh["roi_head.mask.head.logits.weight"].view(4, 49, -1)[0]
    )
    layer, other = mask.point_head.layers[1].weight, source.point_head.layers[1].weight
    assert layer[:, :20].equal(other[:, :20]) and layer[:, [21, 22]].equal(other[:, [22, 20]])
    last, other = mask.point_head.predictor, source.point_head.predictor
    assert last.weight[[1, 2]][:, [21, 22]].equal(other.weight[[2, 0]][:, [22, 20]]) and last.bias[1] == other.bias[2]
    assert last.weight[0].equal(fresh["roi_head.mask.point_head.predictor.weight"][0])
    plain, other = (tiny_model(num_classes=n, roi_head={"mask_head": {"width": 8}}) for n in (4, 3))
    init_from(plain, other.state_dict(), "x.pth", before, now)
    last, rows = (one.roi_head.mask.head.predictor.weight for one in (plain, other))
    assert last[[1, 2]].equal(rows[[2, 0]])
