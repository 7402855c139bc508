"""The data set of an image folder and a COCO file. COCO's xywh boxes and sparse category ids are converted here."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detector.coco_format import join_within
from detector.data.box_arrays import clip_to_images, corners, have_area, were_clipped
from detector.data.coco_reader import CocoFile, read_coco_file
from detector.data.image import MAX_PIXELS, ImageError, read_image
from detector.data.near_names import twin_on_disk
from detector.data.outline_store import OutlineStore, return_free_memory
from detector.data.plausible import implausible_boxes
from detector.data.proposal_file import ProposalFile
from detector.data.semantic_maps import read_semantic_map, semantic_folder
from detector.errors import DataError
from detector.records.keypoints import Keypoints, Pose
from detector.structures import Target, image_size

Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


class FlatStrings(Sequence[str]):
    """Strings in one block of bytes: reading a list of strings in a worker would copy its memory page by page."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [string.encode() for string in strings]
        self._blob = b"".join(encoded)
        self._end = np.cumsum([0, *map(len, encoded)])  # (n + 1,), led by a zero

    def __len__(self) -> int:
        return len(self._end) - 1

    def __getitem__(self, i: int) -> str:  # type: ignore[override]  # no slices
        i = range(len(self))[i]
        return self._blob[self._end[i] : self._end[i + 1]].decode()


