"""AP of masks, boundaries and keypoints: recorded numbers, pycocotools itself, a slow boundary, results that must not pass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from helpers.golden_rules import golden
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detector.cli.evaluate import main as evaluate_command
from detector.config.config import parse_config
from detector.errors import ConfigError, DataError
from detector.evaluation.boundary import boundary
from detector.evaluation.coco import evaluate_results
from detector.evaluation.scope import KEYPOINT_METRICS, METRICS
from detector.evaluation.tables import summary_table
from detector.recipe import Recipe, Scoring
from detector.training.criterion import criterion_of
from detector.training.metrics import SHAPE_SCORES

SIZE = (60, 80)


def bitmap(kind: int, x: int, y: int, side: int) -> np.ndarray:
    """A disc, a square, or two bars."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    inside = (columns >= x) & (columns < x + side) & (rows >= y) & (rows < y + side)
    if kind == 0:
        inside &= np.hypot(columns - x - side / 2, rows - y - side / 2) < side / 2
    return inside & ((columns - x) // 4 % 2 == 0) if kind == 2 else inside


def rle_of(pixels: np.ndarray) -> dict[str, Any]:
    found = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": list(SIZE), "counts": found["counts"].decode()}


def made_set(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Annotations of masks in every form, with a crowd, and results that are shifted by up to three pixels."""
    rng = np.random.default_rng(0)
    annotations, results = [], []
    for i in range(24):
        image, kind, side = 1 + i % 4, i % 3, int(rng.integers(8, 40))
        x, y = (int(rng.integers(0, limit - side)) for limit in (SIZE[1], SIZE[0]))
        rle = rle_of(bitmap(kind, x, y, side))
        area = float(coco_mask.area(rle))
        shape: Any = [[x, y, x + side, y, x + side, y + side, x, y + side]] if kind == 1 else rle
        entry = {"id": i + 1, "image_id": image, "category_id": 1 + i % 2, "bbox": [x, y, side, side], "area": area}
        annotations.append(entry | {"segmentation": shape, "iscrowd": int(i == 6)})
        moved = rle_of(np.roll(bitmap(kind, x, y, side), int(rng.integers(0, 4)), axis=1))
        same = {key: entry[key] for key in ("image_id", "category_id")}
        results.append(same | {"segmentation": moved, "score": float(rng.random()), "bbox": [x, y, side, side]})
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]} for i in range(1, 5)]
    categories = [{"id": i, "name": f"class {i}"} for i in (1, 2)]
    path = folder / "truth.json"
    path.write_text(json.dumps({"images": images, "categories": categories, "annotations": annotations}))
    return path, results


@pytest.mark.parametrize(("name", "title", "names"), [
    ("coco_segm", "segm", METRICS), ("coco_segm", "bbox", METRICS), ("coco_keypoints", "keypoints", KEYPOINT_METRICS),
])  # fmt: skip
def test_recorded_scores(tmp_path: Path, name: str, title: str, names: list[str]):
    record = golden("masks/functions_masks")[name]
    for image in record["ground_truth"]["images"]:
        image["file_name"] = f"{image['id']}.png"
    (tmp_path / "truth.json").write_text(json.dumps(record["ground_truth"]))
    metrics = evaluate_results(tmp_path / "truth.json", record["results"])
    assert metrics[title] == pytest.approx(dict(zip(names, record[title])), abs=1e-6)


class EveryBoundary(COCOeval):
    """The lesser of mask IoU and boundary IoU of every pair, each boundary pixel by pixel."""

    def computeIoU(self, imgId: int, catId: int) -> Any:
        ious = super().computeIoU(imgId, catId)
        found = sorted(self._dts[imgId, catId], key=lambda d: -d["score"])
        for i, d in enumerate(found):
            for j, g in enumerate(self._gts[imgId, catId]):
                edges = [rle_of(slow_boundary(coco_mask.decode(x["segmentation"]) > 0)) for x in (d, g)]
                ious[i, j] = min(ious[i, j], coco_mask.iou(edges[:1], edges[1:], [g["iscrowd"]])[0, 0])
        return ious


def slow_boundary(pixels: np.ndarray) -> np.ndarray:
    """Pixels with one that is not set, or beyond the image, within 2 % of the diagonal."""
    width = round(0.02 * np.hypot(*SIZE))
    padded = np.pad(pixels, width)
    inner = [padded[i : i + SIZE[0], j : j + SIZE[1]] for i in range(2 * width + 1) for j in range(2 * width + 1)]
    return pixels & ~np.all(inner, axis=0)


def test_masks_and_boundaries_score_as_by_pycocotools(tmp_path: Path):
    path, results = made_set(tmp_path)
    metrics = evaluate_results(path, results)
    truth = COCO(path)
    without_boxes = [{key: value for key, value in row.items() if key != "bbox"} for row in results]
    for title, kind in (("segm", COCOeval), ("boundary", EveryBoundary)):
        expected = kind(truth, truth.loadRes([dict(row) for row in without_boxes]), "segm")
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
        assert metrics[title] == pytest.approx(dict(zip(METRICS, expected.stats)), abs=1e-9)
    assert 0 < metrics["boundary"]["AP"] < metrics["segm"]["AP"] < 1
    classes = [scores["segm/AP"] for scores in metrics["per_class"].values()]
    assert np.mean(classes) == pytest.approx(metrics["segm"]["AP"])
    assert "boundary/AP50" in summary_table(metrics)
    assert evaluate_results(path, without_boxes)["segm"] == metrics["segm"]


def test_masks_rank_by_their_own_scores_where_they_have_some(tmp_path: Path):
    path, results = made_set(tmp_path)
    own = [result | {"score": 0.5, "mask_score": result["score"]} for result in results]
    flat = [result | {"score": 0.5} for result in results]
    scored, unranked, expected = (evaluate_results(path, rows)["segm"] for rows in (own, flat, results))
    assert scored == expected != unranked
    with pytest.raises(DataError, match="result 0: mask_score must be a finite number"):
        evaluate_results(path, [own[0] | {"mask_score": None}, *own[1:]])


def test_a_boundary_is_that_of_every_pixel():
    for kind, x, y, side in ((0, 0, 0, 50), (1, 20, 30, 30), (2, 5, 5, 20), (1, 0, 0, 80), (1, 3, 3, 1)):
        pixels = bitmap(kind, x, y, side)
        assert np.array_equal(coco_mask.decode(boundary(rle_of(pixels))) > 0, slow_boundary(pixels))


def test_nothing_found_is_zero(tmp_path: Path):
    path, results = made_set(tmp_path)
    nothing = evaluate_results(path, [], fields=["masks"])
    assert nothing["segm"]["AP"] == nothing["boundary"]["AP"] == nothing["per_class"]["class 1"]["segm/AP"] == 0
    empty = [row | {"segmentation": rle_of(np.zeros(SIZE, dtype=bool))} for row in results]
    assert evaluate_results(path, empty)["segm"]["AP"] == 0 < evaluate_results(path, empty)["bbox"]["AP"]


def test_polygons_lists_and_bytes_of_run_lengths_are_results_too(tmp_path: Path):
    path, results = made_set(tmp_path)
    counts = [SIZE[0] * 10, SIZE[0] * 20, SIZE[0] * 50]
    as_list = results[0] | {"segmentation": {"size": list(SIZE), "counts": counts}}
    as_polygon = results[0] | {"segmentation": [[10, 0, 30, 0, 30, 60, 10, 60]]}
    as_bytes = results[0] | {"segmentation": coco_mask.frPyObjects(as_list["segmentation"], *SIZE)}
    assert isinstance(as_bytes["segmentation"]["counts"], bytes)  # as pycocotools gives them
    scores = [evaluate_results(path, [row, *results[1:]])["segm"] for row in (as_list, as_polygon, as_bytes)]
    assert scores[0] == scores[1] == scores[2]


@pytest.mark.parametrize(("value", "message"), [
    (None, "result 1 .image 2.: segmentation is missing"), ({"size": [80, 60], "counts": [4800]}, "its image .60, 80."),
    ({"size": [60, 80], "counts": [9]}, "must be run lengths"), ([[1, 2, 3]], "must be run lengths"), ("x", "must be run"),
    ({"size": [60, 80], "counts": "~~"}, "must be run lengths"),
])  # fmt: skip
def test_a_malformed_mask_is_named(tmp_path: Path, value: Any, message: str):
    path, results = made_set(tmp_path)
    results[1]["segmentation"] = value
    with pytest.raises(DataError, match=message):
        evaluate_results(path, results)


def test_keypoints_of_another_number_score_with_even_sigmas(tmp_path: Path):
    path, _ = made_set(tmp_path)
    content = json.loads(path.read_text())
    for category in content["categories"]:
        category["keypoints"] = ["a", "b"]
    content["annotations"] = content["annotations"][:1]
    [one] = content["annotations"]
    one |= {"keypoints": [10, 10, 2, 20, 20, 1], "area": 400.0}
    path.write_text(json.dumps(content))
    result = {"image_id": one["image_id"], "category_id": one["category_id"], "score": 1.0}
    off = float(2 * 0.0676 * 20 * np.sqrt(-2 * np.log(0.72)))  # of one point; the other is exact: OKS is 0.86
    metrics = evaluate_results(path, [result | {"keypoints": [10 + off, 10, 1, 20, 20, 1]}])
    assert metrics["keypoints"]["AP"] == pytest.approx(0.8, abs=1e-6)  # thresholds .5 to .85
    with pytest.raises(DataError, match="6 finite numbers"):
        evaluate_results(path, [result | {"keypoints": [1, 2, 3]}])


def test_the_command_scores_a_file_of_masks(tmp_path: Path, capsys: pytest.CaptureFixture):
    path, results = made_set(tmp_path)
    (tmp_path / "found.json").write_text(json.dumps(results))
    arguments = ["--detections", tmp_path / "found.json", "--annotations", path, "--output", tmp_path / "out"]
    assert evaluate_command([str(a) for a in arguments]) == 0
    written = json.loads((tmp_path / "out/metrics.json").read_text())
    assert written == evaluate_results(path, results) and "segm" in capsys.readouterr().out


def test_the_finest_score_selects_the_best_checkpoint():
    assert criterion_of("auto", [], reports_proposals=False) == "AP"
    assert criterion_of("auto", [], reports_proposals=True) == "AR1000"
    assert criterion_of("auto", ["outlines"], reports_proposals=False) == "segm/AP"
    assert criterion_of("auto", ["masks", "keypoints"], reports_proposals=False) == "keypoints/AP"
    assert criterion_of("AP", ["masks"], reports_proposals=False) == "AP"
    columns = {f"{title}/{name}" for title, names in SHAPE_SCORES.items() for name in names}
    assert columns <= set(get_args(get_type_hints(Recipe)["best"]))  # all that metrics.csv shows of them
    with pytest.raises(ConfigError, match="segm/AP: the model finds no masks"):
        criterion_of("segm/AP", [], reports_proposals=False)
    some = Scoring(shapes=["boundary"])
    assert criterion_of("auto", ["masks", "keypoints"], some, reports_proposals=False) == "boundary/AP"
    assert criterion_of("auto", ["masks"], Scoring(shapes=[]), reports_proposals=False) == "AP"
    with pytest.raises(ConfigError, match=r"segm/AP: evaluate\.shapes leaves it out"):
        criterion_of("segm/AP", ["masks"], some, reports_proposals=False)


def test_the_configuration_chooses_what_is_scored(tmp_path: Path):
    path, results = made_set(tmp_path)
    whole = evaluate_results(path, results)
    assert {"segm", "boundary"} <= set(whole)
    for shapes in (["segm"], ["boundary", "keypoints"], []):
        found = evaluate_results(path, results, scoring=Scoring(shapes=shapes))
        chosen = set(shapes) & set(whole)
        assert set(found) == {"bbox", "per_class"} | chosen and all(
            found[key] == whole[key] for key in {"bbox", *chosen}
        )
        of_classes = next(iter(found["per_class"].values()))
        assert {name.partition("/")[0] for name in of_classes if "/" in name} == chosen
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation.pop("segmentation", None)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="needs an outline"):
        evaluate_results(path, results)
    assert evaluate_results(path, results, scoring=Scoring(shapes=[]))["bbox"] == whole["bbox"]
    with pytest.raises(ConfigError, match=r"evaluate\.shapes"):
        parse_config({}, ["evaluate.shapes=[segment]"], trust=False)
