"""The second stage: selection by hand and against a slow oracle, losses against a loop, NaN, empties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from helpers.tiny import batch_of, grouped, proposals, to_target

from detector.modeling.boxes import box_iou, decode, encode
from detector.modeling.padded import Padded
from detector.modeling.roi_heads.box_head import TwoFC
from detector.modeling.roi_heads.pool import RoIPool
from detector.modeling.roi_heads.roi_head import RoIHead, to_rois
from detector.structures import Detections, Proposals, Target

Rows = torch.Tensor | list[list[float]]
CLASSES = 3
SIZE = (60, 90)  # (h, w) of an image, padded to 64 x 96
CHANNELS, STRIDES = [4] * 4, [4, 8, 16, 32]


def make_head(**settings) -> RoIHead:
    settings = {"num_classes": CLASSES} | settings
    return RoIHead(RoIPool(CHANNELS, STRIDES), TwoFC(4, 7, width=8), **grouped(RoIHead, **settings))


def pyramid(images: int = 1) -> list[torch.Tensor]:
    return [torch.randn(images, 4, 64 // s, 96 // s, requires_grad=True) for s in STRIDES]


def random_boxes(count: int) -> torch.Tensor:
    low = torch.rand(count, 2) * torch.tensor([70.0, 40])
    return torch.cat([low, low + 5 + 25 * torch.rand(count, 2)], dim=1)


def detect(boxes: Rows, scores: Rows, deltas: torch.Tensor | None = None, **settings) -> Detections:
    """What is detected if the head gives these scores (R, K+1) and deltas (R, K or 1, 4), 0 if left out."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    scores = torch.as_tensor(scores, dtype=torch.float32)
    deltas = torch.zeros(len(boxes), scores.shape[1] - 1, 4) if deltas is None else deltas
    head = make_head(num_classes=scores.shape[1] - 1, **settings)
    return head.postprocess(scores.log(), deltas, given(boxes), [SIZE])[0]


def given(*boxes: torch.Tensor) -> Padded[Proposals]:
    """These boxes of each image as its proposals."""
    return Padded.of([Proposals(b, torch.zeros(len(b))) for b in boxes])


A, B, C = [0, 0, 20, 20], [2, 0, 22, 20], [50, 30, 80, 50]  # A and B overlap by 18 / 22


# --- detections


def test_rois_carry_the_number_of_their_image():
    rois = to_rois([torch.tensor([A, B]).float(), torch.zeros(0, 4), torch.tensor([C]).float()])
    assert rois.tolist() == [[0, *A], [0, *B], [2, *C]]


def test_the_last_column_is_background():
    found = detect([A, C], [[0.1, 0.0, 0.9], [0.2, 0.7, 0.1]])
    assert found.labels.tolist() == [1, 0, 0]
    assert found.boxes.tolist() == [C, C, A]
    assert found.scores.tolist() == pytest.approx([0.7, 0.2, 0.1])  # best first; one region, two classes


def test_a_score_must_exceed_the_threshold():
    for threshold, count in ((0.25, 1), (0.2499, 2)):
        assert len(detect([A, C], [[0.25, 0.75], [0.5, 0.5]], score_threshold=threshold)) == count


def test_boxes_of_one_class_suppress_each_other_and_those_of_two_do_not():
    assert detect([A, B], [[0.6, 0.0, 0.4], [0.9, 0.0, 0.1]]).boxes.tolist() == [B]
    assert detect([A, B], [[0.6, 0.0, 0.4], [0.0, 0.9, 0.1]]).boxes.tolist() == [B, A]
    assert len(detect([A, B], [[0.6, 0.0, 0.4], [0.9, 0.0, 0.1]], nms_iou=0.9)) == 2


def test_every_class_moves_the_box_in_its_own_way_unless_the_head_is_class_agnostic():
    deltas = torch.tensor([[[0.0, 0, 0, 0], [5, 0, 0, 0]]])  # by half a width, since box weights are 10, 10, 5, 5
    own = detect([A], [[0.4, 0.6, 0.0]], deltas)
    assert own.boxes.tolist() == [[10, 0, 30, 20], [0, 0, 20, 20]]
    shared = detect([A], [[0.4, 0.6, 0.0]], deltas[:, 1:], class_agnostic=True)
    assert shared.boxes.tolist() == [[10, 0, 30, 20]] * 2


