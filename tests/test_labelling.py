"""The loop of labelling: which images first, a first draft for Label Studio and CVAT, and their corrected exports back."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.formats import convert, objects, refusal
from helpers.fuzz import damaged, fuzz, json_values, outcome, tries, watchdog  # noqa: F401
from helpers.training import draw_set, script, train, write_config
from hypothesis import strategies as st
from PIL import Image

from detector.data.coco_reader import read_coco_file
from detector.data.convert.cvat import convert_cvat
from detector.data.convert.label_studio import convert_label_studio
from detector.data.convert.writer import document_summary
from detector.inference.uncertainty import Uncertainty, UncertaintyRanking, uncertainty_of
from detector.structures import Detections

W, H = 130, 70  # no power of two, so that percentages do not end


def detections(*scores: float) -> Detections:
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).repeat(len(scores), 1)
    return Detections(boxes, torch.tensor(scores), torch.zeros(len(scores), dtype=torch.int64), ["cell"])


# --- uncertainty


def test_uncertainty_is_the_mean_entropy_weighted_by_the_score():
    assert uncertainty_of(detections(0.5)).value == pytest.approx(1)
    assert uncertainty_of(detections()).value == uncertainty_of(detections(1.0, 1.0)).value == 0
    quarter = 2 - 0.75 * math.log2(3)  # the entropy of 1/4, and of 3/4
    assert uncertainty_of(detections(0.75, 0.25)).value == pytest.approx(quarter, abs=1e-6)
    assert uncertainty_of(detections(0.5, 0.25)).value == pytest.approx((0.5 + 0.25 * quarter) / 0.75, abs=1e-6)


def test_neither_many_objects_nor_a_tail_of_guesses_nor_nothing_wins():
    once, crowd = uncertainty_of(detections(0.9, 0.6)), uncertainty_of(detections(*[0.9, 0.6] * 40))
    assert crowd.value == pytest.approx(once.value, abs=1e-6)
    faint = uncertainty_of(detections(0.99, *[0.05] * 10))
    assert uncertainty_of(detections()).value < faint.value < 0.2 < uncertainty_of(detections(0.7)).value


def test_the_reason_says_how_many_and_which():
    said = uncertainty_of(detections(0.9, 0.8, 0.75, 0.52, 0.3, 0.05))
    assert (said.detections, said.unsure) == (6, 3)
    assert said.reason == "3 of 6 detections score 0.25 to 0.75; nearest 0.5: cell 0.52, cell 0.30, cell 0.75"
    assert uncertainty_of(detections(0.9)).reason == "no detection of 1 scores 0.25 to 0.75; nearest 0.5: cell 0.90"
    assert uncertainty_of(detections()) == Uncertainty(0.0, 0, 0, "nothing was found")


def test_a_ranking_is_by_value_then_name_and_keeps_the_first():
    ranking = UncertaintyRanking(3)
    for number, (name, value) in enumerate([("b", 0.5), ("c", 0.1), ("a", 0.5), ("d", 0.9)], start=1):
        ranking.add(f'{name}, "x".png', number, Uncertainty(value, 7, 1, "why"))
    assert [image.name[0] for image in ranking.ranked()] == ["d", "a", "b"]
    table = list(csv.DictReader(ranking.table().splitlines()))
    assert [(row["rank"], row["file_name"], row["image_id"]) for row in table] == [
        ("1", 'd, "x".png', "4"), ("2", 'a, "x".png', "3"), ("3", 'b, "x".png', "1")
    ]  # fmt: skip
    assert table[0]["uncertainty"] == "0.9000" and ranking.lines()[0] == '0.900  d, "x".png: why'


# --- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run; photos/ beside it has two of its images, one below a folder with a space."""
    folder = tmp_path_factory.mktemp("labelling")
    data = draw_set(folder / "data")
    assert train(write_config(folder / "tiny.yaml", data), folder / "run", ["train.epochs=1"]) == 0
    for source, target in (("train0", "photos/one.png"), ("train1", "photos/day 1/two.png")):
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        Image.open(data / "images" / f"{source}.png").resize((W, H)).save(folder / target)
    return folder


