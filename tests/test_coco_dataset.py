"""The COCO data set: truths by hand, everything that can be wrong with a file, and what it weighs."""

import copy
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import script
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from detector.coco_format import join_within
from detector.data.coco import CocoDataset, FlatStrings
from detector.data.image import read_image
from detector.errors import DataError
from detector.structures import Target

DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 30, "file_name": "b.png", "width": 20, "height": 10},
        {"id": 10, "file_name": "sub/a.png", "width": 8, "height": 12},
        {"id": 20, "file_name": "empty.png", "width": 5, "height": 5},
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 90, "bbox": [1, 2, 3, 4], "iscrowd": 0, "segmentation": [[1, 2, 3]]},
        {"id": 2, "image_id": 30, "category_id": 7, "bbox": [0.5, 0, 10, 9.5]},
        {"id": 3, "image_id": 30, "category_id": 90, "bbox": [0, 0, 20, 10], "iscrowd": 1},
        {"id": 4, "image_id": 30, "category_id": 90, "bbox": [5, 5, 1, 1], "iscrowd": 0},
    ],
    "categories": [{"id": 90, "name": "cat"}, {"id": 7, "name": "dog"}],
}


def change(section: str, index: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    """An edit of one entry; `...` removes a key."""

    def edit(document: dict[str, Any]) -> None:
        entry = document[section][index]
        entry.update(values)
        for key in [key for key, value in values.items() if value is ...]:
            del entry[key]

    return edit


def add(section: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document[section].append(values)


def box(bbox: Any, image_id: int = 20, **more: Any) -> Callable[[dict[str, Any]], None]:
    return add("annotations", id=99, image_id=image_id, category_id=7, bbox=bbox, **more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for entry in DOCUMENT["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(tmp_path / "images" / entry["file_name"])
    return tmp_path


def load(folder: Path, *edits: Callable[[dict[str, Any]], None], **options: Any) -> CocoDataset:
    document = copy.deepcopy(DOCUMENT)
    for edit in edits:
        edit(document)
    (folder / "a.json").write_text(json.dumps(document))
    return CocoDataset(folder / "images", folder / "a.json", **options)


def test_boxes_are_corners_crowds_apart_the_transform_sees_both_and_all_can_be_pickled(folder: Path) -> None:
    dataset = load(folder)
    image, target, image_id = dataset[0]
    assert image.shape == (3, 10, 20) and image.dtype == torch.uint8
    assert image_id == 30 and type(image_id) is int
    assert target.boxes.tolist() == [[0.5, 0, 10.5, 9.5], [5, 5, 6, 6]] and target.boxes.dtype == torch.float32
    assert target.labels.tolist() == [0, 1] and target.labels.dtype == torch.int64
    assert target.crowd.tolist() == [[0, 0, 20, 10]]
    assert dataset.target(1).boxes.tolist() == [[1, 2, 4, 6]]
    twin = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(twin[0][0], dataset[0][0]) and torch.equal(twin[0][1].boxes, dataset[0][1].boxes)

    def halve(image: Tensor, target: Target) -> tuple[Tensor, Target]:
        return image[:, ::2], Target(target.boxes * 2, target.labels, target.crowd)

    dataset = load(folder, transform=halve)
    image, target, _ = dataset[1]
    assert image.shape == (3, 6, 8) and target.boxes.tolist() == [[2, 4, 8, 12]]
    assert dataset.image(1).shape == (3, 12, 8)  # without the transform


def test_columns_of_the_images_and_the_table_of_classes(folder: Path) -> None:
    dataset = load(folder)
    assert dataset.image_ids.tolist() == [30, 10, 20]
    assert dataset.sizes.tolist() == [[10, 20], [12, 8], [5, 5]]
    assert list(dataset.file_names) == ["b.png", "sub/a.png", "empty.png"]
    assert dataset.annotation_file == folder / "a.json"
    assert dataset.class_names == ["dog", "cat"] and dataset.category_ids == [7, 90]  # by ascending ids
    assert len(dataset) == 3 and [image_id for _, _, image_id in dataset] == [30, 10, 20]
    assert dataset[-1][2] == 20 and dataset.target(-2).boxes.tolist() == [[1, 2, 4, 6]]
    empty = dataset.target(2)
    assert empty.boxes.shape == (0, 4) and empty.labels.shape == (0,) and empty.crowd.shape == (0, 4)
    assert empty.boxes.dtype == torch.float32 and empty.labels.dtype == torch.int64
    lines = load(folder).class_table().splitlines()
    assert [line.split() for line in lines] == [
        ["label", "id", "objects", "name"], ["0", "7", "1", "dog"], ["1", "90", "2", "cat"],
    ]  # fmt: skip


def test_boxes_are_clipped_dropped_and_counted_and_images_without_objects_stay_or_go(folder: Path) -> None:
    dataset = load(
        folder,
        box([-2, -2, 4, 9]),  # clipped
        box([1, 1, 0, 3]),  # no width
        box([5, 0, 3, 3]),  # begins where the image ends
        box([1, 1, 4.001, 4]),  # rounding does not count as clipped
        box([2, 2, 0, 0], iscrowd=1),
    )
    assert dataset.target(2).boxes.tolist() == [[0, 0, 2, 5], [1, 1, 5, 5]]
    assert dataset.report == (
        f"{folder / 'a.json'}: 3 images, 5 objects of 2 classes, 1 crowd regions; 2 boxes clipped to their image, "
        "3 without area dropped; 0 images without objects kept"
    )
    assert load(folder).report.endswith("; 1 images without objects kept")
    dataset = load(folder, box([1, 1, 0, 0]), box([0, 0, 2, 2], iscrowd=1), keep_empty=False)
    assert dataset.image_ids.tolist() == [30, 10] and list(dataset.file_names) == ["b.png", "sub/a.png"]
    assert dataset.target(1).boxes.tolist() == [[1, 2, 4, 6]] and dataset.target(1).crowd.shape == (0, 4)
    assert dataset.report.endswith("; 1 images without objects left out") and "2 images, 3 objects" in dataset.report
    first_goes = load(folder, lambda d: d["annotations"].__delitem__(slice(1, 4)), keep_empty=False)
    assert first_goes.image_ids.tolist() == [10] and first_goes.target(0).boxes.tolist() == [[1, 2, 4, 6]]


def test_classes_are_chosen_and_agree_by_name_or_are_refused(folder: Path) -> None:
    dataset = load(folder, classes=["cat"])
    assert dataset.class_names == ["cat"] and dataset.category_ids == [90]
    assert dataset.target(0).labels.tolist() == [0] and len(dataset.target(0).crowd) == 1
    assert load(folder, classes=["dog"], keep_empty=False).image_ids.tolist() == [30]
    assert load(folder, classes=["cat", "dog"]).class_names == ["dog", "cat"]  # the ids decide, not the list
    with pytest.raises(DataError, match=r"a\.json: data\.classes names 'Dog', .*; nearest: dog"):
        load(folder, classes=["cat", "Dog"])
    with pytest.raises(DataError, match=r"no classes"):
        load(folder, classes=[])
    dataset = load(folder, class_names=["cat", "dog"])  # the training file had them the other way round
    assert dataset.class_names == ["cat", "dog"] and dataset.category_ids == [90, 7]
    assert dataset.target(0).labels.tolist() == [1, 0]
    assert load(folder, classes=["cat"], class_names=["cat"]).category_ids == [90]
    with pytest.raises(DataError, match=r"a\.json: .*only here: \['dog'\]; only in training: \['bird', 'cow'\]"):
        load(folder, class_names=["cat", "cow", "bird"])
    with pytest.raises(DataError, match=r"only here: \['dog'\]; only in training: \[\]"):
        load(folder, class_names=["cat"])


def test_a_set_without_classes_or_images_says_so_and_a_byte_order_mark_is_no_harm(folder: Path) -> None:
    for section in ("categories", "images"):
        with pytest.raises(DataError, match=rf"a\.json: `{section}` is empty"):
            load(folder, lambda d, section=section: d.update({section: [], "annotations": []}))
    with pytest.raises(DataError, match="no image is left"):
        load(folder, lambda d: d.update(annotations=[]), keep_empty=False)
    assert len(load(folder, lambda d: d.update(annotations=[]))) == 3
    (folder / "a.json").write_text(json.dumps(DOCUMENT), encoding="utf-8-sig")
    assert len(CocoDataset(folder / "images", folder / "a.json")) == 3


def test_missing_places_large_images_and_sizes_of_turned_images_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"b\.png: too large .*data\.max_pixels"):
        load(folder, max_pixels=199)[0]
    load(folder)
    with pytest.raises(DataError, match=r"pictures: no such image folder"):
        CocoDataset(folder / "pictures", folder / "a.json")
    (folder / "images" / "b.png").unlink()
    with pytest.raises(DataError, match=r"b\.png: no such image"):
        load(folder)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: 20 x 10 in the file is 10 x 20 to the eye
    Image.new("RGB", (20, 10)).save(folder / "images" / "b.png", exif=exif)
    with pytest.raises(DataError, match=r"b\.png: .* is 10 x 20, but .*a\.json says 20 x 10 for image id 30"):
        load(folder)[0]
    assert load(folder, change("images", 0, width=10, height=20))[0][0].shape == (3, 20, 10)


def test_names_and_links_that_leave_the_folder(tmp_path: Path) -> None:
    for name in ("../x", "a/../../x", "/etc/passwd", "C:\\x", "C:x", "..\\x", "\\\\host\\x", "a\0b", "", "\ud800"):
        with pytest.raises(DataError, match="leads out of the image folder"):
            join_within(tmp_path, name)
    inside, secret = tmp_path / "images", tmp_path / "secret.png"
    inside.mkdir()
    secret.touch()
    (inside / "a.png").touch()
    (inside / "out.png").symlink_to(secret)
    (inside / "up").symlink_to(tmp_path)
    (inside / "circle").symlink_to(inside / "circle")
    (inside / "alias.png").symlink_to(inside / "a.png")
    (tmp_path / "linked").symlink_to(inside)
    for name in ("out.png", "up/secret.png"):
        with pytest.raises(DataError, match=f"'{name}': leads out"):
            join_within(inside, name)
    assert join_within(inside, "alias.png") == inside / "alias.png"
    assert join_within(tmp_path / "linked", "a.png").exists()  # the folder itself may be a link
    with pytest.raises(DataError, match="circle"):
        read_image(join_within(inside, "circle"))


def test_annotations_are_flat(folder: Path) -> None:
    images = [{"id": i, "file_name": f"{i:012}.jpg", "width": 640, "height": 480} for i in range(3000)]
    objects = [
        {"id": i, "image_id": i % 3000, "category_id": 7, "bbox": [i % 600, 5, 20, 30], "segmentation": [[0] * 20]}
        for i in range(20_000)
    ]
    dataset = load(folder, lambda d: d.update(images=images, annotations=objects))
    assert len(pickle.dumps(dataset)) < 50 * len(images) + 30 * len(objects)  # COCO train2017: 30 MB
    many = [x for x in vars(dataset).values() if hasattr(x, "__len__") and len(x) >= 3000]
    assert {type(x) for x in many} == {np.ndarray, FlatStrings}  # no list, no dictionary: nothing to count references


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), max_size=9))
def test_flat_strings_are_the_strings(strings: list[str]) -> None:
    flat = FlatStrings(strings)
    assert list(flat) == strings and len(flat) == len(strings)
    assert [flat[-i - 1] for i in range(len(strings))] == strings[::-1]


