"""The table of converted models in docs/systems.md: `PYTHONPATH=. python tests/golden_table.py [MODEL ...]`.

It reads the recorded numbers; a model is named as its file of them.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence

import torch
from helpers.golden_models import (
    KEYPOINT_MODELS,
    MASK_MODELS,
    MODELS,
    build,
    images_of,
    keypoint_errors,
    loss_pairs,
    mask_errors,
    match_detections,
    outputs,
    pixel_errors,
    proposals_of,
    recorded,
    reference,
    targets_of,
    train_as_torchvision,
)
from helpers.golden_rules import golden

from detector.structures import Detections

HEADS = "framework", "model", "boxes", "box, px", "score", "mask cell", "pixels, points", "loss, relative"


def row(name: str) -> str:
    """Largest differences over both cases of detections and both of losses."""
    cases = ("batch", "single")
    pairs = [pair for case in cases for pair in zip(outputs(name, case).detections, recorded(name, case)["detections"])]
    matches = [match_detections(name, found, expected) for found, expected in pairs]
    assert not any(match.unmatched for match in matches)
    count, px, score = sum(m.number for m in matches), max(m.px for m in matches), max(m.score for m in matches)
    cells = f"{reference(name).name} | {name[3:]} | {count} | {px:.3f} | {score:.0e}"
    return f"| {cells} | {' | '.join(shape_cells(name, pairs))} | {loss_error(name):.0e} |"


def shape_cells(name: str, pairs: Sequence[tuple[Detections, Mapping]]) -> tuple[str, str]:
    """The largest difference of a cell of a mask, and how many pixels of the masks, or keypoints, differ."""
    if name in MASK_MODELS:
        value = max(mask_errors(name, *pair)[0] for pair in pairs)
        wrong, union = (sum(counts) for counts in zip(*(e for pair in pairs for e in pixel_errors(name, *pair))))
        return f"{value:.0e}", f"{wrong} of {union}"
    if name in KEYPOINT_MODELS:
        points = sum(found.keypoints.points.shape[:-1].numel() for found, _ in pairs)
        return "–", f"{sum(keypoint_errors(name, *pair)[0] for pair in pairs)} of {points}"
    return "–", "–"


def loss_error(name: str) -> float:
    """The largest relative one; a loss below 0.01 is left out."""
    model = copy.deepcopy(build(name))
    train_as_torchvision(model) if name.startswith("tv_") else model.train()
    errors = []
    for case in ("batch", "empty"):
        images = images_of(name, "batch")
        targets = targets_of(name, empty_second=case == "empty")
        with torch.no_grad():
            losses = model(images, targets, proposals=proposals_of(name, images))
        terms = loss_pairs(name, losses, golden(name)["losses"][case])
        errors += [abs(ours - theirs) / theirs for ours, theirs in terms if theirs >= 0.01]
    return max(errors)


if __name__ == "__main__":
    print(f"| {' | '.join(HEADS)} |\n| --- | ---{' | ---:' * (len(HEADS) - 2)} |")
    for name in sys.argv[1:] or MODELS:
        print(row(name), flush=True)
