"""A trained detector ready for use: images in, boxes in their own pixels out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from detector.checkpoint import load_weights, read_checkpoint
from detector.coco_format import ONE_CLASS
from detector.config import apply_overrides
from detector.data.dataset import data_settings
from detector.data.image import MAX_PIXELS, read_image, to_rgb
from detector.data.proposal_file import inside
from detector.data.transforms import Resize
from detector.device import own_device, pick_device
from detector.errors import CheckpointError, ConfigError, DataError
from detector.modeling.boxes import clip_boxes
from detector.modeling.build import build_detector, check_config
from detector.modeling.layers import fold_norms
from detector.modeling.parts import DEFAULT_TYPES
from detector.modeling.precomputed import Precomputed
from detector.modeling.rcnn import GeneralizedRCNN
from detector.modeling.roi_heads.proposals_only import ProposalsOnly
from detector.structures import Detections, Proposals

Picture = str | Path | Image.Image | Tensor
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(
    path: str | Path, trust: bool = False, *, overrides: Sequence[str] = (), device: str = "auto",
    precision: str = "float32", kind: type[Predictor] | None = None,
) -> Predictor:  # fmt: skip
    """A predictor from a checkpoint of this project, which describes itself.

    `trust` follows dotted paths of your own parts that its configuration names. `overrides` are `key.path=value` changes of
    that configuration. `kind`: another predictor, such as `Augmented` (detector/inference/tta.py). Raises CheckpointError
    for a file that is missing, damaged or of another architecture.
    """
    checkpoint = read_checkpoint(path)
    try:
        check_config(checkpoint["config"], trust=trust)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration cannot be used: {error}") from error
    config = apply_overrides(checkpoint["config"], overrides, DEFAULT_TYPES)
    check_config(config, trust=trust)
    try:
        model = build_detector(without_weights(config), trust=trust)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration does not build a model: {error}") from error
    load_weights(model, checkpoint["model"], path)
    names, ids = checkpoint["class_names"], checkpoint["category_ids"]
    return (kind or Predictor)(model, config, names, ids, device=device, precision=precision)


def without_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model whose backbone need not be pretrained, because a checkpoint will fill it."""
    model = config.get("model", {})
    backbone = model.get("backbone", {})
    if isinstance(backbone, Mapping):  # and not its type's name alone
        backbone = {key: value for key, value in backbone.items() if key != "weights"}
    return {**config, "model": {**model, "backbone": backbone}}


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
        self.device = own_device(pick_device(device)) if isinstance(device, str) else device
        self.model = fold_norms(model).requires_grad_(False).eval()
        self.model.to(device=self.device, dtype=PRECISIONS[precision])
        self.config, self.class_names, self.category_ids = dict(config), list(class_names), list(category_ids)
        self.needs_proposals = isinstance(model.rpn, Precomputed)
        self.is_rpn_alone = isinstance(model.roi_head, ProposalsOnly)  # its labels are not of those classes
        names_and_ids = (ONE_CLASS.values(), ONE_CLASS) if self.is_rpn_alone else (class_names, category_ids)
        self.label_names, self.label_ids = map(list, names_and_ids)
        data = data_settings(config["data"]) if "data" in config else None
        self.resize = Resize(**data.resize).evaluation() if data else Resize(800, 1333)
        self.max_pixels = data.max_pixels if data else MAX_PIXELS
        self.prepare = self.resize.resize_image  # what a loader's workers do to every image

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Detections | list[Detections]:
        """Detections in the pixels of the pictures; a list for a list. Raises DataError for an unreadable file."""
        self.check_pictures()
        single = isinstance(pictures, Picture)
        images = [self.read(picture) for picture in ([pictures] if single else pictures)]
        found = self.detect([self.prepare(image) for image in images], [tuple(i.shape[1:]) for i in images])
        return found[0] if single else found

    def check_pictures(self) -> None:
        """Raise DataError if pictures alone are not enough."""
        if self.needs_proposals:
            raise DataError(
                "this detector has no RPN (model.rpn is precomputed): it finds nothing in pictures that come without "
                "proposals. scripts/evaluate.py runs it on a split with a file of them"
            )

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
        self,
        images: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        proposals: Sequence[Proposals] | None = None,
    ) -> list[tuple[Detections, Proposals]]:
        """Both stages' boxes, on the CPU, in the pixels of the original (H, W) `sizes`; so are given `proposals`."""
        if proposals is not None:
            proposals = [fit(p, image, size) for p, image, size in zip(proposals, images, sizes)]
        found = self.model.detect_with_proposals(images, proposals)
        return [
            (
                Detections(rescale(d.boxes, image, size), d.scores.cpu(), d.labels.cpu(), self.label_names),
                replace(p, boxes=rescale(p.boxes, image, size), scores=p.scores.cpu()),
            )
            for (d, p), image, size in zip(found, images, sizes)
        ]


def fit(proposals: Proposals, image: Tensor, size: tuple[int, int]) -> Proposals:
    """Proposals in the pixels of the original (H, W) `size` -> in those of the resized image (3, h, w)."""
    (h, w), (height, width) = image.shape[1:], size
    ratio = torch.tensor([w / width, h / height, w / width, h / height])
    return inside(Proposals(proposals.boxes * ratio, proposals.scores), h, w)


def rescale(boxes: Tensor, image: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (R, 4) of a resized image (3, h, w) -> on the CPU, in the pixels of the original (H, W) `size`."""
    (h, w), (height, width) = image.shape[1:], size
    ratio = torch.tensor([width / w, height / h, width / w, height / h])
    return clip_boxes(boxes.cpu() * ratio, size)
