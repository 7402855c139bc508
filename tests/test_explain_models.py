"""Explanations for every architecture: the detections are the predictor's, ranks and suppressors those of slow loops."""

import json
from pathlib import Path

import pytest
import torch
from helpers.tiny import CONFIG, DATA, IDS, NAMES, picture, predictor_of, tiny_model
from PIL import Image
from test_explain import check_words
from test_trace import SHAPES, spread
from torch import Tensor

from detector.checkpoint import save_checkpoint
from detector.cli.explain import main
from detector.config.config import build_detector, load_config, parse_config
from detector.errors import DataError
from detector.inference.predictor import Predictor
from detector.insight.class_gradient import class_logit, gradient_times_activation, objectness_logit
from detector.insight.explain import explain
from detector.insight.explain_facts import Asked
from detector.insight.explain_picture import draw_explanation
from detector.insight.trace import AnchorTrace, trace
from detector.modeling.boxes import box_iou
from detector.modeling.precomputed import Precomputed
from detector.modeling.rcnn import GeneralizedRCNN
from detector.structures import image_size

SETTINGS = {**CONFIG, "data": DATA | {"resize": {"short": 64, "long": 96}}}
QUICK = {"cascade", "fpn", "rpn"}
EVERY = [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem not in QUICK)) for path in SHAPES]
SIZE = (80, 120)  # of the image, (h, w)


def predictor_at(path: Path) -> Predictor:
    config = load_config(path, ["model.num_classes=3", "data.resize.short=64", "data.resize.long=96"])
    return Predictor(spread(build_detector(config)), config, NAMES, IDS, device="cpu")


@pytest.mark.parametrize("path", EVERY)
def test_an_explanation_of_every_architecture(path: Path):
    predictor, image = predictor_at(path), picture(*SIZE, seed=3)
    expected = predictor(image)
    questions = [
        Asked("image", None, None, None, 0.5),
        Asked("detection", None, None, min(2, len(expected) - 1), 0.5),
        Asked("object", (30.0, 20.0, 70.0, 60.0), None, None, 0.5),
    ]
    for question in questions:
        made, exhibits = explain(predictor, image, question, name="a.png", checkpoint="best.pth")
        check_words(made)
        assert [d.name for d in made.detections] == expected.names
        assert [d.score for d in made.detections] == [round(score, 4) for score in expected.scores.tolist()]
        boxes = torch.tensor([d.box for d in made.detections])
        torch.testing.assert_close(boxes, expected.boxes, rtol=0, atol=0.051)
        assert made.read_at == (96, 64) and made.size == (120, 80)
        assert [m.values.shape for m in exhibits.objectness] == [
            m.values.shape for m in exhibits.gradient or exhibits.objectness
        ]
        if question.about == "detection":
            assert exhibits.gradient is not None and sum(float(m.values.abs().sum()) for m in exhibits.gradient) > 0
            assert sum(made.gradient.values()) == pytest.approx(1, abs=1e-3)
            assert (
                made.region.detection == question.detection
                and made.region.box == made.detections[question.detection].box
            )
            stages = len(getattr(predictor.model.roi_head, "stages", [0])) * (not predictor.model.reports_proposals)
            assert len(made.region.stages) == stages
        if question.about == "detection" or path.stem in QUICK:
            drawn = draw_explanation(made, exhibits)
            assert drawn.width == 1600 and 500 < drawn.height < 2000


def slow_suppressor(anchors: AnchorTrace, level: int, iou: float) -> dict[int, int]:
    """Of each suppressed anchor of a level the one that does it, by a loop: the best box that is left and overlaps it."""
    rows = [row for row in torch.where(anchors.levels == level)[0].tolist() if anchors.seen[row]]
    rows.sort(key=lambda row: -float(anchors.logits[row]))
    left: list[int] = []
    found: dict[int, int] = {}
    for row in rows:
        over = [o for o in left if float(box_iou(anchors.decoded[o][None], anchors.decoded[row][None])) > iou]
        if over:
            found[row] = over[0]
        else:
            left.append(row)
    return found


