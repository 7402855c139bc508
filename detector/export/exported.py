"""A predictor over an exported file: it is called, evaluated and drawn like one over a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from detector.checkpoint import pose_of
from detector.config.config import parse_config
from detector.errors import ConfigError
from detector.export.card import Card
from detector.export.engines import BY_SUFFIX, Engine, open_engine
from detector.export.graph import NO_OBJECT, DetectionGraph, padded
from detector.inference.predictor import Predictor, load_predictor
from detector.modeling.preprocess import ImagePreprocessor
from detector.modeling.roi_heads.keypoint_head import with_keypoints
from detector.records.region_masks import RegionMasks
from detector.structures import Detections, Proposals, image_size


class Eager:
    """A graph that PyTorch runs as it is, in the place of an exported file."""

    def __init__(self, graph: DetectionGraph, card: Card):
        self.graph, self.card = graph, card

    def __call__(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        return list(self.graph(images, sizes))


class ExportedModel(nn.Module):
    """In the place of a `GeneralizedRCNN`: the same detections, by another engine. It cannot be trained.

    Args:
        engine: an exported file.
    """

    needs_proposals = False

    def __init__(self, engine: Engine):
        super().__init__()
        self.engine, self.card = engine, engine.card
        self.reports_proposals = engine.card.proposals_only
        self.preprocess = ImagePreprocessor()  # which checks pictures; the graph normalises

    def detect(self, images: Sequence[Tensor], proposals: Sequence[Proposals] | None = None) -> list[Detections]:
        """Detections in the pixels of uint8 RGB images (3, h, w), each at most as large as `card.size`; without proposals."""
        count, found = self.card.batch, []
        for first in range(0, len(images), count):
            part = [image.cpu() for image in images[first : first + count]]
            filled = part + [part[-1]] * (count - len(part))
            rows = dict(
                zip(self.card.outputs, self.engine(*padded(filled, self.card.padded_size(filled))), strict=True)
            )
            found += [self._detections({name: x[i] for name, x in rows.items()}, image) for i, image in enumerate(part)]
        return found

    def _detections(self, rows: dict[str, Tensor], image: Tensor) -> Detections:
        """The detections of one image, of all the rows of a graph."""
        rows = {name: x[rows["labels"] != NO_OBJECT] for name, x in rows.items()}
        found = Detections(rows["boxes"].float(), rows["scores"].float(), rows["labels"].long())
        if "masks" in rows:
            found.masks = RegionMasks(rows["masks"].float(), found.boxes, image_size(image), rows.get("mask_scores"))
        if self.card.keypoints is not None:
            [found] = with_keypoints([found], rows["heat_maps"].float(), **self.card.keypoints)
        return found


def load(
    path: str | Path, trust: bool = False, *, overrides: Sequence[str] = (), device: str = "auto",
    precision: str = "float32", kind: type[Predictor] | None = None,
) -> Predictor:  # fmt: skip
    """A predictor from a checkpoint of this project, a published detector, or a file that `detector export` wrote.

    Args:
        path: the file, or a name such as "torchvision/fasterrcnn_resnet50_fpn_v2" (docs/weights.md lists them), whose file is
            downloaded with its first use.
        trust: import the custom classes that its configuration names; read a .pt2 file, which may run code.
        overrides: `key.path=value` changes of its configuration; of an exported file the section `data` alone.
        device: cpu, cuda, cuda:1, ...; auto: a GPU if there is one. Exported files run on the CPU.
        precision: of the network, float32 or bfloat16; an exported file has its own.
        kind: another predictor, such as TTAPredictor (inference/tta.py).

    Raises CheckpointError for a file that is missing, damaged or of another architecture, and ConfigError for options that would
    change what an exported file computes.
    """
    if Path(path).suffix not in BY_SUFFIX:
        return load_predictor(path, trust, overrides=overrides, device=device, precision=precision, kind=kind)
    fixed = [change for change in overrides if not change.startswith(("data.", "evaluate."))]
    fixed += [f"device {device}"] * (device not in ("auto", "cpu")) + [f"precision {precision}"] * (
        precision != "float32"
    )
    fixed += ["test-time augmentation"] * (kind not in (None, Predictor))
    if fixed:
        raise ConfigError(
            f"{path}: an exported file runs on the CPU and as it is, without {', '.join(fixed)}; use the checkpoint, or export "
            "it with another configuration"
        )
    return over(open_engine(Path(path), trust=trust), overrides, trust=trust)


def over(engine: Engine, overrides: Sequence[str] = (), *, trust: bool = False) -> Predictor:
    """A predictor over an exported file; `overrides` change the section `data` of its configuration."""
    card = engine.card
    predictor = Predictor(
        ExportedModel(engine), parse_config(card.config, overrides, trust=trust), card.class_names,  # type: ignore[arg-type]
        card.category_ids, device="cpu", in_place=True, pose=pose_of({"pose": card.pose}),
    )  # fmt: skip
    predictor.prepare = partial(predictor.resize.resize_within, limit=card.size)
    return predictor
