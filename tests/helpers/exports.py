"""A detector of the comparison as a file of another engine, and what both find in an image that the export never saw."""

from pathlib import Path

import torch
from torch import nn

from detector.config.config import build_detector, load_config
from detector.export.agreement import Agreement, agreement
from detector.export.engines import TARGETS
from detector.export.exported import Eager, ExportedModel
from detector.export.graph import DetectionGraph
from detector.export.run import card_of
from detector.inference.predictor import Predictor
from detector.modeling.layers import is_foldable
from detector.modeling.rcnn import GeneralizedRCNN
from helpers.tiny import picture

GREYS = 57  # standard deviation of the pixels of photographs
SHAPES = Path(__file__).parents[2] / "configs" / "shapes"
SMALL = ["model.num_classes=3", "model.rpn.selection.post_nms=[200,200]", "model.roi_head.selection.max_detections=20"]


def spread_predictor(name: str) -> Predictor:
    """An untrained detector whose scores differ: equal ones would let each engine choose another box."""
    torch.manual_seed(0)
    config = load_config(SHAPES / f"{name}.yaml" if "/" not in name else SHAPES.parent / f"{name}.yaml", SMALL)
    model = build_detector(config, pretrained=False)
    settle(model)
    nn.init.normal_(model.rpn.deltas.weight, std=0.05)
    for stage in getattr(model.roi_head, "stages", [getattr(model.roi_head, "stage", None)]):
        if stage is not None:
            nn.init.normal_(stage.class_score.weight, std=0.05)
    return Predictor(model, config, ["a", "b", "c"], [1, 2, 3], device="cpu", in_place=True)


@torch.no_grad()
def settle(model: GeneralizedRCNN) -> None:
    """Activations of about 1, as in a trained network: with larger ones all scores are 1, with smaller ones all are equal."""
    for name, module in model.named_modules():
        if is_foldable(module) and name.endswith(("bn2", "bn3")):
            nn.init.constant_(module.weight, 0.25)  # small beside the shortcut
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    stem = next(module for module in model.pyramid.modules() if isinstance(module, nn.Conv2d))
    stem.weight *= (
        model.preprocess.std.mean() / GREYS
    )  # detectron2's pixels are not divided by their standard deviation
    model.pyramid.train()(
        model.preprocess.batch([picture(128, 128, seed=4)], torch.device("cpu"), torch.float32).images
    )
    model.eval()


def parity(name: str, target: str, folder: Path) -> Agreement:
    """Of the graph as PyTorch runs it with its own operators, and of the file."""
    predictor = spread_predictor(name)
    side = max(128, predictor.model.preprocess.divisor)
    graph = DetectionGraph(predictor.model, portable=True).eval()
    inputs = torch.zeros(1, 3, side, side, dtype=torch.uint8), torch.tensor([[100, 120]])
    with torch.no_grad():
        outputs = list(graph.find(*inputs))
    card = card_of(predictor, outputs, (side, side), 1)
    path = folder / f"{Path(name).name}{TARGETS[target].suffix}"
    TARGETS[target].write(graph, inputs, card, path)
    eager, exported = Eager(DetectionGraph(predictor.model, portable=False), card), TARGETS[target](path)
    image = [picture(90, 128, seed=3)]
    with torch.inference_mode():
        [found], [again] = (ExportedModel(engine).detect(image) for engine in (eager, exported))
    return agreement(name, found, again, threshold=0.05, limit=20)
