"""`detector split` and `detector merge`: shares of each class, names that join, nothing lost, nothing written over."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.golden_rules import shared
from PIL import Image, ImageFilter

from detector.cli.main import main
from detector.data.coco import CocoDataset
from detector.data.curation.near_equal import LIMIT, difference_hash, near_equal_pairs
from detector.data.curation.stratify import EMPTY, IMAGES, stratify
from detector.data.image import read_image


def coco(labels: list[list[int]], classes: int = 3) -> dict[str, Any]:
    """An image of 100 x 80 for each list of category ids, with an object of each; sections and keys that COCO lacks as well."""
    images = [
        {"id": 10 * i, "file_name": f"v{i // 2}/é{i}.png", "width": 100, "height": 80, "patient": f"p{i // 3}"}
        for i in range(1, len(labels) + 1)
    ]
    annotations = [
        {"id": 7 * n, "image_id": 10 * i, "category_id": category, "bbox": [1.5, 2, 30, 40], "area": 9.0, "iscrowd": 0,
         "segmentation": [[1.5, 2, 31.5, 2, 31.5, 42]], "mood": {"a": [None, 1e-07]}}
        for n, (i, category) in enumerate((i, c) for i, own in enumerate(labels, start=1) for c in own)
    ]  # fmt: skip
    categories = [{"id": c, "name": f"class {c}", "supercategory": "x"} for c in range(1, classes + 1)]
    return {"info": {"year": 2026}, "licenses": [{"id": 1}], "videos": [1], "images": images, "annotations": annotations,
            "categories": categories}  # fmt: skip


def drawn_labels(count: int = 200) -> list[list[int]]:
    """Classes 1, 2, 3 that are frequent, less frequent and rare, several in an image; some images have none."""
    rng = np.random.RandomState(0)
    return [[c for c, mean in ((1, 2), (2, 0.7), (3, 0.1)) for _ in range(rng.poisson(mean))] for _ in range(count)]


def written(folder: Path, document: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "all.json"
    path.write_text(json.dumps(document))
    return path


def split(path: Path, output: Path, *options: object) -> dict[str, dict[str, Any]]:
    assert main(["split", str(path), "--output", str(output), *map(str, options)]) == 0
    return {file.stem: json.loads(file.read_text()) for file in sorted(output.iterdir())}


def refusal(capsys: pytest.CaptureFixture, path: Path, *options: object) -> str:
    """The one line with which it refuses; nothing is written."""
    capsys.readouterr()
    output = path.parent / "refused"
    assert main(["split", str(path), "--val", "0.5", "--output", str(output), *map(str, options)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and not list(output.glob("*"))
    return message


def image_ids(document: dict[str, Any]) -> set[int]:
    return {image["id"] for image in document["images"]}


def test_every_class_has_its_share_by_hand():
    units = [{IMAGES: 1, 0: 1, 1: 1}] * 5 + [{IMAGES: 1, 0: 1}] * 4 + [{IMAGES: 1, EMPTY: 1}] * 5
    for seed in range(5):
        found = Counter(zip(stratify(units, [0.8, 0.2], seed), [*"bbbbbaaaaeeeee"]))
        assert found[1, "b"] == 1 and found[1, "a"] == 1 and found[1, "e"] == 1
    assert stratify([{IMAGES: 1, 0: 50}, *[{IMAGES: 1, 0: 1}] * 9], [0.8, 0.2], 0)[0] == 0  # 50 of 59: training


def test_everything_is_in_one_split_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture):
    document = coco([*drawn_labels(), [3]])
    document["annotations"][3]["iscrowd"] = 1
    parts = split(written(tmp_path, document), tmp_path / "out", "--val", 0.2, "--test", 0.1)
    assert list(parts) == ["test", "train", "val"]
    for section in ("images", "annotations"):
        assert sorted((e for part in parts.values() for e in part[section]), key=lambda e: e["id"]) == document[section]
    for part in parts.values():
        assert {e["image_id"] for e in part["annotations"]} <= image_ids(part)
        assert {**part, "images": 0, "annotations": 0} == {**document, "images": 0, "annotations": 0}
        assert list(part) == list(document)
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if (line.endswith(tuple("0123456789")) and "%" in line) or "off by" in line]
    assert len(rows) == 8 and len({len(row) for row in rows}) == 1  # a heading, four counts and three classes, lined up
    shares = {row[:22].strip(): [float(cell) for cell in row.split() if cell[0] in "+-"] for row in rows[1:]}
    assert all(abs(off) <= 0.5 for off in shares["images"])
    assert all(abs(off) < 1 for off in shares["class 1"])  # 400 objects or so: four
    assert all(abs(off) < 5 for off in shares["class 3"])  # 20 objects or so: one is 5 points


def test_the_division_depends_on_seed_and_content_alone(tmp_path: Path):
    document = coco(drawn_labels(60))
    first = split(written(tmp_path, document), tmp_path / "a", "--val", 0.3, "--seed", 5)
    split(tmp_path / "all.json", tmp_path / "b", "--val", 0.3, "--seed", 5)
    for name in ("train.json", "val.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert image_ids(split(tmp_path / "all.json", tmp_path / "c", "--val", 0.3, "--seed", 6)["val"]) != image_ids(
        first["val"]
    )
    shuffler = random.Random(0)
    for section in ("images", "annotations", "categories"):
        shuffler.shuffle(document[section])
        document[section] = [dict(reversed(list(entry.items()))) for entry in document[section]]
    other = split(written(tmp_path / "shuffled", document), tmp_path / "d", "--val", 0.3, "--seed", 5)
    assert image_ids(other["val"]) == image_ids(first["val"])


@pytest.mark.parametrize(
    ("options", "group"),
    [
        (["--group", "patient"], lambda image: image["patient"]),
        (["--group-name", "^[^/]+"], lambda image: image["file_name"].split("/")[0]),
        (["--group-name", "é([0-9])", "--group", "patient"], lambda image: image["patient"]),
    ],
)
def test_a_group_is_in_one_split(tmp_path: Path, capsys: pytest.CaptureFixture, options: list[str], group: Any):
    path = written(tmp_path, coco(drawn_labels(60) if len(options) == 2 else drawn_labels(8)))
    for seed in range(3):
        parts = split(path, tmp_path / f"{seed}", "--val", 0.4, "--seed", seed, *options)
        assert not {group(image) for image in parts["val"]["images"]} & {
            group(image) for image in parts["train"]["images"]
        }
    if "patient" in options:
        assert "by `patient`: " in capsys.readouterr().out


def textures(folder: Path) -> list[str]:
    """Ten pictures of blurred noise; then of the first a JPEG, of the second one of half the size, of the third itself."""
    folder.mkdir()
    rng = np.random.RandomState(0)
    for i in range(10):
        noise = Image.fromarray(rng.randint(0, 256, (120, 160, 3), dtype=np.uint8)).filter(ImageFilter.GaussianBlur(6))
        noise.point(lambda v: max(0, min(255, 6 * (v - 127) + 127))).save(folder / f"{i}.png")
    originals = [Image.open(folder / f"{i}.png") for i in range(3)]
    originals[0].save(folder / "10.jpg", quality=40)
    originals[1].resize((80, 60)).save(folder / "11.png")
    originals[2].save(folder / "12.png")
    return [*(f"{i}.png" for i in range(10)), "10.jpg", "11.png", "12.png"]


def test_near_equal_images_are_in_one_split(tmp_path: Path, capsys: pytest.CaptureFixture):
    names, document = textures(tmp_path / "images"), coco([[1]] * 13)
    for image, name in zip(document["images"], names):
        image["file_name"] = name
    path = written(tmp_path, document)
    for seed in range(5):
        parts = split(path, tmp_path / f"{seed}", "--val", 0.4, "--seed", seed, "--group-content", tmp_path / "images")
        val = {image["file_name"] for image in parts["val"]["images"]}
        assert all(len(val & pair) != 1 for pair in ({"0.png", "10.jpg"}, {"1.png", "11.png"}, {"2.png", "12.png"}))
    printed = capsys.readouterr().out
    assert "by near-equal content: 3 groups of 6 images, the largest of 2; 7 images alone" in printed
    assert all(f"  {pair}\n" in printed for pair in ("0.png  10.jpg", "1.png  11.png", "0.00  2.png  12.png"))
    (tmp_path / "images" / "4.png").write_bytes(b"x")
    (tmp_path / "images" / "5.png").unlink()
    split(path, tmp_path / "bad", "--val", 0.4, "--group-content", tmp_path / "images")
    printed = capsys.readouterr().out
    assert "3 groups of 6 images" in printed and "not compared: 2 images, the first: " in printed
    assert "4.png: not a readable image" in printed
    (tmp_path / "empty").mkdir()
    assert "none of the images can be read; the first: " in refusal(capsys, path, "--group-content", tmp_path / "empty")


def test_pairs_are_those_of_a_slow_loop(monkeypatch):
    monkeypatch.setattr("detector.data.curation.near_equal.CELLS", 100)  # several blocks
    generator = torch.Generator().manual_seed(0)
    hashes = torch.rand(40, 256, generator=generator) < 0.4
    hashes[20:30] = hashes[:10] ^ (torch.rand(10, 256, generator=generator) < 0.08)
    hashes[30] = hashes[31] = hashes[3]
    hashes[32] = hashes[33] = False
    expected = set()
    for i in range(40):
        for j in range(i + 1, 40):
            different, either = int((hashes[i] ^ hashes[j]).sum()), int((hashes[i] | hashes[j]).sum())
            if different <= LIMIT * either:
                expected.add((i, j))
    found = {(i, j) for _, i, j in near_equal_pairs(hashes)}
    assert found <= expected and len(found) >= 10
    assert {(i, j) for i, j in expected if not {30, 31} & {i, j}} <= found  # equal ones are paired with the first alone
    assert {(3, 30), (3, 31), (32, 33)} <= found


def test_photos_have_gaps_between_copies_and_others():
    """The limit separates a JPEG of quality 30 from another photo, on the real photos that come with the project's data."""
    folder = shared("data/coco128/images")
    paths = sorted(folder.glob("*.jpg"))[:40]
    hashes = torch.stack([difference_hash(read_image(path)) for path in paths])
    assert list(near_equal_pairs(hashes, LIMIT + 0.1)) == []


