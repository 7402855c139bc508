"""A score says what it is of: results find their images, and what no detector can reach is said before the numbers."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from helpers.training import draw_set, script, train, write_config
from PIL import Image

from detector.data.convert.writer import images_below
from detector.errors import DataError
from detector.evaluation.coco import evaluate_results
from detector.evaluation.reach import scoring_limits
from detector.inference.folder import find_images
from detector.recipe import Scoring


def test_a_file_without_keypoints_is_named_before_these_are_scored(tmp_path: Path):
    truth = write(tmp_path / "a.json", [(1, 1, [10, 10, 20, 20])])
    for names, points in ((["nose"], [15, 15, 0]), ([], [])):
        document = json.loads(truth.read_text())
        document["categories"][0]["keypoints"], document["annotations"][0]["keypoints"] = names, points
        truth.write_text(json.dumps(document))
        if names:
            [line] = scoring_limits(truth, [1], Scoring(), ["keypoints"])
            assert line == "no object has a labelled keypoint: the scores of keypoints are undefined (-1)"
    message = r"a.json: no category names `keypoints`; .* evaluate.shapes=\[\]"
    with pytest.raises(DataError, match=message):
        scoring_limits(truth, [1], Scoring(), ["keypoints"])
    with pytest.raises(DataError, match=message):
        evaluate_results(truth, [{**result(1, [10, 10, 20, 20]), "keypoints": [15, 15, 0.5]}])
    assert scoring_limits(truth, [1], Scoring(shapes=[]), ["keypoints"]) == []


def write(path: Path, objects: list[tuple[int, int, list[float]]], names: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    """A COCO file of images of 100 x 80 with ids 1, 2, ... and objects (image, category, box)."""
    images = [{"id": i, "file_name": name, "width": 100, "height": 80} for i, name in enumerate(names, start=1)]
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "bbox": box}
        for n, (image, category, box) in enumerate(objects, start=1)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return path


def result(image_id: int, box: list[float], **more: Any) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": 1, "bbox": box, "score": 0.9} | more


LEFT, RIGHT = [0.0, 0, 20, 20], [60.0, 0, 20, 20]


def test_results_with_file_names_are_matched_by_them_but_not_two_names_of_one_image(tmp_path, caplog):
    truth = write(tmp_path / "a.json", [(1, 1, LEFT), (2, 1, RIGHT)], ("set/a.png", "set/b.png"))
    swapped = [result(2, LEFT, file_name="set/a.png"), result(1, RIGHT, file_name="set/b.png")]
    assert evaluate_results(truth, swapped)["bbox"]["AP"] == pytest.approx(1)
    assert "2 of 2 images have other ids than in" in caplog.text
    caplog.clear()
    below = [result(1, LEFT, file_name="a.png"), result(2, RIGHT, file_name="data/set/b.png")]
    assert evaluate_results(truth, below)["bbox"]["AP"] == pytest.approx(1) and caplog.text == ""
    assert (
        evaluate_results(truth, [{k: v for k, v in r.items() if k != "file_name"} for r in swapped])["bbox"]["AP"] == 0
    )
    truth = write(tmp_path / "a.json", [(1, 1, LEFT)])
    with pytest.raises(DataError, match=r"'x/a\.png' and 'y/a\.png' both fit the image 1"):
        evaluate_results(truth, [result(1, LEFT, file_name="x/a.png"), result(7, LEFT, file_name="y/a.png")])


def test_results_with_category_names_are_matched_by_them_and_missing_ones_are_counted(tmp_path, caplog):
    truth = write(tmp_path / "a.json", [(1, 1, LEFT), (2, 2, RIGHT)])
    other = [result(1, LEFT, category_name="cat", category_id=2), result(2, RIGHT, category_name="dog", category_id=1)]
    assert evaluate_results(truth, other)["bbox"]["AP"] == pytest.approx(1)
    assert "2 categories have other ids" in caplog.text
    with pytest.raises(DataError, match=r"result 0: its `category_name` is 'dgo', which .*lacks \(nearest: dog\)"):
        evaluate_results(truth, [result(1, LEFT, category_name="dgo")])
    caplog.clear()
    truth = write(tmp_path / "a.json", [(1, 1, LEFT), (2, 1, RIGHT), (2, 1, LEFT)])
    evaluate_results(truth, [result(1, LEFT), result(2, LEFT)], say_missing=True)
    assert caplog.text == ""
    evaluate_results(truth, [result(1, LEFT)], say_missing=True)
    assert "1 of 2 images with objects have no result, all 2 objects there count as missed" in caplog.text
    evaluate_results(truth, [result(1, LEFT)] * 3, say_missing=True)
    assert "2 results repeat another one's image, category and box" in caplog.text


def test_names_that_do_not_tell_the_image_are_errors(tmp_path: Path):
    for results, message in [
        ([result(1, LEFT, file_name="c.png")], r"a\.json: has no image with the file name 'c\.png'"),
        ([result(1, LEFT, file_name="b.png")], r"'b\.png' fits the images 'x/b\.png', 'y/b\.png' \(ids 2, 3\)"),
        ([result(1, LEFT, file_name="a.png"), result(1, LEFT, file_name="x/b.png")], r"result 1: image id 1 is 'x/b\.png' here"),
        ([result(1, LEFT, file_name="a.png"), result(2, LEFT)], "result 1 has no `file_name`, but result 0 has one"),
        ([result(1, LEFT, file_name=3)], "result 0: `file_name` must be a string, not 3"),
    ]:  # fmt: skip
        truth = write(tmp_path / "a.json", [(1, 1, LEFT)], ("a.png", "x/b.png", "y/b.png"))
        with pytest.raises(DataError, match=message):
            evaluate_results(truth, results)


def test_inference_numbers_images_as_conversion_does_or_as_a_file_says(tmp_path: Path):
    for name in ("a/x.png", "a-b/x.png", "b.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / "images" / name)
    folder, output = [str(tmp_path / "images")], tmp_path / "out"
    jobs = find_images(folder, output)
    assert [job.name for job in jobs] == images_below(tmp_path / "images") == ["a-b/x.png", "a/x.png", "b.png"]
    assert [job.image_id for job in jobs] == [1, 2, 3]
    truth = write(tmp_path / "a.json", [], ("b.png", "a/x.png", "a-b/x.png"))
    assert [(j.name, j.image_id) for j in find_images(folder, output, truth)] == [
        ("a-b/x.png", 3), ("a/x.png", 2), ("b.png", 1),
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"has no image with the file name 'a-b/x\.png'"):
        find_images(folder, output, write(tmp_path / "b.json", [], ("b.png",)))


def test_objects_beyond_the_limit_of_detections_which_must_rise(tmp_path: Path):
    # 150 exact results: COCO counts 100 of them, which reach 67 of its 101 points of recall; 120 reach 81.
    boxes = [[0.5 * i, 0.0, 0.4, 30] for i in range(150)]
    truth = write(tmp_path / "a.json", [(1, 1, box) for box in boxes])
    exact = [result(1, box) for box in boxes]
    scoring = Scoring(max_detections=(1, 100, 120))
    metrics = evaluate_results(truth, exact, scoring=scoring)
    assert metrics["bbox"]["AP"] == pytest.approx(67 / 101) and metrics["bbox"]["AR100"] == pytest.approx(100 / 150)
    assert list(metrics["configured"])[:7] == [
        "AP@120", "AP50@120", "AP75@120", "APs@120", "APm@120", "APl@120", "AR1",
    ]  # fmt: skip
    assert metrics["configured"]["AP@120"] == pytest.approx(81 / 101)
    assert metrics["configured"]["AR120"] == pytest.approx(120 / 150)
    dogs, line = scoring_limits(truth, None, Scoring())
    assert dogs == "1 class without objects, left out of all means: dog"
    assert "50 of 150 objects are more than the 100" in line and "evaluate.max_detections=[1,100,1000]" in line
    assert "30 of 150 objects are more than the 120" in scoring_limits(truth, [1], scoring)[0]
    assert scoring_limits(truth, [1], Scoring(max_detections=(1, 100, 1000))) == []
    with pytest.raises(ValueError, match=r"max_detections: expected three rising numbers, got \[1, 1000, 100\]"):
        Scoring(max_detections=(1, 1000, 100))


def test_objects_out_of_their_image_and_without_area(tmp_path: Path):
    """Half outside: a box inside has IoU 0.5. Without area nothing matches. Both are as in training where that is asked for."""
    truth = write(tmp_path / "a.json", [(1, 1, [-20, 0, 40, 20]), (2, 1, [-30, 0, 40, 20]), (2, 1, [50, 50, 0, 10])])
    inside = [result(1, [0, 0, 20, 20]), result(2, [0, 0, 10, 20])]
    metrics = evaluate_results(truth, inside, scoring=Scoring(clip=True))
    assert metrics["configured"]["AP"] == metrics["configured"]["AR100"] == pytest.approx(1)
    assert metrics["bbox"]["AP50"] == pytest.approx(34 / 101)  # the first of three
    without_area, outside = scoring_limits(truth, [1], Scoring())
    assert without_area.startswith("1 object without area: no detection matches")
    assert outside.startswith(
        "2 objects reach out of the image: a box inside it has IoU 0.25 to 0.50 with them, below 0.5 with 1"
    )
    assert scoring_limits(truth, [1], Scoring(clip=True)) == []
    rounded = write(tmp_path / "b.json", [(1, 1, [-0.3, 0, 20, 20])])
    assert scoring_limits(rounded, [1], Scoring()) == []


def test_objects_without_a_mask_are_named_where_masks_are_scored(tmp_path: Path):
    truth = write(tmp_path / "a.json", [(1, 1, [10, 10, 20, 20]), (2, 1, [10, 10, 20, 20])])
    document = json.loads(truth.read_text())
    for entry, x in zip(document["annotations"], (10, 1000)):
        entry["segmentation"] = [[x, 10, x + 20, 10, x + 20, 30]]
    truth.write_text(json.dumps(document))
    [line] = scoring_limits(truth, [1], Scoring(), ["masks"])
    assert line == "1 outline without area in the image: no mask matches; dropped in training"
    assert scoring_limits(truth, [1], Scoring()) == []


def test_a_val_split_without_objects_is_named_before_the_first_step(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    data = draw_set(tmp_path / "data")
    content = json.loads((data / "val.json").read_text())
    (data / "val.json").write_text(json.dumps(content | {"annotations": []}))
    with caplog.at_level(logging.INFO):
        assert train(write_config(tmp_path / "a.yaml", data), tmp_path / "run", ["train.epochs=1"]) == 0
    said = [message for message in caplog.messages if "no object that can be scored" in message]
    assert said == [f"val: {data / 'val.json'}: no object that can be scored: every metric is undefined (-1); "
                    "name a split with objects"]  # fmt: skip
    assert caplog.messages.index(said[0]) < next(i for i, m in enumerate(caplog.messages) if m.startswith("epoch 1"))
    assert caplog.messages[-1].endswith("best AP - (nothing in val can be scored)")


def test_a_results_file_is_scored_with_the_keys_of_evaluate(tmp_path: Path, capsys, caplog):
    truth = write(tmp_path / "a.json", [(1, 1, [-20, 0, 40, 20])])
    (tmp_path / "r.json").write_text(json.dumps([result(1, [0, 0, 20, 20])]))
    arguments = ["--detections", str(tmp_path / "r.json"), "--annotations", str(truth)]
    assert script("evaluate").main([*arguments, "evaluate.clip=true"]) == 0
    printed = capsys.readouterr()
    assert "note: 1 class without objects" in caplog.text and "reach" not in caplog.text
    rows = [line.split() for line in printed.out.splitlines()]
    assert [row[1] for row in rows if row and row[0] in ("bbox", "configured")] == [
        "0.100000",
        "0.100000",
        "1.000000",
        "1.000000",
    ]
    with pytest.raises(SystemExit):
        script("evaluate").main([*arguments, "model.num_classes=3"])
    assert "takes only keys of the section evaluate" in capsys.readouterr().err
