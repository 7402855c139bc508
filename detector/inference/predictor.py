"""A trained detector for inference: images -> detections in the pixels of the original images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from detector.checkpoint import load_weights, read_checkpoint
from detector.coco_format import ONE_CLASS
from detector.config.config import Config, build_detector, parse_config
from detector.data.image import MAX_PIXELS, read_image, to_rgb
from detector.data.transforms import Resize
from detector.device import own_device, pick_device
from detector.errors import CheckpointError, ConfigError, DataError
from detector.inference.drawing import plot
from detector.modeling.boxes import clip_boxes
from detector.modeling.layers import fold_norms
from detector.modeling.rcnn import GeneralizedRCNN
from detector.structures import Detections, Proposals, Size, image_size

Picture = str | Path | Image.Image | Tensor
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NO_SPLIT = {"images": "none", "annotations": "none.json"}
NO_DATA = {
    "root": ".",
    "train": NO_SPLIT,
    "val": NO_SPLIT,
}  # of a converted detector, so that keys of `data` can be set
AT_ONCE = 8  # decoded images that a call on a list holds in memory


def load(
    path: str | Path, trust: bool = False, *, overrides: Sequence[str] = (), device: str = "auto",
    precision: str = "float32", kind: type[Predictor] | None = None,
) -> Predictor:  # fmt: skip
    """A predictor from a checkpoint of this project, which contains its configuration.

    Args:
        path: the checkpoint.
        trust: import the custom classes that its configuration names.
        overrides: `key.path=value` changes of that configuration.
        device: cpu, cuda, cuda:1, ...; auto: a GPU if there is one.
        precision: of the network, float32 or bfloat16.
        kind: another predictor, such as TTAPredictor (inference/tta.py).

    Raises CheckpointError for a file that is missing, damaged or of another architecture.
    """
    checkpoint = read_checkpoint(path)
    if "data" not in checkpoint["config"] and any(change.startswith("data.") for change in overrides):
        checkpoint["config"] = checkpoint["config"] | {"data": NO_DATA}
    try:
        parse_config(checkpoint["config"], trust=trust)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration cannot be used: {error}") from error
    config = parse_config(checkpoint["config"], overrides, trust=trust)
    try:
        model = build_detector(config, pretrained=False)
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration does not build a model: {error}") from error
    load_weights(model, checkpoint["model"], path)
    names, ids = checkpoint["class_names"], checkpoint["category_ids"]
    return (kind or Predictor)(model, config, names, ids, device=device, precision=precision, in_place=True)


class Predictor:
    """Call it on a path, a PIL image, a uint8 RGB tensor (3, H, W), or a list of these.

    Args:
        model: the detector; a copy of it is used, in eval mode, norms folded into the convolutions.
        config: whose `data` section says how images are resized.
        class_names: by label.
        category_ids: of the training annotations, by label.
        device: a name as for `load`, or a device.
        precision: of the network, float32 or bfloat16.
        in_place: change `model` itself instead of a copy.
    """

    model: GeneralizedRCNN

    def __init__(
        self, model: GeneralizedRCNN, config: Config, class_names: list[str], category_ids: list[int], *,
        device: str | torch.device = "auto", precision: str = "float32", in_place: bool = False,
    ):  # fmt: skip
        if precision not in PRECISIONS:
            raise ConfigError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
        self.device = own_device(pick_device(device)) if isinstance(device, str) else device
        self.model = fold_norms(model if in_place else copy.deepcopy(model)).requires_grad_(False).eval()
        self.model.to(device=self.device, dtype=PRECISIONS[precision])
        self.config, self.class_names, self.category_ids = config, list(class_names), list(category_ids)
        self.label_names, self.label_ids = self.class_names, self.category_ids
        if model.reports_proposals:  # its labels are no classes of the data set
            self.label_names, self.label_ids = list(ONE_CLASS.values()), list(ONE_CLASS)
        self.resize = Resize(800, 1333) if config.data is None else config.data.resize.evaluation()
        self.max_pixels = MAX_PIXELS if config.data is None else config.data.max_pixels
        self.prepare = self.resize.resize_image  # runs in the loader's workers

    def __call__(self, pictures: Picture | Sequence[Picture]) -> Detections | list[Detections]:
        """Detections in the pixels of the pictures; a list for a list. Raises DataError for an unreadable file."""
        self.check_pictures()
        if isinstance(pictures, Picture):
            return self._predict([pictures])[0]
        return [d for i in range(0, len(pictures), AT_ONCE) for d in self._predict(pictures[i : i + AT_ONCE])]

    def _predict(self, pictures: Sequence[Picture]) -> list[Detections]:
        images = [self.read(picture) for picture in pictures]
        found = self.detect([self.prepare(image) for image in images], [image_size(i) for i in images])
        return [replace(d, proposals=None) for d in found]  # up to a thousand boxes per image

    def check_pictures(self) -> None:
        """Raise DataError if the detector needs proposals besides pictures."""
        if self.model.needs_proposals:
            raise DataError(
                "this detector has no RPN (model.rpn is precomputed): it finds nothing in pictures that come without "
                "proposals. `detector evaluate` runs it on a split with a file of them"
            )

    def read(self, picture: Picture) -> Tensor:
        """A picture as an upright uint8 RGB tensor (3, H, W).

        Raises ValueError for a tensor of another form, TypeError for another type.
        """
        if isinstance(picture, Tensor):
            self.model.preprocess.check([picture])
            return picture
        if isinstance(picture, Image.Image):
            return to_rgb(picture)
        if isinstance(picture, str | Path):
            return read_image(picture, self.max_pixels)
        raise TypeError(f"expected a path, a PIL image or a uint8 RGB tensor (3, H, W), got {type(picture).__name__}")

    @torch.inference_mode()
    def detect(
        self, images: Sequence[Tensor], sizes: Sequence[Size], proposals: Sequence[Proposals] | None = None
    ) -> list[Detections]:
        """Prepared images (3, h, w) -> detections, with their proposals, on the CPU in the pixels of the original sizes.

        `sizes` are the original (H, W); `proposals`, for a detector without an RPN, are in those pixels, too.
        """
        if proposals is not None:
            proposals = [to_prepared(p, image, size) for p, image, size in zip(proposals, images, sizes)]
        found = self.model.detect(images, proposals)
        return [self.named(to_original(d, image, size)) for d, image, size in zip(found, images, sizes)]

    def named(self, found: Detections) -> Detections:
        """Detections with what the predictor knows: names and original ids of the classes, and how to read an image."""
        draw = partial(plot, max_pixels=self.max_pixels)
        return replace(found, class_names=self.label_names, category_ids=self.label_ids, draw=draw)


def to_prepared(proposals: Proposals, image: Tensor, size: Size) -> Proposals:
    """Proposals in the pixels of the original (H, W) `size` -> in those of the prepared image (3, h, w)."""
    prepared = tuple(image.shape[1:])
    return proposals.resized(size, prepared).clipped(prepared)


def to_original(found: Detections, image: Tensor, size: Size) -> Detections:
    """Detections in a prepared image (3, h, w) -> on the CPU, in the pixels of the original (H, W) `size`."""
    resized = found.cpu().resized(image_size(image), size)
    return resized.with_boxes(lambda boxes: clip_boxes(boxes, size))
