"""The losses of our RPN and RoI head on fixed rows are the recorded ones of three references."""

import functools

import pytest
import torch
from helpers.golden_rules import assert_near, golden
from helpers.tiny import grouped
from torch import Tensor, nn

from detector.modeling.anchors import AnchorGenerator
from detector.modeling.boxes import encode
from detector.modeling.layers import balanced_l1
from detector.modeling.matching import NEGATIVE, POSITIVE
from detector.modeling.roi_heads.pool import RoIPool
from detector.modeling.roi_heads.roi_head import RoIHead
from detector.modeling.roi_heads.stage import Regions
from detector.modeling.rpn import RPN, AnchorSample
from detector.structures import Batch, Proposals, Target


class GivenAnchors(RPN):
    """An RPN that takes labels as given instead of assigning and sampling them."""

    def __init__(self, labels: Tensor, **settings):
        super().__init__([4], AnchorGenerator([4], [[32]]), **grouped(RPN, **settings))
        self.labels = labels

    def sample(self, anchors, size, target):
        positive, negative = (torch.where(self.labels == label)[0] for label in (POSITIVE, NEGATIVE))
        return AnchorSample(positive, negative, target.boxes[positive])


def rpn_losses(record: dict, **settings) -> tuple[Tensor, Tensor]:
    rows = {key: torch.tensor(record[key]) for key in ("anchors", "matched_gt", "logits", "deltas", "labels")}
    target = Target(rows["matched_gt"], torch.zeros(12, dtype=torch.long))
    rpn = GivenAnchors(rows["labels"], **settings)
    samples = [rpn.sample(rows["anchors"], (8, 8), target)]
    count = rpn.loss.count(samples, rpn.sampling.batch_per_image, training=True)
    return rpn.loss(rows["logits"][None], rows["deltas"][None], rows["anchors"], samples, rpn.coder, count)


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
        super().__init__(RoIPool([1], [4], levels=1), box_head, 4, **grouped(RoIHead, **settings))
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
