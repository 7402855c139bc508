"""The region proposal network: row order, selection against a slow oracle, losses against a loop, NaN, empties."""

import itertools
import math

import pytest
import torch
from helpers.tiny import batch_of, grouped, to_target
from torch import nn
from torchvision.models.detection.rpn import RegionProposalNetwork

from detector.modeling.anchors import AnchorGenerator
from detector.modeling.boxes import box_iou, decode, encode
from detector.modeling.matching import NEGATIVE, POSITIVE, Matching
from detector.modeling.rpn import RPN
from detector.structures import Proposals, Target

STRIDES, SIZES = (8, 16), ((16,), (32,))
SIZE = (60, 90)  # (h, w) of an image, padded to 64 x 96


def bare_rpn(strides=STRIDES, sizes=SIZES, ratios=(1.0,), **settings) -> RPN:
    """An RPN whose input maps are its outputs: the A logits of a cell, then its 4A deltas."""
    anchors = AnchorGenerator(strides, sizes, ratios)
    a = anchors.per_cell
    rpn = RPN([5 * a] * len(strides), anchors, **grouped(RPN, convs=0, **settings))
    with torch.no_grad():
        rpn.objectness.weight.copy_(torch.eye(5 * a)[:a, :, None, None])
        rpn.deltas.weight.copy_(torch.eye(5 * a)[a:, :, None, None])
    return rpn


def random_maps(rpn: RPN, images: int = 1, padded: tuple[int, int] = (64, 96)) -> list[torch.Tensor]:
    """Logits with spread 1, deltas with spread 0.5."""
    a = rpn.anchors.per_cell
    scale = torch.tensor([1.0] * a + [0.5] * 4 * a)[:, None, None]
    return [torch.randn(images, 5 * a, padded[0] // s, padded[1] // s) * scale for s in rpn.anchors.strides]


def constant_maps(rpn: RPN, logit: float) -> list[torch.Tensor]:
    """Every anchor has this logit and stays where it is."""
    p = [torch.zeros_like(x) for x in random_maps(rpn)]
    for x in p:
        x[:, : rpn.anchors.per_cell] = logit
    return p


def slow_nms(boxes: torch.Tensor, limit: float) -> list[int]:
    """Indices that survive, of boxes that are sorted best first."""
    iou, kept = box_iou(boxes, boxes), []
    for i in range(len(boxes)):
        if all(iou[i, j] <= limit for j in kept):
            kept.append(i)
    return kept


def slow_proposals(rpn: RPN, p, size, *, pre_nms, post_nms, nms_iou) -> list[tuple[float, list[float]]]:
    """Everything is decoded, then sorted, clipped, filtered and suppressed, one level at a time."""
    found = []
    for logits, deltas, anchors in zip(*rpn.head(p), rpn.anchors(p, (64, 96)), strict=True):
        boxes = decode(deltas[0], anchors)
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, size[1])
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, size[0])
        order = sorted(range(len(anchors)), key=lambda i, s=logits[0]: -s[i])[:pre_nms]
        order = [i for i in order if boxes[i, 2] > boxes[i, 0] and boxes[i, 3] > boxes[i, 1]]
        found += [(logits[0, order[i]].item(), boxes[order[i]].tolist()) for i in slow_nms(boxes[order], nms_iou)]
    return sorted(found, reverse=True)[:post_nms]


@pytest.mark.parametrize("nms_iou", [0.3, 0.7])
def test_proposals_equal_a_slow_oracle(nms_iou):
    torch.manual_seed(2)
    for pre_nms, post_nms in ((1000, 1000), (20, 1000), (1000, 25), (1, 1)):
        rpn = bare_rpn(ratios=(0.5, 2.0), pre_nms=[1, pre_nms], post_nms=[1, post_nms], nms_iou=nms_iou)
        p = random_maps(rpn)
        (proposals,) = rpn.propose(p, batch_of(SIZE))
        expected = slow_proposals(rpn, p, SIZE, pre_nms=pre_nms, post_nms=post_nms, nms_iou=nms_iou)
        assert len(proposals.boxes) == len(expected) > 0
        torch.testing.assert_close(proposals.scores, torch.tensor([score for score, _ in expected]))
        torch.testing.assert_close(proposals.boxes, torch.tensor([box for _, box in expected]))


