"""Seconds an image by batch size and number of proposals, beside torchvision with the same weights, on the CPU.

`python scripts/measure_batches.py [CONFIG] [--size H W] [--batches 1 2 4] [--proposals 100 1000] [--pairs 3]`
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from detector.comparison.candidates import BenchmarkInput, OwnCandidate, Setup, TorchvisionCandidate, make_input
from detector.device import describe_device

TWIN = "detector://compat/torchvision_fasterrcnn_resnet50_fpn.yaml"
CPU = torch.device("cpu")


def works(
    setup: Setup, proposals: int, batch: int, sample: BenchmarkInput
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """This project's work on a batch, and torchvision's: from uint8 images to boxes."""
    ours, twin = OwnCandidate(setup, "float32").model, TorchvisionCandidate(setup).model
    for key in ("training", "testing"):
        twin.rpn._post_nms_top_n[key] = proposals
    images = [sample.image] * batch
    return lambda: ours.detect(images), lambda: twin([image.float() / 255 for image in images])


@torch.inference_mode()
def seconds(work: tuple[Callable[[], Any], ...], pairs: int) -> list[tuple[float, float]]:
    """Medians of (seconds, CPU seconds) of each, which take turns; the first turn is not counted."""
    found: list[list[tuple[float, float]]] = [[] for _ in work]
    for turn in range(pairs + 1):
        for one, times in zip(work, found):
            began, worked = time.perf_counter(), time.process_time()
            one()
            if turn:
                times.append((time.perf_counter() - began, time.process_time() - worked))
    return [(statistics.median(t for t, _ in times), statistics.median(c for _, c in times)) for times in found]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default=TWIN)
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1216), metavar=("H", "W"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--proposals", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--pairs", type=int, default=3)
    args = parser.parse_args()
    print(f"{args.config} at {args.size[0]} x {args.size[1]}, {describe_device(CPU)}, torch {torch.__version__}")
    print(
        "| proposals | batch | s an image | CPU s an image | torchvision: s | CPU s | × torchvision, CPU |\n"
        + "|---" * 7
        + "|"
    )
    with make_input(tuple(args.size)) as sample:
        for proposals in args.proposals:
            limit = f"model.rpn.selection.post_nms=[{proposals},{proposals}]"
            setup = Setup(args.config, [limit], "cpu", tuple(args.size))
            for batch in args.batches:
                ours, theirs = seconds(works(setup, proposals, batch, sample), args.pairs)
                cells = [f"{value / batch:.2f}" for value in (*ours, *theirs)]
                print(f"| {proposals} | {batch} | {' | '.join(cells)} | {theirs[1] / ours[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