def test_boxes_are_clipped_to_the_image_and_what_is_left_must_have_a_side():
    deltas = torch.zeros(3, 1, 4)
    deltas[1, 0, 1] = -20 * 10  # up and away
    found = detect([[-10, -10, 100, 80], A, [0, 0, 5, 5]], [[0.9, 0.1]] * 3, deltas, nms_iou=1.0)
    assert found.boxes.tolist() == [[0, 0, 90, 60], [0, 0, 5, 5]]
    assert len(detect([A, [0, 0, 5, 5]], [[0.9, 0.1]] * 2, min_size=10.0)) == 1


def slow_detections(boxes, scores, deltas, threshold, nms_iou, limit) -> list[tuple[float, int, list[float]]]:
    """One region and one class at a time, then one suppression after the other."""
    candidates = []
    for r in range(len(boxes)):
        for k in range(scores.shape[1] - 1):
            x1, y1, x2, y2 = decode(deltas[r, k][None], boxes[r][None], (10, 10, 5, 5))[0].tolist()
            box = [min(max(x1, 0), 90), min(max(y1, 0), 60), min(max(x2, 0), 90), min(max(y2, 0), 60)]
            if scores[r, k] > threshold and box[2] > box[0] and box[3] > box[1]:
                candidates.append((scores[r, k].item(), k, box))
    kept = []
    for score, k, box in sorted(candidates, reverse=True):
        rivals = torch.tensor([b for _, other, b in kept if other == k]).reshape(-1, 4)
        if not (box_iou(torch.tensor([box]), rivals) > nms_iou).any():
            kept.append((score, k, box))
    return kept[:limit]


def test_detections_equal_a_slow_oracle():
    boxes, scores, deltas = random_boxes(60), torch.randn(60, 4).mul(2).softmax(dim=1), torch.randn(60, 3, 4)
    for limit in (1000, 12):
        found = detect(boxes, scores, deltas, score_threshold=0.2, nms_iou=0.4, max_detections=limit)
        expected = slow_detections(boxes, scores, deltas, 0.2, 0.4, limit)
        assert len(found) == len(expected) > 10
        assert found.labels.tolist() == [k for _, k, _ in expected]
        torch.testing.assert_close(found.scores, torch.tensor([score for score, _, _ in expected]))
        torch.testing.assert_close(found.boxes, torch.tensor([box for _, _, box in expected]), atol=1e-4, rtol=1e-5)


def test_a_region_whose_numbers_are_bad_is_not_detected_and_does_not_hide_others():
    for value, bad in itertools.product((math.nan, math.inf, -math.inf), (0, 1)):
        scores, deltas = torch.tensor([[0.9, 0.1]] * 2), torch.zeros(2, 1, 4)
        (scores, deltas)[bad][0] = value
        assert detect([A, B], scores, deltas).boxes.tolist() == [B]


def test_images_are_told_apart():
    head = make_head(score_threshold=0.0, nms_iou=1.0)
    rows = given(torch.tensor([A, C]).float(), torch.zeros(0, 4), torch.tensor([B]).float())  # 3 images, 2 rows each
    found = head.postprocess(torch.zeros(6, 4), torch.zeros(6, 3, 4), rows, [SIZE] * 3)
    assert [len(f) for f in found] == [6, 0, 3]
    assert found[2].boxes.tolist() == [B] * 3


# --- losses


OBJECTS = to_target((10, 10, 40, 40, 1), (50, 20, 80, 55, 2))
NEAR = proposals((12, 8, 40, 40), (52, 25, 80, 55), (0, 0, 20, 20), (60, 0, 90, 20))  # two hits, two misses


def losses(head: RoIHead, regions: Proposals, objects: Target, logits, deltas) -> dict[str, float]:
    """The losses if the head gives rows of these tables, looked up by the first coordinate of each region."""
    head.pool.forward = lambda p, rois: rois
    head.stage.forward = lambda rois: (logits[rois[:, 1].long()], deltas[rois[:, 1].long()])
    return {name: loss.item() for name, loss in head.losses(pyramid(), [regions], batch_of(SIZE), [objects]).items()}


