"""Anchors, boxes, assigner, RoIAlign, suppression and losses give the recorded results of three references."""

import functools

import pytest
import torch
from helpers.golden_rules import assert_near, golden
from helpers.tiny import grouped
from torch import Tensor, nn

from detector.modeling.anchors import AnchorGenerator, cell_anchors, grid_anchors
from detector.modeling.boxes import box_iou, clip_boxes, decode, encode
from detector.modeling.layers import balanced_l1
from detector.modeling.levels import fpn_level
from detector.modeling.matching import IGNORE, NEGATIVE, POSITIVE, Matching
from detector.modeling.nms import nms, soft_nms
from detector.modeling.roi_heads.pool import RoIPool
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.modeling.roi_heads.stage import Regions
from detector.modeling.rpn import RPN
from detector.modeling.rpn_loss import AnchorSample
from detector.modeling.sampling import Sample
from detector.structures import Batch, Proposals, Target


@pytest.mark.parametrize("name", ["d2_two_levels_offset_0", "d2_two_levels_offset_0.5", "d2_15_anchors"])
def test_anchors_detectron2(name):
    record = golden("functions")["anchors"][name]
    # d2_15_anchors is noted as offset 0.0, yet its first square anchor is centred on (8, 8), half the stride
    offset = 0.5 if name == "d2_15_anchors" else record["offset"]
    for i, (size, stride) in enumerate(zip(record["feature_sizes"], record["strides"])):
        cell = cell_anchors(record["sizes"][i], record["ratios"])
        if "cell" in record:
            assert_near(cell, record["cell"][i])
        assert_near(grid_anchors(cell, *size, (stride, stride), offset), record["anchors"][i])


@pytest.mark.parametrize("name", ["mm_two_levels", "mm_15_anchors"])
def test_anchors_mmdetection(name):
    """Sizes are scales times the stride; the centre of cell 0 is pixel 0."""
    record = golden("functions")["anchors"][name]
    sizes = [[scale * stride for scale in record["scales"]] for stride in record["strides"]]
    generator = AnchorGenerator(record["strides"], sizes, record["ratios"], ratio_major=True)
    for level, expected in zip(generator(maps(record), (0, 0)), record["anchors"], strict=True):
        assert_near(level, expected)


@pytest.mark.parametrize("name", ["tv_image_24x32", "tv_image_800x1088", "tv_15_anchors"])
def test_anchors_torchvision(name):
    """Rounded, and the strides are those of the padded image: 61 and 64 pixels in the larger one."""
    record = golden("functions")["anchors"][name]
    generator = AnchorGenerator(
        [0] * len(record["sizes"]), record["sizes"], record["ratios"],
        rounded=True, ratio_major=True, strides_from_image=True,
    )  # fmt: skip
    levels = generator(maps(record), tuple(record["image"]))
    anchors = torch.cat(levels)
    if record["anchors"] is not None:
        assert_near(anchors, record["anchors"])
    if "count" in record:
        assert len(anchors) == record["count"]
        assert_near(anchors[:6], record["first6"])
        assert_near(anchors[-6:], record["last6"])
        assert_near(levels[1][:9], record["at_level1_start"])


def maps(record: dict) -> list[Tensor]:
    return [torch.zeros(1, 1, *size) for size in record["feature_sizes"]]


def test_cells_torchvision():
    for size, expected in zip((32, 64, 128, 256, 512), golden("functions")["anchors"]["tv_cells"], strict=True):
        assert_near(cell_anchors([size], [0.5, 1, 2], rounded=True, ratio_major=True), expected)


CODERS = {  # name: (weights, deltas, clamped at both sides)
    "d2_weights_1": ((1, 1, 1, 1), "rpn_deltas", False),
    "tv_weights_1": ((1, 1, 1, 1), "rpn_deltas", False),
    "mm_stds_1": ((1, 1, 1, 1), "rpn_deltas", True),
    "d2_weights_10_10_5_5": ((10, 10, 5, 5), "roi_deltas", False),
    "tv_weights_10_10_5_5": ((10, 10, 5, 5), "roi_deltas", False),
    "mm_stds_.1_.1_.2_.2": ((10, 10, 5, 5), "roi_deltas", True),
    "mm_stds_.033_.033_.067_.067": ((1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067), "roi_deltas", True),
}


