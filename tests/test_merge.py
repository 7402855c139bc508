"""`detector merge`: classes are joined by name, no id collides, nothing of the files is lost, and every change is counted."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detector.cli.main import main
from detector.data.coco import CocoDataset


def coco(names: list[str], classes: dict[int, str], **sections: Any) -> dict[str, Any]:
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
    """The merged document."""
    output = tmp_path / f"out{len(list(tmp_path.glob('out*')))}.json"
    assert main(["merge", *map(str, arguments), "--output", str(output)]) == 0
    return json.loads(output.read_text())


def refusal(capsys: pytest.CaptureFixture, tmp_path: Path, *arguments: object) -> str:
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
    first = coco(["x.png", "y.png"], {1: "cat", 5: "dog"}, info={"of": 1}, licenses=[{"id": 1, "name": "MIT"}])
    second = coco(["x.png"], {1: "Dog", 2: "cat"}, info={"of": 2}, videos=[3], licenses=[{"id": 1, "name": "BSD"}])
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
    message = refusal(capsys, tmp_path, *two)
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
    assert "has the size (21, 10), in an earlier file (20, 10)" in refusal(
        capsys, tmp_path, two[0], put(two[1], document), "--join-images"
    )


def test_ids_of_any_size_and_repeated_ones_do_not_collide(tmp_path: Path):
    large = 2**53
    first = coco(["a"], {large: "cat"})
    first["images"][0]["id"] = first["annotations"][0]["image_id"] = large
    first["annotations"][0]["bbox"] = [0, 0, 1, 1]
    first["annotations"] *= 2  # a repeated annotation id, which the reader allows
    other = coco(["b"], {large: "dog"})
    other["annotations"][0]["bbox"] = [0, 0, 1, 1]
    other["images"][0]["id"] = other["annotations"][0]["image_id"] = large
    merged = merge(tmp_path, put(tmp_path / "a.json", first), put(tmp_path / "b.json", other))
    assert Counter((image, name) for image, name, _ in objects(merged).elements()) == {("a", "cat"): 2, ("b", "dog"): 1}
    assert CocoDataset(tmp_path, tmp_path / "out0.json").class_names == ["dog", "cat"]  # ids 1 and 2**53


def test_what_is_wrong_is_one_line(two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture):
    for arguments, message in (
        (["--rename", "cats=x"], "--rename: no file has the class 'cats'; nearest: cat"),
        (["--drop", "dgo"], "--drop: no file has the class 'dgo'; nearest: dog"),
        (["--drop", "cat", "dog"], "--drop leaves no class"),
        (["--drop", "cat", "--rename", "cat=x"], "'cat': a class is either renamed or dropped"),
        (["--images", tmp_path / "gone"], "no such image folder"),
    ):
        assert message in refusal(capsys, tmp_path, two[0], *arguments)
    for names in (["nose"], ["ear"]):
        document = coco(["z.png"], {1: "cat"})
        document["categories"][0]["keypoints"] = names
        put(tmp_path / f"{names[0]}.json", document)
    message = refusal(capsys, tmp_path, tmp_path / "nose.json", tmp_path / "ear.json")
    assert "ear.json: the class 'cat' has other `keypoints` than before" in message
    output = tmp_path / "a.json"
    before = output.read_bytes()
    assert main(["merge", str(two[1]), "--output", str(output)]) == 2 and output.read_bytes() == before
    for wrong in (["--rename", "cat"], ["--rename", "a=b", "a=c"], ["--images", "x", "y"]):
        with pytest.raises(SystemExit, match="2"):
            main(["merge", str(two[0]), "--output", "x.json", *wrong])