def slow_losses(regions: Proposals, objects: Target, logits, deltas, beta: float) -> tuple[float, float]:
    """Objects join the proposals; each region is looked at by itself."""
    boxes = torch.cat([regions.boxes, objects.boxes])
    iou = box_iou(objects.boxes, boxes)
    classification, box = 0.0, 0.0
    for r, x in enumerate(boxes[:, 0].long().tolist()):
        best = iou[:, r].argmax()
        hit = iou[best, r] >= 0.5
        label = objects.labels[best].item() if hit else CLASSES
        classification -= logits[x].log_softmax(dim=0)[label].item()
        if hit:
            goal = encode(boxes[r][None], objects.boxes[best][None], (10, 10, 5, 5))[0]
            for d in (deltas[x, label if deltas.shape[1] > 1 else 0] - goal).abs().tolist():
                box += 0.5 * d * d / beta if d < beta else d - 0.5 * beta
    return classification / len(boxes), box / len(boxes)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_losses_equal_a_loop(beta, agnostic):
    logits, deltas = torch.randn(100, CLASSES + 1), torch.randn(100, 1 if agnostic else CLASSES, 4)
    expected = slow_losses(NEAR, OBJECTS, logits, deltas, beta)
    for weights in ((1.0, 1.0), (2.0, 0.5)):
        head = make_head(
            positive_fraction=1.0, beta=beta, class_agnostic=agnostic, class_weight=weights[0], box_weight=weights[1]
        )  # fmt: skip
        found = losses(head, NEAR, OBJECTS, logits, deltas)
        assert list(found) == ["roi_class", "roi_box"]
        assert list(found.values()) == pytest.approx([w * e for w, e in zip(weights, expected)], rel=1e-4)


def test_everything_is_learnt_without_the_objects_where_that_is_wanted():
    head = make_head(batch_per_image=2)
    (regions,) = head.stage.sample([NEAR.boxes], [OBJECTS], use_all=True)
    assert sorted(regions.boxes.tolist()) == sorted(NEAR.boxes.tolist())
    assert regions.labels.tolist().count(CLASSES) == 2 and not regions.is_gt.any()
    (drawn,) = make_head().stage.sample([NEAR.boxes], [OBJECTS])
    assert drawn[drawn.is_gt].boxes.tolist() in (OBJECTS.boxes.tolist(), OBJECTS.boxes.flip(0).tolist())


def test_the_balanced_loss_needs_a_corner():
    with pytest.raises(ValueError, match="beta"):
        make_head(box_loss="balanced_l1")


def seen(head: RoIHead, regions: list[Proposals], objects: list[Target]) -> torch.Tensor:
    """The rois (R, 5) that the head is trained on."""
    rows = []
    head.pool.forward = lambda p, rois: (rows.append(rois), rois)[1]
    head.stage.forward = lambda rois: (torch.zeros(len(rois), 4), torch.zeros(len(rois), 3, 4))
    head.losses(pyramid(len(regions)), regions, batch_of(*[SIZE] * len(regions)), objects)
    return rows[0]


def test_objects_are_among_the_regions_that_are_learnt_from():
    rois = seen(make_head(positive_fraction=1.0), [NEAR, proposals()], [to_target(), OBJECTS])
    assert sorted(rois[rois[:, 0] == 0][:, 1:].tolist()) == sorted(NEAR.boxes.tolist())
    assert sorted(rois[rois[:, 0] == 1][:, 1:].tolist()) == OBJECTS.boxes.tolist()


def test_so_many_regions_and_at_most_a_quarter_of_them_positive():
    many = Proposals(torch.cat([OBJECTS.boxes.repeat(50, 1), random_boxes(200) * 0.3]), torch.zeros(300))
    rois = seen(make_head(batch_per_image=64), [many], [OBJECTS])
    hits = (box_iou(OBJECTS.boxes, rois[:, 1:]).amax(dim=0) >= 0.5).sum().item()
    assert (len(rois), hits) == (64, 16)


def test_background_in_a_crowd_is_not_learnt():
    crowd = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.tensor([[0.0, 0, 35, 35]]))
    rois = seen(make_head(), [NEAR], [crowd])
    assert sorted(rois[:, 1:].tolist()) == NEAR.boxes[[1, 3]].tolist()


@pytest.mark.parametrize("objects", [OBJECTS, to_target()], ids=["objects", "no objects"])
@pytest.mark.parametrize("regions", [NEAR, proposals()], ids=["proposals", "no proposals"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_everything_has_a_gradient_whatever_there_is_to_learn(regions, objects, agnostic):
    head, p = make_head(class_agnostic=agnostic), pyramid()
    found = head.losses(p, [regions], batch_of(SIZE), [objects])
    sum(found.values()).backward()
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in [*p, *head.parameters()])
    assert (found["roi_box"] > 0) == (len(objects.labels) > 0)
    assert (found["roi_class"] > 0) == (len(objects.labels) + len(regions.boxes) > 0)


def test_fresh_weights_of_the_predictor():
    head = RoIHead(RoIPool(CHANNELS, STRIDES), TwoFC(4, 7), 80)
    layers = head.stage.class_score, head.stage.box_delta
    assert all(not layer.bias.any() for layer in layers)
    assert [layer.weight.std().item() for layer in layers] == pytest.approx([0.01, 0.001], rel=0.05)
