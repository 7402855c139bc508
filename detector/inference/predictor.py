"""A trained detector ready for use: images in, boxes in their own pixels out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from detector.build import build_detector, check_config, data_settings
from detector.config import apply_overrides
from detector.data.image import MAX_PIXELS, read_image, to_rgb
from detector.data.transforms import Resize
from detector.errors import CheckpointError, ConfigError
from detector.geometry.boxes import clip_boxes
from detector.layers import fold_norms
from detector.rcnn import GeneralizedRCNN
from detector.structures import Detections, Proposals
from detector.training.checkpoint import load_weights, read_checkpoint

Picture = str | Path | Image.Image | Tensor
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(
    path: str | Path, trust: bool = False, *, overrides: Sequence[str] = (), device: str = "auto",
    precision: str = "float32",
) -> Predictor:  # fmt: skip
    """A predictor from a checkpoint of this project, which describes itself.

    `trust` follows dotted paths of your own parts that its configuration names. `overrides` are `key.path=value` changes of that
    configuration. Raises CheckpointError for a file that is missing, damaged or of another architecture.
    """
    checkpoint = read_checkpoint(path)
    try:
        check_config(checkpoint["config"], trust=trust)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration cannot be used: {error}") from error
    config = apply_overrides(checkpoint["config"], overrides)
    check_config(config, trust=trust)
    try:
        model = build_detector(without_weights(config), trust=trust)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration does not build a model: {error}") from error
    load_weights(model, checkpoint["model"], path)
    return Predictor(
        model, config, checkpoint["class_names"], checkpoint["category_ids"], device=device, precision=precision
    )


def without_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model whose backbone need not be pretrained, because a checkpoint will fill it."""
    model = config.get("model", {})
    backbone = {key: value for key, value in model.get("backbone", {}).items() if key != "weights"}
    return {**config, "model": {**model, "backbone": backbone}}


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU if there is one. Raises ConfigError if it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); choose cpu, cuda or cuda:N") from error


class Predictor:
    """Call it on a path, a PIL image, a uint8 RGB tensor (3, H, W), or a list of these.

    It takes the model over: eval mode, norms folded into the convolutions. Who goes on training gives it a copy.
    """

    def __init__(
        self, model: GeneralizedRCNN, config: Mapping[str, Any], class_names: list[str], category_ids: list[int], *,
        device: str | torch.device = "auto", precision: str = "float32",
    ):  # fmt: skip
        if precision not in PRECISIONS:
            raise ConfigError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
        self.device = pick_device(device) if isinstance(device, str) else device
        self.model = fold_norms(model).requires_grad_(False).eval()
        self.model.to(device=self.device, dtype=PRECISIONS[precision])
        self.config, self.class_names, self.category_ids = dict(config), list(class_names), list(category_ids)
        data = data_settings(config["data"]) if "data" in config else None
        self.resize = Resize(**data.resize).evaluation() if data else Resize(800, 1333)
        self.max_pixels = data.max_pixels if data else MAX_PIXELS
        self.prepare = self.resize.resize_image  # what a loader's workers do to every image

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Detections | list[Detections]:
        """Detections in the pixels of the pictures; a list for a list. Raises DataError for an unreadable file."""
        single = isinstance(pictures, Picture)
        images = [self.read(picture) for picture in ([pictures] if single else pictures)]
        found = self.detect([self.prepare(image) for image in images], [tuple(i.shape[1:]) for i in images])
        return found[0] if single else found

    def read(self, picture: Picture) -> Tensor:
        """A picture as a uint8 RGB tensor (3, H, W), upright. Raises ValueError for another tensor, TypeError else."""
        if isinstance(picture, Tensor):
            self.model.pixels.check([picture])
            return picture
        if isinstance(picture, Image.Image):
            return to_rgb(picture)
        if isinstance(picture, str | Path):
            return read_image(picture, self.max_pixels)
        raise TypeError(f"expected a path, a PIL image or a uint8 RGB tensor (3, H, W), got {type(picture).__name__}")

    def detect(self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Detections]:
        """Prepared images (3, h, w) -> detections on the CPU in the pixels of the original (H, W) `sizes`."""
        return [detections for detections, _ in self.detect_with_proposals(images, sizes)]

    @torch.inference_mode()
    def detect_with_proposals(
        self, images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Detections, Proposals]]:
        """Both stages' boxes, on the CPU, in the pixels of the original (H, W) `sizes`."""
        found = self.model.detect_with_proposals(images)
        return [
            (
                Detections(rescale(d.boxes, image, size), d.scores.cpu(), d.labels.cpu(), self.class_names),
                replace(p, boxes=rescale(p.boxes, image, size), scores=p.scores.cpu()),
            )
            for (d, p), image, size in zip(found, images, sizes)
        ]


def rescale(boxes: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (R, 4) of a resized image (3, h, w) -> on the CPU, in the pixels of the original (H, W) `size`."""
    (h, w), (height, width) = image.shape[1:], size
    ratio = torch.tensor([width / w, height / h, width / w, height / h])
    return clip_boxes(boxes.cpu() * ratio, size)