def test_ranks_and_suppressors_are_those_of_a_slow_loop():
    model = spread(tiny_model(rpn={"selection": {"nms_iou": 0.4, "pre_nms": [60, 60], "post_nms": [50, 20]}}))
    with torch.no_grad():
        model.rpn.objectness.weight.normal_(std=0.5)
    anchors = trace(model, picture(64, 96, seed=5)).anchors
    suppressed = 0
    for level in range(5):
        rows = torch.where(anchors.levels == level)[0].tolist()
        order = sorted(rows, key=lambda row: -float(anchors.logits[row]))
        assert [int(anchors.ranks[row]) for row in order] == list(range(len(rows)))
        slow = slow_suppressor(anchors, level, 0.4)
        assert {row: anchors.suppressed_by(row) for row in rows} == {row: slow.get(row) for row in rows}
        suppressed += len(slow)
    assert suppressed > 20


def changed(p: list[Tensor], level: int, y: int, x: int, by: float) -> list[Tensor]:
    """The levels with the features of one cell times 1 + by."""
    made = [one.clone() for one in p]
    made[level][:, :, y, x] *= 1 + by
    return made


GRADIENTS = {
    "standard": {},
    "cascade": {"roi_head": {"type": "cascade"}},
    "all levels": {"roi_head": {"pool": {"type": "all_levels"}, "box_head": {"type": "adaptive_two_fc"}}},
}


@pytest.mark.parametrize("kind", [*GRADIENTS, "objectness"])
def test_the_gradient_is_that_of_finite_differences(kind: str):
    model = spread(tiny_model(**GRADIENTS.get(kind, {}))).double()
    step = 1e-2 if kind == "objectness" else 1e-4  # objectness is always float32
    image = picture(64, 96, seed=2)
    with torch.no_grad():
        p = model.pyramid(model.batch([image], [None]).images)
        box = torch.tensor([20.0, 10.0, 70.0, 50.0], dtype=torch.float64)
        if kind == "objectness":
            logit = objectness_logit(model, 600)
        else:
            logit = class_logit(model, box, 1, image_size(image))
        maps = gradient_times_activation(p, logit)
        assert [m.shape for m in maps] == [x.shape[-2:] for x in p]
        checked = 0
        for level, values in enumerate(maps):
            if not values.any():
                continue
            for cell in values.flatten().abs().topk(3).indices.tolist():
                y, x = divmod(cell, values.shape[1])
                up, down = (float(logit(changed(p, level, y, x, sign * step))) for sign in (1, -1))
                assert float(values[y, x]) == pytest.approx((up - down) / (2 * step), rel=0.02, abs=1e-5)
                checked += 1
        assert checked >= 3


def test_soft_suppression_that_lowers_a_score_is_told():
    sections = {"roi_head": {"selection": {"nms": "linear", "nms_iou": 0.1, "max_detections": 12}}}
    predictor = wrapped(spread(tiny_model(**sections)))
    image, lowered = picture(64, 96, seed=3), 0
    for number in range(len(predictor(image))):
        made, _ = explain(predictor, image, Asked("detection", None, None, number, 0.5), name="a", checkpoint="b")
        check_words(made)
        by = made.region.score - made.detections[number].score
        lowered += by > 5e-4
        assert by > -1e-3 and ("soft-NMS" in made.words) == (by > 5e-4)
    assert lowered > 0


def test_given_proposals_cannot_be_explained():
    predictor = wrapped(tiny_model())
    predictor.model.rpn = Precomputed()
    with pytest.raises(DataError, match=r"this detector has no RPN"):
        explain(predictor, picture(64, 96), Asked("image", None, None, None, 0.5), name="a", checkpoint="b")