def infer(run: Path, output: Path, *options: object) -> int:
    arguments = [run / "run/best.pth", run / "photos", "--trust", "--score", 0.01, "--output", output, *options]
    return script("infer").main([str(argument) for argument in arguments])


def found(output: Path) -> dict[str, list[tuple]]:
    """Class and box of every detection in detections.json, by file name, sorted."""
    rows = json.loads((output / "detections.json").read_text())
    every: dict[str, list[tuple]] = {"one.png": [], "two.png": []}
    for row in rows:
        every[Path(row["file_name"]).name].append((row["category_name"], *row["bbox"]))
    return {name: sorted(boxes) for name, boxes in every.items()}


def same(a: dict[str, list[tuple]], b: dict[str, list[tuple]], within: float = 0.01) -> bool:
    """Whether the images have the same classes, and boxes that differ by less than this, in pixels."""
    assert a.keys() == b.keys()
    for name, rows in a.items():
        others = list(b[name])
        assert len(rows) == len(others)
        for label, *box in rows:
            near = [o for o in others if o[0] == label and np.abs(np.subtract(o[1:], box)).max() < within]
            assert near, (label, box)
            others.remove(near[0])
    return True


def test_images_are_ranked_by_the_command_whatever_its_score(run: Path, tmp_path: Path, capsys):
    assert (
        infer(run, tmp_path / "out", "--uncertain", 5)
        == infer(run, tmp_path / "high", "--uncertain", 5, "--score", 1)
        == 0
    )
    table = (tmp_path / "out/uncertain.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert {row["file_name"] for row in rows} == {"one.png", "day 1/two.png"} and table == (
        tmp_path / "high/uncertain.csv"
    ).read_text()
    assert float(rows[0]["uncertainty"]) >= float(rows[1]["uncertainty"]) > 0
    shown = capsys.readouterr().out
    assert (
        all(f"{row['file_name']}: {row['reason']}" in shown for row in rows) and "most uncertain of 2 images" in shown
    )
    assert infer(run, tmp_path / "out", "--uncertain", 1) == 0
    assert len((tmp_path / "out/uncertain.csv").read_text().splitlines()) == 2
    with pytest.raises(SystemExit, match="2"):
        infer(run, tmp_path / "out", "--uncertain", 0)


