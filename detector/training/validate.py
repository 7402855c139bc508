"""How good a model is between two epochs: COCO's numbers and the loss on val."""

from __future__ import annotations

from collections.abc import Callable

import torch

from detector import distributed
from detector.config.config import Config
from detector.data.coco import CocoDataset
from detector.evaluation.run import evaluate
from detector.inference.predictor import Predictor
from detector.modeling.rcnn import GeneralizedRCNN
from detector.rng import mix
from detector.training.metrics import SCORES


def score(
    model: GeneralizedRCNN, config: Config, train: CocoDataset, val: CocoDataset, device: torch.device, *,
    workers: int, seed: int, check: Callable[[], None],
) -> dict[str, float]:  # fmt: skip
    """SCORES and `val_loss`, the same on all processes, which share the images; `check` may raise before each of them.

    The model is left in eval mode, and the random numbers of the training do not move.
    """
    predictor = Predictor(model, config, train.class_names, train.category_ids, device=device)
    metrics, _ = evaluate(predictor, val, workers=workers, check=check)
    scores = {name: (metrics["proposals"] | metrics["bbox"])[name] for name in SCORES}  # AR100 is of detections

    @torch.no_grad()
    def own_share_of_loss() -> float:
        total = 0.0
        for i in range(distributed.rank(), len(val), distributed.world_size()):
            check()
            image, target, _ = val[i]
            small, target = predictor.resize(image, target)
            torch.manual_seed(mix(seed, i))  # the same samples each time, however many processes
            total += float(sum(model([small], [target]).values()))
        return total

    model.eval()
    with torch.random.fork_rng():
        shares = distributed.gather(distributed.raise_on_all(own_share_of_loss))
    return {"val_loss": sum(shares) / len(val), **scores}