def test_counts_are_of_training_and_of_test_and_boxes_have_the_least_side_within_the_image():
    # Of every level before NMS, of the image after it; there are two levels.
    for pre_nms, post_nms, in_training, at_test in (((30, 20), (7, 5), 7, 5), ((9, 4), (99, 99), 18, 8)):
        rpn = bare_rpn(pre_nms=pre_nms, post_nms=post_nms, nms_iou=1.0)
        p, batch = constant_maps(rpn, 1.0), batch_of((64, 96))
        training, _ = rpn.losses(p, batch, [to_target()])
        assert (len(training[0]), len(rpn.propose(p, batch)[0])) == (in_training, at_test)
    rpn = bare_rpn(min_size=10.0)
    boxes = rpn.propose(random_maps(rpn), batch_of(SIZE))[0].boxes
    assert (boxes[:, 2:] - boxes[:, :2] >= 10).all()
    assert boxes.min() >= 0 and boxes[:, 2].max() <= SIZE[1] and boxes[:, 3].max() <= SIZE[0]


def test_an_image_does_not_see_its_neighbour():
    rpn = bare_rpn()
    p = random_maps(rpn, images=2)
    together = rpn.propose(p, batch_of(SIZE, (64, 96)))
    for i, size in enumerate((SIZE, (64, 96))):
        (alone,) = rpn.propose([x[i : i + 1] for x in p], batch_of(size))
        assert torch.equal(alone.boxes, together[i].boxes) and torch.equal(alone.scores, together[i].scores)


def propose_from(rpn: RPN, logits: list[torch.Tensor], boxes: list[torch.Tensor]) -> Proposals:
    """Those of one image whose levels have these logits (P,) and decoded boxes (P, 4)."""
    (proposals,) = rpn.propose_from(
        [x[None] for x in logits], [0 * b[None] for b in boxes], boxes, [SIZE], training=False
    )
    return proposals


