"""The steps of an image, from the anchors to the detections, for every architecture: they are the detector's own."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.tiny import picture, tiny_model
from torch import nn

from detector.config.config import build_detector, load_config
from detector.errors import ConfigError
from detector.insight.trace import ImageTrace, trace
from detector.modeling.boxes import box_iou
from detector.modeling.rcnn import GeneralizedRCNN
from detector.structures import Proposals

SHAPES = sorted((Path(__file__).parents[1] / "configs/shapes").glob("*.yaml"))
QUICK = {"c4", "cascade", "fpn", "keypoints", "mask_scoring", "panet_full", "rpn", "soft_nms"}
EVERY = [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in QUICK)) for path in SHAPES]


def spread(model: GeneralizedRCNN) -> GeneralizedRCNN:
    """In eval mode, with class scores and proposals that differ, so that there is something to detect without training."""
    torch.manual_seed(1)
    head = model.roi_head
    with torch.no_grad():
        for stage in getattr(head, "stages", None) or ([head.stage] if hasattr(head, "stage") else []):
            stage.class_score.weight.normal_(std=0.3)
        if not model.needs_proposals:
            model.rpn.deltas.weight.normal_(std=0.05)
    return model.eval()


def check(model: GeneralizedRCNN, found: ImageTrace) -> None:
    """What holds of any trace."""
    proposals, detections = found.proposals, found.detections
    assert len(detections) > 0 and len(found.regions) == len(detections)
    if found.anchors is not None:
        anchors = found.anchors
        became = anchors.proposal >= 0
        assert sorted(anchors.proposal[became].tolist()) == list(range(len(proposals)))
        order = anchors.proposal[became]
        torch.testing.assert_close(anchors.decoded[became], proposals.boxes[order], rtol=0, atol=1e-3)
        torch.testing.assert_close(anchors.logits[became], proposals.scores[order])
        assert (anchors.left[became]).all() and (anchors.seen[anchors.left]).all()
        for level in anchors.levels.unique():
            here = anchors.levels == level
            best = anchors.logits[here][anchors.ranks[here].argsort()]
            assert torch.equal(best, best.sort(descending=True).values)
            assert (
                anchors.ranks[here & anchors.seen] < int((here & anchors.seen).sum())
            ).all()  # the first of their level
    label = detections.labels if found.boxes.shape[1] > 1 else torch.zeros_like(detections.labels)
    torch.testing.assert_close(found.boxes[found.regions, label], detections.boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("path", EVERY)
def test_a_trace_ends_in_the_detections_of_the_model(path: Path):
    model = spread(build_detector(load_config(path, ["model.num_classes=3"])))
    image = picture(64, 96, seed=3)
    [expected] = model.detect([image])
    found = trace(model, image)
    check(model, found)
    for name, value in expected.row_fields().items():
        assert torch.equal(found.detections.row_fields()[name], value), name
    assert torch.equal(found.proposals.boxes, expected.proposals.boxes)
    for field in ("masks", "keypoints"):
        assert (getattr(found.detections, field) is None) == (getattr(expected, field) is None)
    if expected.masks is not None:
        assert torch.equal(found.detections.masks.probabilities, expected.masks.probabilities)
    stages = len(getattr(model.roi_head, "stages", [0])) if not model.reports_proposals else 0
    assert len(found.stages) == stages
    if stages:
        assert torch.equal(found.stages[0].boxes, found.proposals.boxes)
        for before, after in zip(found.stages, found.stages[1:]):
            torch.testing.assert_close(before.refined[:, 0], after.boxes)
        assert found.scores.shape == (len(found.proposals), 3) and torch.isfinite(found.scores).all()
        taken = found.scores[found.regions, found.detections.labels]
        if path.stem != "soft_nms":  # there a score may have fallen
            torch.testing.assert_close(taken, found.detections.scores)


def test_the_level_of_a_region_is_that_of_the_pool_and_none_where_all_are_read():
    one = trace(spread(tiny_model()), picture(64, 96))
    assert one.stages[0].levels.tolist() == tiny_model().roi_head.pool.level_of(one.proposals.boxes).tolist()
    assert set(one.stages[0].levels.tolist()) <= {2, 3, 4, 5}
    every = spread(tiny_model(roi_head={"pool": {"type": "all_levels"}, "box_head": {"type": "adaptive_two_fc"}}))
    assert trace(every, picture(64, 96)).stages[0].levels is None


def test_what_is_no_detection_was_below_the_threshold_suppressed_or_one_too_many():
    model = spread(tiny_model(roi_head={"selection": {"max_detections": 1000, "score_threshold": 0.2}}))
    found = trace(model, picture(64, 96, seed=4))
    taken = {(int(r), int(k)) for r, k in zip(found.regions, found.detections.labels)}
    candidates = [(int(r), int(k)) for r, k in torch.nonzero(found.scores > found.threshold)]
    assert taken < set(candidates)
    for region, label in candidates:
        rival = found.suppressed_by(region, label)
        assert (rival is None) == ((region, label) in taken)
        if rival is not None:
            better = found.detections[rival]
            assert better.labels == label and better.scores >= found.scores[region, label]
            assert box_iou(better.boxes, found.boxes_of(label)[region][None]) > found.suppression
    limited = spread(tiny_model(roi_head={"selection": {"max_detections": 1, "score_threshold": 0.2}}))
    few = trace(limited, picture(64, 96, seed=4))
    left = sorted(taken - {(int(few.regions[0]), int(few.detections.labels[0]))})
    assert len(few.detections) == 1 and all(
        few.suppressed_by(*one) is None for one in left if few.boxes_of(one[1]) is None
    )


def test_given_proposals_have_no_anchors_and_parts_of_the_users_own_are_named():
    model = spread(tiny_model())
    boxes = torch.tensor([[4.0, 4.0, 60.0, 60.0], [30.0, 10.0, 90.0, 80.0]])
    given = Proposals(boxes, torch.tensor([0.0, 1.0]))
    model.rpn = Given()
    found = trace(model, picture(64, 96), given)
    assert found.anchors is None and torch.equal(found.proposals.boxes, boxes)
    [expected] = model.detect([picture(64, 96)], [given])
    assert torch.equal(expected.boxes, found.detections.boxes)
    own = spread(tiny_model())
    own.roi_head = Own(own.roi_head)
    with pytest.raises(ConfigError, match=r"model.roi_head: Own is not of this package"):
        trace(own, picture(64, 96))
    with pytest.raises(ConfigError, match=r"model.rpn: Own is not of this package"):
        own.rpn = Own(own.rpn)
        trace(own, picture(64, 96))


class Given(nn.Module):
    needs_proposals = True

    def propose(self, p, batch):
        return list(batch.proposals)


class Own(nn.Module):
    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part


def test_an_image_without_proposals_has_an_empty_trace():
    model = spread(tiny_model())
    model.rpn.selection = replace(model.rpn.selection, min_size=1e5)
    found = trace(model, picture(64, 64))
    assert len(found.proposals) == len(found.detections) == len(found.regions) == 0 and not found.anchors.left.any()
