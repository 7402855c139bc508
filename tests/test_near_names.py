"""Names that have a twin on disk or in a file: named with the difference, and corrected in a copy."""

import json
import unicodedata
from pathlib import Path

import pytest
from helpers.health import run
from helpers.training import draw_set
from PIL import Image

from detector.data.coco import CocoDataset
from detector.data.coco_reader import read_coco_file
from detector.data.image_names import match_names
from detector.data.near_names import NearNames
from detector.errors import DataError

FILES = ["day 1/Ä.jpg", "day 1/b.JPG", "night/c.png", "night/d.png", "day 1/d.png", "x/e.png", "f.tar.png"]


def test_a_twin_is_found_with_the_least_differences_and_told_for_results_of_other_names(tmp_path: Path):
    for name, twin, differences in [
        ("day 1\\b.JPG", "day 1/b.JPG", ["backslashes"]),
        ("day%201/b.JPG", "day 1/b.JPG", ["escapes such as %20"]),
        ("./day 1//b.JPG", "day 1/b.JPG", ["a leading ./ or a doubled slash"]),
        (unicodedata.normalize("NFD", "day 1/Ä.jpg"), "day 1/Ä.jpg", ["Unicode form (NFC, NFD)"]),
        ("day 1/B.jpg", "day 1/b.JPG", ["case"]),
        ("night/c.jpeg", "night/c.png", ["suffix"]),
        ("f.tar.jpg", "f.tar.png", ["suffix"]),
        ("c.png", "night/c.png", ["folder"]),
        ("C:\\data\\night\\c.bmp", "night/c.png", ["backslashes", "suffix", "folder"]),
        ("night/e", "x/e.png", ["suffix", "folder"]),
        ("d.png", None, []),  # two
        ("g.png", None, []),
        ("", None, []),
    ]:
        found = NearNames(FILES).twin(name)
        assert (found and (found.name, list(found.differences))) == (twin and (twin, differences))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    image = {"id": 1, "file_name": "day 1/a.png", "width": 4, "height": 4}
    (tmp_path / "a.json").write_text(
        json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cat"}]})
    )
    with pytest.raises(
        DataError, match=r"no image with the file name 'day%201/A.png'; it has 'day 1/a.png', which differs by"
    ):
        match_names(["day%201/A.png"], read_coco_file(tmp_path / "a.json"))


def test_a_missing_image_is_named_with_its_twin_and_a_corrected_copy_is_written(tmp_path: Path):
    data = draw_set(tmp_path / "data")
    document = json.loads((data / "train.json").read_text())
    names = [image["file_name"] for image in document["images"]]
    document["info"] = {"kept": "as it is"}
    document["annotations"][0]["segmentation"] = [[1, 1, 5, 1, 5, 5]]
    for image, name in zip(document["images"], [f".\\{names[0].upper()}", f"old/{names[1]}", "lost.png"]):
        image["file_name"] = name
    path, images = tmp_path / "wrong.json", data / "images"
    path.write_text(json.dumps(document))
    with pytest.raises(
        DataError, match=rf"no such image; there is '{names[0]}', which differs by .*case.*--fix-names"
    ) as stopped:
        CocoDataset(images, path).image(0)
    arguments = str(stopped.value).partition("`detector check-data ")[2].partition("`")[0].split()
    arguments[-1] = str(tmp_path / "out.json")
    status, out, _ = run(*arguments)
    assert status == 1 and f"there is '{names[1]}', which differs by folder" in out
    fixed = json.loads((tmp_path / "out.json").read_text())
    assert [image["file_name"] for image in fixed["images"]] == [*names[:2], "lost.png", *names[3:]]
    assert {k: v for k, v in fixed.items() if k != "images"} == {k: v for k, v in document.items() if k != "images"}
    assert (
        "2 of 6 file names corrected" in out
        and "1 file names have no file, several alike, or" in out
        and "'lost.png'" in out
    )
    CocoDataset(images, tmp_path / "out.json").image(1)
    assert run(*arguments)[0] == 2  # never over a file that is there


def test_an_entry_does_not_take_the_file_of_another(tmp_path: Path):
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    names = ["./a.png", "x/A.PNG", "B.png", "b.PNG", "C.PNG"]
    entries = [{"id": n, "file_name": name, "width": 4, "height": 4} for n, name in enumerate(names)]
    document = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    _, out, _ = run(tmp_path / "a.json", "--images", tmp_path, "--fix-names", tmp_path / "out.json")
    fixed = [image["file_name"] for image in json.loads((tmp_path / "out.json").read_text())["images"]]
    assert fixed == [*names[:4], "c.png"] and "1 of 5 file names corrected" in out
