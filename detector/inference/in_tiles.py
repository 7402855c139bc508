"""A detector on the tiles of one image, a batch at a time: memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from detector.config.config import Config
from detector.data.tiles import Tiles
from detector.inference.tile_merge import merge_windows
from detector.modeling.roi_heads.selection import DetectionSelection
from detector.records.geometry import Size, Window
from detector.schema.signatures import parameters_of
from detector.structures import Detections, Proposals, image_size


class WindowDetector(Protocol):
    """What looks at a tile: a predictor of any kind."""

    model: Any
    config: Config

    @property
    def prepare(self) -> Callable[[Tensor], Any]: ...

    def detect(
        self, images: Sequence[Any], sizes: Sequence[Size], proposals: Sequence[Proposals] | None = None
    ) -> list[Detections]: ...


def detect_in_tiles(
    detector: WindowDetector, image: Tensor, tiles: Tiles, batch: int, given: Proposals | None = None
) -> Detections:
    """The detections of an image (3, H, W), `batch` tiles at a time; `given` proposals are in its pixels.

    Those of all tiles are merged by the model's own IoU, and its proposals, where it keeps them, are the best of all tiles.
    """
    size = image_size(image)
    windows = tiles.views(size)
    found: list[Detections] = []
    for start in range(0, len(windows), batch):
        part = windows[start : start + batch]
        prepared = [detector.prepare(image[:, top : top + h, left : left + w]) for top, left, h, w in part]
        regions = None if given is None else [given.cropped(window).clipped(window[2:]) for window in part]
        found += detector.detect(prepared, [window[2:] for window in part], regions)
    if len(found) == 1:
        return found[0]
    merged = merge_windows(found, windows, size, **merging_rule(detector))
    merged.proposals = _merged_proposals(detector, found, windows, size) if given is None else given
    return merged


def untiled_note(config: Config, advice: str = "--tiles {size} shows it such tiles") -> str:
    """What to say where a detector that was trained on tiles looks at whole images; empty for another one."""
    tiles = None if config.data is None else config.data.tiles
    if tiles is None:
        return ""
    h, w = tiles.sides
    size = h if h == w else f"{h}x{w}"
    return f"note: this detector was trained on {tiles}, and now sees whole images; {advice.format(size=size)}"


def merging_rule(detector: WindowDetector) -> dict[str, Any]:
    """How a detector tells that two boxes are one object: `iou` and `across_classes` of its own suppression."""
    key = "rpn" if detector.model.reports_proposals else "roi_head"
    constructor, arguments = detector.config.model.calls[key]
    parameter = parameters_of(constructor).get("selection")
    rule: Any = arguments.get("selection", parameter and parameter.default)
    rule = rule if hasattr(rule, "nms_iou") else DetectionSelection()  # a head of the user's own
    return {"iou": rule.nms_iou, "across_classes": getattr(rule, "class_agnostic_nms", False)}


def _merged_proposals(
    detector: WindowDetector, found: Sequence[Detections], windows: Sequence[Window], image: Size
) -> Proposals | None:
    """The first stage's boxes of an image; None where they are not kept."""
    views = [d.proposals.placed(window, image) for d, window in zip(found, windows) if d.proposals is not None]
    return detector.model.merge_proposals(views) if views else None