@pytest.mark.parametrize("name", CODERS)
def test_box_coder(name):
    file, (weights, deltas, clamp_both) = golden("functions")["box_coder"], CODERS[name]
    source, target = torch.tensor(file["source"]), torch.tensor(file["target"])
    assert_near(encode(source, target, weights), file[name]["encode"])
    assert_near(box_iou(source, target), file["iou_source_target"])
    boxes = decode(torch.tensor(file[deltas], dtype=torch.float32), source, weights, clamp_both)
    assert_near(boxes, file[name]["decode"])
    for key in file[name]:
        if key.startswith("decode_clipped_to_"):
            height, width = (int(side) for side in key.rpartition("_")[2].split("x"))
            assert_near(clip_boxes(boxes, (height, width)), file[name][key])


def test_levels():
    """Also one float32 below 112, 224, 448, which every reference leaves on the upper level."""
    record = golden("functions")["levels"]
    side = torch.tensor(record["side"])
    boxes = torch.stack([torch.full_like(side, 3), torch.full_like(side, 5), 3 + side, 5 + side], dim=1)
    for reference, rounding in (("d2", "detectron2"), ("tv", "torchvision"), ("mm", "mmdetection")):
        assert (fpn_level(boxes, 2, 5, rounding=rounding) - 2).tolist() == record[reference]


RPN_RULE = dict(pos_iou=0.7, neg_iou=0.3)
ROI_RULE = dict(pos_iou=0.5, neg_iou=0.5)
MATCHING = ["random", "untouched_gt_and_weak_gt", "ties_and_thresholds", "exact_thresholds"]


def assigner_record(name: str) -> tuple[dict, Tensor]:
    record = next(r for r in golden("functions")["assigners"] if r["name"] == name)
    return record, torch.tensor(record["iou"])


def verdict(iou: Tensor, **rule) -> list[int]:
    """One number for each candidate: the object's index, -1 negative, -2 ignored."""
    label, gt_index = Matching(**rule).assign([iou], iou.shape[1], iou.device)
    return torch.where(label == POSITIVE, gt_index, torch.where(label == NEGATIVE, -1, -2)).tolist()


def of_detectron2(record: dict) -> list[int]:
    verdict_of = {POSITIVE: lambda match: match, NEGATIVE: lambda _: -1, IGNORE: lambda _: -2}
    return [verdict_of[label](match) for match, label in zip(record["match"], record["label"])]


def of_mmdetection(record: dict) -> list[int]:
    return [{0: -1, -1: -2}.get(number, number - 1) for number in record["gt_inds"]]


@pytest.mark.parametrize("name", MATCHING)
def test_roi_and_rpn_assigners(name):
    record, iou = assigner_record(name)
    found = verdict(iou, **ROI_RULE)
    assert found == of_detectron2(record["d2_roi"]) == record["tv_roi"]["match"] == of_mmdetection(record["mm_roi_0.5"])
    # A forced candidate keeps its own best object in Detectron2 and torchvision, not in mmdetection.
    record, iou = assigner_record(name)
    promoter = dict(RPN_RULE, low_quality="force_gt")
    assert verdict(iou, **promoter, min_pos_iou=0.3) == of_mmdetection(record["mm_rpn"])
    if iou.any(dim=1).all():  # else see the next test
        own = verdict(iou, **RPN_RULE, low_quality="keep_best_gt")
        assert own == of_detectron2(record["d2_rpn"]) == record["tv_rpn"]["match"]
        assert verdict(iou, **promoter) == of_mmdetection(record["mm_low_quality_min_0"])


def test_an_object_that_nothing_touches_forces_nothing():
    """Our departure. In the references its row of zeros makes every candidate positive that it does not touch: all."""
    record, iou = assigner_record("untouched_gt_and_weak_gt")
    touched = torch.where(iou.any(dim=1))[0].tolist()
    assert len(touched) == len(iou) - 1
    everything = iou.argmax(dim=0).tolist()
    assert of_detectron2(record["d2_rpn"]) == record["tv_rpn"]["match"] == everything
    forced = {i: g for g, row in enumerate(iou.tolist()) for i, value in enumerate(row) if value == max(row)}
    assert of_mmdetection(record["mm_low_quality_min_0"]) == [forced[i] for i in range(iou.shape[1])]
    for low_quality in ("keep_best_gt", "force_gt"):
        without = [touched[i] if i >= 0 else i for i in verdict(iou[touched], **RPN_RULE, low_quality=low_quality)]
        assert verdict(iou, **RPN_RULE, low_quality=low_quality) == without
        assert {-1, -2} < set(without)


def pool(samples: int, aligned: bool) -> tuple[RoIPool, Tensor, Tensor, dict]:
    record = golden("functions")["roi_align"]
    rois = torch.tensor([[0.0, *roi] for roi in record["rois"]])
    stride = int(1 / record["spatial_scale"])
    settings = dict(levels=1, size=record["output"], samples=samples, aligned=aligned)
    x = torch.tensor(record["map"])
    return RoIPool([x.shape[1]], [stride], **settings), x, rois, record


