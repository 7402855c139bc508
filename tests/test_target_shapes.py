"""Outlines and keypoints from the annotation file through transforms and loader, beside the pixels that they outline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_model
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from detector.data.coco import CocoDataset
from detector.data.copy_paste import CopyPaste, PastingDataset
from detector.data.loader import train_loader
from detector.data.outline_store import OutlineStore
from detector.data.transforms import Compose, HorizontalFlip, LargeScaleJitter, Resize, VerticalFlip
from detector.errors import DataError
from detector.records.keypoints import Keypoints, Pose
from detector.records.outlines import Outlines
from detector.records.raster import runs_of_bitmap
from detector.structures import Target
from detector.training.doubts import doubts_about

H, W = 90, 120
ELL = [10, 10, 30, 10, 30, 40, 60, 40, 60, 60, 10, 60]
NAMES = ["nose", "left_eye", "right_eye"]


def objects() -> list[np.ndarray]:
    """Bitmaps: an L, a ring with a hole, and two separate squares."""
    ell, ring, two = np.zeros((3, H, W), np.uint8)
    ell[10:60, 10:30] = ell[40:60, 30:60] = 1
    ring[20:50, 70:110] = 1
    ring[30:40, 80:100] = 0
    two[65:85, 20:40] = two[70:80, 80:110] = 1
    return [ell, ring, two]


def write(folder: Path, images: int = 1, **changes: Any) -> Path:
    """Images whose red, green and blue are the three objects, and their annotations in three forms."""
    ell, ring, two = objects()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i in range(images):
        Image.fromarray(np.stack([ell, ring, two], axis=-1) * 255).save(folder / "images" / f"{i}.png")
    shapes = [
        {"bbox": [10, 10, 50, 50], "segmentation": [ELL], "keypoints": [10, 10, 2, 60, 60, 2, 30, 40, 1]},
        {"bbox": [70, 20, 40, 30], "segmentation": {"size": [H, W], "counts": runs_of_bitmap(ring).tolist()}},
        {"bbox": [20, 65, 90, 20], "keypoints": [0] * 9,
         "segmentation": [[20, 65, 40, 65, 40, 85, 20, 85], [80, 70, 110, 70, 110, 80, 80, 80]]},
        {"bbox": [0, 0, 5, 5], "iscrowd": 1},
    ]  # fmt: skip
    annotations = [
        {"id": 10 * i + k, "image_id": i, "category_id": 1 + k % 3, **shape, **(changes if k == 1 else {})}
        for i in range(images) for k, shape in enumerate(shapes)
    ]  # fmt: skip
    categories = [{"id": 1, "name": "a", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]},
                  {"id": 2, "name": "b"}, {"id": 3, "name": "c", "keypoints": NAMES}]  # fmt: skip
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": H, "width": W} for i in range(images)],
        "categories": categories, "annotations": [{k: v for k, v in a.items() if v is not ...} for a in annotations],
    }  # fmt: skip
    (folder / "a.json").write_text(json.dumps(document))
    return folder / "a.json"


def dataset(folder: Path, *fields: str, **options: Any) -> CocoDataset:
    return CocoDataset(folder / "images", folder / "a.json", fields=fields, **options)


def test_outlines_and_keypoints_are_those_of_the_file(tmp_path: Path):
    write(tmp_path)
    found = dataset(tmp_path, "masks", "outlines", "keypoints")
    target = found[0][1]
    assert [target.masks[k].numpy().tolist() for k in range(3)] == [b.tolist() for b in objects()]
    assert target.outlines.boxes().tolist() == target.boxes.tolist() and len(target) == 3 and len(target.crowd) == 1
    assert target.keypoints.points[0].tolist() == [[10, 10], [60, 60], [30, 40]]
    assert target.keypoints.visible.tolist() == [[2, 2, 1], [0, 0, 0], [0, 0, 0]]  # one object has none in the file
    assert found.pose == Pose(NAMES, [(0, 1), (0, 2)]) and target.keypoints.pose == found.pose
    assert found[0][1].outlines is not None and dataset(tmp_path, "masks")[0][1].outlines is None
    bare = dataset(tmp_path)[0][1]
    assert bare.outlines is bare.masks is bare.keypoints is None


CHAIN = [HorizontalFlip(), Resize([100, 150], 400), VerticalFlip(), LargeScaleJitter(110, 0.5, 2.5), HorizontalFlip()]


@pytest.mark.parametrize("workers", [0, 2])
def test_masks_boxes_and_keypoints_lie_on_their_pixels_after_all_transforms(tmp_path: Path, workers: int):
    write(tmp_path, images=20)
    data = dataset(tmp_path, "masks", "outlines", "keypoints", transform=Compose(CHAIN))
    seen = cut = visible = 0
    for images, targets, _ in train_loader(data, 4, workers, seed=3):
        for image, target in zip(images, targets):
            for label, mask, box in zip(target.labels, target.masks, target.boxes):
                pixels = image[label] > 127
                differ = (pixels != mask.bool()).sum() / (pixels | mask.bool()).sum()
                assert differ < 0.25 or mask.sum() < 60, differ  # along the edges, where pixels are between
                ys, xs = mask.nonzero().unbind(1)
                around = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                assert (around - box).abs().max() <= (2 if label == 1 else 1.01)  # run lengths move by whole pixels
                seen += 1
                cut += int((box[2:] == torch.tensor(image.shape[:0:-1])).any() or (box[:2] == 0).any())
            assert len(target) == len(target.masks) == len(target.outlines) == len(target.keypoints.points)
            size = torch.tensor(image.shape[:0:-1])
            for label, points, kinds, box in zip(
                target.labels, target.keypoints.points, target.keypoints.visible, target.boxes
            ):
                assert not kinds[~((points >= 0) & (points <= size)).all(1)].any()
                if label == 0 and kinds.all():  # nose and left eye are corners of the L and so of its box
                    at_corner = ((points[:, None] - box.view(2, 2)).abs() < 0.01).any(1).all(1)
                    is_mirrored = bool(((points[0] - box[2:]).abs() < 0.01).sum() == 1)  # along one axis, not both
                    assert at_corner.tolist() == [True, not is_mirrored, is_mirrored]
                    visible += 1
    assert seen > 40 and cut > 10 and visible > 3


def test_mirrored_keypoints_swap_left_and_right():
    points = Keypoints(torch.tensor([[[1.0, 2], [3, 4], [5, 6]]]), torch.tensor([[2, 1, 0]]), pose=Pose(NAMES, []))
    turned = points.mirrored(10).flipped(20)  # by half a turn, which swaps nothing
    assert turned.points.tolist() == [[[9, 18], [7, 16], [5, 14]]] and turned.visible.tolist() == [[2, 1, 0]]
    assert points.flipped(20).points.tolist() == [[[1, 18], [5, 14], [3, 16]]]  # a mirror image as well
    mirrored = points.mirrored(10)
    assert mirrored.points.tolist() == [[[9, 2], [5, 6], [7, 4]]] and mirrored.visible.tolist() == [[2, 0, 1]]
    cropped = points.cropped((3, 2, 10, 10))
    assert cropped.points.tolist() == [[[-1, -1], [1, 1], [3, 3]]] and cropped.visible.tolist() == [[0, 1, 0]]
    assert Pose(["Left knee", "LEFT foot", "right knee", "tail"], []).swap() == [2, 1, 0, 3]


def test_a_training_without_a_labelled_keypoint_says_so_also_where_objects_are_pasted(tmp_path: Path):
    path, model = write(tmp_path), tiny_model()
    lines = []
    for text in (path.read_text(), path.read_text().replace("[10, 10, 2, 60, 60, 2, 30, 40, 1]", str([0] * 9))):
        path.write_text(text)
        plain = dataset(tmp_path, "keypoints", "masks")
        for data in (plain, PastingDataset(plain, CopyPaste(), ["keypoints"])):
            lines.append(doubts_about(data, model, Resize(90, 120)))
    assert lines[0] == lines[1] and lines[2] == lines[3] and set(lines[2]) > set(lines[0])
    assert any(line.startswith("no object has a labelled keypoint") for line in lines[3])
    assert any(line.startswith("anchors far from objects") for line in lines[1])


def test_a_crop_leaves_the_boxes_of_whole_objects_and_makes_those_of_cut_ones():
    outlines = Outlines.of([[ELL], [[70, 20, 80, 20, 80, 30]]], (H, W))
    boxes = torch.tensor([[10.0, 10, 60, 60], [69.5, 19.5, 80.5, 30.5]])  # the second looser than its outline
    target = Target(boxes, torch.tensor([0, 1]), outlines=outlines)
    assert target.cropped((0, 35, 50, 60)).boxes.tolist() == [[0, 40, 25, 50], [34.5, 19.5, 45.5, 30.5]]
    assert target.cropped((0, 35, 38, 60)).clipped((38, 60)).labels.tolist() == [
        1
    ]  # its box reaches in, its outline not
    drawn = replace(target, outlines=None, masks=outlines.bitmaps((H, W)))
    assert drawn.cropped((0, 35, 50, 60)).boxes.tolist()[0] == [0, 40, 25, 50]


def test_boxes_move_as_torchvision_moves_them():
    """Bit for bit: transforms gave these numbers before there were outlines."""
    corner = torch.rand(1000, 2) * 400
    boxes = torch.cat([corner, corner + torch.rand(1000, 2) * 400], dim=1)
    target, canvas = Target(boxes, torch.zeros(1000, dtype=torch.int64)), (777, 801)
    wrapped = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas)
    for ours, theirs in (
        (target.resized(canvas, (333, 1203)), F.resize(wrapped, [333, 1203])),
        (target.mirrored(801), F.horizontal_flip(wrapped)),
        (target.flipped(777), F.vertical_flip(wrapped)),
        (target.cropped((101, 57, 300, 401)), F.crop(wrapped, 101, 57, 300, 401)),
    ):
        assert torch.equal(ours.boxes, theirs.as_subclass(torch.Tensor))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (..., "annotations[1], id 1: `segmentation` is missing; masks are learnt or pasted, so every object needs an outline"),
        ([], "`segmentation` is []; masks are learnt or pasted"),
        (None, "`segmentation` is null; it must be polygons"),
        ([[1, 2, 3, 4, 5]], "`segmentation` is [[1, 2, 3, 4, 5]]; it must be polygons"),
        ([[1, 2, "3", 4, 5, 6]], '`segmentation` is [[1, 2, "3", 4, 5, 6]]; it must be polygons'),
        ([1, 2, 3, 4, 5, 6], "`segmentation` is [1, 2, 3, 4, 5, 6]; it must be polygons"),
        ([[1, 2, float("nan"), 4, 5, 6]], "it must be polygons"),
        ([[1, 2, 10**400, 4, 5, 6]], "it must be polygons"),
        ({"size": [H, W], "counts": [5]}, "run lengths"),
        ({"size": [H, W], "counts": "0P"}, 'is {"size": [90, 120], "counts": "0P"}; it must be polygons'),
        ({"size": [W, H], "counts": [H * W]}, "run lengths of the size [120, 90]\"; run lengths must have the size"),
    ],
)  # fmt: skip
def test_a_malformed_outline_is_one_error(tmp_path: Path, value: Any, words: str):
    write(tmp_path, segmentation=value)
    with pytest.raises(DataError) as error:
        dataset(tmp_path, "masks")
    assert words in str(error.value) and "\n" not in str(error.value), error.value
    assert len(dataset(tmp_path, "keypoints")) == 1  # nobody asks for outlines


@pytest.mark.parametrize(
    ("value", "words"),
    [([1, 2], "it must be x, y and"), ([1, 2, 3] * 3, "0, 1 or 2"), ("text", '`keypoints` is "text"'), (None, "is null"),
     ([1.0, 2.0, 2], "it must be x, y and")],
)  # fmt: skip
def test_malformed_keypoints_are_one_error(tmp_path: Path, value: Any, words: str):
    write(tmp_path, keypoints=value)
    with pytest.raises(DataError) as error:
        dataset(tmp_path, "keypoints")
    assert words in str(error.value) and "names and order are `keypoints`" in str(error.value)
    assert len(dataset(tmp_path, "masks")) == 1


def test_categories_must_agree_on_keypoints(tmp_path: Path):
    path = write(tmp_path)
    document = json.loads(path.read_text())
    document["categories"][2]["keypoints"] = NAMES[::-1]
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"different `keypoints`; choose those of one kind by data\.classes"):
        dataset(tmp_path, "keypoints")
    assert dataset(tmp_path, "keypoints", classes=["a", "b"]).pose.names == NAMES  # type: ignore[union-attr]
    with pytest.raises(DataError, match="no category lists `keypoints`"):
        dataset(tmp_path, "keypoints", classes=["b"])


def test_objects_without_three_points_are_counted_and_left_out(tmp_path: Path):
    write(tmp_path, segmentation=[[1, 2, 3, 4]])
    found = dataset(tmp_path, "masks")
    assert len(found[0][1]) == 2 and "; 1 objects dropped whose outlines have no area in their image" in found.report


@pytest.mark.parametrize("numbers", [[0.1, 2.37, 1e5 + 0.01, 7, 3.3, 4.4], [1 / 3, 2.5, 7, 7, 9, 1]])
def test_the_store_gives_coordinates_back_exactly(numbers: list[float]):
    outlines = Outlines.of([[numbers], [[1, 1, 2, 2, 3, 1]]], (5, 5))
    store = OutlineStore(outlines)
    assert store[[1, 0]].segmentations() == outlines[[1, 0]].segmentations()
    assert (store._stored.points.dtype == torch.int32) == (numbers[0] == 0.1)


def test_semantic_maps_follow_their_images(tmp_path: Path):
    write(tmp_path, images=6)
    (tmp_path / "maps").mkdir()
    with pytest.raises(DataError, match=r"maps/0\.png: no such file; write the map"):
        dataset(tmp_path, semantic=tmp_path / "maps")[0]
    ell, ring, two = objects()
    for i in range(6):
        Image.fromarray(ell * 7 + ring * 9 + two * 11 + (ell + ring + two == 0) * np.uint8(255)).save(
            tmp_path / "maps" / f"{i}.png"
        )
    data = dataset(tmp_path, "masks", semantic=tmp_path / "maps", transform=Compose(CHAIN))
    for images, targets, _ in train_loader(PastingDataset(data, CopyPaste(), ["masks", "semantic"]), 2, 0, seed=0):
        for image, target in zip(images, targets):
            assert target.semantic is not None and target.semantic.shape == image.shape[1:]
            for label, mask in zip(target.labels.tolist(), target.masks.bool()):
                assert mask.sum() < 60 or (target.semantic[mask] == 7 + 2 * label).float().mean() > 0.7
    Image.new("L", (W + 1, H)).save(tmp_path / "maps" / "0.png")
    with pytest.raises(DataError, match=f"is {W + 1} x {H}, its image {W} x {H}"):
        data[0]
