"""What the benchmark measures: the whole of what a user gets, the same in torchvision's detector, and any configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.exports import spread_predictor
from helpers.golden_rules import PROJECT

from detector.cli.benchmark import difference, main
from detector.comparison.candidates import BenchmarkInput, Setup, Stopwatch, make_candidate, make_input
from detector.comparison.roads import ROADS, road
from detector.export.engines import TARGETS
from detector.export.run import write
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "names"),
    [
        ("shapes/fpn.yaml", ["compiled"]),
        pytest.param(
            "compat/torchvision_fasterrcnn_resnet50_fpn.yaml",
            ["openvino", "torchvision in onnx", "torchvision in openvino"],
            marks=pytest.mark.longest,
        ),
    ],
)
def test_every_road_finds_the_same(config, names):
    measured = setup(config, "model.num_classes=3")
    with make_input(SIZE) as sample:
        eager = found_by(measured, "float32", sample)
        for name in names:
            watch = Stopwatch(torch.device("cpu"))
            found = road(measured, name).infer(sample, watch)
            assert name in ROADS and watch.cpu > 0 and watch.seconds["model"] > 0
            assert len(found) == len(eager) > 5, name
            gap = (found.boxes[:, None] - eager.boxes).abs().amax(-1) + (
                found.scores[:, None] - eager.scores
            ).abs() * 1e3
            assert gap.amin(dim=1).max() < 0.05, name


@pytest.mark.slow
def test_an_exported_file_is_measured_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    predictor, path = spread_predictor("fpn"), tmp_path / "model.onnx"
    write(predictor, TARGETS["onnx"], path, SIZE, 1)
    assert main([str(path), "--pairs", "1", "--json", str(tmp_path / "figures.json")]) == 0
    said = capsys.readouterr().out
    assert f"{path} at 64 x 96" in said and "training" not in said
    figures = json.loads((tmp_path / "figures.json").read_text())
    row = figures["infer"][str(path)]
    assert list(figures) == ["infer"] and row["total"] > 0 and row["cpu"] > 0 and row["peak_mib"] > 50
    with pytest.raises(SystemExit):
        main([str(path), "model.num_classes=3"])
    assert "an exported file is measured as it is" in capsys.readouterr().err


def test_a_file_that_may_run_code_needs_trust_at_any_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "model.pt2"
    path.touch()
    assert main([str(path), "--size", "64", "96"]) == main([str(path)]) == 2
    assert capsys.readouterr().err.count("--trust") == 2