def accepted(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The export of a project in which every prediction was accepted as it is."""
    return [
        {"id": 40 + n, "data": task["data"], "predictions": [], "annotations": [
            {"id": n, "was_cancelled": False, "result": task["predictions"][0]["result"],
             "updated_at": "2026-03-09T22:16:08.728378Z"}]}
        for n, task in enumerate(tasks)
    ]  # fmt: skip


def test_a_draft_goes_to_label_studio_and_back(run: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    assert infer(run, out, "--to", "label-studio") == 0 and sum(map(len, found(out).values())) > 4
    assert f"document root {run}, with {run / 'photos'} as a source storage" in capsys.readouterr().out
    tasks = json.loads((out / "label-studio.json").read_text())
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=photos/day%201/two.png", "/data/local-files/?d=photos/one.png"
    ]  # fmt: skip
    first = tasks[0]["predictions"][0]["result"][0]
    assert (first["original_width"], first["original_height"]) == (W, H) and first["value"]["rotation"] == 0
    interface = (out / "label-studio.xml").read_text()
    assert (
        '<Label value="square"/>' in interface
        and f'name="{first["from_name"]}" toName="{first["to_name"]}"' in interface
    )
    (tmp_path / "export.json").write_text(json.dumps(accepted(tasks)))
    arguments = ["label-studio", tmp_path / "export.json", "--images", run / "photos"]
    assert convert(*arguments, "--output", tmp_path / "back.json") == 0
    assert same(found(out), objects(json.loads((tmp_path / "back.json").read_text())))
    assert "found: " not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["cvat", "coco"])
def test_a_draft_in_coco_form_is_read_as_annotations(kind: str, run: Path, tmp_path: Path):
    out = tmp_path / "out"
    assert infer(run, out, "--to", kind) == infer(run, out, "--to", kind) == 0  # and over itself
    document = json.loads((out / f"{kind}.json").read_text())
    assert same(found(out), objects(document)) and read_coco_file(out / f"{kind}.json").sizes.tolist() == [[H, W]] * 2
    known = json.loads((run / "data/train.json").read_text())["categories"]
    assert sorted(c["id"] for c in document["categories"]) == sorted(c["id"] for c in known)
    assert all(0 < annotation["score"] <= 1 for annotation in document["annotations"])


def test_a_file_of_the_users_is_not_written_over(run: Path, tmp_path: Path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/coco.json").write_text('{"images": []}')
    assert infer(run, tmp_path / "out", "--to", "coco") == 2
    assert "coco.json: not of an earlier run" in capsys.readouterr().err
    assert infer(run, tmp_path / "out", "--to", "cvat") == 0
    assert (tmp_path / "out/coco.json").read_text() == '{"images": []}'


def test_masks_travel_as_run_lengths_and_what_a_tool_cannot_take_is_said(tmp_path: Path, monkeypatch):
    from types import SimpleNamespace

    from detector.inference.folder import Job
    from detector.inference.pre_annotations import write_pre_annotations

    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    job = Job(tmp_path / "a.png", "a.png", 4, tmp_path / "x.png")
    # of 6 x 8 pixels the first two columns: 12 of 48, column by column
    row = {"image_id": 4, "category_id": 9, "category_name": "<a> & \"b\"", "bbox": [0.0, 0.0, 2.0, 6.0], "score": 0.5,
           "segmentation": {"size": [6, 8], "counts": "0<T1"}, "keypoints": [1, 1, 0.5]}  # fmt: skip
    predictor = SimpleNamespace(label_ids=[9], label_names=[row["category_name"]], max_pixels=100)
    lines = write_pre_annotations("coco", tmp_path, [job], [row], predictor, "best.pth")
    assert lines[1:] == ["keypoints are left out"]
    [annotation] = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert annotation["segmentation"] == row["segmentation"] and annotation["area"] == 12
    lines = write_pre_annotations("label-studio", tmp_path, [job], [row], predictor, "best.pth")
    assert lines[1:] == ["masks are left out", "keypoints are left out"]
    import xml.etree.ElementTree as ET

    assert ET.parse(tmp_path / "label-studio.xml").find(".//Label").get("value") == row["category_name"]


# --- exports of Label Studio


def region(label: str = "cell", kind: str = "rectanglelabels", **value: Any) -> dict[str, Any]:
    place = {"x": 10, "y": 20, "width": 30, "height": 40} if "points" not in value else {}
    return {"type": kind, "original_width": 200, "original_height": 100, "value": place | {kind: [label]} | value}


def task(*regions: Any, image: str = "a.png", **annotation: Any) -> dict[str, Any]:
    return {"id": 5, "data": {"image": image}, "annotations": [{"result": list(regions)} | annotation]}


def studio(folder: Path, *tasks: Any) -> list[object]:
    """The arguments that convert an export of these tasks; the images a.png to e.png are of 200 x 100 pixels."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in "abcde":
        Image.new("RGB", (200, 100)).save(folder / "images" / f"{name}.png")
    (folder / "export.json").write_text(json.dumps(list(tasks)))
    return ["label-studio", folder / "export.json", "--images", folder / "images"]


def document_of(arguments: list[object]) -> dict[str, Any]:
    output = Path(str(arguments[1])).parent / "coco.json"
    output.unlink(missing_ok=True)
    assert convert(*arguments, "--output", output) == 0
    return json.loads(output.read_text())


def test_regions_become_boxes_and_outlines_and_what_is_left_out_is_counted(tmp_path: Path):
    triangle = region("leaf", "polygonlabels", points=[[0, 0], [50, 0], [0, 50]])
    labelled = [{"id": "r", "type": "rectangle", "value": {}}, {"id": "r"} | region("leaf", "labels")]
    old, new = {"result": [], "updated_at": "2026-01-02"}, {"result": [region()], "updated_at": "2026-01-03"}
    document = document_of(studio(
        tmp_path,
        task(region(rotation=90), triangle, *labelled, {"type": "choices", "value": {}}),
        task(region(), image="b.png", was_cancelled=True),
        {"id": 7, "data": {"image": "c.png"}, "annotations": []},
        {"id": 8, "data": {"image": "c.png"}, "annotations": [new, old]},
        task(image="d.png"),
    ))  # fmt: skip
    assert [image["file_name"] for image in document["images"]] == ["a.png", "c.png", "d.png"]
    assert [category["name"] for category in document["categories"]] == ["cell", "leaf"]
    rows = [(a["image_id"], a["category_id"], a["bbox"], a.get("segmentation")) for a in document["annotations"]]
    assert rows == [
        (1, 1, [-20, 20, 40, 60], None),  # 20..80 by 20..60, turned by a quarter about (20, 20)
        (1, 2, [0, 0, 100, 50], [[0, 0, 100, 0, 0, 50]]),
        (1, 2, [20, 20, 60, 40], None),
        (2, 1, [20, 20, 60, 40], None),
    ]
    said = "\n".join(document["info"]["findings"])
    for line in ("1 rectangles are rotated", "1 tasks were skipped: left out", "1 tasks are not annotated: left out",
                 "1 tasks have several annotations", "('choices'): left out", "1 boxes reach out of their image"):  # fmt: skip
        assert line in said


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/3/1a2b3c4d-a.png", "/data/local-files/?d=cells%2Fa.png", "s3://bucket/cells/a.png", "cells\\a.png",
        "https://host/x/a.png?size=1", "/data/local-files/?d=/root/../a.png",
    ],
)  # fmt: skip
def test_an_image_is_found_by_its_address(address: str, tmp_path: Path):
    [image] = document_of(studio(tmp_path, task(region(), image=address)))["images"]
    assert image["file_name"] == "a.png"


