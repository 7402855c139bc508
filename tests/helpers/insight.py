"""COCO files and results made by hand, and how they are scored."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detector.evaluation.coco import Scored, score_results

Box = tuple[float, float, float, float]  # x, y, w, h


def coco_file(
    path: Path, objects: Sequence[tuple], *, images: int = 2, names: Sequence[str] = ("a", "b", "c"), size: int = 200
) -> Path:
    """Images 1, 2, ... of size x size and objects (image, category, box), with further keys of the annotation perhaps."""
    annotations = []
    for number, (image, category, box, *more) in enumerate(objects, start=1):
        x, y, w, h = box
        corners = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        entry = {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": list(box),
            "area": w * h,
            "iscrowd": 0,
        }
        annotations.append(entry | {"segmentation": corners} | (more[0] if more else {}))
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": size, "height": size} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
    }
    path.write_text(json.dumps(content))
    return path


def results(*rows: tuple[int, int, Box, float], masks: bool = False) -> list[dict[str, Any]]:
    """Detections (image, category, box, score); their masks fill their boxes."""
    found = []
    for image, category, box, score in rows:
        x, y, w, h = box
        entry = {"image_id": image, "category_id": category, "bbox": list(box), "score": score}
        found.append(entry | ({"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]} if masks else {}))
    return found


def scored(
    path: Path, objects: Sequence[tuple], rows: Sequence[tuple], *, masks: bool = False, **options: Any
) -> Scored:
    """Detections `rows` of these objects, scored."""
    return score_results(coco_file(path, objects, **options), results(*rows, masks=masks))