@pytest.mark.parametrize("samples", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align(samples, aligned):
    module, x, rois, record = pool(samples, aligned)
    assert_near(module([x], rois), record["results"][f"aligned_{aligned}_sampling_{samples}"]["values"])


def test_roi_align_gradient():
    module, x, rois, record = pool(2, True)
    module([x.requires_grad_()], rois).square().sum().backward()
    assert_near(x.grad, record["grad_of_sum_of_squares_aligned_True_sampling_2"])


@pytest.mark.parametrize("iou", ["0.3", "0.5", "0.7"])
def test_nms(iou):
    """Of equal boxes the lower index stays, as in torchvision and Detectron2; mmcv's sort is not stable."""
    record = golden("functions")["nms"]
    lowest = lowest_of_equals(record)
    boxes, scores, classes = (torch.tensor(record[key]) for key in ("boxes", "scores", "classes"))
    kept = record["kept"]
    of_each_class = nms(boxes, scores, float(iou), classes).tolist()
    assert of_each_class == kept[f"batched_{iou}"] == kept[f"d2_batched_{iou}"]
    of_all = nms(boxes, scores, float(iou)).tolist()
    assert of_all == kept[f"nms_{iou}"]
    for found, theirs in [(of_each_class, kept[f"mm_batched_{iou}"]), (of_all, kept[f"mm_nms_{iou}"])]:
        assert {lowest[i] for i in theirs} == set(found)


def lowest_of_equals(record: dict) -> list[int]:
    """By index: the lowest index with the same box, score and class."""
    rows = list(zip(record["boxes"], record["scores"], record["classes"]))
    assert len({rows.index(row) for row in rows}) < len(rows)
    return [rows.index(row) for row in rows]


SOFT = [  # kind, IoU, least score, classes matter, record
    ("linear", 0.3, 0.001, False, "linear_iou_0.3_sigma_0.5_min_0.001"),
    ("linear", 0.3, 0.05, False, "linear_iou_0.3_sigma_0.5_min_0.05"),
    ("gaussian", 0.3, 0.001, False, "gaussian_iou_0.3_sigma_0.5_min_0.001"),
    ("gaussian", 0.3, 0.05, False, "gaussian_iou_0.3_sigma_0.5_min_0.05"),
    ("linear", 0.5, 0.05, True, "batched_linear_iou_0.5_min_0.05"),
]


@pytest.mark.parametrize(("kind", "iou", "min_score", "by_class", "name"), SOFT, ids=[row[-1] for row in SOFT])
def test_soft_nms(kind, iou, min_score, by_class, name):
    """mmcv takes either of equal boxes first."""
    record = golden("functions")["nms"]
    lowest = lowest_of_equals(record)
    boxes, scores, classes = (torch.tensor(record[key]) for key in ("boxes", "scores", "classes"))
    group = classes if by_class else torch.zeros_like(classes)
    index, score, valid = soft_nms(boxes, scores, group, kind=kind, iou=iou, min_score=min_score, limit=1000)
    index, score = index[valid], score[valid]
    expected = record["soft"][name]
    assert [lowest[i] for i in index.tolist()] == [lowest[i] for i in expected["indices"]]
    assert_near(score, expected["scores"])


class GivenAnchors(RPN):
    """An RPN that takes labels as given instead of assigning and sampling them."""

    def __init__(self, labels: Tensor, **settings):
        super().__init__([4], AnchorGenerator([4], [[32]]), **grouped(RPN, **settings))
        self.labels = labels

    def sample(self, anchors, size, target):
        chosen = torch.cat([torch.where(self.labels == label)[0] for label in (POSITIVE, NEGATIVE)])
        positives = int((self.labels == POSITIVE).sum())
        return AnchorSample(Sample(chosen, self.labels[chosen], positives), target.boxes[chosen[:positives]])


def rpn_losses(record: dict, **settings) -> tuple[Tensor, Tensor]:
    rows = {key: torch.tensor(record[key]) for key in ("anchors", "matched_gt", "logits", "deltas", "labels")}
    target = Target(rows["matched_gt"], torch.zeros(len(rows["matched_gt"]), dtype=torch.long))
    rpn = GivenAnchors(rows["labels"], **settings)
    samples = [rpn.sample(rows["anchors"], (8, 8), target)]
    count = rpn.loss.count(samples, rpn.sampling.batch_per_image, training=True)
    chosen = samples[0].chosen.rows
    return rpn.loss([rows["logits"][chosen]], [rows["deltas"][chosen]], rows["anchors"], samples, rpn.coder, count)


MM, D2 = dict(normalizer="num_sampled_min1"), dict(batch_per_image=256, normalizer="batch_size")
D2_NAME = "d2_smooth_l1_beta_{}_batch_size_256/loss_rpn_{}"
RPN_LOSSES = [  # settings, records of the objectness and the box loss; Detectron2 divides by the 256 that it wanted to sample
    (dict(beta=0.0, **MM), "mm_loss_rpn_cls", "mm_loss_rpn_bbox_l1"),
    (dict(beta=1 / 9, **MM), "mm_loss_rpn_cls", "mm_loss_rpn_bbox_smooth_l1_1_9"),
    (dict(beta=1.0, **MM), "mm_loss_rpn_cls", "mm_loss_rpn_bbox_smooth_l1_1"),
    (dict(beta=1 / 9), "tv/loss_objectness", "tv/loss_rpn_box_reg"),
    (dict(beta=0.0, **D2), D2_NAME.format("0", "cls"), D2_NAME.format("0", "loc")),
    (dict(beta=1 / 9, **D2), D2_NAME.format("1_9", "cls"), D2_NAME.format("1_9", "loc")),
]


@pytest.mark.parametrize(("settings", "objectness", "box"), RPN_LOSSES)
def test_rpn_loss(settings, objectness, box):
    record = golden("functions")["rpn_loss"]
    for found, name in zip(rpn_losses(record, **settings), (objectness, box)):
        assert_near(found, functools.reduce(lambda section, key: section[key], name.split("/"), record))


def test_balanced_l1_of_the_rows_of_the_rpn():
    """An RPN has no such option here, as no configuration wants it."""
    record = golden("functions")["rpn_loss"]
    rows = {key: torch.tensor(record[key]) for key in ("anchors", "matched_gt", "deltas", "labels")}
    positive, sampled = rows["labels"] == POSITIVE, (rows["labels"] >= 0).sum()
    goal = encode(rows["anchors"][positive], rows["matched_gt"][positive])
    assert_near(balanced_l1(rows["deltas"][positive], goal, 1.0) / sampled, record["mm_loss_rpn_bbox_balanced_l1"])


class GivenRegions(RoIHead):
    """A head that takes sampled regions and outputs as given. `record`: the rows of functions.json."""

    def __init__(self, record: dict, **settings):
        box_head = nn.Identity()
        box_head.width = 1
        classes = len(record["logits"][0]) - 1
        super().__init__(RoIPool([1], [4], levels=1), box_head, classes, **grouped(RoIHead, **settings))
        self.rows = {k: torch.tensor(record[k]) for k in ("proposals", "gt_boxes", "gt_classes", "logits", "deltas")}

        self.stage.sample = self.sample
        self.pool.forward = lambda p, rois: rois
        self.stage.forward = lambda rois: (self.rows["logits"], self.rows["deltas"].unflatten(1, (-1, 4)))

    def sample(self, boxes, targets):
        labels = self.rows["gt_classes"]
        return [Regions(self.rows["proposals"], labels, torch.arange(len(labels)), torch.zeros_like(labels).bool())]


ROI_LOSSES = [  # settings, record, name of the box loss
    (dict(beta=0.0), "d2_smooth_l1_beta_0", "loss_box_reg"),
    (dict(beta=1.0), "d2_smooth_l1_beta_1", "loss_box_reg"),
    (dict(beta=1 / 9), "tv", "loss_box_reg"),
    (dict(beta=0.0), "mm_l1", "loss_bbox"),
    (dict(beta=1.0), "mm_smooth_l1_1", "loss_bbox"),
    (dict(beta=1.0, box_loss="balanced_l1"), "mm_balanced_l1", "loss_bbox"),
]


@pytest.mark.parametrize(("settings", "name", "box_name"), ROI_LOSSES)
def test_roi_loss(settings, name, box_name):
    record = golden("functions")["roi_loss"]
    head = GivenRegions(record, **settings)
    proposals = Proposals(torch.zeros(0, 4), torch.zeros(0))
    target = Target(head.rows["gt_boxes"], head.rows["gt_classes"])
    losses = head.losses([], [proposals], Batch(torch.zeros(1, 3, 8, 8), [(8, 8)]), [target])
    assert_near(losses["roi_class"], record[name]["loss_classifier" if name == "tv" else "loss_cls"])
    assert_near(losses["roi_box"], record[name][box_name])