@pytest.mark.parametrize(
    "wrong, message",
    [
        (task(region(), image="none.png"), "task 5: its image 'none.png' is not in"),
        (task(region(), image="../export.json"), "is not in"),
        (
            {"id": 5, "data": {"text": "hello"}, "annotations": [{"result": [region()]}]},
            "task 5: its `data` name no image",
        ),
        ({"image": "a.png", "label": []}, "not a Label Studio export"),
        ({"id": 5, "data": {"image": "a.png"}}, "`annotations` must be a list"),
        (task("region"), "region 1: is no object with a `type`"),
        (task(region(width="30")), "region 1: a coordinate is '30'"),
        (task(region(x=math.nan)), "a coordinate is nan"),
        (task(region(width=-1)), "must not be negative"),
        (task(region(x=640)), "640 is no percentage"),
        (task(region(rectanglelabels=["a", "b"])), "expected the name of one class"),
        (task(region(rectanglelabels=["a\n"])), "expected the name of one class"),
        (task(region(kind="polygonlabels", points=[[1, 2], [3, 4]])), "three or more pairs"),
        (task(region() | {"original_width": 100}), "was drawn on an image of 100 x 100, the file is 200 x 100"),
        (task(region() | {"image_rotation": 90}), "turn it back in Label Studio"),
        (task(region() | {"value": None}), "`value` is missing"),
        (task(region() | {"item_index": 1}), "region 1: is in a further image of its task; give each image a task"),
        (task(region() | {"to_name": "one"}, region() | {"to_name": "two"}), "in several images (one, two); give each"),
    ],
)
def test_a_wrong_export_of_label_studio_is_one_line(wrong: Any, message: str, tmp_path: Path, capsys):
    assert message in refusal(capsys, *studio(tmp_path, task(region()), wrong)).replace("\\n", "\n")