# Invariants and oracles

number = st.integers(-30, 30) | st.floats(-30, 30, width=32)
size = st.integers(0, 40) | st.floats(0, 40, width=32)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    return folder


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(number, number, size, size, st.sampled_from([10, 20, 30]), st.booleans()), max_size=8))
def test_targets_are_those_of_a_slow_loop(shared_folder: Path, rows: list[tuple]) -> None:
    objects = [
        {"id": i, "image_id": image, "category_id": 7, "bbox": [x, y, w, h], "iscrowd": int(crowd)}
        for i, (x, y, w, h, image, crowd) in enumerate(rows)
    ]
    dataset = load(shared_folder, lambda d: d.update(annotations=objects))
    for i, entry in enumerate(DOCUMENT["images"]):
        expected: dict[bool, list[list[float]]] = {True: [], False: []}
        for x, y, w, h, image, crowd in rows:
            x1, x2 = (np.float32(min(max(v, 0), entry["width"])) for v in (x, x + w))
            y1, y2 = (np.float32(min(max(v, 0), entry["height"])) for v in (y, y + h))
            if image == entry["id"] and x2 > x1 and y2 > y1:
                expected[crowd].append([x1, y1, x2, y2])
        assert dataset.target(i).boxes.tolist() == expected[False]
        assert dataset.target(i).crowd.tolist() == expected[True]
        assert dataset.target(i).labels.tolist() == [0] * len(expected[False])