def test_rare_classes_are_named_and_nothing_is_written_over(tmp_path: Path, capsys: pytest.CaptureFixture):
    split(written(tmp_path, coco([[1], [1], [1, 2], [1, 1, 4], [1, 4]], classes=4)), tmp_path / "out", "--val", 0.2)
    printed = capsys.readouterr().out
    assert "1 classes have a single image: class 2\n" in printed and "1 classes have no objects: class 3\n" in printed
    assert "1 classes have several images, but none in val: class 4\n" in printed
    path, output = written(tmp_path, coco(drawn_labels(20))), tmp_path / "second"
    split(path, output, "--val", 0.2)
    (output / "val.json").unlink()  # as an interruption would leave it
    assert len(split(path, output, "--val", 0.2)) == 2  # equal files are left, the missing one is written
    before = {file: file.read_bytes() for file in output.iterdir()}
    assert main(["split", str(path), "--val", "0.4", "--output", str(output)]) == 2
    assert "exists already with other content" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in output.iterdir()} == before


def test_what_is_wrong_is_one_line_or_a_wrong_command_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    document = coco([[1], [1], [2]])
    path = written(tmp_path, document)
    assert "images, id 10: `scan` is missing (2 more like it)" in refusal(capsys, path, "--group", "scan")
    assert "does not match --group-name 'z' (2 more like it)" in refusal(capsys, path, "--group-name", "z")
    assert "not a regular expression" in refusal(capsys, path, "--group-name", "(")
    assert "no such image folder" in refusal(capsys, path, "--group-content", tmp_path / "gone")
    assert "3 images in 1 groups: none is left for val" in refusal(capsys, path, "--group-name", ".png")
    document["annotations"][1]["category_id"] = 9
    assert "`category_id` is 9; no such category" in refusal(capsys, written(tmp_path, document))
    assert "not a JSON file" in refusal(capsys, Path(__file__))
    for shares in [["0"], ["1"], ["nan"], ["0.5", "--test", "0.5"], ["0.2", "--seed", "-1"]]:
        with pytest.raises(SystemExit, match="2"):
            main(["split", str(tmp_path / "a.json"), "--output", str(tmp_path), "--val", *shares])


