"""Validation between epochs: COCO metrics and the loss on val."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from detector import distributed
from detector.config.config import Config
from detector.data.tiled_dataset import TiledDataset
from detector.evaluation.coco import Scored
from detector.evaluation.run import evaluate_predictor
from detector.inference.predictor import Predictor
from detector.modeling.rcnn import GeneralizedRCNN
from detector.protocols import DataSet
from detector.recipe import Scoring
from detector.rng import mix
from detector.training.metrics import SCORES, SHAPE_SCORES


class Observer(Protocol):
    """Who keeps what scores come from."""

    def observe(self, scored: Scored) -> None:
        """Told of an evaluation before its row is written."""


def validate(
    model: GeneralizedRCNN, config: Config, train: DataSet, val: DataSet, device: torch.device, *,
    workers: int, seed: int, check: Callable[[], None], observers: Sequence[Observer] = (),
) -> dict[str, float]:  # fmt: skip
    """SCORES, `val_loss`, and SHAPE_SCORES of what the model finds, the same on all processes, which share the images.

    With `data.tiles` it is scored on such tiles and the whole image, and the loss is that of the tiles. The model is left in eval
    mode. The state of the random generators does not change.

    Args:
        model: the detector.
        config: its configuration.
        train: the training images, for the class names.
        val: the images to score.
        device: where the model is.
        workers: loading processes.
        seed: of the loss's samples.
        check: called before each image; it may raise to stop.
        observers: told on rank 0 what the scores come from.
    """
    predictor = Predictor(model, config, train.class_names, train.category_ids, device=device)
    tiles, parts = config.needed_data().tiles, val
    if tiles is not None:  # as the model was trained
        predictor, parts = predictor.tiled(tiles.of_evaluation()), TiledDataset(val, tiles, keep_empty=True)
    shapes = Scoring(keypoint_sigmas=config.evaluate.keypoint_sigmas, shapes=config.evaluate.shapes)

    def observe(scored: Scored) -> None:
        for observer in observers:
            observer.observe(scored)

    metrics, _ = evaluate_predictor(predictor, val, workers=workers, check=check, scoring=shapes, observe=observe)
    scores = {name: (metrics["proposals"] | metrics["bbox"])[name] for name in SCORES}  # AR100 is that of detections
    for title, names in SHAPE_SCORES.items():
        scores |= {f"{title}/{name}": metrics[title][name] for name in names if title in metrics}

    @torch.no_grad()
    def loss_of_shard() -> float:
        total = 0.0
        for i in range(distributed.rank(), len(parts), distributed.world_size()):
            check()
            image, target, _ = parts[i]
            resized, target = predictor.resize(image, target)
            torch.manual_seed(mix(seed, i))  # the same samples in each evaluation, for any number of processes
            total += float(sum(model([resized], [target]).values()))
        return total

    model.eval()
    with torch.random.fork_rng():
        shards = distributed.gather(distributed.raise_on_all(loss_of_shard))
    return {"val_loss": sum(shards) / len(parts), **scores}
