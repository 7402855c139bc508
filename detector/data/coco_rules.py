"""The rules of COCO annotation files, in the order in which they are checked, and the remedy for each kind of fault.

RULES states for each key which values are valid. `images` need `id`, `file_name`, `width` and `height`; `categories` need
`id` and `name`; `annotations` need `id`, `image_id`, `category_id` and `bbox`. All ids are integers. Ids of images and
categories and names of categories are unique; ids of annotations may repeat, because nothing here looks them up.
`iscrowd` may be absent (0) and so may `area` (width x height of the box). coco_shapes.py has the rules of `segmentation`
and `keypoints`, which are read where a model learns them. Other keys are ignored.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from detector.coco_format import is_box, is_name, stays_inside

SECTIONS = ("images", "annotations", "categories")
LARGEST_ID = 2**53  # integers up to here are exact as floating-point numbers, too
ABSENT = object()  # stands for an optional key that an entry lacks
REMEDIES = {  # kind of fault -> how to fix it
    "not an entry": "make it an object with the keys that COCO's format names, or remove it",
    "invalid value": "correct the value, or remove the entry",
    "invalid box": "correct or remove the box: [x, y, width, height], finite and not negative in size",
    "outside folder": "put the file into the image folder and name it relative to that",
    "invalid outline": "correct the outline, or remove the annotation",
    "no outline": "outline the object, remove the annotation, or do without a mask head and data.copy_paste; "
    "evaluate.shapes=[] scores boxes alone",
    "invalid keypoints": "correct or remove them; their names and order are `keypoints` of the category",
    "repeated id": "give each entry an id of its own",
    "repeated name": "merge the two categories or rename one",
    "repeated annotation id": "give each annotation an id of its own: other COCO tools would lose one of the two",
    "unknown image": "add the image or remove the annotation",
    "unknown category": "add the category or remove the annotation",
}


def is_integer(value: Any) -> bool:
    """Whether this is an integer that int64 and float64 hold exactly; `true` and `false` are none."""
    return type(value) is int and -LARGEST_ID <= value <= LARGEST_ID


def is_flag(value: Any) -> bool:
    """Whether this is 0, 1, `false` or `true`."""
    return isinstance(value, int) and value in (0, 1)


def is_side(value: Any) -> bool:
    """Whether this can be the height or width of an image."""
    return is_integer(value) and value >= 1


def is_area(value: Any) -> bool:
    """Whether this is a finite number from 0, or absent. The comparison is exact for integers of any length."""
    return value is ABSENT or (type(value) in (int, float) and 0 <= value <= sys.float_info.max)


def is_ordered_box(value: list[float]) -> bool:
    """Whether width and height of [x, y, width, height] are not negative."""
    return value[2] >= 0 and value[3] >= 0


@dataclass(frozen=True)
class Rule:
    """What the values of one key must be."""

    section: str
    key: str
    is_valid: Callable[[Any], bool]
    message: str
    kind: str = "invalid value"
    """Key of REMEDIES."""
    default: Any = None
    """Value of entries without the key; None makes the key required."""


INTEGER = "it must be an integer (no quotes, no decimal point, at most 2^53)"
SIDE = "it must be an integer of at least 1"
RULES = (  # in the order in which they are checked; a later rule for the same key sees only values that passed
    Rule("categories", "id", is_integer, INTEGER),
    Rule("categories", "name", is_name, "it must be a name without control characters"),
    Rule("images", "id", is_integer, INTEGER),
    Rule("images", "file_name", is_name, "it must be a path without control characters"),
    Rule("images", "file_name", stays_inside, "it must be a path inside the image folder", "outside folder"),
    Rule("images", "height", is_side, SIDE),
    Rule("images", "width", is_side, SIDE),
    Rule("annotations", "id", is_integer, INTEGER),
    Rule("annotations", "image_id", is_integer, INTEGER),
    Rule("annotations", "category_id", is_integer, INTEGER),
    Rule("annotations", "iscrowd", is_flag, "it must be 0 or 1 (no quotes)", default=0),
    Rule("annotations", "bbox", is_box, "it must be four finite numbers [x, y, width, height]", "invalid box"),
    Rule("annotations", "bbox", is_ordered_box, "width and height must not be negative", "invalid box"),
    Rule("annotations", "area", is_area, "it must be a finite number, not negative", default=ABSENT),
)
UNIQUE = (  # section, key, message, kind
    ("categories", "id", "two categories share it", "repeated id"),
    ("categories", "name", "two categories share it", "repeated name"),
    ("images", "id", "two images share it", "repeated id"),
    ("annotations", "id", "two annotations share it", "repeated annotation id"),
)
HARMLESS = frozenset({"repeated annotation id"})  # reported, but the entry is kept and no policy stops at it
REFERENCES = (  # key of an annotation, the section whose ids it names, message, kind
    ("image_id", "images", "no such image", "unknown image"),
    ("category_id", "categories", "no such category", "unknown category"),
)


def shown(value: Any) -> str:
    """A value as JSON, cut after 80 characters: "0" with its quotes, null, true."""
    return text if len(text := json.dumps(value, ensure_ascii=False, default=str)) <= 80 else text[:77] + "..."
