"""What a detector costs: parameters, operations, and the time of an image by its parts."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from detector.device import describe_device
from detector.evaluation.cost import count_flops, count_parameters, prepared
from detector.inference.predictor import Predictor
from detector.protocols import DataSet

IMAGES = 8  # that are timed, after one that warms up


@dataclass(frozen=True)
class Speed:
    """Medians of a few images, one at a time."""

    parameters: int
    flops: int
    """Of the first image; a multiplication with its addition counts as two."""
    seconds: dict[str, float]
    """Of its parts: read, prepare, detect."""
    images: int
    device: str


def measure_speed(predictor: Predictor, dataset: DataSet) -> Speed | None:
    """The cost on the first images of a data set; None where it has none."""
    count = min(len(dataset), IMAGES)
    if not count:
        return None
    seconds: dict[str, list[float]] = {"read": [], "prepare": [], "detect": []}
    for i in [0, *range(count)]:
        times = [time.perf_counter()]
        image = dataset.image(i)
        times.append(time.perf_counter())
        predictor.prepare(image)
        times.append(time.perf_counter())
        given = prepared(predictor, dataset, i)
        started = time.perf_counter()
        predictor.detect(*given)
        if predictor.device.type == "cuda":
            torch.cuda.synchronize(predictor.device)
        spent = [times[1] - times[0], times[2] - times[1], time.perf_counter() - started]
        for part, value in zip(seconds, spent):
            seconds[part].append(value)
    return Speed(
        parameters=count_parameters(predictor.config),
        flops=count_flops(predictor, dataset),
        seconds={part: statistics.median(values[1:]) for part, values in seconds.items()},
        images=count,
        device=describe_device(predictor.device),
    )