class CocoDataset(Dataset):
    """Image, objects and image id of every entry of a COCO file; coco_reader.py states what the file must hold.

    Raises DataError for any fault of the file when it is constructed, not in the middle of an epoch.

    Args:
        images: folder of the images.
        annotations: COCO file.
        classes: names of the categories to use; None uses all.
        class_names: classes of the training split in label order, which this file must have under any ids; with `classes`,
            only those of them.
        keep_empty: keep images without objects.
        max_pixels: images with more pixels are refused.
        bit_depth: bits that grey images of 16 bits use; None: by the range of each.
        transform: applied to every image and its objects.
        proposals: file of proposals (see proposal_file.py), which then come with every image's objects.
        fields: what else of its targets a model reads: masks, outlines, keypoints. An object must then have an outline.
        keypoint_offset: is added to x and y of keypoints.
        semantic: folder of maps with the class of each pixel (semantic_maps.py), which then come with every image's objects.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        *,
        classes: list[str] | None = None,
        class_names: list[str] | None = None,
        keep_empty: bool = True,
        max_pixels: int = MAX_PIXELS,
        bit_depth: int | None = None,
        transform: Transform | None = None,
        proposals: str | Path | None = None,
        fields: Collection[str] = (),
        keypoint_offset: float = 0.0,
        semantic: str | Path | None = None,
    ) -> None:
        self.folder, self.annotation_file = Path(images), Path(annotations)
        self.max_pixels, self.bit_depth, self.transform = max_pixels, bit_depth, transform
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: no such image folder (for {self.annotation_file}); correct the path")
        self.fields, self.semantic = frozenset(fields), semantic_folder(semantic)
        self.keypoint_offset = keypoint_offset
        self._read(classes, class_names, keep_empty)
        if self._outlines is not None:
            return_free_memory()
        self.proposals = None if proposals is None else ProposalFile(proposals)
        if self.proposals is not None:
            self.proposals.check(self.image_ids, self.full_names(), self.sizes, self.annotation_file)

    def _read(self, classes: list[str] | None, class_names: list[str] | None, keep_empty: bool) -> None:
        """Read the annotations and keep what is chosen of them."""
        coco = read_coco_file(self.annotation_file, fields=self.fields)
        self.class_names, self.category_ids = _classes(coco, classes, class_names)
        labels = _labels(coco, self.category_ids)
        chosen = labels >= 0
        owner, labels, crowd = coco.image_rows[chosen], labels[chosen], coco.crowd[chosen]
        boxes = corners(coco.xywh[chosen])
        clipped = clip_to_images(boxes, coco.sizes[owner])
        solid = have_area(clipped)
        outlines = None if coco.outlines is None else coco.outlines[torch.from_numpy(chosen)]
        drawn = solid if outlines is None else solid & (outlines.drawable().numpy() | crowd)
        has_object = np.bincount(owner[drawn & ~crowd], minlength=len(coco.sizes)) > 0
        kept = self._keep_images(coco, has_object | keep_empty)
        rows = self._keep_objects(owner, clipped.astype(np.float32), labels, crowd, kept, drawn)
        self._outlines = None if outlines is None else OutlineStore(outlines[torch.from_numpy(rows)])
        self._keep_keypoints(coco, np.flatnonzero(chosen)[rows])
        self.doubts = implausible_boxes(boxes, labels, coco.sizes[owner], self.class_names)
        counts = int(were_clipped(boxes, clipped).sum()), int((~solid).sum()), int((~has_object).sum())
        self.report = self._report(*counts, keep_empty)
        if drawn.sum() < solid.sum():
            self.report += f"; {(solid & ~drawn).sum()} objects dropped whose outlines have no area in their image"

    def _keep_images(self, coco: CocoFile, kept: np.ndarray) -> np.ndarray:
        """Select the images (n,) bool; returns the selection."""
        if not kept.any():
            raise DataError(f"{self.annotation_file}: no image is left; check `images`, `annotations` and data.classes")
        self.image_ids, self.sizes = coco.image_ids[kept], coco.sizes[kept]
        self.file_names = FlatStrings(name for name, keep in zip(coco.file_names, kept) if keep)
        return kept

    def _keep_objects(
        self, owner: np.ndarray, boxes: np.ndarray, labels: np.ndarray, crowd: np.ndarray, kept: np.ndarray, solid: np.ndarray
    ) -> np.ndarray:  # fmt: skip
        """Sort the solid objects of the kept images (n,) by image; returns their rows."""
        rows = np.flatnonzero(solid & kept[owner])
        rows = rows[np.argsort(owner[rows], kind="stable")]
        self._boxes, self._labels, self._crowd = boxes[rows], labels[rows], crowd[rows]
        # the first row of each image, and the end of the last one's
        self._start = np.searchsorted(owner[rows], [*np.flatnonzero(kept), len(kept)])
        return rows

    def _keep_keypoints(self, coco: CocoFile, rows: np.ndarray) -> None:
        """Those of rows of the file's annotations, and what they mean."""
        self.pose, self._keypoints = None, None
        if coco.keypoints is not None:
            chosen = np.isin(coco.category_ids, self.category_ids)
            self.pose = common_pose(coco.path, itertools.compress(coco.poses or [], chosen))
            self._keypoints = coco.keypoints[rows, : len(self.pose.names)].astype(np.float32)

    def _report(self, clipped: int, dropped: int, without_objects: int, keep_empty: bool) -> str:
        return (
            f"{self.annotation_file}: {len(self)} images, {(~self._crowd).sum()} objects of {len(self.class_names)} "
            f"classes, {self._crowd.sum()} crowd regions; {clipped} boxes clipped to their image, "
            f"{dropped} without area dropped; {without_objects} images without objects "
            f"{'kept' if keep_empty else 'left out'}"
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> tuple[Tensor, Target, int]:
        """Image uint8 (3, H, W), its objects and its id, after the transform if there is one."""
        return *self.finished(*self.plain(i)), int(self.image_ids[i])

    def plain(self, i: int) -> tuple[Tensor, Target]:
        """The image and all that is known of it, without the transform."""
        image, target = self.image(i), self.target(i)
        if self.semantic is not None:
            target = replace(target, semantic=read_semantic_map(self.semantic, self.file_names[i], image_size(image)))
        return image, target

    def finished(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """An image, or a part of one, after the transform if there is one, its objects with the fields that are read."""
        if self.transform is not None:
            image, target = self.transform(image, target)
        if "masks" in self.fields:
            target = target.drawn(image_size(image))
        if "outlines" not in self.fields:
            target = replace(target, outlines=None)
        return image, target

    def path(self, i: int) -> Path:
        """The path of an image file. Raises DataError if it leads out of the image folder."""
        return join_within(self.folder, self.file_names[i])

    def image(self, i: int) -> Tensor:
        """The decoded image, uint8 (3, H, W), without the transform."""
        path = self.path(i)
        try:
            image = read_image(path, self.max_pixels, bit_depth=self.bit_depth)
        except ImageError as error:
            twin = (
                twin_on_disk(self.folder, self.file_names[i]) if isinstance(error.__cause__, FileNotFoundError) else ""
            )
            if not twin:
                raise
            fix = f"`detector check-data {self.annotation_file} --images {self.folder} --fix-names OUT.json`"
            raise ImageError(f"{path}: no such image; {twin}; {fix} writes a corrected copy") from error
        if tuple(image.shape[1:]) != tuple(self.sizes[i]):  # its boxes would be somewhere else
            (_, h, w), (height, width) = image.shape, self.sizes[i]
            raise ImageError(
                f"{path}: the image (upright by its EXIF orientation) is {w} x {h}, but {self.annotation_file} says "
                f"{width} x {height} for image id {self.image_ids[i]}; correct its width, height and boxes"
            )
        return image

    def target(self, i: int) -> Target:
        """The objects of one image, in its own pixels, without the transform."""
        i = range(len(self))[i]  # -1 is the last, and the end is an IndexError
        rows = slice(int(self._start[i]), int(self._start[i + 1]))
        boxes, labels, crowd = self._boxes[rows], self._labels[rows], self._crowd[rows]
        proposals = None if self.proposals is None else self.proposals[self.image_ids[i]]
        return Target(
            torch.from_numpy(boxes[~crowd]), torch.from_numpy(labels[~crowd]), torch.from_numpy(boxes[crowd]), proposals,
            outlines=None if self._outlines is None else self._outlines[rows.start + np.flatnonzero(~crowd)],
            keypoints=self._keypoints_of(rows.start + np.flatnonzero(~crowd)),
        )  # fmt: skip

    def _keypoints_of(self, rows: np.ndarray) -> Keypoints | None:
        if self.pose is None or self._keypoints is None:
            return None
        found, offset = Keypoints.of(torch.from_numpy(self._keypoints[rows])), self.keypoint_offset
        return replace(found, points=found.points + offset, offset=offset, pose=self.pose)

    def labelled_keypoints(self) -> int | None:
        """How many keypoints of all objects are labelled; None where keypoints are not read."""
        return None if self._keypoints is None else int((self._keypoints[~self._crowd][..., 2] > 0).sum())

    def objects(self) -> tuple[np.ndarray, np.ndarray]:
        """The index of the image (B,) and the label (B,) of every object."""
        owner = np.repeat(np.arange(len(self)), np.diff(self._start))
        return owner[~self._crowd], self._labels[~self._crowd]

    def boxes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The box (B, 4), the label (B,), and height and width of the image (B, 2) of every object."""
        owner, labels = self.objects()
        return self._boxes[~self._crowd], labels, self.sizes[owner]

    def full_names(self) -> list[str]:
        """Folder and file name of every image, which tell the images of two splits apart."""
        return [f"{self.folder.name}/{name}" for name in self.file_names]

    def class_table(self) -> str:
        """Label, category id, number of objects and name of every class, a line each."""
        counts = np.bincount(self._labels[~self._crowd], minlength=len(self.class_names))
        rows = zip(self.category_ids, counts, self.class_names)
        lines = [f"{label:5} {number:5} {count:8}  {name}" for label, (number, count, name) in enumerate(rows)]
        return "\n".join(["label    id  objects  name", *lines])


def _classes(coco: CocoFile, classes: list[str] | None, class_names: list[str] | None) -> tuple[list[str], list[int]]:
    """The names of the classes in label order, and their ids in this file."""
    id_of = dict(zip(coco.category_names, coco.category_ids.tolist()))
    chosen = _chosen(coco.path, sorted(id_of, key=id_of.__getitem__), classes)
    if class_names is None:
        return chosen, [id_of[name] for name in chosen]
    here, training = (sorted(set(a) - set(b)) for a, b in ((chosen, class_names), (class_names, chosen)))
    if here or (training and classes is None):
        common = [name for name in class_names if name in chosen]
        remedy = f", or choose the common ones by data.classes=[{', '.join(common)}]" if common else ""
        raise DataError(
            f"{coco.path}: `categories` differ from the training classes (only here: {here}; only in training: "
            f"{training}); give both files the same names{remedy}"
        )
    labelled = [name for name in class_names if name in chosen]
    return labelled, [id_of[name] for name in labelled]


def _chosen(path: Path, names: list[str], classes: list[str] | None) -> list[str]:
    for name in classes or []:
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
            raise DataError(
                f"{path}: data.classes names {name!r}, no category of this file; nearest: {', '.join(nearest)}"
            )
    chosen = names if classes is None else [name for name in names if name in classes]
    if not chosen:
        raise DataError(f"{path}: no classes to detect; `categories` or data.classes is empty")
    return chosen


def common_pose(path: str | Path, poses: Iterable[Pose]) -> Pose:
    """The keypoints of a file's chosen categories. Raises DataError unless those that have any have the same."""
    known = [pose for pose in poses if pose.names]
    if not known:
        raise DataError(
            f"{path}: no category lists `keypoints`, which the model learns; list their names there, or train without"
        )
    if any(pose.names != known[0].names for pose in known):
        raise DataError(f"{path}: the categories have different `keypoints`; choose those of one kind by data.classes")
    return known[0]


def _labels(coco: CocoFile, category_ids: list[int]) -> np.ndarray:
    """The label of every annotation (m,); -1 for a category that was not chosen."""
    label_of = {number: label for label, number in enumerate(category_ids)}
    labels = np.array([label_of.get(number, -1) for number in coco.category_ids.tolist()], dtype=np.int64)
    return labels[coco.category_rows]
