"""What the benchmark measures: the whole of what a user gets, the same in torchvision's detector, and any configuration."""

from __future__ import annotations

import pytest
import torch
from helpers.golden_rules import PROJECT

from detector.cli.benchmark import difference
from detector.comparison.candidates import BenchmarkInput, Setup, Stopwatch, make_candidate, make_input
from detector.structures import Detections

SIZE = (64, 96)


def setup(config: str, *overrides: str) -> Setup:
    return Setup(str(PROJECT / "configs" / config), overrides, "cpu", SIZE)


def found_by(setup: Setup, name: str, sample: BenchmarkInput) -> Detections:
    candidate = make_candidate(setup, name)
    watch = Stopwatch(candidate.device)
    found = candidate.infer(sample, watch)
    assert all(seconds > 0 for seconds in watch.seconds.values())
    return found


@pytest.mark.slow
def test_torchvisions_detector_finds_the_same_masks():
    masked = setup("compat/torchvision_maskrcnn_resnet50_fpn.yaml", "model.num_classes=3")
    with make_input(SIZE) as sample:
        ours, theirs = (found_by(masked, name, sample) for name in ("float32", "torchvision"))
        make_candidate(masked, "torchvision", training=True).train_step(sample)
    order = [((ours.boxes - box).abs().sum(dim=1) + (ours.scores - score).abs() * 1e3).argmin().item()
             for box, score in zip(theirs.boxes, theirs.scores)]  # fmt: skip
    assert len(ours) == len(theirs) == len(set(order)) > 5
    assert ours.labels[order].equal(theirs.labels)
    assert (ours.masks.probabilities[order] - theirs.masks.probabilities).abs().max() < 1e-2
    assert 0.05 < theirs.masks.probabilities.std()
    assert f"{len(ours)} found by both" in difference(ours, theirs) and "lowest IoU" in difference(ours, theirs)


@pytest.mark.parametrize("name", ["fpn", "mask_scoring", "htc", "keypoints"])
def test_a_configuration_is_measured_with_what_it_learns(name):
    measured = setup(f"shapes/{name}.yaml", "model.num_classes=3")
    with make_input(SIZE) as sample:
        found = make_candidate(measured, "float32").infer(sample, Stopwatch(torch.device("cpu")))
        assert len(found) > 0 and (found.masks is not None) == (name in ("mask_scoring", "htc"))
        make_candidate(measured, "float32", training=True).train_step(sample)
