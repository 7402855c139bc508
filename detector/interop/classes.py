"""Names and category ids of the classes of a converted checkpoint; most frameworks do not write them into their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

COCO_91 = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by category id; ten ids are unused
COCO_80 = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
COCO_NAMES = [COCO_91[i] for i in COCO_80]


class Classes(NamedTuple):
    """The K foreground classes of a predictor."""

    names: list[str]
    """In the order of the class scores."""
    ids: list[int]
    """Category ids in the same order."""
    origin: str
    """Where the names come from, for messages."""


def classes_of(framework: str, meta: Mapping[str, Any], number: int, *, keypoints: bool = False) -> Classes:
    """The class names in the file, else COCO's if the number matches, else "class 1", "class 2", ...

    The 90 foreground columns of torchvision are COCO's category ids.

    Args:
        framework: key of FRAMEWORKS.
        meta: what the file holds beside the tensors; only MMDetection writes class names.
        number: K.
        keypoints: whether the model finds keypoints; COCO has them of people alone.
    """
    names = _names_in(meta)
    if len(names) == number:
        return Classes(names, COCO_80 if names == COCO_NAMES else list(range(1, number + 1)), "names from the file")
    if framework == "torchvision" and number == 90:
        names = [COCO_91[i] if i in COCO_80 else f"unused {i}" for i in range(1, 91)]
        return Classes(names, list(range(1, 91)), "torchvision's 90 columns of COCO")
    if number == 1 and keypoints:
        return Classes(["person"], [1], "assumed to be COCO's people")
    if number == 80:
        return Classes(COCO_NAMES, COCO_80, "assumed to be COCO's")
    ids = list(range(1, number + 1))
    return Classes([f"class {i}" for i in ids], ids, "the file has no class names")


def _names_in(meta: Mapping[str, Any]) -> list[str]:
    """The class names in a file of MMDetection: version 3 writes dataset_meta, version 2 CLASSES."""
    inner = meta.get("meta")
    inner = inner if isinstance(inner, Mapping) else {}
    dataset = inner.get("dataset_meta")
    names = (dataset if isinstance(dataset, Mapping) else {}).get("classes") or inner.get("CLASSES") or ()
    if not isinstance(names, Sequence) or isinstance(names, str):
        return []
    texts = [name for name in names if isinstance(name, str)]
    return texts if len(set(texts)) == len(names) else []
