"""Intervals of AP: the estimate is COCO's, a resample is the AP of the images drawn, and the interval covers the truth."""

from pathlib import Path

import numpy as np
import pytest
from helpers.insight import coco_file, results, scored

from detector.evaluation.coco import score_results
from detector.insight.bootstrap import Interval, estimated_aps, image_weights, mean_of_known, resample, resampled_aps
from detector.insight.curves import average_precision
from detector.insight.matches import SIZES, ClassMatches, class_matches


def random_set(seed: int = 0, images: int = 6) -> tuple[list, list]:
    rng = np.random.default_rng(seed)
    objects, rows = [], []
    for image in range(1, images + 1):
        for _ in range(rng.integers(1, 6)):
            side = float(rng.choice([12, 50, 110]))
            box = (float(rng.uniform(0, 80)), float(rng.uniform(0, 80)), side, side * float(rng.uniform(0.8, 1.2)))
            category = int(rng.integers(1, 4))
            crowd = (
                {"iscrowd": 1, "segmentation": {"size": [200, 200], "counts": [0, 40000]}} if rng.random() < 0.1 else {}
            )
            objects.append((image, category, box, crowd))
            move = rng.normal(scale=0.1) * side
            found = (box[0] + move, box[1], box[2], box[3] * float(rng.uniform(0.7, 1.3)))
            rows.append((image, category, found, float(np.round(rng.random(), 1))))
            rows.append((image, int(rng.integers(1, 4)), (box[1], box[0], side, side), float(rng.random())))
    return objects, rows


@pytest.mark.parametrize("seed", [0, 1])
def test_without_resampling_the_aps_are_those_of_coco(seed: int, tmp_path: Path):
    objects, rows = random_set(seed)
    of = scored(tmp_path / "a.json", objects, rows, images=6)
    found = resample(of.counts["bbox"], samples=3)
    for name, values in found.metrics.items():
        assert values[0] == pytest.approx(of.metrics["bbox"][name], abs=1e-12), name
    for label, scores in enumerate(of.metrics["per_class"].values()):
        assert found.classes[0, label] == pytest.approx(scores["AP"], abs=1e-12)


def test_a_resample_is_the_ap_of_the_images_that_were_drawn(tmp_path: Path):
    """Images with weights 2, 0, 1 score as a file in which the first is there twice and the second is not."""
    objects, rows = random_set(5, images=3)
    of = scored(tmp_path / "a.json", objects, rows, images=3)
    weights = np.array([[2, 0, 1]], dtype=np.float32)
    twice = [(4, *rest) for image, *rest in objects if image == 1], [(4, *rest) for image, *rest in rows if image == 1]
    truth = coco_file(tmp_path / "b.json", objects + twice[0], images=4)
    kept = [row for row in rows if row[0] != 2] + twice[1]
    again = score_results(truth, results(*kept), image_ids=[1, 3, 4])
    for size, metric in zip(SIZES, ("AP", "APs", "APm", "APl")):
        found = mean_of_known(resampled_aps(class_matches(of.counts["bbox"], size), weights).mean(axis=2))[0]
        assert np.nan_to_num(found, nan=-1) == pytest.approx(again.metrics["bbox"][metric], abs=2e-3), metric


def test_resamples_draw_as_many_images_as_there_are_and_one_image_none():
    weights = image_weights(50, 200)
    assert weights.shape == (200, 50) and (weights.sum(axis=1) == 50).all() and weights.max() > 2
    assert 0.7 < weights.mean(axis=0).min() and np.array_equal(weights, image_weights(50, 200))
    assert image_weights(1, 200).shape == (0, 1) and image_weights(0, 200).shape == (0, 0)


def test_intervals_without_anything_to_measure(tmp_path: Path):
    found = resample(scored(tmp_path / "a.json", [], [(1, 1, (1, 1, 20, 20), 0.5)]).counts["bbox"], 20)
    assert all(np.isnan(found.interval(name).value) and np.isnan(found.interval(name).low) for name in found.metrics)
    one = resample(scored(tmp_path / "b.json", [(1, 1, (1, 1, 20, 20))], [], images=1).counts["bbox"], 20)
    assert one.interval("AP").value == 0 and np.isnan(one.interval("AP").low)
    assert Interval(0.1, 0.02, 0.2).excludes_zero() and not Interval(0.1, -0.02, 0.2).excludes_zero()


def test_the_difference_of_two_runs_is_paired(tmp_path: Path):
    """Runs that differ in one image alone: the interval of the difference is narrower than those of the runs."""
    objects, rows = random_set(2, images=30)
    first = resample(scored(tmp_path / "a.json", objects, rows, images=30).counts["bbox"], 300)
    same = resample(scored(tmp_path / "a.json", objects, rows, images=30).counts["bbox"], 300)
    assert all((i.value, i.low, i.high) == (0, 0, 0) for i in first.difference(same).values())
    fewer = [row for row in rows if row[0] != 4]
    second = resample(scored(tmp_path / "a.json", objects, fewer, images=30).counts["bbox"], 300)
    difference, alone = first.difference(second)["AP"], first.interval("AP")
    assert difference.value == pytest.approx(first.metrics["AP"][0] - second.metrics["AP"][0])
    assert difference.high - difference.low < 0.6 * (alone.high - alone.low)
    of_class = first.difference_of_class(second, 1, 1)
    assert of_class.value == pytest.approx(first.classes[0, 1] - second.classes[0, 1])


def simulated(rng: np.random.Generator, images: int) -> ClassMatches:
    """A class in images of unequal difficulty: in a hard one fewer objects are found, with lower scores and more mistakes."""
    ease = rng.beta(4, 2, size=images)
    objects = rng.poisson(4, size=images)
    owner = np.repeat(np.arange(images), objects)
    found = rng.random(len(owner)) < ease[owner]
    wrong = np.repeat(np.arange(images), rng.poisson(3 * (1 - ease) + 0.5))
    image = np.concatenate([owner[found], wrong])
    hit = np.arange(len(image)) < found.sum()
    scores = np.where(hit, rng.beta(4, 2, len(image)), rng.beta(2, 3, len(image)))
    order = np.argsort(-scores)
    image, hit, scores = image[order], hit[order], scores[order]
    matched = np.where(hit, 1, 0)[None]
    return ClassMatches(
        image, scores, np.arange(len(image)), matched, np.ones_like(matched, bool), owner, np.arange(len(owner)) + 1
    )


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """95 % of simulated data sets; 300 of them leave room for four standard deviations of 1.3 %."""
    truth = simulated(np.random.default_rng(99), 40_000)
    expected = average_precision(truth.scores, truth.hits(), len(truth.object_ids))
    rng, covered, runs = np.random.default_rng(7), 0, 300
    for _ in range(runs):
        found = [simulated(rng, 80)]
        interval = Interval.of(float(estimated_aps(found)[0, 0]), resampled_aps(found, image_weights(80, 250))[:, 0, 0])
        covered += interval.low <= expected <= interval.high
    assert 0.90 <= covered / runs <= 0.99, covered / runs