def test_classes_and_images_of_label_studio_must_fit(tmp_path: Path, capsys):
    assert "'cell' is none of --classes" in refusal(capsys, *studio(tmp_path, task(region())), "--classes", "leaf")
    said = refusal(capsys, *studio(tmp_path, task(region()), task()))
    assert "Label Studio, export.json: two annotations are of the image a.png; remove one" in said
    assert "names no classes; give them by --classes" in refusal(capsys, *studio(tmp_path, task()))
    assert document_of([*studio(tmp_path, task()), "--classes", "cell"])["annotations"] == []
    for tasks in ([], [task(region(), was_cancelled=True)]):
        for classes in ([], ["--classes", "cell"]):
            said = refusal(capsys, *studio(tmp_path, *tasks), *classes)
            assert "export.json: no task has an annotation that counts; label some images" in said


@tries(2000)
def test_any_value_anywhere_in_an_export_of_label_studio_is_a_document_or_one_line(tmp_path: Path, tries: int):
    shapes = [region(), region(kind="labels"), region("leaf", "polygonlabels", points=[[0, 0], [9, 0], [0, 9]])]
    arguments = studio(tmp_path, task(*shapes, {"id": "r", "type": "rectangle"}), task(image="b.png"))
    tasks = json.loads((tmp_path / "export.json").read_text())
    every = list(containers(tasks))

    def check(place: int, key: int, value: Any) -> None:
        container, keys = every[place % len(every)]
        name = keys[key % len(keys)]
        before, container[name] = container[name], value
        (tmp_path / "export.json").write_text(json.dumps(tasks))
        container[name] = before
        outcome(lambda: document_summary(convert_label_studio(tmp_path / "export.json", Path(str(arguments[-1])))))

    fuzz(tries, check, place=st.integers(0, 1000), key=st.integers(0, 1000), value=json_values)


