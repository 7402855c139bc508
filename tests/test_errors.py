"""The kinds of errors on sets made by hand, what each costs, and agreement with another implementation on real data."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.insight import coco_file, results, scored

from detector.evaluation.coco import score_results
from detector.insight.curves import average_precision, best_f1, curve
from detector.insight.errors import BKG, BOTH, CLS, DUPE, HIT, KINDS, LOC, errors_of

BCCD = Path(__file__).parents[2] / "shared/data/bccd/annotations/val.json"
OBJECT = (10, 10, 40, 40)
NEAR = (10, 10, 40, 18)  # an IoU of 0.45 with OBJECT
FAR = (120, 120, 40, 40)
KIND = {  # a detection beside a right one of another image -> its kind
    "hit": ((1, 1, OBJECT, 0.9), HIT),
    "wrong class": ((1, 2, OBJECT, 0.9), CLS),
    "badly placed": ((1, 1, NEAR, 0.9), LOC),
    "both": ((1, 2, NEAR, 0.9), BOTH),
    "nothing there": ((1, 1, FAR, 0.9), BKG),
    "nothing of any class there": ((1, 3, FAR, 0.9), BKG),
}


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
@pytest.mark.parametrize("name", KIND)
def test_each_kind_of_false_positive(name: str, masks: bool, tmp_path: Path):
    row, kind = KIND[name]
    of = scored(tmp_path / "a.json", [(1, 1, OBJECT), (2, 2, OBJECT)], [row, (2, 2, OBJECT, 0.8)], masks=masks)
    found = errors_of(of.counts["segm" if masks else "bbox"])
    assert found.kinds.tolist() == [kind, HIT]
    assert found.found().tolist() == [kind == HIT, True]
    # an object that a wrong class or a bad box comes near is not missed besides
    assert found.missed().tolist() == [kind not in (HIT, CLS, LOC), False]
    assert found.targets[0] == (0 if kind in (HIT, CLS, LOC, BOTH) else -1) or kind == BKG
    assert found.ap50() == pytest.approx(of.metrics["segm" if masks else "bbox"]["AP50"])


def test_a_duplicate_and_an_image_without_objects(tmp_path: Path):
    rows = [(1, 1, OBJECT, 0.9), (1, 1, OBJECT, 0.8), (2, 1, OBJECT, 0.7)]
    found = errors_of(scored(tmp_path / "a.json", [(1, 1, OBJECT)], rows).counts["bbox"])
    assert found.kinds.tolist() == [HIT, DUPE, BKG] and not found.missed().any()
    assert [found.count(kind) for kind in KINDS] == [0, 0, 0, 1, 1, 0]


def test_the_right_class_is_asked_for_before_the_right_place(tmp_path: Path):
    """A box between an object of its class, too far off, and one of another class in its place is a bad box."""
    objects = [(1, 1, OBJECT), (1, 2, NEAR)]
    found = errors_of(scored(tmp_path / "a.json", objects, [(1, 1, NEAR, 0.9)]).counts["bbox"])
    assert found.kinds.tolist() == [LOC] and found.targets.tolist() == [0]
    assert found.missed().tolist() == [False, True]


def test_what_lies_in_a_crowd_region_is_no_error(tmp_path: Path):
    objects = [(1, 1, OBJECT), (1, 1, FAR, {"iscrowd": 1, "segmentation": {"size": [200, 200], "counts": [0, 40000]}})]
    found = errors_of(scored(tmp_path / "a.json", objects, [(1, 1, OBJECT, 0.5), (1, 1, FAR, 0.9)]).counts["bbox"])
    assert found.kinds.tolist() == [HIT] and len(found.object_ids) == 1


# Each line: AP50 as it is and with one kind repaired, by hand. One class unless another is named.
COSTS = [
    # the false positive comes first: precision 1/2 at every recall; without it 1
    ("Bkg", [(1, 1, OBJECT)], [(1, 1, FAR, 0.9), (1, 1, OBJECT, 0.8)], 0.5, 1.0),
    ("Dupe", [(1, 1, OBJECT), (2, 1, OBJECT)], [(1, 1, OBJECT, 0.9), (1, 1, OBJECT, 0.8), (2, 1, OBJECT, 0.7)],
     (51 * 1 + 50 * 2 / 3) / 101, 1.0),
    ("Loc", [(1, 1, OBJECT)], [(1, 1, NEAR, 0.9)], 0.0, 1.0),
    # of two bad boxes one object: the better one is corrected, the other removed
    ("Loc", [(1, 1, OBJECT)], [(1, 1, NEAR, 0.9), (1, 1, NEAR, 0.8)], 0.0, 1.0),
    # the object is found: its bad box is removed
    ("Loc", [(1, 1, OBJECT)], [(1, 1, NEAR, 0.9), (1, 1, OBJECT, 0.8)], 0.5, 1.0),
    # class 2 has no objects and no AP; the corrected box counts for class 1
    ("Cls", [(1, 1, OBJECT)], [(1, 2, OBJECT, 0.9)], 0.0, 1.0),
    ("Both", [(1, 1, OBJECT), (1, 2, FAR)], [(1, 2, NEAR, 0.9), (1, 2, FAR, 0.8)], 0.25, 0.5),
    # half of the objects: 51 of the 101 recalls are reached
    ("Miss", [(1, 1, OBJECT), (2, 1, OBJECT)], [(1, 1, OBJECT, 0.9)], 51 / 101, 1.0),
    # a class whose objects are all missed, and that found nothing, falls out of the mean
    ("Miss", [(1, 1, OBJECT), (2, 2, OBJECT)], [(1, 1, OBJECT, 0.9)], 0.5, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("kind, objects, rows, before, after", COSTS)
def test_what_a_kind_costs(kind: str, objects: list, rows: list, before: float, after: float, tmp_path: Path):
    found = errors_of(scored(tmp_path / "a.json", objects, rows).counts["bbox"])
    assert found.count(kind) > 0
    assert found.ap50() == pytest.approx(before) and found.lost(kind) == pytest.approx(after - before)


def test_missed_objects_cost_by_their_size(tmp_path: Path):
    objects = [(1, 1, OBJECT), (2, 1, (10, 10, 20, 20)), (2, 1, FAR)]
    found = errors_of(scored(tmp_path / "a.json", objects, [(1, 1, OBJECT, 0.9)]).counts["bbox"])
    assert found.count("Miss") == 2
    as_it_is = 34 / 101  # a third of the objects: recalls 0 to 0.33
    assert found.lost("Miss", area=(0, 32**2)) == pytest.approx(51 / 101 - as_it_is)
    assert found.lost("Miss", area=(32**2, 96**2)) == pytest.approx(51 / 101 - as_it_is)
    assert found.lost("Miss", area=(96**2, np.inf)) == 0 and found.lost("Miss") == pytest.approx(1 - as_it_is)
    assert found.lost_to_misses() == pytest.approx(1 - as_it_is) and found.lost_to_false_positives() == 0


def test_no_objects_and_no_detections(tmp_path: Path):
    for objects, rows in ([], []), ([], [(1, 1, OBJECT, 0.9)]):
        found = errors_of(scored(tmp_path / "a.json", objects, rows).counts["bbox"])
        assert (
            np.isnan(found.ap50())
            and all(np.isnan(found.lost(kind)) for kind in KINDS)
            and found.count("Bkg") == len(rows)
        )
    found = errors_of(scored(tmp_path / "a.json", [(1, 1, OBJECT)], []).counts["bbox"])
    assert found.ap50() == 0 and found.count("Miss") == 1


def test_a_curve_and_its_best_f1_by_hand():
    hits = np.array([True, False, True, False])
    found = curve(np.array([0.9, 0.8, 0.7, 0.6]), hits, 4)
    assert found.recall.tolist() == [0.25, 0.5] and found.precision.tolist() == [1, 2 / 3]
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.6]), hits, 4) == pytest.approx((26 * 1 + 25 * 2 / 3) / 101)
    best = best_f1(found)
    assert best.threshold == 0.7 and best.f1 == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    # of equal scores all are taken: with the false positive between them precision is 2/3, never 1
    tied = best_f1(curve(np.array([0.9, 0.9, 0.9]), np.array([True, False, True]), 2))
    assert tied == (0.9, pytest.approx(2 / 3), 1.0)
    assert best_f1(curve(np.zeros(0), np.zeros(0, dtype=bool), 3)).f1 == 0


def perturbed(annotations: Path, seed: int = 0) -> list[dict]:
    """Detections of the objects of a file: some moved, of another class, twice, left out, and some where nothing is."""
    rng = np.random.default_rng(seed)
    content = json.loads(annotations.read_text())
    classes, rows = [c["id"] for c in content["categories"]], []
    for entry in content["annotations"]:
        x, y, w, h = entry["bbox"]
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            move = rng.normal(scale=0.1, size=2) * (w, h)
            category = entry["category_id"] if rng.random() < 0.9 else int(rng.choice(classes))
            box = (x + move[0], y + move[1], w * rng.uniform(0.6, 1.5), h * rng.uniform(0.8, 1.2))
            rows.append((entry["image_id"], category, tuple(map(float, box)), float(rng.beta(4, 2))))
        if rng.random() < 0.1:
            rows.append((entry["image_id"], int(rng.choice(classes)), (1.0, 1.0, 30.0, 30.0), float(rng.random())))
    return results(*rows)


def test_the_kinds_and_their_costs_are_those_of_hotcoco_on_bccd(tmp_path: Path):
    hotcoco = pytest.importorskip("hotcoco", reason="an optional package: pip install hotcoco")
    if not BCCD.exists():
        pytest.skip(f"{BCCD} is not there: real data beside the checkout")
    rows = perturbed(BCCD)
    found = errors_of(score_results(BCCD, rows).counts["bbox"])
    (tmp_path / "results.json").write_text(json.dumps(rows))
    truth = hotcoco.COCO(str(BCCD))
    theirs = hotcoco.COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    theirs.evaluate()
    other = theirs.tide_errors(pos_thr=0.5, bg_thr=0.1)
    assert found.ap50() == pytest.approx(other["ap_base"], abs=1e-9) and 0.2 < found.ap50() < 0.8
    for kind in KINDS:
        assert found.count(kind) == other["counts"][kind] > 3
        assert found.lost(kind) == pytest.approx(other["delta_ap"][kind], abs=1e-9)
    assert found.lost_to_false_positives() == pytest.approx(other["delta_ap"]["FP"], abs=1e-9)
    assert found.lost_to_misses() == pytest.approx(other["delta_ap"]["FN"], abs=1e-9)


def test_sums_of_counts_are_all_detections_and_all_objects(tmp_path: Path):
    """Every detection has one kind, and the errors of each object agree with each other, on random sets."""
    rng = np.random.default_rng(3)
    boxes = lambda n: [tuple(map(float, (*rng.uniform(0, 120, 2), *rng.uniform(10, 60, 2)))) for _ in range(n)]  # noqa: E731
    objects = [(int(rng.integers(1, 4)), int(rng.integers(1, 4)), box) for box in boxes(40)]
    rows = [(i, int(rng.integers(1, 4)), box, float(rng.random())) for i, _, box in objects]
    rows += [(int(rng.integers(1, 4)), int(rng.integers(1, 4)), box, float(rng.random())) for box in boxes(60)]
    of = scored(tmp_path / "a.json", objects, rows, images=3)
    found = errors_of(of.counts["bbox"])
    assert sum(found.count(kind) for kind in list(KINDS)[:-1]) + (found.kinds == HIT).sum() == len(rows)
    assert (found.kinds == HIT).sum() == found.found().sum() and not (found.found() & found.missed()).any()
    assert found.ap50() == pytest.approx(of.metrics["bbox"]["AP50"])
    assert coco_file(tmp_path / "b.json", []).exists()