def saturated(*counts: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits of levels with so many boxes, a third of them with a sigmoid of 1; the boxes overlap much."""
    torch.manual_seed(4)
    corners = [torch.randint(0, 25, (count, 2)).float() for count in counts]
    boxes = [torch.cat([c, c + 2 * torch.randint(5, 15, c.shape)], dim=1) for c in corners]
    return [40 * torch.randn(count) for count in counts], boxes


def test_what_ranks_decides_which_of_two_boxes_suppresses_the_other_and_which_level_comes_first():
    """All three sigmoids are 1; the first two boxes overlap, the third is of another level."""
    logits, first = (
        [torch.tensor([20.0, 30.0]), torch.tensor([40.0])],
        torch.ones(3).sort(descending=True).indices.tolist(),
    )
    a, b, c = [0.0, 0, 10, 10], [0.0, 0, 10, 8], [50.0, 50, 60, 60]
    as_mmdetection = [[a, b, c][i] for i in first if i != (1 if first.index(0) < first.index(1) else 0)]
    for rank, expected in (("logit", [c, b]), ("sigmoid_in_nms", [b, c]), ("sigmoid", as_mmdetection)):
        proposals = propose_from(bare_rpn(rank=rank), logits, [torch.tensor([a, b]), torch.tensor([c])])
        assert proposals.boxes.tolist() == expected
        assert proposals.scores.tolist() == [{8: 30, 10: 20, 60: 40}[box[3]] for box in expected]  # logits still


@pytest.mark.parametrize("counts", [(150, 40), (3000, 700, 60)])  # torchvision: all at once, and level by level
def test_ties_fall_as_in_torchvision(counts):
    """Level by level, it sorts what is left without `stable`: then the boxes are the same, and the order of ties its own."""
    few = sum(counts) < 1000
    pre_nms, post_nms = {"training": 1, "testing": 800}, {"training": 1, "testing": 300 if few else 10_000}
    theirs = RegionProposalNetwork(None, None, 0.7, 0.3, 256, 0.5, pre_nms, post_nms, nms_thresh=0.7).eval()
    logits, boxes = saturated(*counts)
    [expected], [scores] = theirs.filter_proposals(
        torch.cat(boxes)[None], torch.cat(logits)[None], [SIZE], list(counts)
    )
    settings = dict(pre_nms=(1, 800), post_nms=(1, post_nms["testing"]), min_size=1e-3)
    found, by_logit = (propose_from(bare_rpn(rank=r, **settings), logits, boxes) for r in ("sigmoid_in_nms", "logit"))
    torch.testing.assert_close(found.scores.sigmoid(), scores)
    assert found.boxes.equal(expected) if few else sorted(found.boxes.tolist()) == sorted(expected.tolist())
    assert not found.boxes.equal(by_logit.boxes)


def slow_mmdetection(logits, boxes, *, pre_nms: int, post_nms: int, nms_iou: float) -> list[list[float]]:
    """Sigmoids are sorted within a level that has too many, then those of all levels, by the sort that is not stable."""
    scores, rows = [], []
    for level, (logit, box) in enumerate(zip(logits, boxes)):
        score, order = logit.sigmoid(), torch.arange(len(logit))
        if len(score) > pre_nms:
            score, order = score.sort(descending=True)
        scores.append(score[:pre_nms])
        rows += [(level, box[i]) for i in order[:pre_nms].tolist()]
    kept: list[tuple[int, torch.Tensor]] = []
    for i in torch.cat(scores).sort(descending=True).indices.tolist():
        level, box = rows[i]
        others = [other for number, other in kept if number == level]
        if not others or box_iou(box[None], torch.stack(others)).max() <= nms_iou:
            kept.append((level, box))
    return [box.tolist() for _, box in kept[:post_nms]]


def test_ties_fall_as_in_mmdetection():
    logits, boxes = saturated(500, 120)
    settings = dict(pre_nms=200, post_nms=60, nms_iou=0.7)
    rpn = bare_rpn(rank="sigmoid", pre_nms=(1, 200), post_nms=(1, 60), nms_iou=0.7)
    assert propose_from(rpn, logits, boxes).boxes.tolist() == slow_mmdetection(logits, boxes, **settings)
    assert len(propose_from(rpn, [torch.full((3,), -torch.inf)], [boxes[0][:3]])) == 0


def test_bad_numbers_cost_their_own_anchors_alone():
    rpn = bare_rpn()
    for value in (math.nan, math.inf, -math.inf):
        (proposals,) = rpn.propose([torch.full_like(x, value) for x in random_maps(rpn)], batch_of(SIZE))
        assert proposals.boxes.shape == (0, 4) and proposals.scores.shape == (0,)
    rpn = bare_rpn(nms_iou=1.0)
    (whole,) = rpn.propose(constant_maps(rpn, 1.0), batch_of((64, 96)))
    for value, channel in itertools.product((math.nan, math.inf, 1e38), range(5)):
        p = constant_maps(rpn, 1.0)
        p[0][0, channel, 4, 4] = value
        (proposals,) = rpn.propose(p, batch_of((64, 96)))
        assert proposals.boxes.isfinite().all() and proposals.scores.isfinite().all()
        assert len(whole) - 1 <= len(proposals) <= len(whole)
    # topk takes NaN for the largest number there is.
    rpn = bare_rpn((8,), ((16,),), pre_nms=(3, 3))
    p = constant_maps(rpn, 1.0)
    p[0][0, 0, :, :6] = math.nan
    assert len(rpn.propose(p, batch_of((64, 96)))[0].boxes) == 3


def slow_losses(rpn: RPN, p, target: Target, beta: float) -> tuple[float, float]:
    """Every labelled anchor is sampled, and looked at by itself."""
    logits, deltas = (torch.cat(rows, dim=1)[0].detach() for rows in rpn.head(p))
    anchors = torch.cat(rpn.anchors(p, (64, 96)))
    labels, gt_index = Matching(pos_iou=0.7, neg_iou=0.3, low_quality="keep_best_gt")(target.boxes, anchors)
    objectness, box, count = 0.0, 0.0, 0
    for logit, delta, anchor, label, g in zip(logits, deltas, anchors, labels.tolist(), gt_index):
        if label == POSITIVE:
            objectness += math.log1p(math.exp(-logit))
            for d in (delta - encode(anchor[None], target.boxes[g][None])[0]).abs().tolist():
                box += 0.5 * d * d / beta if d < beta else d - 0.5 * beta
        elif label == NEGATIVE:
            objectness += math.log1p(math.exp(logit))
        count += label in (POSITIVE, NEGATIVE)
    return objectness / count, box / count


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_losses_equal_a_loop(beta):
    settings = dict(ratios=(0.5, 2.0), batch_per_image=10_000, beta=beta)
    rpn, weighted = bare_rpn(**settings), bare_rpn(**settings, objectness_weight=2, box_weight=0.5)
    p, objects = random_maps(rpn), to_target((10, 10, 32, 30, 0), (40, 5, 75, 50, 1))
    objectness, box = slow_losses(rpn, p, objects, beta)
    assert box > 0
    for part, weights in ((rpn, (1, 1)), (weighted, (2, 0.5))):
        _, losses = part.losses(p, batch_of(SIZE), [objects])
        assert list(losses) == ["rpn_objectness", "rpn_box"]
        expected = [weights[0] * objectness, weights[1] * box]
        assert [loss.item() for loss in losses.values()] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("convs", [0, 1, 2])
def test_the_head_at_some_anchors_is_the_whole_head_there_with_its_gradients(convs):
    torch.manual_seed(0)
    anchors = AnchorGenerator(STRIDES, SIZES, (0.5, 1, 2))
    rpn = RPN([4, 4], anchors, **grouped(RPN, convs=convs, width=6)).double()
    for layer in [*rpn.conv, rpn.objectness, rpn.deltas]:
        nn.init.normal_(layer.weight), nn.init.normal_(layer.bias)
    p = [torch.randn(2, 4 if convs else 6, h, w, dtype=torch.float64, requires_grad=True) for h, w in ((3, 5), (2, 3))]
    if not convs:
        rpn.objectness, rpn.deltas = nn.Conv2d(6, 3, 1).double(), nn.Conv2d(6, 12, 1).double()
    number = 3 * (3 * 5 + 2 * 3)  # anchors of an image
    rows = [torch.arange(number), torch.randint(number, (40,))]  # every one once; some, a few of them twice
    parameters = [*p, *rpn.parameters()]
    logits, deltas = (torch.cat(x, dim=1).double() for x in rpn.head(p))
    whole = [(logits[i, r], deltas[i, r]) for i, r in enumerate(rows)]
    some = list(zip(*rpn.predict_at(rpn.trunk(p), rows)))
    total = 0
    for (logit, delta), (expected, moved) in zip(some, whole, strict=True):
        torch.testing.assert_close(logit.double(), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(delta.double(), moved, rtol=1e-5, atol=1e-5)
        total = total + (torch.randn_like(expected) * torch.stack([logit.double(), expected])).sum(dim=1)
        total = total + (torch.randn_like(moved) * torch.stack([delta.double(), moved])).sum(dim=(1, 2))
    for conv in (*rpn.conv[-1:], rpn.objectness, rpn.deltas):
        conv.to(memory_format=torch.channels_last)
        logit, delta = (x[0] for x in rpn.predict_at(rpn.trunk(p), rows))
        strides = torch.autograd.grad(logit.sum() + delta.sum(), conv.weight)[0].stride()
        assert strides == conv.weight.stride()  # of another layout DistributedDataParallel warns
    mine, theirs = (torch.autograd.grad(x, parameters, retain_graph=True) for x in total)
    for found, expected in zip(mine, theirs, strict=True):
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def normalisers(objects: list[Target], **settings) -> dict[str, float]:
    """The objectness loss of logits that are all 0, in units of log(2): sampled anchors over what they are divided by."""
    rpn = bare_rpn((8,), ((16,),), **settings)
    p = [x.expand(len(objects), -1, -1, -1) for x in constant_maps(rpn, 0.0)]
    _, losses = rpn.losses(p, batch_of(*[SIZE] * len(objects)), objects)
    return losses["rpn_objectness"].item() / math.log(2)


def test_what_both_losses_are_divided_by():
    """By default the anchors sampled in the whole batch; a logit of 0 costs log(2) in either class."""
    objects, nothing = to_target((16, 16, 32, 32, 0)), to_target()
    assert normalisers([objects, nothing], batch_per_image=4) == pytest.approx(1)
    # of 96 anchors a quarter of 200 would be positive if there were so many
    wanted = normalisers([nothing, nothing], batch_per_image=200, normalizer="batch_size")
    assert wanted == pytest.approx(2 * 96 / (2 * 200))
    # at most half of 32 + 32 positive: one; no positive in the second image counts as one all the same
    settings = dict(batch_per_image=32, normalizer="num_sampled_min1")
    assert normalisers([objects, nothing], **settings) == pytest.approx(64 / 65)
    assert normalisers([objects, objects], **settings) == pytest.approx(1)


def reached(
    rpn: RPN, objects: Target, loss: str = "rpn_objectness", padded: tuple[int, int] = (64, 96)
) -> torch.Tensor:
    """(H, W) bool: the cells of the only level, of stride 8, that this loss has a gradient for."""
    p = [torch.full((1, 5, padded[0] // 8, padded[1] // 8), 0.5, requires_grad=True)]
    rpn.losses(p, batch_of(SIZE, padded=padded), [objects])[1][loss].backward()
    return (p[0].grad[0] != 0).any(dim=0)


def one_level(size: int = 16, **settings) -> RPN:
    """Squares at stride 8, all of which are sampled."""
    return bare_rpn((8,), ((size,),), batch_per_image=10_000, **settings)


def test_which_anchors_train_by_borders_padding_crowds_and_force():
    # Squares of 16 at stride 8 in an image of 60 x 90: rows 1..6 and columns 1..10 lie inside.
    assert reached(one_level(), to_target()).all()
    inside = reached(one_level(allowed_border=0), to_target())
    assert inside.nonzero().tolist() == [[y, x] for y in range(1, 7) for x in range(1, 11)]
    assert reached(one_level(allowed_border=8), to_target()).all()  # the first ones lie out by half their side
    # Of squares of 24 the one at x = 8 fits it best, but crosses the border; then the one at 16 takes its place.
    for border, cell in ((None, [2, 1]), (0, [2, 2])):
        rpn = one_level(24, allowed_border=border)
        assert reached(rpn, to_target((0, 4, 14, 28, 0)), "rpn_box").nonzero().tolist() == [cell]
    # 60 x 90 is 64 x 96 in multiples of 32; in those of 1 it stays as it is, and cells at 88 and 56 are the last.
    for padded_to, rows, columns in ((None, 12, 16), (32, 8, 12), (1, 8, 12), (50, 12, 13)):
        found = reached(one_level(padded_to=padded_to), to_target(), padded=(96, 128))
        assert found.nonzero().tolist() == [[y, x] for y in range(rows) for x in range(columns)]
    # The cell at (16, 16) is the best of both objects; by its own IoU it belongs to the first.
    objects = to_target((8, 8, 24, 24, 0), (12, 8, 20, 26, 1))
    goals = {}
    for low_quality in ("keep_best_gt", "force_gt"):
        rpn = one_level(low_quality=low_quality, min_pos_iou=0.3)
        chosen, goal = rpn.sample(torch.cat(rpn.anchors(random_maps(rpn), (64, 96))), SIZE, objects)
        goals[low_quality] = goal[chosen.rows[: chosen.slots] == 2 * 12 + 2].tolist()
    assert goals == {"keep_best_gt": [[8, 8, 24, 24]], "force_gt": [[12, 8, 20, 26]]}
    crowd = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), crowd=torch.tensor([[-20.0, -20, 48, 90]]))
    background = reached(one_level(), crowd)
    assert not background[:, :7].any() and background[:, 7:].all()  # the squares of column 6 lie in it by half


def test_how_much_an_anchor_may_shrink_can_be_bounded():
    """dw = -6 is a side of 16 exp(-6) = 0.04 pixels; bounded it is 16 * 16 / 1000."""
    for clamp_both, side in ((False, 16 * math.exp(-6)), (True, 16 * 16 / 1000)):
        rpn = bare_rpn((8,), ((16,),), clamp_both=clamp_both)
        p = constant_maps(rpn, 0)
        p[0][0, 0, 3, 7], p[0][0, 3, 3, 7] = 9, -6
        (found,) = rpn.propose(p, batch_of((64, 96)))
        assert (found.boxes[0, 2] - found.boxes[0, 0]).item() == pytest.approx(side, rel=1e-3)


def test_gradients_are_there_without_objects_and_not_in_proposals_and_all_is_float32():
    # Also where the border filter leaves no anchor at all.
    for border in (None, 0, -1000):
        rpn = RPN([8, 8], AnchorGenerator(STRIDES, SIZES), allowed_border=border)
        p = [torch.randn(1, 8, 64 // s, 96 // s, requires_grad=True) for s in STRIDES]
        _, losses = rpn.losses(p, batch_of(SIZE), [to_target()])
        sum(losses.values()).backward()
        assert losses["rpn_box"].item() == 0
        assert all(tensor.grad is not None for tensor in [*p, *rpn.parameters()])
    rpn = RPN([8, 8], AnchorGenerator(STRIDES, SIZES))
    p = [torch.randn(1, 8, 64 // s, 96 // s, requires_grad=True) for s in STRIDES]
    with torch.autocast("cpu", torch.bfloat16):
        (proposals,), losses = rpn.losses(p, batch_of(SIZE), [to_target((10, 10, 32, 30, 0))])
    assert not proposals.boxes.requires_grad and not proposals.scores.requires_grad
    assert {loss.dtype for loss in losses.values()} == {proposals.boxes.dtype} == {torch.float32}


def test_fresh_weights_are_small_and_one_head_of_any_width_needs_levels_of_one_width():
    rpn = RPN([64], AnchorGenerator([8], [[16]]), width=16, convs=2)
    convs = [m for m in rpn.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 4 and all(conv.bias.abs().sum() == 0 for conv in convs)
    assert rpn.conv[0].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert [tuple(conv.weight.shape[:2]) for conv in rpn.conv] == [(16, 64), (16, 16)]
    assert rpn.objectness.in_channels == rpn.deltas.in_channels == 16
    with pytest.raises(ValueError, match=r"\[8, 16\] channels"):
        RPN([8, 16], AnchorGenerator(STRIDES, SIZES))