def containers(content: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Every object and list with something in it, and its keys."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    keys = [key for key, _ in items]
    if keys:
        yield content, keys
        for key in keys:
            yield from containers(content[key])


# --- exports of CVAT


@tries(2000)
def test_a_damaged_export_of_cvat_is_a_document_or_one_line(tmp_path: Path, tries: int):
    mask = '<mask label="leaf" rle="1, 2, 1, 2" left="10" top="20" width="3" height="2"/>'
    cvat(tmp_path, BOX, '<polygon label="leaf" points="0.00,0.00;50.00,0.00;0.00,50.00"/>', mask, meta=LABELS)
    content = (tmp_path / "export.xml").read_bytes()

    def check(data: bytes) -> None:
        (tmp_path / "export.xml").write_bytes(data)
        outcome(lambda: document_summary(convert_cvat(tmp_path / "export.xml", tmp_path / "images")))

    fuzz(tries, check, data=damaged(content))


def cvat(
    folder: Path, *shapes: str, size: str = 'width="200" height="100"', name: str = "a.png", meta: str = ""
) -> list[object]:
    """The arguments that convert an export with an image of these shapes, and one without."""
    arguments = studio(folder)
    images = f'<image id="0" name="{name}" {size}>{"".join(shapes)}</image><image id="1" name="b.png" width="200" height="100"/>'
    (folder / "export.xml").write_text(f"<annotations><version>1.1</version>{meta}{images}</annotations>")
    return ["cvat", folder / "export.xml", *arguments[2:]]


BOX = '<box label="cell" occluded="0" xtl="10.25" ytl="20.50" xbr="40.75" ybr="60.00" z_order="0"/>'
LABELS = "<meta><task><labels><label><name>leaf</name></label><label><name>cell</name></label></labels></task></meta>"


def test_shapes_of_cvat_become_boxes_and_outlines(tmp_path: Path):
    document = document_of(cvat(
        tmp_path, BOX, BOX.replace("z_order", 'rotation="90.00" z_order'),
        '<polygon label="leaf" points="0.00,0.00;50.00,0.00;0.00,50.00"/>',
        '<mask label="leaf" rle="1, 2, 1, 2" left="10" top="20" width="3" height="2"/>',
        '<polyline label="leaf" points="0,0;1,1"/>', meta=LABELS,
    ))  # fmt: skip
    assert [category["name"] for category in document["categories"]] == ["leaf", "cell"]
    rows = [(a["category_id"], a["bbox"], a["area"]) for a in document["annotations"]]
    assert rows == [
        (2, [10.25, 20.5, 30.5, 39.5], 1204.75),
        (2, [5.75, 25, 39.5, 30.5], 1204.75),  # about its centre, (25.5, 40.25)
        (1, [0, 0, 50, 50], 1250),
        (1, [11, 20, 2, 2], 4),
    ]
    from pycocotools import mask

    pixels = mask.decode(document["annotations"][3]["segmentation"])  # rows 0 1 1 and 0 1 1
    assert pixels.shape == (100, 200) and pixels[20:22, 10:13].tolist() == [[0, 1, 1], [0, 1, 1]] and pixels.sum() == 4
    said = "\n".join(document["info"]["findings"])
    for line in ("1 boxes are rotated", "('polyline'): left out", "1 images have no shapes: taken as"):
        assert line in said


def test_boxes_come_back_from_the_two_decimals_of_cvat(tmp_path: Path):
    generator = np.random.default_rng(0)
    low = generator.uniform(0, [150, 70], (50, 2))
    corners = np.concatenate([low, low + generator.uniform(1, 29, (50, 2))], axis=1)
    keys = ("xtl", "ytl", "xbr", "ybr")
    shapes = ["<box label='cell' " + " ".join(f'{k}="{v:.2f}"' for k, v in zip(keys, box)) + "/>" for box in corners]
    back = [a["bbox"] for a in document_of(cvat(tmp_path, *shapes))["annotations"]]
    assert np.abs(np.array(back) - np.concatenate([low, corners[:, 2:] - low], axis=1)).max() <= 0.0105


@pytest.mark.parametrize(
    "content, message",
    [
        (dict(name="none.png"), "image 'none.png': is not in"),
        (dict(name="../export.json"), "leads out of the image folder"),
        (dict(size='width="100" height="200"'), "was labelled at 100 x 200, the file is 200 x 100"),
        (dict(size=""), "`height` is None, expected a number"),
        (dict(shapes=[BOX.replace("10.25", "nan")]), "shape 1: `xtl` is 'nan'"),
        (dict(shapes=[BOX.replace("10.25", "50")]), "upside down"),
        (dict(shapes=['<polygon label="cell" points="1,2;3,4"/>']), "three or more pairs"),
        (dict(shapes=['<polygon label="cell" points="1,2;3,4;5"/>']), "three or more pairs"),
        (dict(shapes=['<mask label="cell" rle="1, 9" left="0" top="0" width="3" height="2"/>']), "does not fill a box"),
        (
            dict(shapes=['<mask label="cell" rle="0, 6" left="198" top="0" width="3" height="2"/>']),
            "does not fill a box",
        ),
        (dict(shapes=['<mask label="cell" rle="6" left="0" top="0" width="3" height="2"/>']), "does not fill a box"),
        (dict(shapes=[BOX], meta=LABELS.replace("cell", "cells")), "which the task does not list"),
        (dict(shapes=[BOX.replace('label="cell"', "")]), "'' is no name of a class"),
        (dict(meta="<track/>"), "export it as CVAT for images"),
        (dict(meta="<!DOCTYPE x>"), "not the XML of a CVAT export"),
    ],
)
def test_a_wrong_export_of_cvat_is_one_line(content: dict[str, Any], message: str, tmp_path: Path, capsys):
    shapes = content.pop("shapes", [BOX])
    assert message in refusal(capsys, *cvat(tmp_path, *shapes, **content))


def test_a_coco_export_of_cvat_is_said_to_need_no_conversion(tmp_path: Path, capsys):
    _, _, *rest = cvat(tmp_path, BOX)
    said = refusal(capsys, "cvat", tmp_path / "export.json", *rest)
    assert "export.json: not the XML of a CVAT export (CVAT for images 1.1; one in COCO form is read as it is)" in said
    assert "none.xml: not the XML" in refusal(capsys, "cvat", tmp_path / "none.xml", *rest)
