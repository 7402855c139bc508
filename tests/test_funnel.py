"""Where objects are lost: each step on a trace made by hand, and on models, whose counts sum to all misses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.insight import coco_file, results
from helpers.tiny import picture, tiny_model
from helpers.training import draw_set, train, write_config
from torch import Tensor

from detector.config.config import load_config
from detector.data.settings import build_dataset
from detector.evaluation.coco import score_results
from detector.inference.predictor import load_predictor
from detector.insight.analysis import analyse
from detector.insight.collect import trace_split
from detector.insight.funnel import (
    CLASS,
    END,
    MASK,
    NO_ANCHOR,
    PLACED,
    STEPS,
    SUPPRESSED,
    THRESHOLD,
    TOP_K,
    Loss,
    funnel,
    lost_at,
)  # fmt: skip
from detector.insight.trace import AnchorTrace, ImageTrace, StageTrace, trace
from detector.recipe import Scoring
from detector.structures import Detections, Proposals

OBJECT, AWAY = [10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 90.0, 90.0]


def boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def made(
    *, anchor=OBJECT, moved=OBJECT, seen=True, proposal=OBJECT, final=(OBJECT, OBJECT), scores=(0.9, 0.02)
) -> ImageTrace:  # fmt: skip
    """One anchor, one proposal and two classes; `proposal` None: there is none. `final` are the boxes of both classes."""
    regions = boxes() if proposal is None else boxes(proposal)
    count = len(regions)
    anchors = AnchorTrace(
        boxes(anchor), torch.zeros(1, dtype=torch.int64), torch.zeros(1), torch.zeros(1, dtype=torch.int64), boxes(moved),
        torch.tensor([seen]), torch.tensor([seen]), torch.tensor([0 if count else -1]),
    )  # fmt: skip
    of_class = boxes(*final).expand(count, 2, 4)
    stage = StageTrace(regions, None, torch.zeros(count, 3), of_class)
    none = Detections(boxes(), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    return ImageTrace(
        (100, 100), anchors, Proposals(regions, torch.zeros(count)), [stage], torch.tensor([scores]).expand(count, 2),
        of_class, 0.05, none, torch.zeros(0, dtype=torch.int64), 0.5, False,
    )  # fmt: skip


CASES = {
    NO_ANCHOR: dict(anchor=AWAY, moved=AWAY, proposal=None),
    TOP_K: dict(seen=False, proposal=None),
    SUPPRESSED: dict(proposal=None),
    PLACED: dict(final=(AWAY, AWAY)),
    THRESHOLD: dict(scores=(0.01, 0.02)),
    CLASS: dict(scores=(0.02, 0.9)),
    END: {},
}


@pytest.mark.parametrize("step", CASES, ids=[list(STEPS)[step] for step in CASES])
def test_each_step_loses_an_object_of_class_0(step: int):
    assert lost_at(made(**CASES[step]), boxes(OBJECT), torch.tensor([0])).tolist() == [step]


def test_the_furthest_step_counts_and_its_subtleties():
    label = torch.tensor([0])
    # an anchor far from the object whose deltas reach it, but that is not among the best
    assert lost_at(made(anchor=AWAY, seen=False, proposal=None), boxes(OBJECT), label).tolist() == [TOP_K]
    # the anchor reaches it, and its deltas take it away: the first stage's box is badly placed
    assert lost_at(made(moved=AWAY, proposal=AWAY, final=(AWAY, AWAY)), boxes(OBJECT), label).tolist() == [PLACED]
    # the second stage moves a far proposal onto the object
    assert lost_at(made(proposal=AWAY), boxes(OBJECT), label).tolist() == [END]
    # the box of the right class is bad and scored low, that of another class reaches the object with a high score
    assert lost_at(made(final=(AWAY, OBJECT), scores=(0.01, 0.9)), boxes(OBJECT), label).tolist() == [CLASS]
    # both classes above the threshold: a candidate of the right class is enough
    assert lost_at(made(scores=(0.3, 0.6)), boxes(OBJECT), label).tolist() == [END]


def test_without_objects_anchors_or_a_second_stage():
    assert lost_at(made(), boxes(), torch.zeros(0, dtype=torch.int64)).tolist() == []
    given = replace(made(proposal=None), anchors=None)  # proposals from a file
    assert lost_at(given, boxes(OBJECT), torch.tensor([0])).tolist() == [NO_ANCHOR]
    alone = replace(made(), stages=[])  # an RPN
    assert lost_at(alone, boxes(OBJECT, AWAY), torch.tensor([0, 0])).tolist() == [END, NO_ANCHOR]


def test_the_funnel_counts_by_size_and_level():
    counts = funnel([(Loss(TOP_K, 2), 100.0), (Loss(TOP_K, 3), 5000.0), (Loss(END, -1), 1e5)])
    assert counts[TOP_K] == {"all": 2, "small": 1, "medium": 1, "P2": 1, "P3": 1}
    assert counts[END] == {"all": 1, "large": 1, "all levels": 1} and not counts[CLASS]


def test_objects_that_a_model_finds_come_to_the_end():
    """Whatever a detection covers by half has a final box above the threshold, in any image and for any object."""
    model = tiny_model().eval()
    found = trace(model, picture(64, 96, seed=4))
    steps = lost_at(found, found.detections.boxes, found.detections.labels)
    assert len(steps) > 5 and (steps == END).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("funnel")
    data = draw_set(folder / "data")
    assert train(write_config(folder / "c.yaml", data, epochs=1), folder / "run") == 0
    return folder / "run"


def test_every_miss_has_one_step_and_the_scores_are_those_of_evaluation(run: Path):
    predictor = load_predictor(run / "best.pth", True, device="cpu")
    data = load_config(run / "config.yaml").needed_data()
    val = build_dataset(data, "val", class_names=predictor.class_names)
    scored, losses = trace_split(predictor, val, workers=0, scoring=Scoring())
    assert scored is not None and scored.metrics["bbox"]["AR100"] > 0
    assert losses.keys() == {entry["id"] for entry in scored.objects}
    found = analyse(scored, losses, samples=5)["bbox"]
    total = sum(counts["all"] for counts in found.funnel.values())
    assert (
        total
        == found.missed()
        == sum(counts[s] for counts in found.funnel.values() for s in ("small", "medium", "large"))
    )
    ids = found.errors.object_ids[found.errors.found()].tolist()
    assert all(losses[number].step == END for number in ids)
    rows = [row for row in (run / "metrics.csv").read_text().splitlines() if row.startswith("3,1,")]
    assert f"{scored.metrics['bbox']['AP']:.6g}" in rows[-1].split(",")


class OwnRPN(torch.nn.Module):
    """A first stage of the user's own."""

    def __init__(self, rpn: torch.nn.Module):
        super().__init__()
        self.propose = rpn.propose


