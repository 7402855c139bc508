"""AP and AR: truth by hand, the numbers that COCO recorded, and every kind of file that must not pass."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from detector.data.coco import CocoDataset
from detector.errors import DataError
from detector.evaluation.coco import evaluate_results
from detector.evaluation.run import evaluate_predictor
from detector.evaluation.scope import METRICS
from detector.evaluation.tables import summary_table
from detector.files import make_folder, write_text
from detector.structures import Detections, Proposals

COCOAPI = Path(__file__).parents[2] / "shared/data/cocoapi"
RECORDED = """0.504581 0.696973 0.572982 0.585626 0.519400 0.501398
              0.386813 0.593680 0.595353 0.639811 0.566421 0.564291""".split()

# Two cells (7) on image 10, a crowd of cells there, one platelet (90) on image 30, nothing on image 20. No `info`,
# no `area`, and an annotation with the id 0, which COCOeval by itself counts as never found.
CELLS = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 160} for i in (10, 20, 30)],
    "categories": [{"id": 90, "name": "platelet"}, {"id": 7, "name": "cell"}],
    "annotations": [
        {"id": 0, "image_id": 10, "category_id": 7, "bbox": [0, 0, 40, 40]},
        {"id": 1, "image_id": 10, "category_id": 7, "bbox": [50, 0, 40, 40]},
        {"id": 2, "image_id": 10, "category_id": 7, "bbox": [0, 100, 50, 50], "iscrowd": 1},
        {"id": 3, "image_id": 30, "category_id": 90, "bbox": [0, 0, 40, 40]},
    ],
}
FOUND = [  # exact; where nothing is; in the crowd (neither right nor wrong); IoU 0.625 (passes 3 of the 10 thresholds)
    {"image_id": 10, "category_id": 7, "bbox": [0, 0, 40, 40], "score": 0.9},
    {"image_id": 20, "category_id": 7, "bbox": [0, 0, 40, 40], "score": 0.8},
    {"image_id": 10, "category_id": 7, "bbox": [0, 100, 45, 45], "score": 0.75},
    {"image_id": 10, "category_id": 7, "bbox": [50, 0, 40, 25], "score": 0.7},
]
# 51 of COCO's 101 recall points lie at or below 1/2 and have precision 1, the other 50 have 2/3 or, above IoU 0.6, 0
CELL_AP = (3 * (51 + 50 * 2 / 3) + 7 * 51) / 1010
CELL_AP50 = (51 + 50 * 2 / 3) / 101


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    return write(tmp_path / "cells.json", CELLS)


def changed(key: str, index: int, **values: object) -> dict:
    """CELLS with some keys of one image, category or annotation replaced."""
    content = copy.deepcopy(CELLS)
    content[key][index] |= values
    return content


def test_twelve_numbers_and_those_of_chosen_classes_by_hand(cells: Path, tmp_path: Path) -> None:
    metrics = evaluate_results(cells, FOUND)
    bbox, per_class = metrics["bbox"], metrics["per_class"]
    assert per_class["cell"] == pytest.approx({"AP": CELL_AP, "AP50": CELL_AP50})
    assert per_class["platelet"] == {"AP": 0, "AP50": 0}
    # the platelet is never found: every mean over the two classes is half of the cells' value
    expected = [CELL_AP / 2, CELL_AP50 / 2, 51 / 202, -1, CELL_AP / 2, -1, 0.25, 0.325, 0.325, -1, 0.325, -1]
    assert bbox == pytest.approx(dict(zip(METRICS, expected)), abs=1e-9)
    chosen = evaluate_results(cells, FOUND, category_ids=[7])
    assert list(chosen["per_class"]) == ["cell"] and chosen["bbox"]["AP"] == pytest.approx(CELL_AP)
    no_false_positive = evaluate_results(cells, FOUND, image_ids=[10, 30], category_ids=[7])
    assert no_false_positive["bbox"]["AP50"] == pytest.approx(1)
    small = write(tmp_path / "a.json", changed("annotations", 3, area=100.0))  # a mask may be much smaller than its box
    found = [{"image_id": 30, "category_id": 90, "bbox": [0, 0, 40, 40], "score": 1}]
    bbox = evaluate_results(small, found, category_ids=[90])["bbox"]
    assert (bbox["APs"], bbox["APm"]) == (pytest.approx(1), -1)


def test_official_numbers_to_all_recorded_digits() -> None:
    if not COCOAPI.exists():
        pytest.skip("the COCO API's files are not here")
    results = json.loads((COCOAPI / "results/instances_val2014_fakebbox100_results.json").read_text())
    metrics = evaluate_results(COCOAPI / "annotations/instances_val2014_100.json", results)
    assert [f"{value:.6f}" for value in metrics["bbox"].values()] == RECORDED
    assert [line.split()[1:] for line in summary_table(metrics).splitlines()[1:5:3]] == [RECORDED[:6], RECORDED[6:]]
    per_class = [scores["AP"] for scores in metrics["per_class"].values() if scores["AP"] >= 0]
    assert len(metrics["per_class"]) == 80 and np.mean(per_class) == pytest.approx(0.504581, abs=1e-6)


@pytest.mark.parametrize("annotations", [CELLS, CELLS | {"annotations": []}])
def test_no_results_are_zero(tmp_path: Path, annotations: dict) -> None:
    metrics = evaluate_results(write(tmp_path / "a.json", annotations), [])
    assert metrics["bbox"] == dict.fromkeys(METRICS, 0)
    assert metrics["per_class"] == {name: {"AP": 0, "AP50": 0} for name in ("cell", "platelet")}


def test_results_are_not_changed_nothing_is_printed_and_the_table_is_lined_up(
    cells: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = copy.deepcopy(FOUND)
    evaluate_results(cells, results)
    assert results == FOUND and capsys.readouterr() == ("", "")
    metrics = evaluate_results(cells, FOUND)
    metrics["proposals"] = {f"AR{n}{size}": 0.5 for n in (100, 1000) for size in ("", "s", "m", "l")}
    first, second, classes, proposals = (block.splitlines() for block in summary_table(metrics).split("\n\n"))
    assert first[0].split() == METRICS[:6] and second[0].split() == METRICS[6:]
    assert first[1].split()[4] == "-"  # there is no small object
    assert [line.split()[0] for line in classes] == ["class", "cell", "platelet"]
    assert [line.split()[0] for line in proposals] == ["recall", "AR100", "AR1000"]
    assert len({len(line) for line in first + second}) == 1 and len({len(line) for line in classes}) == 1


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"image_id": 11}, r"image_id 11, which .*cells\.json"),
        ({"image_id": "10"}, r"image_id '10', which .*cells\.json"),
        ({"category_id": 1}, r"category_id 1, which .*cells\.json"), ({"image_id": [10]}, r"result 4: `image_id` is \[10\]"),
        ({"image_id": 10.0}, r"result 4: `image_id` is 10\.0"), ({"category_id": True}, "result 4: `category_id` is true"),
        ({"bbox": [0, 0, 1]}, r"result 4 \(image 10\)"), ({"bbox": [0, 0, -1, 1]}, "negative width"),
        ({"bbox": [0, 0, float("nan"), 1]}, "result 4 .* finite"), ({"score": float("inf")}, "score of result 4"),
        ({"score": None}, "score of result 4"), ({"score": True}, "score of result 4"),
    ],
)  # fmt: skip
def test_bad_results_are_named(cells: Path, result: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        evaluate_results(cells, [*FOUND, FOUND[0] | result])


def test_all_unknown_images_are_listed_up_to_a_point(cells: Path) -> None:
    with pytest.raises(DataError, match="image_id 100, 101, 102, which"):
        evaluate_results(cells, [FOUND[0] | {"image_id": i} for i in (102, 100, 101, 100)])
    with pytest.raises(DataError, match="119 and 80 more, which"):
        evaluate_results(cells, [FOUND[0] | {"image_id": i} for i in range(100, 200)])


@pytest.mark.parametrize("results", [{"annotations": FOUND}, "text", None, [1]])
def test_results_of_another_form(cells: Path, results: object) -> None:
    with pytest.raises(DataError, match="result"):
        evaluate_results(cells, results)


def test_detections_become_xywh_and_sparse_ids() -> None:
    detections = Detections(torch.tensor([[10.0, 20.0, 30.5, 60.0]]), torch.tensor([0.5]), torch.tensor([1]))
    expected = [{"image_id": 4, "category_id": 90, "bbox": [10, 20, 20.5, 40], "score": 0.5}]
    assert detections.to_coco(4, [7, 90]) == expected
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert none.to_coco(4, [7, 90]) == []


class Oracle:
    """A predictor that finds what stands on image 10 of CELLS, whatever it sees."""

    model = SimpleNamespace(needs_proposals=False, reports_proposals=False)
    class_names = ("cell",)

    def prepare(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def detect(self, images: list, sizes: list, proposals: None) -> list[Detections]:
        boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [50.0, 0.0, 90.0, 40.0]])
        scores = torch.tensor([0.9, 0.8])
        labels = torch.zeros(2, dtype=torch.long)
        return [Detections(boxes, scores, labels, proposals=Proposals(boxes, scores)) for _ in images]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_run_over_a_data_set(tmp_path: Path, batch_size: int) -> None:
    content = copy.deepcopy(CELLS)
    for image in content["images"]:
        Image.new("RGB", (100, 160)).save(tmp_path / image["file_name"])
    dataset = CocoDataset(tmp_path, write(tmp_path / "a.json", content))
    metrics, results = evaluate_predictor(Oracle(), dataset, batch_size=batch_size, workers=0, progress=False)
    assert [r["image_id"] for r in results] == [10, 10, 20, 20, 30, 30]
    assert {r["category_id"] for r in results} == {7}  # label 0 is the lowest id of the file
    # one right and two wrong at the score 0.9: COCO lets ties stand in the order of the images
    assert metrics["per_class"]["cell"]["AP50"] == pytest.approx((51 + 50 / 2) / 101)
    assert metrics["proposals"]["AR100"] == pytest.approx(1) and metrics["proposals"]["AR100s"] == -1


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(make_folder(tmp_path / "a/b") / "metrics.json", "new")
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["metrics.json"]
    (tmp_path / "a/b/folder").mkdir()
    with pytest.raises(DataError, match="folder: cannot be written"):
        write_text(tmp_path / "a/b/folder", "new")
    assert sorted(p.name for p in (tmp_path / "a/b").iterdir()) == ["folder", "metrics.json"]
    with pytest.raises(DataError, match="--output"):
        make_folder(tmp_path / "a/b/metrics.json")
