"""Cost of a detector: parameters, floating-point operations, and latency side by side with others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from detector.config.config import Config, build_detector
from detector.inference.predictor import Predictor
from detector.protocols import DataSet

IMAGES, ROUNDS = 16, 3  # of the data set, and passes over them


def count_parameters(config: Config) -> int:
    """Trained and frozen weights, norms not folded. Raises ConfigError for a model that cannot be built."""
    return sum(p.numel() for p in build_detector(config, pretrained=False).parameters())


def count_flops(predictor: Predictor, dataset: DataSet) -> int:
    """Operations of matrix products and convolutions on the first image; a multiplication with its addition counts as two.

    Convolutions count as by their definition, also where fewer operations give the same values.
    """
    given = prepared(predictor, dataset, 0)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.detector.winograd: _direct}) as counter:
        predictor.detect(*given)
    return counter.get_total_flops()


def _direct(x: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(x, weight, out_shape)


def milliseconds(predictors: Sequence[Predictor], datasets: Sequence[DataSet]) -> list[float]:
    """Median latency of every predictor from a prepared image to its boxes, one image at a time.

    The data sets hold the same images, each with the proposals that its predictor may need. The predictors alternate on
    each image, so that a temporary slowdown of the machine affects all of them.
    """
    seconds: list[list[float]] = [[] for _ in predictors]
    for turn in range(ROUNDS + 1):
        for i in range(min(IMAGES, len(datasets[0])) if turn else 1):  # the first turn warms up
            for predictor, dataset, record in zip(predictors, datasets, seconds):
                given = prepared(predictor, dataset, i)
                began = _now(predictor.device)
                predictor.detect(*given)
                record.append(_now(predictor.device) - began)
    return [1e3 * statistics.median(record[1:]) for record in seconds]


def prepared(predictor: Predictor, dataset: DataSet, i: int) -> tuple:
    """The arguments of `predictor.detect` for one image of the data set."""
    image = dataset.image(i)
    given: Any = getattr(dataset, "proposals", None)  # a custom data set may have none
    proposals = [given[int(dataset.image_ids[i])]] if predictor.model.needs_proposals else None
    return [predictor.prepare(image)], [tuple(image.shape[1:])], proposals


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