def test_a_detector_with_a_stage_of_the_users_own_is_scored_and_not_followed(run: Path):
    predictor = load_predictor(run / "best.pth", True, device="cpu")
    val = build_dataset(load_config(run / "config.yaml").needed_data(), "val", class_names=predictor.class_names)
    expected, losses = trace_split(predictor, val, workers=0, scoring=Scoring())
    predictor.model.rpn = OwnRPN(predictor.model.rpn)
    scored, none = trace_split(predictor, val, workers=0, scoring=Scoring())
    assert losses and none is None and scored.metrics["bbox"] == expected.metrics["bbox"]
    assert analyse(scored, none, samples=3)["bbox"].funnel is None


def test_an_object_whose_box_is_found_and_whose_mask_is_bad_has_a_poor_mask(tmp_path: Path):
    objects = [(1, 1, (10, 10, 40, 40)), (2, 1, (10, 10, 40, 40)), (2, 1, (100, 100, 40, 40))]
    rows = results((1, 1, (10, 10, 40, 40), 0.9), (2, 1, (10, 10, 40, 40), 0.8), masks=True)
    rows[0]["segmentation"] = [[10, 10, 30, 10, 30, 30, 10, 30]]  # a quarter of the object
    scored = score_results(coco_file(tmp_path / "a.json", objects), rows)
    losses = {1: Loss(END, 2), 2: Loss(END, 2), 3: Loss(TOP_K, 2)}
    found = analyse(scored, losses, samples=3)
    by_step = {
        kind: {step: counts["all"] for step, counts in one.funnel.items() if counts} for kind, one in found.items()
    }
    assert by_step == {"bbox": {TOP_K: 1}, "segm": {TOP_K: 1, MASK: 1}}
    assert (found["bbox"].missed(), found["segm"].missed()) == (1, 2) and MASK == len(STEPS) - 1
