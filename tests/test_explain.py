"""Why something is detected or is not: every kind of loss on a scripted detector, whose answers are known, and its remedy."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.scripted import LOW, SIDE, scripted
from helpers.tiny import NAMES, picture
from torch import Tensor

from detector.errors import DataError
from detector.inference.predictor import Predictor
from detector.insight.explain import explain
from detector.insight.explain_facts import Asked, Explanation
from detector.modeling.boxes import box_iou

OBJECT, NEAR, AWAY = (32.0, 32.0, 64.0, 64.0), (48.0, 32.0, 80.0, 64.0), (88.0, 88.0, 120.0, 120.0)
SURE, UNSURE, LOW_DOG = (0.02, 0.94, 0.02, 0.02), (0.1, 0.3, 0.1, 0.5), (0.01, 0.03, 0.01, 0.95)
OTHER = (0.94, 0.02, 0.02, 0.02)
IMAGE = picture(2 * SIDE, 2 * SIDE, seed=1)  # each of its pixels is half a pixel that the network reads
DOG = ((OBJECT, 3.0, OBJECT),), ((OBJECT, SURE, OBJECT),)


def asked(box: Sequence[float] | None = OBJECT, name: str | None = "dog", score: float = 0.5) -> Asked:
    """About a box in the pixels that the network reads."""
    place = None if box is None else tuple(2 * v for v in box)
    return Asked("image" if box is None else "object", place, name, None, score)


def ask(predictor: Predictor, question: Asked, image: Tensor = IMAGE) -> Explanation:
    made, _ = explain(predictor, image, question, name="photo.jpg", checkpoint="best.pth")
    check_words(made)
    return made


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [n for part in (value.values() if isinstance(value, dict) else value) for n in numbers(part)]
    if isinstance(value, str):
        return [float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", value)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def check_words(made: Explanation) -> None:
    """Every number of the paragraph is a fact, rounded as it is written; 0.5 is the IoU by which boxes meet."""
    facts = numbers({name: value for name, value in json.loads(made.text()).items() if name != "words"})
    for text in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", re.sub(r"\bP\d\b|Stage \d\b", "", made.words)):
        digits = len(text.partition(".")[2])
        assert text == "0.5" or any(abs(float(text) - n) <= 0.5 * 10**-digits + 1e-9 for n in facts), (
            f"{text} in: {made.words}"
        )


def anchors(*rows: tuple[tuple, float, tuple]) -> Sequence[tuple[tuple, float, tuple]]:
    return rows


CASES: dict[str, dict[str, Any]] = {
    "no anchor": dict(anchors=(), box=(33.0, 33.0, 38.0, 38.0), further={"top-k", "suppressed"}),
    "top-k": dict(
        anchors=((OBJECT, 1.0, OBJECT), *((((88.0 + 4 * k, 88.0, 120.0 + 4 * k, 120.0)), 3.0, AWAY) for k in range(4))),
        sections={"rpn": {"selection": {"pre_nms": [9, 2]}}}, further={"found"},
    ),
    "suppressed": dict(
        anchors=((OBJECT, 1.0, OBJECT), (NEAR, 3.0, NEAR)), sections={"rpn": {"selection": {"nms_iou": 0.3}}}, further={"found"},
    ),
    "badly placed": dict(regions=((OBJECT, SURE, AWAY),)),
    "wrong class": dict(regions=((OBJECT, OTHER, OBJECT),)),
    "below threshold": dict(regions=((OBJECT, LOW_DOG, OBJECT),), further={"low score"}),
    "suppressed at the end": dict(
        anchors=((OBJECT, 3.0, OBJECT), (NEAR, 3.0, NEAR)), regions=((OBJECT, UNSURE, OBJECT), (NEAR, SURE, NEAR)),
        sections={"roi_head": {"selection": {"nms_iou": 0.3}}}, further={"low score"},
    ),
    "low score": dict(regions=((OBJECT, UNSURE, OBJECT),), further={"found"}),
    "found": {},
}  # fmt: skip


@pytest.mark.parametrize("answer", CASES)
def test_each_way_to_lose_an_object_is_told_and_its_remedy_takes_it_further(answer: str):
    case = CASES[answer]
    written = case.get("anchors", DOG[0]), case.get("regions", DOG[1])
    sections, question = case.get("sections", {}), asked(case.get("box", OBJECT))
    made = ask(scripted(*written, **sections), question)
    assert made.answer == answer
    assert (made.remedy is None) == (answer == "found")
    changes = [] if made.remedy is None else list(made.remedy.changes)
    assert bool(changes) == ("further" in case)
    if changes:
        score = next((float(c.partition("=")[2]) for c in changes if c.startswith("--score=")), question.score)
        keys = [change for change in changes if not change.startswith("--")]
        again = ask(scripted(*written, keys, **sections), replace(question, score=score))
        assert again.answer in case["further"]
    if made.anchor is not None and answer != "no anchor":
        assert made.anchor.level == 3 and made.anchor.box == (64.0, 64.0, 128.0, 128.0)  # pixels of the original


def test_a_lower_threshold_comes_with_what_lets_the_box_through_the_last_suppression():
    written = ((OBJECT, 3.0, OBJECT), (NEAR, 3.0, NEAR)), ((OBJECT, LOW_DOG, OBJECT), (NEAR, SURE, NEAR))
    sections = {"roi_head": {"selection": {"nms_iou": 0.3}}}
    made = ask(scripted(*written, **sections), asked())
    assert made.answer == "below threshold" and len(made.remedy.changes) == 2
    assert "let more boxes through the last suppression" in made.words
    assert ask(scripted(*written, made.remedy.changes[:1], **sections), asked()).answer == "suppressed at the end"
    assert ask(scripted(*written, made.remedy.changes, **sections), asked()).answer == "low score"
    one = {"roi_head": {"selection": {"nms_iou": 0.3, "max_detections": 1}}}
    made = ask(scripted(*written, **one), asked())
    assert [change.rpartition(".")[2].partition("=")[0] for change in made.remedy.changes[2:]] == ["max_detections"]
    assert ask(scripted(*written, made.remedy.changes, **one), asked()).answer == "low score"


def test_what_suppresses_is_named_in_both_stages():
    first = CASES["suppressed"]
    made = ask(scripted(first["anchors"], DOG[1], **first["sections"]), asked())
    rival = made.anchor.suppressed_by
    assert made.anchor.fate == "suppressed" and rival.box == tuple(2 * v for v in NEAR) and rival.proposal == 0
    assert rival.iou == pytest.approx(1 / 3, abs=1e-4) and rival.objectness == pytest.approx(0.9526, abs=1e-4)
    assert "suppresses it: their IoU is 0.33, above 0.3" in made.words
    last = CASES["suppressed at the end"]
    made = ask(scripted(last["anchors"], last["regions"], **last["sections"]), asked())
    assert made.region.detection is None and made.region.suppressed_by == 0
    assert made.detections[0].box == tuple(2 * v for v in NEAR) and made.region.overlap == pytest.approx(
        1 / 3, abs=1e-4
    )
    assert "Detection 0, dog 0.94, suppresses it" in made.words


def test_limits_of_both_stages_and_small_boxes():
    two = ((OBJECT, 1.0, OBJECT), (AWAY, 3.0, AWAY))
    dogs = ((OBJECT, SURE, OBJECT), (AWAY, (0.0, 0.99, 0.0, 0.01), AWAY))
    few = {"rpn": {"selection": {"post_nms": [9, 1]}}}
    made = ask(scripted(two, dogs, **few), asked())
    assert (made.answer, made.anchor.fate) == ("suppressed", "one too many")
    assert ask(scripted(two, dogs, made.remedy.changes, **few), asked()).answer == "found"
    small = {"rpn": {"selection": {"min_size": 40}}}
    made = ask(scripted(two, dogs, **small), asked())
    assert (made.answer, made.anchor.fate) == ("suppressed", "too small")
    assert ask(scripted(two, dogs, made.remedy.changes, **small), asked()).answer == "found"
    single = {"roi_head": {"selection": {"max_detections": 1}}}
    made = ask(scripted(two, dogs, **single), asked())
    assert made.answer == "suppressed at the end" and "not among the 1 best detections" in made.words
    assert ask(scripted(two, dogs, made.remedy.changes, **single), asked()).answer == "found"


def test_boxes_that_the_first_stage_misplaces_need_training_alone():
    made = ask(scripted(((OBJECT, 3.0, AWAY),), rpn={"selection": {"pre_nms": [9, 1]}}), asked())
    assert (made.answer, made.region) == ("badly placed", None)
    assert made.anchor.moved == tuple(2 * v for v in AWAY) and not made.remedy.changes
    assert "cascade" not in made.remedy.text and made.anchor.iou >= 0.5 > made.anchor.moved_iou


def test_a_wrong_class_is_named_and_without_a_class_the_likeliest_counts():
    case = CASES["wrong class"]["regions"]
    made = ask(scripted(DOG[0], case), asked())
    assert made.region.name == "cat" and made.region.detection == 0 and "dog is taken for cat" in made.words
    assert ask(scripted(DOG[0], case), asked(name=None)).answer == "found"
    hidden = ask(scripted(DOG[0], ((OBJECT, LOW_DOG, OBJECT),)), asked(name=None))
    assert hidden.region.name == "dog" and "The likeliest class there, dog, has a score of 0.03" in hidden.words


def test_a_detection_is_followed_back_to_its_anchor():
    made = ask(scripted(*DOG), Asked("detection", None, None, 0, 0.5))
    assert made.answer == "found" and made.region.detection == 0 and made.region.name == made.asked.name == "dog"
    assert made.asked.box == made.region.box == made.region.proposal.box == tuple(2 * v for v in OBJECT)
    anchor = made.region.anchor
    assert (anchor.rank, anchor.level, anchor.fate, anchor.proposal) == (1, 3, "proposal", 0)
    assert made.region.stages[0].scores["dog"] == pytest.approx(0.94, abs=1e-4)
    assert made.levels[1].before == made.levels[1].after == 1 or made.levels[1].before > 1


@pytest.mark.parametrize(
    ("written", "cause"),
    [
        ((((), ())), "the first stage takes nothing for an object"),
        ((DOG[0], ((OBJECT, UNSURE, OBJECT),)), "the best detection has a score of 0.30, below the 0.5 that is asked for"),
        ((DOG[0], ((OBJECT, LOW_DOG, OBJECT),)), "the second stage takes every proposal for background"),
        (((((OBJECT, float("nan"), OBJECT),)), ()), "the network's numbers are not finite"),
    ],
)  # fmt: skip
def test_why_nothing_is_found_in_an_image_and_what_helps(written: Any, cause: str):
    made = ask(scripted(*written), asked(None, None))
    assert made.cause.startswith(cause) and cause in made.words and made.counts.found == 0
    changes = made.remedy.changes
    if float(written[0][0][1] if written[0] else LOW) > 0:
        score = next(float(c.partition("=")[2]) for c in changes if c.startswith("--score="))
        keys = [change for change in changes if not change.startswith("--")]
        again = ask(scripted(*written, keys), asked(None, None, score))
        assert again.answer == "found" and again.cause is None and again.remedy is None


def test_an_untrained_first_stage_is_recognised():
    predictor = scripted((), ())
    head = predictor.model.rpn.head

    def flat(p: list[Tensor]) -> Any:
        logits, deltas = head(p)
        return [x * 0 + 0.01 * torch.randn_like(x) for x in logits], deltas

    predictor.model.rpn.head = flat
    made = ask(predictor, asked(None, None))
    assert made.cause == "the objectness is nearly the same everywhere: the first stage has learnt nothing yet"
    assert not made.remedy.changes


def test_counts_of_levels_are_those_of_the_rows():
    made = ask(scripted(*DOG), asked())
    assert [level.level for level in made.levels] == [2, 3, 4, 5, 6]
    assert (
        sum(level.anchors for level in made.levels) == made.counts.anchors == 3 * (32**2 + 16**2 + 8**2 + 4**2 + 2**2)
    )
    assert sum(level.proposals for level in made.levels) == made.counts.proposals
    assert [level.sides for level in made.levels] == [
        [32.0],
        [64.0],
        [128.0],
        [192.0],
        [256.0],
    ]  # twice those that are read
    predictor = scripted(*DOG)
    maps = [torch.zeros(1, 1, 128 // s, 128 // s) for s in (4, 8, 16, 32, 64)]
    for level, boxes in zip(made.levels, predictor.model.rpn.anchors(maps, (128, 128))):
        overlap = box_iou(torch.tensor([OBJECT]), boxes)[0]
        assert level.meeting == int((overlap >= 0.5).sum()) and level.best_iou == pytest.approx(
            float(overlap.max()), abs=1e-4
        )


def test_what_there_is_not_is_refused():
    predictor = scripted(*DOG)
    for question, words in [
        (Asked("detection", None, None, 1, 0.5), "detection 1: there is none of this number; the predictor finds 1"),
        (asked(name="bird"), f"class 'bird': the detector has no such class; it knows {', '.join(NAMES)}"),
        (asked((0.0, 0.0, 200.0, 10.0)), "box 0 0 400 20: expected x1 < x2 and y1 < y2 within the image"),
        (asked((9.0, 9.0, 9.0, 12.0)), "box 18 18 18 24: expected"),
    ]:
        with pytest.raises(DataError, match=re.escape(words)):
            ask(predictor, question)
