"""Detections as a first draft for people who label: tasks for Label Studio, a COCO file for CVAT and others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pycocotools import mask as run_lengths

from detector import __version__
from detector.data.convert.writer import rounded_value
from detector.data.image import read_size
from detector.files import write_text
from detector.inference.folder import Job
from detector.inference.predictor import Predictor

Rows = Sequence[Mapping[str, Any]]  # detections in COCO form, with names
FILES = {  # what is written for each tool
    "label-studio": ("label-studio.json", "label-studio.xml"), "cvat": ("cvat.json",), "coco": ("coco.json",)
}  # fmt: skip
LOCAL_FILES = "/data/local-files/?d="  # by which Label Studio serves the files of its document root


def write_pre_annotations(
    kind: str, folder: Path, jobs: Sequence[Job], rows: Rows, predictor: Predictor, checkpoint: str
) -> list[str]:
    """Write the files of a tool into the folder; returns lines about what to do with them. Raises DataError.

    Args:
        kind: a key of FILES.
        folder: of the results.
        jobs: the images that could be read.
        rows: the detections on them, of the scores that are to be shown.
        predictor: that found them.
        checkpoint: its name, which says where the annotations are from.
    """
    source = f"detector {__version__}, {checkpoint}"
    names = dict(zip(predictor.label_ids, predictor.label_names))
    left_out = [
        f"{words} are left out"
        for key, words in (("segmentation", "masks"), ("keypoints", "keypoints"))
        if any(key in row for row in rows) and (kind, key) not in {("cvat", "segmentation"), ("coco", "segmentation")}
    ]
    if kind == "label-studio":
        tasks, interface = (folder / name for name in FILES[kind])
        write_text(tasks, json.dumps(label_studio_tasks(jobs, rows, source, predictor.max_pixels)) + "\n")
        write_text(interface, labelling_interface(list(names.values())))
        place = _folder_of(jobs[0]) if jobs else folder
        how = f"import it into a project with the interface of {interface.name}; local files are served from the document root "
        how += f"{place.parent}, with {place} as a source storage of the project"
    else:
        [tasks] = (folder / name for name in FILES[kind])
        document = coco_annotations(jobs, rows, source, predictor.max_pixels, names)
        write_text(tasks, json.dumps(document) + "\n")
        how = f"a COCO file of the classes {', '.join(names.values())}"
        how += "; upload it to a task with these labels, as COCO 1.0" if kind == "cvat" else ""
    return [f"{tasks}: {how}", *left_out]


def label_studio_tasks(jobs: Sequence[Job], rows: Rows, source: str, max_pixels: int) -> list[dict[str, Any]]:
    """A task with a prediction for each image; boxes are in percent of it, as labelstud.io/guide/predictions has them.

    The address of an image is that of a local file whose folder lies in Label Studio's document root, which itself can be no
    storage of a project.
    """
    tasks = []
    for job, found in _by_image(jobs, rows):
        height, width = read_size(job.path, max_pixels)
        result = []
        for number, row in enumerate(found, start=1):
            percent = [100 * value / side for value, side in zip(row["bbox"], (width, height, width, height))]
            value = dict(zip(("x", "y", "width", "height"), percent))
            result.append({
                "id": f"{job.image_id}-{number}", "type": "rectanglelabels", "from_name": "label", "to_name": "image",
                "original_width": width, "original_height": height, "image_rotation": 0, "score": row["score"],
                "value": value | {"rotation": 0, "rectanglelabels": [row["category_name"]]},
            })  # fmt: skip
        score = sum(row["score"] for row in found) / len(found) if found else 0.0
        prediction = {"model_version": source, "score": score, "result": result}
        address = LOCAL_FILES + quote(f"{_folder_of(job).name}/{job.name}".lstrip("/"))
        tasks.append({"data": {"image": address, "file_name": job.name}, "predictions": [prediction]})
    return tasks


def labelling_interface(names: Sequence[str]) -> str:
    """The labelling interface of a Label Studio project for these classes, in XML."""
    labels = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in names)
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <RectangleLabels name="label" toName="image">\n{labels}\n  </RectangleLabels>\n</View>\n'
    )


def coco_annotations(
    jobs: Sequence[Job], rows: Rows, source: str, max_pixels: int, categories: Mapping[int, str]
) -> dict[str, Any]:
    """A COCO file whose annotations are the detections, each with its score; masks are run lengths.

    Ids of images and categories are those of detections.json.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for job, found in _by_image(jobs, rows):
        height, width = read_size(job.path, max_pixels)
        images.append({"id": job.image_id, "file_name": job.name, "width": width, "height": height})
        for row in found:
            outline = row.get("segmentation")
            area = row["bbox"][2] * row["bbox"][3] if outline is None else float(run_lengths.area(outline))
            annotations.append({
                "id": len(annotations) + 1, "image_id": job.image_id, "category_id": row["category_id"],
                "bbox": [rounded_value(value) for value in row["bbox"]], "area": rounded_value(area), "iscrowd": 0,
                "segmentation": [] if outline is None else outline, "score": row["score"],
            })  # fmt: skip
    return {
        "info": {"description": f"pre-annotations by {source}, to be corrected"}, "licenses": [], "images": images,
        "annotations": annotations, "categories": [{"id": number, "name": name} for number, name in categories.items()],
    }  # fmt: skip


def _folder_of(job: Job) -> Path:
    """The folder that the names of all images are relative to."""
    return job.path.parents[len(Path(job.name).parts) - 1]


def _by_image(jobs: Sequence[Job], rows: Rows) -> list[tuple[Job, list[Mapping[str, Any]]]]:
    """Each image with its detections, in their order."""
    found: dict[int, list[Mapping[str, Any]]] = {job.image_id: [] for job in jobs}
    for row in rows:
        found[row["image_id"]].append(row)
    return [(job, found[job.image_id]) for job in jobs]
