"""Models, images and targets small enough for a test to make as many as it likes."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detector.config.config import build_detector, parse_config
from detector.config.inherit import merge
from detector.inference.predictor import Predictor
from detector.modeling.rcnn import GeneralizedRCNN
from detector.structures import Batch, Detections, Proposals, Target
from helpers.golden_rules import match_sets

CLASSES = 3
CONFIG = {
    "model": {
        "num_classes": CLASSES,
        "backbone": {"type": "resnet", "depth": 18, "width": 16},
        "neck": {"type": "fpn", "width": 32},
        "rpn": {"anchors": {"sizes": [[16], [32], [64], [96], [128]]}},
        "roi_head": {"pool": {"type": "by_level", "canonical_size": 56}, "box_head": {"type": "two_fc", "width": 32}},
    }
}


def tiny_model(**sections: Any) -> GeneralizedRCNN:
    """A ResNet-18 detector of 3 classes with a neck 32 wide; `sections` go over those of CONFIG["model"].

    Its class scores and proposals are spread, so that there is something to detect without any training.
    """
    torch.manual_seed(0)
    model = build_detector(parse_config(merge(CONFIG, {"model": sections}), trust=True))
    with torch.no_grad():
        for stage in getattr(model.roi_head, "stages", None) or [model.roi_head.stage]:  # several of a cascade
            stage.class_score.weight.normal_(std=0.3)
        model.rpn.deltas.weight.normal_(std=0.05)
    return model


NAMES, IDS = ["cat", "dog", "eel"], [3, 7, 90]  # of the classes
SPLIT = {"images": "images", "annotations": "a.json"}
DATA = {"root": ".", "train": SPLIT, "val": SPLIT}


def predictor_of(model: GeneralizedRCNN, config: dict[str, Any], kind: type = Predictor, **options: Any) -> Predictor:
    return kind(model, parse_config(config, trust=True), NAMES, IDS, device="cpu", **options)


def columns(found: Detections) -> tuple[Tensor, Tensor, Tensor]:
    return found.boxes, found.scores, found.labels


def assert_same_detections(found: Detections, expected: Detections, *, px: float = 0.02, score: float = 1e-4) -> None:
    """As sets: convolutions of another batch size may round in another way, and so swap two equal scores."""
    assert len(found) == len(expected) > 0
    assert match_sets(columns(found), columns(expected), px=px, score=score).unmatched == 0


def built(config: dict[str, Any], **options: Any) -> GeneralizedRCNN:
    """The detector of a plain configuration."""
    return build_detector(parse_config(config, trust=True), **options)


def grouped(part: Callable, **flat: Any) -> dict[str, Any]:
    """Arguments of a constructor whose options come in groups, by the options' own names: {"matching": Matching(...), ...}."""
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(part).parameters.items():
        if name in flat:
            arguments[name] = flat.pop(name)
        elif dataclasses.is_dataclass(parameter.default):
            own = {f.name: flat.pop(f.name) for f in dataclasses.fields(parameter.default) if f.name in flat}
            arguments[name] = dataclasses.replace(parameter.default, **own)
    assert not flat, f"{part.__name__} has no {', '.join(flat)}"
    return arguments


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """A uint8 RGB image (3, H, W) of coloured noise in blocks of 8 pixels."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 256, (3, -(-height // 8), -(-width // 8)), generator=generator, dtype=torch.uint8)
    return blocks.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)[:, :height, :width]


def target(*rows: tuple[float, float, float, float, int]) -> dict[str, Tensor]:
    """Objects (x1, y1, x2, y2, label), perhaps none."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return {"boxes": table[:, :4], "labels": table[:, 4].long()}


def with_bitmaps(target: dict[str, Tensor], image: Tensor) -> dict[str, Tensor]:
    """A target whose objects fill their boxes in this image."""
    h, w = image.shape[-2:]
    y, x = torch.arange(h)[:, None] + 0.5, torch.arange(w) + 0.5
    x1, y1, x2, y2 = (side[:, None, None] for side in target["boxes"].unbind(dim=1))
    return target | {"masks": ((x > x1) & (x < x2) & (y > y1) & (y < y2)).to(torch.uint8)}


def drawn(targets: list[dict[str, Tensor]], images: list[Tensor], points: int = 17) -> list[dict[str, Tensor]]:
    """Targets for a model that learns masks, keypoints and semantic maps; others read nothing of them."""
    return [
        with_points(with_bitmaps(target, image), image, points) for target, image in zip(targets, images, strict=True)
    ]


def with_points(target: dict[str, Tensor], image: Tensor, count: int = 17) -> dict[str, Tensor]:
    """A target with keypoints on the diagonal of each box, the last one not labelled, and a semantic map of stripes."""
    low, high = target["boxes"][:, None].split(2, dim=-1)  # (G, 1, 2)
    points = low + (high - low) * torch.linspace(0.1, 0.9, count)[:, None]
    visible = (torch.arange(count) < count - 1)[:, None].expand(*points.shape[:2], 1)
    semantic = (torch.arange(image.shape[2]) // 8 % 3).expand(image.shape[1:]).to(torch.uint8)
    return target | {"keypoints": torch.cat([points, 2 * visible], dim=-1), "semantic": semantic}


def to_target(*rows: tuple[float, float, float, float, int]) -> Target:
    """The same as a record."""
    return Target.of(target(*rows))


def proposals(*rows: tuple[float, ...]) -> Proposals:
    """Boxes, each perhaps with its score; perhaps none."""
    table = torch.tensor([(*row, 0.0)[:5] for row in rows], dtype=torch.float32).reshape(-1, 5)
    return Proposals(table[:, :4], table[:, 4])


def batch_of(*sizes: tuple[int, int], padded: tuple[int, int] = (64, 96)) -> Batch:
    """Black images of these sizes (h, w), padded."""
    return Batch(torch.zeros(len(sizes), 3, *padded), list(sizes))


IMAGES = [picture(64, 96, seed=1), picture(90, 60, seed=2)]
TARGETS = [target((8, 8, 40, 50, 0), (50, 20, 90, 60, 2)), target((5, 30, 50, 85, 1))]
EMPTY = target()
OBJECTS = target((8, 8, 40, 50, 0), (50, 20, 90, 60, 2), (2, 2, 94, 62, 1))  # in a picture of 64 x 96


def gradients(model: GeneralizedRCNN, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of every trainable parameter, after one step: they are there and finite."""
    model.zero_grad()
    sum(model(images, targets).values()).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, grad in found.items() if grad is None or not grad.isfinite().all()] == []
    return found


def unmoved(found: dict[str, Tensor]) -> list[str]:
    """The names of those gradients that are zero."""
    return [name for name, grad in found.items() if not grad.any()]