def coco_of(names: list[str], classes: dict[int, str], **sections: Any) -> dict[str, Any]:
    """An image of 20 x 10 for each name, with an object of each class; annotation ids begin at 1."""
    images = [
        {"id": i, "file_name": name, "width": 20, "height": 10, "license": 1} for i, name in enumerate(names, start=1)
    ]
    pairs = [(image["id"], category) for image in images for category in classes]
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "bbox": [category, 0, 5, 5], "area": 7.5, "iscrowd": n % 2,
         "segmentation": [[0, 0, 5, 0, 5, 5]]}
        for n, (image, category) in enumerate(pairs, start=1)
    ]  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in classes.items()]
    return {"images": images, "annotations": annotations, "categories": categories} | sections


def put(path: Path, document: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def merge(tmp_path: Path, *arguments: object) -> dict[str, Any]:
    output = tmp_path / f"out{len(list(tmp_path.glob('out*')))}.json"
    assert main(["merge", *map(str, arguments), "--output", str(output)]) == 0
    return json.loads(output.read_text())


def merge_refusal(capsys: pytest.CaptureFixture, tmp_path: Path, *arguments: object) -> str:
    capsys.readouterr()
    output = tmp_path / "refused.json"
    assert main(["merge", *map(str, arguments), "--output", str(output)]) == 2 and not output.exists()
    return capsys.readouterr().err


def objects(document: dict[str, Any]) -> Counter:
    """How often each pair of file name and class name occurs with the same rest of its annotation."""
    images = {image["id"]: image["file_name"] for image in document["images"]}
    classes = {category["id"]: category["name"] for category in document["categories"]}
    assert len(images) == len(document["images"]) and len(classes) == len(document["categories"])
    assert len({a["id"] for a in document["annotations"]}) == len(document["annotations"])
    keys = ("bbox", "area", "iscrowd", "segmentation")
    return Counter(
        (images[a["image_id"]], classes[a["category_id"]], json.dumps([a[key] for key in keys])) for a in document["annotations"]
    )  # fmt: skip


def renamed(found: Counter, prefix: str, names: dict[str, str]) -> Counter:
    return Counter({(prefix + image, names.get(name, name), rest): n for (image, name, rest), n in found.items()})


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Files of two folders with one file name in common; `cat` has id 1 in the first and 2 in the second."""
    for folder, names in (("a", ["x.png", "y.png"]), ("b/images", ["x.png"])):
        (tmp_path / folder).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (20, 10)).save(tmp_path / folder / name)
    first = coco_of(["x.png", "y.png"], {1: "cat", 5: "dog"}, info={"of": 1}, licenses=[{"id": 1, "name": "MIT"}])
    second = coco_of(["x.png"], {1: "Dog", 2: "cat"}, info={"of": 2}, videos=[3], licenses=[{"id": 1, "name": "BSD"}])
    return put(tmp_path / "a.json", first), put(tmp_path / "b.json", second)


def test_files_of_two_folders_become_one(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    merged = merge(tmp_path, *two, "--images", tmp_path / "a", tmp_path / "b/images", "--rename", "Dog=dog")
    first, second = (objects(json.loads(path.read_text())) for path in two)
    assert objects(merged) == renamed(first, "a/", {}) + renamed(second, "b/images/", {"Dog": "dog"})
    assert merged["categories"] == [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}]
    assert [image["id"] for image in merged["images"]] == [1, 2, 3]  # 1 was taken; 3 is the first that nobody has
    assert merged["info"] == {"of": 1} and merged["videos"] == [3]
    licences = {entry["id"]: entry["name"] for entry in merged["licenses"]}
    assert [licences[image["license"]] for image in merged["images"]] == ["MIT", "MIT", "BSD"]
    printed = capsys.readouterr().out
    assert "1 images got another id (the first: b/images/x.png of" in printed and "another `info`" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["images", "2", "1", "3"] in rows and ["cat", "2", "1", "3"] in rows and ["Dog", "-", "1", "-"] in rows
    assert f"relative to {tmp_path.resolve()}" in printed
    dataset = CocoDataset(tmp_path, tmp_path / "out0.json")
    assert len(dataset) == 3 and all(dataset[i][0].shape == (3, 10, 20) for i in range(3))


def test_the_classes_of_one_file_are_renamed_exchanged_joined_and_dropped(two: tuple[Path, Path], tmp_path: Path):
    document = json.loads(two[0].read_text())
    assert merge(tmp_path, two[0]) == document  # nothing asked for, nothing changed
    exchanged = merge(tmp_path, two[0], "--rename", "cat=dog", "dog=cat")
    assert objects(exchanged) == renamed(objects(document), "", {"cat": "dog", "dog": "cat"})
    joined = merge(tmp_path, two[0], "--rename", "cat=pet", "dog=pet")
    assert [c["name"] for c in joined["categories"]] == ["pet"] and len(joined["annotations"]) == 4
    dropped = merge(tmp_path, two[0], "--drop", "cat")
    assert {name for _, name, _ in objects(dropped)} == {"dog"} and len(dropped["images"]) == 2


def test_an_image_in_two_files_is_refused_or_joined(two, tmp_path, capsys):
    message = merge_refusal(capsys, tmp_path, *two)
    assert f"{two[1]}: images, id 1: 'x.png' is in an earlier file, too; --join-images" in message
    document = json.loads(two[1].read_text())
    document["categories"][0]["name"] = "owl"
    document["images"][0] |= {"file_name": "./x.png", "scene": "zoo", "license": 9}
    document["annotations"][1] |= {"bbox": [1, 0, 5, 5], "iscrowd": 1}  # the cat is that of the first file
    put(two[1], document)
    merged = merge(tmp_path, *two, "--join-images")
    assert len(merged["images"]) == 2 and merged["images"][0]["scene"] == "zoo" and merged["images"][0]["license"] == 1
    assert Counter(name for image, name, _ in objects(merged) if image == "x.png") == {"cat": 1, "dog": 1, "owl": 1}
    assert "1 annotations are equal to one of an earlier file: kept once" in capsys.readouterr().out
    document["images"][0]["width"] = 21
    assert "has the size (21, 10), in an earlier file (20, 10)" in merge_refusal(
        capsys, tmp_path, two[0], put(two[1], document), "--join-images"
    )


def test_ids_of_any_size_and_repeated_ones_do_not_collide(tmp_path: Path):
    large = 2**53
    first = coco_of(["a"], {large: "cat"})
    first["images"][0]["id"] = first["annotations"][0]["image_id"] = large
    first["annotations"][0]["bbox"] = [0, 0, 1, 1]
    first["annotations"] *= 2  # a repeated annotation id, which the reader allows
    other = coco_of(["b"], {large: "dog"})
    other["annotations"][0]["bbox"] = [0, 0, 1, 1]
    other["images"][0]["id"] = other["annotations"][0]["image_id"] = large
    merged = merge(tmp_path, put(tmp_path / "a.json", first), put(tmp_path / "b.json", other))
    assert Counter((image, name) for image, name, _ in objects(merged).elements()) == {("a", "cat"): 2, ("b", "dog"): 1}
    assert CocoDataset(tmp_path, tmp_path / "out0.json").class_names == ["dog", "cat"]  # ids 1 and 2**53


def test_what_cannot_be_merged_is_one_line(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    for arguments, message in (
        (["--rename", "cats=x"], "--rename: no file has the class 'cats'; nearest: cat"),
        (["--drop", "dgo"], "--drop: no file has the class 'dgo'; nearest: dog"),
        (["--drop", "cat", "dog"], "--drop leaves no class"),
        (["--drop", "cat", "--rename", "cat=x"], "'cat': a class is either renamed or dropped"),
        (["--images", tmp_path / "gone"], "no such image folder"),
    ):
        assert message in merge_refusal(capsys, tmp_path, two[0], *arguments)
    for names in (["nose"], ["ear"]):
        document = coco_of(["z.png"], {1: "cat"})
        document["categories"][0]["keypoints"] = names
        put(tmp_path / f"{names[0]}.json", document)
    message = merge_refusal(capsys, tmp_path, tmp_path / "nose.json", tmp_path / "ear.json")
    assert "ear.json: the class 'cat' has other `keypoints` than before" in message
    output = tmp_path / "a.json"
    before = output.read_bytes()
    assert main(["merge", str(two[1]), "--output", str(output)]) == 2 and output.read_bytes() == before
    for wrong in (["--rename", "cat"], ["--rename", "a=b", "a=c"], ["--images", "x", "y"]):
        with pytest.raises(SystemExit, match="2"):
            main(["merge", str(two[0]), "--output", "x.json", *wrong])
