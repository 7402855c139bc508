"""The check values that the golden files' README gives for its rules."""

import zlib

import pytest
import torch
from helpers.golden_rules import Fill, fixed_proposals, formula_image, golden, match_sets, record_errors, shared

FILLS = [
    ("backbone.layer2.0.conv1.weight", (128, 256, 1, 1), 0.6430929, [0.07141145, -0.09679782, 0.06369711]),
    ("backbone.bn1.running_var", (64,), -0.01069914, [0.9000114, 1.533612, 1.088671]),
    ("rpn_head.rpn_reg.bias", (12,), -1.063898, [-0.1063898, 0.04957319, -0.06580172]),
    ("backbone.layer1.0.bn3.weight", (256,), 0.2608641, [0.2565216, 0.2139705, 0.2570224]),
    ("roi_head.bbox_head.shared_fcs.1.weight", (1024, 1024), 0.2511694, [0.008130558, 0.02501909, 0.09414396]),
    ("x.conv.weight_gamma", (8, 1, 1, 1), 1.138611, [0.157797, 0.1484687, 0.1234659]),
]


@pytest.mark.parametrize(("key", "shape", "first", "values"), FILLS, ids=[f[0] for f in FILLS])
def test_fill_rule(key, shape, first, values):
    fill = Fill("public-1", gains=[("shared_fcs", 1.0)])
    assert fill.normal(key, shape).flat[0] == pytest.approx(first, rel=1e-6)
    tensor = fill.tensor(key, shape, {"x.conv.weight": (8, 16, 3, 3)})
    assert tensor.dtype == torch.float32 and tuple(tensor.shape) == shape
    assert tensor.flatten()[:3].tolist() == pytest.approx(values, rel=2e-6)


def test_images_and_proposals_follow_their_rules_and_every_file_is_of_one_set():
    for check in golden("rules")["image_checks"]:
        image = formula_image(check["k"], check["height"], check["width"])
        assert [int(image[0, 0, 0]), int(image[1, 100, 200]), int(image[2, -1, -1])] == check["pixels"]
        assert int(image.long().sum()) == check["sum"]
        assert zlib.crc32(image.numpy().tobytes()) == check["crc32"]
    check = golden("rules")["fixed_proposals_check"]
    boxes, logits = fixed_proposals(check["height"], check["width"])
    assert boxes.shape == (120, 4)
    for i, row in ((0, "first"), (-1, "last")):
        assert [*boxes[i].tolist(), logits[i].item()] == pytest.approx(check[row])
    # The ground truth and the phase of the fixed proposals are those that the models were recorded with.
    for path in shared("golden").glob("*.json"):
        assert golden(path.stem)["seed_text"] == golden("rules")["seed_text"]


def test_errors_are_relative_to_the_spread_and_matches_want_box_score_and_label():
    record = {"shape": [2, 2], "idx": [0, 3], "values": [1.0, 7.0], "mean": 4.0, "std": 5.0**0.5}
    assert record_errors(torch.tensor([[1.0, 3.0], [5.0, 7.0]]), record) == pytest.approx((0, 0))
    assert record_errors(torch.tensor([[1.0, 3.0], [5.0, 8.0]]), record)[0] == pytest.approx(1 / 5**0.5)
    boxes, scores, labels = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8]]), torch.tensor([0.9, 0.5]), torch.tensor([1, 1])
    swapped = match_sets((boxes, scores, labels), (boxes, scores.flip(0), labels), px=0.1, score=1e-3)
    assert (swapped.unmatched, swapped.px, swapped.score) == (0, 0, 0)
    assert match_sets((boxes + 0.2, scores, labels), (boxes, scores, labels), px=0.1, score=1e-3).unmatched == 2
    assert match_sets((boxes, scores, labels), (boxes, scores, labels + 1), px=0.1, score=1e-3).unmatched == 2
    assert match_sets((boxes, scores, labels), (boxes, scores * 0 + 0.9, labels), px=0.1, score=1e-3).unmatched == 1
    nothing = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long()
    assert match_sets(nothing, (boxes, scores, labels), px=0.1, score=1e-3).unmatched == 2
