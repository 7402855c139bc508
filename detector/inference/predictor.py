"""A trained detector for inference: images -> detections in the pixels of the original images."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from detector.checkpoint import load_weights, pose_of, read_checkpoint, with_old_depth
from detector.coco_format import ONE_CLASS
from detector.config.config import Config, build_detector, parse_config
from detector.data.image import MAX_PIXELS, check_pixels
from detector.data.tiles import Tiles, tiles_of
from detector.data.transforms import Resize
from detector.device import own_device, pick_device
from detector.errors import CheckpointError, ConfigError, DataError
from detector.inference.divergence import warn_of_divergence
from detector.inference.drawing import plot
from detector.inference.filters import DetectionFilter
from detector.inference.in_tiles import detect_in_tiles
from detector.inference.pictures import Picture, is_picture, iterate_pictures, read_picture
from detector.interop.fetch import checkpoint_file
from detector.modeling.boxes import clip_boxes
from detector.modeling.layers import fold_norms
from detector.modeling.rcnn import GeneralizedRCNN
from detector.records.geometry import Size
from detector.records.keypoints import Pose
from detector.rows import Classes, labels_of
from detector.structures import Detections, Proposals, image_size

Source = Picture | Iterable[Picture]
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NO_SPLIT = {"images": "none", "annotations": "none.json"}
NO_DATA = {
    "root": ".",
    "train": NO_SPLIT,
    "val": NO_SPLIT,
}  # of a converted detector, so that keys of `data` can be set
AT_ONCE = 8  # pictures of a forward pass


def load_predictor(
    path: str | Path, trust: bool = False, *, overrides: Sequence[str] = (), device: str = "auto",
    precision: str = "float32", kind: type[Predictor] | None = None,
) -> Predictor:  # fmt: skip
    """A predictor from a checkpoint of this project, which contains its configuration, or from a published detector.

    Args:
        path: the checkpoint, or a name such as "torchvision/fasterrcnn_resnet50_fpn_v2" (docs/weights.md lists them), whose
            file is downloaded with its first use.
        trust: import the custom classes that its configuration names.
        overrides: `key.path=value` changes of that configuration.
        device: cpu, cuda, cuda:1, ...; auto: a GPU if there is one.
        precision: of the network, float32 or bfloat16.
        kind: another predictor, such as TTAPredictor (inference/tta.py).

    Raises CheckpointError for a file that is missing, damaged or of another architecture.
    """
    path = checkpoint_file(path)
    checkpoint = read_checkpoint(path)
    checkpoint["config"] = with_old_depth(checkpoint["config"], checkpoint)
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
    warn_of_divergence(model, path)
    names, ids = checkpoint["class_names"], checkpoint["category_ids"]
    made, pose = kind or Predictor, pose_of(checkpoint)
    return made(model, config, names, ids, device=device, precision=precision, in_place=True, pose=pose)


class Predictor:
    """Call it on a picture, or on a folder, a video or a list; `stream` is for many pictures.

    Args:
        model: the detector; a copy of it is used, in eval mode, norms folded into the convolutions.
        config: whose `data` section says how images are resized.
        class_names: by label.
        category_ids: of the training annotations, by label.
        device: a name as for `load`, or a device.
        precision: of the network, float32 or bfloat16.
        in_place: change `model` itself instead of a copy.
        pose: what its keypoints mean; None if that is not known, or if it finds none.
    """

    model: GeneralizedRCNN

    def __init__(
        self, model: GeneralizedRCNN, config: Config, class_names: list[str], category_ids: list[int], *,
        device: str | torch.device = "auto", precision: str = "float32", in_place: bool = False,
        pose: Pose | None = None,
    ):  # fmt: skip
        if precision not in PRECISIONS:
            raise ConfigError(f"precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
        self.device = own_device(pick_device(device)) if isinstance(device, str) else device
        self.model = fold_norms(model if in_place else copy.deepcopy(model)).requires_grad_(False).eval()
        self.model.to(device=self.device, dtype=PRECISIONS[precision])
        self.config, self.class_names, self.category_ids = config, list(class_names), list(category_ids)
        self.pose, self.label_names, self.label_ids = pose, self.class_names, self.category_ids
        if model.reports_proposals:  # its labels are no classes of the data set
            self.label_names, self.label_ids = list(ONE_CLASS.values()), list(ONE_CLASS)
        self.resize = Resize(800, 1333) if config.data is None else config.data.resize.evaluation()
        self.max_pixels = MAX_PIXELS if config.data is None else config.data.max_pixels
        self.bit_depth = None if config.data is None else config.data.bit_depth
        self.prepare = self.resize.resize_image  # runs in the loader's workers

    def __repr__(self) -> str:
        names = ", ".join(self.label_names[:5]) + (", ..." if len(self.label_names) > 5 else "")
        return f"{type(self).__name__}({len(self.label_names)} classes: {names}; on {self.device})"

    def __call__(
        self, source: Source, *, bgr: bool = False, score: float = 0.0, classes: Classes | None = None,
        max_detections: int | None = None, tiles: int | Size | Tiles | None = None,
    ) -> Detections | list[Detections]:  # fmt: skip
        """Detections in the pixels of one picture; for anything else a list of them, all that `stream` yields.

        One picture is a path, an http(s) URL, the bytes of an image file, an open file (read from its beginning, and not
        closed), a PIL image, a NumPy array (H, W, 3), (H, W, 4), (H, W, 1) or (H, W) of uint8 or uint16, or a uint8 RGB tensor
        (3, H, W). The other arguments are those of `stream`, as are its errors.
        """
        found = self.stream(source, bgr=bgr, score=score, classes=classes, max_detections=max_detections, tiles=tiles)
        return next(found) if is_picture(source) else list(found)

    def stream(
        self, source: Source, *, batch: int = AT_ONCE, bgr: bool = False, score: float = 0.0,
        classes: Classes | None = None, max_detections: int | None = None, tiles: int | Size | Tiles | None = None,
    ) -> Iterator[Detections]:  # fmt: skip
        """The Detections of every picture in order, a batch at a time; memory does not grow with their number.

        Next to one picture a source may be a folder (the images in and below it by name, as `detector infer` takes them), a
        pattern such as "photos/**/*.jpg", a video file (all its frames), a cv2.VideoCapture, or an iterable of any of these,
        endless ones included. Nothing is read before it is needed; of a batch one picture at a time is held in full size.
        Raises DataError for a picture that cannot be read or exceeds data.max_pixels, ValueError for an array or a tensor of
        another form, TypeError for another type.

        Args:
            source: one picture or several.
            batch: pictures of a forward pass; 1 for a camera, so that no frame waits for the next.
            bgr: the NumPy arrays have blue first, as OpenCV gives them.
            score: lowest score. As the next two, it takes from what the model found, whose own threshold, NMS and limit are
                `model.roi_head.selection`.
            classes: names or labels of the classes to return.
            max_detections: the best so many of each picture.
            tiles: find small objects in large pictures: see `tiled`. One picture is then in memory at a time, and `batch` is the
                number of tiles in a forward pass.
        """
        if tiles is not None:
            return self.tiled(tiles).stream(
                source, batch=batch, bgr=bgr, score=score, classes=classes, max_detections=max_detections
            )
        self.check_pictures()
        if batch < 1:
            raise ValueError(f"batch={batch}: expected at least 1")
        keep = self._filter(score, classes, max_detections)
        pictures = iterate_pictures(source, self.max_pixels)
        return (keep(found) for found in self._stream(pictures, batch, bgr))

    def tiled(self, tiles: int | Size | Tiles) -> TiledPredictor:
        """This predictor on tiles of every picture: their size in pixels, one number or (height, width), or Tiles."""
        return TiledPredictor(self, tiles_of(tiles))

    def _stream(self, pictures: Iterator[Picture], batch: int, bgr: bool) -> Iterator[Detections]:
        """Batches of pictures; those before a picture that cannot be read are detected before its error is raised."""
        while True:
            prepared: list[Tensor] = []
            sizes: list[Size] = []
            error: Exception | None = None
            try:
                for picture in islice(pictures, batch):
                    self._prepare(picture, bgr, prepared, sizes)
            except Exception as caught:
                error = caught
            yield from self._detect_prepared(prepared, sizes)
            if error is not None:
                raise error
            if not prepared:
                return

    def _filter(self, score: float, classes: Classes | None, limit: int | None) -> DetectionFilter:
        labels = None if classes is None else labels_of(classes, self.label_names)
        return DetectionFilter(score, labels, limit)

    def _prepare(self, picture: Picture, bgr: bool, prepared: list[Tensor], sizes: list[Size]) -> None:
        """Append the prepared picture and its original size."""
        image = self.read(picture, bgr=bgr)
        prepared.append(self.prepare(image))
        sizes.append(image_size(image))

    def _detect_prepared(self, prepared: list[Tensor], sizes: list[Size]) -> list[Detections]:
        found = self.detect(prepared, sizes) if prepared else []
        return [replace(d, proposals=None) for d in found]  # up to a thousand boxes per image

    def check_pictures(self) -> None:
        """Raise DataError if the detector needs proposals besides pictures."""
        if self.model.needs_proposals:
            raise DataError(
                "this detector has no RPN (model.rpn is precomputed): it finds nothing in pictures that come without "
                "proposals. `detector evaluate` runs it on a split with a file of them"
            )

    def read(self, picture: Picture, *, bgr: bool = False) -> Tensor:
        """A picture as an upright uint8 RGB tensor (3, H, W). Raises the errors of `stream`."""
        if not isinstance(picture, Tensor):
            return read_picture(picture, self.max_pixels, bit_depth=self.bit_depth, bgr=bgr)
        self.model.preprocess.check([picture])
        check_pixels(*image_size(picture), self.max_pixels, f"a tensor of shape {tuple(picture.shape)}")
        return picture

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
        """Detections with what the predictor knows: names and ids of classes, names of keypoints, how to read an image."""
        found = self.posed(found)
        draw = partial(plot, max_pixels=self.max_pixels, bit_depth=self.bit_depth)
        return replace(found, class_names=self.label_names, category_ids=self.label_ids, draw=draw)

    def posed(self, found: Detections) -> Detections:
        """Detections whose keypoints, if they have any, say what they mean."""
        return found if found.keypoints is None else replace(found, keypoints=replace(found.keypoints, pose=self.pose))


class TiledPredictor(Predictor):
    """Another predictor on the tiles of every picture, and on the whole picture unless `tiles` says otherwise.

    The limit `max_detections` of the model holds for each tile; a picture has all that is left when they are merged, as it has
    more objects the larger it is.

    Args:
        predictor: that looks at a tile; test-time augmentation and exported files are others.
        tiles: their size and overlap.
        batch: tiles of a forward pass.
    """

    def __init__(self, predictor: Predictor, tiles: Tiles, batch: int = AT_ONCE):
        vars(self).update(vars(predictor))
        self.predictor, self.tiles, self.batch = predictor, tiles, batch
        self.prepare = (
            _as_it_is  # tiles are cut one batch after the other, so that memory does not grow with the picture
        )

    def tiled(self, tiles: int | Size | Tiles) -> TiledPredictor:
        """The same with other tiles."""
        return self.predictor.tiled(tiles)

    def _stream(self, pictures: Iterator[Picture], batch: int, bgr: bool) -> Iterator[Detections]:
        """One picture after the other, whose tiles make batches."""
        return super(TiledPredictor, TiledPredictor(self.predictor, self.tiles, batch))._stream(pictures, 1, bgr)

    def detect(
        self, images: Sequence[Tensor], sizes: Sequence[Size], proposals: Sequence[Proposals] | None = None
    ) -> list[Detections]:
        """Like Predictor.detect, of images in their original size."""
        given = [None] * len(images) if proposals is None else proposals
        pairs = zip(images, given, strict=True)
        return [detect_in_tiles(self.predictor, image, self.tiles, self.batch, regions) for image, regions in pairs]


def _as_it_is(image: Tensor) -> Tensor:
    return image


def to_prepared(proposals: Proposals, image: Tensor, size: Size) -> Proposals:
    """Proposals in the pixels of the original (H, W) `size` -> in those of the prepared image (3, h, w)."""
    prepared = tuple(image.shape[1:])
    return proposals.resized(size, prepared).clipped(prepared)


def to_original(found: Detections, image: Tensor, size: Size) -> Detections:
    """Detections in a prepared image (3, h, w) -> on the CPU, in the pixels of the original (H, W) `size`.

    Masks become float16: they stay with the detections, a hundred of them in 160 kB.
    """
    resized = found.cpu().resized(image_size(image), size)
    inside = resized.with_boxes(lambda boxes: clip_boxes(boxes, size))
    return inside if inside.masks is None else replace(inside, masks=inside.masks.halved())
