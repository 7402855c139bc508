"""The README's table of converted models: `PYTHONPATH=. python tests/golden_table.py`. It reads the recorded numbers."""

from __future__ import annotations

import copy

import torch
from helpers.golden_models import (
    MODELS,
    build,
    images_of,
    loss_pairs,
    match_detections,
    outputs,
    proposals_of,
    recorded,
    reference,
    train_as_torchvision,
)
from helpers.golden_rules import golden, ground_truth


def row(name: str) -> str:
    """Largest differences over both cases of detections and both of losses."""
    cases = ("batch", "single")
    pairs = [pair for case in cases for pair in zip(outputs(name, case).detections, recorded(name, case)["detections"])]
    matches = [match_detections(name, found, expected) for found, expected in pairs]
    assert not any(match.unmatched for match in matches)
    model = copy.deepcopy(build(name))
    train_as_torchvision(model) if name.startswith("tv_") else model.train()
    errors = []
    for case in ("batch", "empty"):
        images = images_of(name, "batch")
        with torch.no_grad():
            losses = model(images, ground_truth(empty_second=case == "empty"), proposals=proposals_of(name, images))
        terms = loss_pairs(name, losses, golden(name)["losses"][case])
        errors += [abs(ours - theirs) / theirs for ours, theirs in terms if theirs >= 0.01]
    count, px, score = sum(m.number for m in matches), max(m.px for m in matches), max(m.score for m in matches)
    return f"| {reference(name).name} | {name[3:]} | {count} | {px:.3f} | {score:.0e} | {max(errors):.0e} |"


if __name__ == "__main__":
    print("| framework | model | boxes | box, px | score | loss, relative |\n| --- | --- | ---: | ---: | ---: | ---: |")
    for name in MODELS:
        print(row(name), flush=True)
