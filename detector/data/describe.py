"""Texts about a data set; a custom data set may leave out the members that CocoDataset has for them."""

from __future__ import annotations

from detector.protocols import DataSet


def report_of(dataset: DataSet) -> str:
    """A line about the contents: `report`, or the counts of images and classes."""
    if hasattr(dataset, "report"):
        return dataset.report
    return f"{dataset.annotation_file}: {len(dataset)} images, {len(dataset.class_names)} classes"


def class_table_of(dataset: DataSet) -> str:
    """A line for each class: `class_table()`, or label, category id and name."""
    if hasattr(dataset, "class_table"):
        return dataset.class_table()
    rows = enumerate(zip(dataset.category_ids, dataset.class_names))
    return "\n".join(["label    id  name", *(f"{label:5} {number:5}  {name}" for label, (number, name) in rows)])


def full_names_of(dataset: DataSet) -> list[str]:
    """A name for each image that tells splits apart: `full_names()`, or annotation file and image id."""
    if hasattr(dataset, "full_names"):
        return dataset.full_names()
    return [f"{dataset.annotation_file}/{image_id}" for image_id in dataset.image_ids]


def short_names_of(dataset: DataSet) -> list[str]:
    """A name for each image that tells it from the others: its full name below the deepest folder that has them all."""
    parts = [name.split("/") for name in full_names_of(dataset)]
    levels = list(zip(*(of[:-1] for of in parts)))  # of folders, as deep as the least deep name
    shared = next((depth for depth, level in enumerate(levels) if len(set(level)) > 1), len(levels))
    return ["/".join(of[shared:]) for of in parts]