def test_weights_that_are_not_finite_are_told_whatever_is_asked():
    predictor = wrapped(tiny_model())
    with torch.no_grad():
        predictor.model.rpn.objectness.weight.fill_(torch.nan)
        predictor.model.rpn.deltas.weight.fill_(torch.nan)
    for question in (
        Asked("image", None, None, None, 0.5),
        Asked("object", (10.0, 10.0, 50.0, 50.0), "dog", None, 0.5),
    ):
        made, exhibits = explain(predictor, picture(64, 96), question, name="a", checkpoint="b")
        json.loads(made.text())
        assert made.answer != "found" and "the network's numbers are not finite" in made.words
        assert draw_explanation(made, exhibits).width == 1600


def wrapped(model: GeneralizedRCNN) -> Predictor:
    return predictor_of(model, SETTINGS)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = parse_config(SETTINGS, trust=False)
    path = tmp_path / "best.pth"
    save_checkpoint(path, model=spread(tiny_model()), config=config.raw, class_names=NAMES, category_ids=IDS)
    Image.fromarray(picture(80, 120).permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    return path


def test_the_command_writes_three_files_again_and_never_over_foreign_ones(
    checkpoint: Path, capsys: pytest.CaptureFixture
):
    image, output = str(checkpoint.with_name("photo.png")), checkpoint.with_name("out")
    arguments = [str(checkpoint), image, "--output", str(output), "--device", "cpu"]
    for options in ([], ["--detection", "1"], ["--box", "10", "10", "60", "60", "--class", "dog", "--score", "0.2"]):
        assert main([*arguments, *options]) == 0
        facts = json.loads((output / "explanation.json").read_text())
        words = (output / "explanation.txt").read_text()
        assert facts["words"] + "\n" == words and capsys.readouterr().out.startswith(words)
        assert Image.open(output / "explanation.png").width == 1600 and len(list(output.iterdir())) == 3
    assert facts["asked"] == {
        "about": "object",
        "box": [10, 10, 60, 60],
        "name": "dog",
        "detection": None,
        "score": 0.2,
    }
    assert main([*arguments, "data.resize.short=32"]) == 0
    assert json.loads((output / "explanation.json").read_text())["read_at"] == [48, 32]
    for name in ("explanation.json", "explanation.txt", "explanation.png"):
        other = checkpoint.with_name(f"foreign_{name}")
        other.mkdir()
        (other / name).write_bytes(b"Explanation of mine" if name.endswith("txt") else b"\x89PNG mine")
        before = (other / name).read_bytes()
        assert main([*arguments[:3], str(other)]) == 2
        assert f"{name}: not of an earlier run" in capsys.readouterr().err and (other / name).read_bytes() == before


def test_the_command_refuses_what_it_cannot_explain_in_one_line(checkpoint: Path, capsys: pytest.CaptureFixture):
    image, output = str(checkpoint.with_name("photo.png")), str(checkpoint.with_name("out"))
    for path, options, words in [
        (
            "model.onnx",
            [],
            "model.onnx: an exported file, of which the steps between image and detections cannot be seen",
        ),
        ("model.pt2", [], "give the checkpoint (.pth) that it was exported from"),
        (str(checkpoint), ["--detection", "999"], "detection 999: there is none of this number; the predictor finds"),
        (str(checkpoint), ["--box", "10", "10", "500", "60"], "within the image, which is 120 pixels wide and 80 high"),
        (str(checkpoint), ["--box", "1", "1", "50", "60", "--class", "bird"], "it knows cat, dog, eel"),
        (str(checkpoint), ["train.lr=1"], "explain takes changes of `model` and `data` alone"),
    ]:
        assert main([path, image, "--output", output, "--device", "cpu", *options]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert main([str(checkpoint), "none.png", "--output", output]) == 2 and not Path(output).exists()
    capsys.readouterr()
    for options in (["--box", "1", "2", "3"], ["--box", "1", "2", "nan", "4"], ["--class", "cat"], ["--score", "2"], ["b.png"],
                    ["--detection", "1", "--box", "1", "1", "2", "2"]):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            main([str(checkpoint), image, "--output", output, *options])
