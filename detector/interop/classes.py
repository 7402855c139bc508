"""Names and category ids of the classes of a converted checkpoint, which few frameworks write into their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

COCO_91 = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by category id; ten of them were never used
COCO_80 = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
COCO_NAMES = [COCO_91[i] for i in COCO_80]


class Classes(NamedTuple):
    """Of every foreground column of a predictor, and where the names come from."""

    names: list[str]
    ids: list[int]
    origin: str


def classes_of(framework: str, meta: Mapping[str, Any], number: int) -> Classes:
    """The names that the file gives (MMDetection's), else COCO's where the number is COCO's, else "class 1", "class 2", ...

    torchvision's 90 columns of foreground are COCO's category ids.
    """
    names = _written(meta)
    if len(names) == number:
        return Classes(names, COCO_80 if names == COCO_NAMES else list(range(1, number + 1)), "names from the file")
    if framework == "torchvision" and number == 90:
        names = [COCO_91[i] if i in COCO_80 else f"unused {i}" for i in range(1, 91)]
        return Classes(names, list(range(1, 91)), "torchvision's 90 columns of COCO")
    if number == 80:
        return Classes(COCO_NAMES, COCO_80, "taken for COCO's")
    return Classes(
        [f"class {i}" for i in range(1, number + 1)], list(range(1, number + 1)), "their names are not in the file"
    )


def _written(meta: Mapping[str, Any]) -> list[str]:
    """MMDetection 3 writes dataset_meta, version 2 CLASSES."""
    inner = meta.get("meta")
    inner = inner if isinstance(inner, Mapping) else {}
    dataset = inner.get("dataset_meta")
    names = (dataset if isinstance(dataset, Mapping) else {}).get("classes") or inner.get("CLASSES") or ()
    if not isinstance(names, Sequence) or isinstance(names, str) or len(set(names)) < len(names):
        return []
    return [name for name in names if isinstance(name, str)]