COCO128 = Path(__file__).parents[2] / "shared" / "data" / "coco128"


@pytest.mark.skipif(not COCO128.is_dir(), reason="needs the COCO128 images")
def test_real_images_and_pycocotools() -> None:
    from pycocotools.coco import COCO

    dataset = CocoDataset(COCO128 / "images", COCO128 / "annotations" / "instances.json")
    coco = COCO(COCO128 / "annotations" / "instances.json")
    assert "929 objects of 80 classes, 10 crowd regions" in dataset.report
    assert dataset.category_ids == sorted(coco.getCatIds())
    for i, image_id in enumerate(dataset.image_ids.tolist()):
        target = dataset[i][1]  # decodes, with the size that the file states
        entries = [a for a in coco.imgToAnns[image_id] if not a["iscrowd"]]
        xyxy = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in entries)]).reshape(-1, 4)
        torch.testing.assert_close(target.boxes, xyxy, atol=0.02, rtol=0)
        assert [dataset.category_ids[label] for label in target.labels] == [a["category_id"] for a in entries]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
def test_a_small_file_is_made_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    measuring = script("measure_loading")
    monkeypatch.setitem(sys.modules, "measure_loading_script", measuring)  # where a worker may look for it
    for name, value in {"IMAGES": 300, "BOXES": 900, "CLASSES": 5, "WORKERS": (0, 1)}.items():
        monkeypatch.setattr(measuring, name, value)
    measuring.write_annotations(tmp_path / "a.json")
    assert measuring.main([str(tmp_path / "a.json")]) == 0
    out = capsys.readouterr().out
    assert "300 images, 900 objects of 5 classes" in out and "0 boxes clipped" in out
    rows = {
        line.split()[0]: [float(x) for x in line.split()[1:]] for line in out.splitlines()[3:] if line[-1:].isdigit()
    }
    assert list(rows) == ["before", "loaded", "added", "0", "1"]
    assert rows["1"][1] < rows["0"][1] / 2  # a worker shares most of what its parent has
    assert measuring.main([str(tmp_path / "none.json")]) == 2
    assert "none.json: cannot read the annotations" in capsys.readouterr().err
