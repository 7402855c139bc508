"""Cascade R-CNN: what passes from stage to stage, the two ways of learning and of scoring, gradients, sizes."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.tiny import CLASSES, batch_of, gradients, grouped, picture, proposals, target, tiny_model, to_target
from torch import Tensor, nn

from detector.modeling.boxes import box_iou
from detector.modeling.roi_heads.box_head import TwoFC
from detector.modeling.roi_heads.cascade import Cascade, refine
from detector.modeling.roi_heads.pool import RoIPool
from detector.modeling.roi_heads.stage import Stage
from detector.structures import Proposals

SIZE = (60, 90)  # (h, w) of an image, padded to 64 x 96
BATCH = batch_of(SIZE)
MMDETECTION = dict(resample=True, average="logits", scale_gradient=False, stage_weights=(1, 0.5, 0.25), beta=1.0)


def make_cascade(stages: int = 3, **settings) -> Cascade:
    per_stage = dict(ious=[0.5, 0.6, 0.7][:stages], box_weights=[(10, 10, 5, 5)] * stages, stage_weights=[1.0] * stages)
    pool = RoIPool([4], [8], levels=1)
    return Cascade(pool, lambda: TwoFC(4, 7, width=8), CLASSES, **grouped(Cascade, **(per_stage | settings)))


def level(images: int = 1) -> list[Tensor]:
    return [torch.randn(images, 4, 8, 12, requires_grad=True)]


def steer(cascade: Cascade, deltas: list[list[float]], logits: list[list[float]] | None = None) -> Cascade:
    """Every stage moves all its regions alike, by these deltas (before box weights), and gives them these logits."""
    for i, stage in enumerate(cascade.stages):
        for layer in (stage.box_delta, stage.class_score):
            nn.init.zeros_(layer.weight)
        stage.box_delta.bias.data = torch.tensor(deltas[i]) * torch.tensor(stage.coder.weights)
        if logits:
            stage.class_score.bias.data = torch.tensor(logits[i])
    return cascade


RIGHT, DOWN, STILL = [0.5, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0], [0.0] * 4  # by half a side
BOX = torch.tensor([[10.0, 10, 30, 30]])


def test_every_stage_starts_from_the_clipped_boxes_of_the_one_before():
    for deltas, boxes in (([RIGHT, DOWN, STILL], [[20, 10, 40, 30], [20, 20, 40, 40]]),
                          ([[4.0, 0, 0, 0], STILL, STILL], [[90, 10, 90, 30]] * 2)):  # fmt: skip
        stages = steer(make_cascade(), deltas).run(level(), [BOX], [SIZE])
        assert [found[0].tolist() for found, _, _ in stages] == [[[10, 10, 30, 30]], *([box] for box in boxes)]


def test_the_last_stage_gives_the_boxes():
    cascade = steer(make_cascade(), [RIGHT, RIGHT, DOWN], [[2.0, 0, 0, 0]] * 3)
    (found,) = cascade.detect(level(), [Proposals(BOX, torch.zeros(1))], BATCH)
    assert {tuple(box) for box in found.boxes.tolist()} == {(30, 20, 50, 40)}


def test_a_box_that_would_be_no_number_stays_as_it_was():
    stage = make_cascade().stages[0]
    deltas = torch.tensor([[[math.nan, 0, 0, 0]], [[5.0, 0, 0, 0]], [[0, math.inf, 0, 0]]])
    first, second = refine(stage, deltas, [BOX, BOX.repeat(2, 1)], [SIZE, SIZE])
    assert first.tolist() == [[10, 10, 30, 30]]
    assert second.tolist() == [[20, 10, 40, 30], [10, 10, 30, 30]]


LOGITS = [[4.0, 0, 0, 0], [0.0, 0, 0, 0], [0.0, 0, 2.0, 0]]


@pytest.mark.parametrize("average", ["scores", "logits"])
def test_scores_are_the_mean_of_the_softmax_or_the_softmax_of_the_mean(average):
    """The two differ, so a test of one would not pass for the other."""
    cascade = steer(make_cascade(average=average, score_threshold=0.0), [STILL] * 3, LOGITS)
    (found,) = cascade.detect(level(), [Proposals(BOX, torch.zeros(1))], BATCH)
    table = torch.tensor(LOGITS)
    means = {"scores": table.softmax(dim=1).mean(dim=0), "logits": table.mean(dim=0).softmax(dim=0)}
    assert not torch.allclose(means["scores"], means["logits"], atol=0.05)
    by_label = torch.zeros(CLASSES).index_copy(0, found.labels, found.scores)
    torch.testing.assert_close(by_label, means[average][:-1])


def test_any_number_of_stages_and_no_proposals():
    for stages in (1, 2, 3):
        cascade = make_cascade(stages)
        (found,) = cascade.detect(level(), [proposals()], BATCH)
        assert found.boxes.shape == (0, 4) and found.labels.dtype == torch.int64
        losses = cascade.losses(level(), [Proposals(BOX, torch.zeros(1))], BATCH, [OBJECTS])
        assert list(losses) == [f"roi_{kind}_{i}" for i in range(1, stages + 1) for kind in ("class", "box")]
        assert len(cascade.run(level(), [BOX], [SIZE])) == stages


OBJECTS = to_target((10, 10, 40, 40, 1), (50, 20, 80, 55, 2))
NEAR = torch.tensor([[12.0, 8, 40, 40], [52, 25, 80, 55], [0, 0, 20, 20], [60, 0, 90, 20], [14, 4, 44, 34]])


class Recorded(Stage):
    """A stage that notes what it was given to learn from."""

    def losses(self, logits, deltas, regions, targets):
        (self.regions,) = regions
        return super().losses(logits, deltas, regions, targets)


def regions_of_stages(cascade: Cascade, boxes: Tensor = NEAR) -> list:
    for stage in cascade.stages:
        stage.__class__ = Recorded
    cascade.losses(level(), [Proposals(boxes, torch.zeros(len(boxes)))], BATCH, [OBJECTS])
    return [stage.regions for stage in cascade.stages]


def rounded(boxes: Tensor, labels: Tensor) -> list[tuple]:
    """Boxes with their labels, whatever their order."""
    rows = torch.cat([boxes, labels[:, None].float()], dim=1)
    return sorted(tuple(round(x, 3) for x in row) for row in rows.tolist())


def test_later_stages_label_all_refined_boxes_by_their_own_iou_as_in_detectron2():
    first, second, third = regions_of_stages(steer(make_cascade(), [[0.1, 0, 0, 0], STILL, STILL]))
    assert len(first.labels) == len(NEAR) + 2  # with the objects, once
    shift = 0.1 * (first.boxes[:, 2] - first.boxes[:, 0])
    moved = first.boxes + shift[:, None] * torch.tensor([1.0, 0, 1, 0])
    moved[:, 2].clamp_(max=90)
    for regions, iou in ((second, 0.6), (third, 0.7)):
        overlap = box_iou(OBJECTS.boxes, moved)
        labels = [OBJECTS.labels[o.argmax()].item() if o.max() >= iou else CLASSES for o in overlap.T]
        assert rounded(regions.boxes, regions.labels) == rounded(moved, torch.tensor(labels))
    assert (second.labels < CLASSES).sum() > (third.labels < CLASSES).sum() > 0


def test_later_stages_draw_again_with_the_objects_themselves_as_in_mmdetection():
    first, second, third = regions_of_stages(steer(make_cascade(**MMDETECTION), [[0.1, 0, 0, 0], STILL, STILL]))
    for regions in (second, third):
        assert len(regions.labels) == len(first.labels)  # refined objects went, true ones joined
        boxes = [tuple(box) for box in regions.boxes.tolist()]
        assert all(tuple(box) in boxes for box in OBJECTS.boxes.tolist())
        assert regions.is_gt.sum() == 2
    background = torch.tensor([[0.0, 0, 9, 9]]).repeat(8, 1)
    few = regions_of_stages(make_cascade(batch_per_image=4, **MMDETECTION), torch.cat([NEAR, background]))
    assert [len(regions.labels) for regions in few] == [4, 4, 4]
    assert [(regions.labels < CLASSES).sum().item() for regions in few] == [1, 1, 1]  # a quarter of them


def test_a_box_without_area_is_not_passed_on():
    first, second, _ = regions_of_stages(steer(make_cascade(), [[9.0, 0, 0, 0], STILL, STILL]))
    assert len(first.labels) > 0 and len(second.labels) == 0  # all went over the right border


def test_stage_weights_scale_the_losses():
    losses = {}
    for weights in ((1, 1, 1), (1, 0.5, 0.25)):
        torch.manual_seed(1)
        cascade = make_cascade(stage_weights=weights)
        found = cascade.losses(level(), [Proposals(NEAR, torch.zeros(len(NEAR)))], BATCH, [OBJECTS])
        losses[weights] = [loss.item() for loss in found.values()]
    for plain, weighted, weight in zip(*losses.values(), [1, 1, 0.5, 0.5, 0.25, 0.25]):
        assert weighted == pytest.approx(weight * plain) and plain > 0


def first_gradients(cascade: Cascade) -> tuple[Tensor, Tensor]:
    """Of the sum of losses: that of the level, and of the first layer of the first box head."""
    torch.manual_seed(1)
    p = level()
    sum(cascade.losses(p, [Proposals(NEAR, torch.zeros(len(NEAR)))], BATCH, [OBJECTS]).values()).backward()
    return p[0].grad, cascade.stages[0].box_head.fc1.weight.grad


def test_the_pyramid_gets_a_third_of_the_gradient_and_the_heads_all_of_theirs():
    full = make_cascade(scale_gradient=False)
    scaled = copy.deepcopy(full)
    scaled.scale_gradient = True
    (level_full, head_full), (level_scaled, head_scaled) = first_gradients(full), first_gradients(scaled)
    assert level_full.abs().sum() > 0
    torch.testing.assert_close(level_scaled, level_full / 3)
    torch.testing.assert_close(head_scaled, head_full)


def test_refined_boxes_carry_no_gradient():
    assert not regions_of_stages(make_cascade(2))[1].boxes.requires_grad


STAGES = {"type": "cascade", "box_head": {"type": "two_fc", "width": 32}}


@pytest.mark.parametrize("rows", [[(10, 10, 40, 50, 0), (30, 20, 90, 60, 2)], []], ids=["objects", "no objects"])
def test_every_parameter_of_mmdetections_form_has_a_gradient(rows):
    model = tiny_model(roi_head=STAGES | MMDETECTION)
    gradients(model, [picture(64, 96), picture(60, 80, 1)], [target(*rows), target()])


def test_an_image_does_not_see_its_neighbour():
    model = tiny_model(roi_head=STAGES | {"score_threshold": 0.01}).eval()
    images = [picture(64, 96), picture(64, 96, 1)]
    together, alone = model(images), model(images[1:])
    assert len(alone[0]) > 0
    torch.testing.assert_close(together[1].scores, alone[0].scores, atol=1e-4, rtol=1e-4)


def test_every_stage_needs_its_numbers():
    nothing = {"ious": [], "box_weights": [], "stage_weights": []}
    for settings in ({"ious": [0.5, 0.6]}, {"stage_weights": [1.0]}, nothing):
        with pytest.raises(ValueError, match="one of each for every stage"):
            make_cascade(**settings)
