"""What a user does with detections: choosing, ordering, exporting, drawing and printing them; added fields take part."""

from __future__ import annotations

import builtins
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import CONFIG, IDS, NAMES, picture, predictor_of, tiny_model
from PIL import Image, ImageChops
from torch import Tensor

from detector.inference.drawing import draw_detections, plot
from detector.records.record import boxes_field, rows_field
from detector.structures import Detections, Proposals

CLASSES = ["cat", "dog", "<b>"]


@dataclass
class Tagged(Detections):
    """Detections with a number and with their boxes once more."""

    tag: Tensor = rows_field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    twin: Tensor = boxes_field(default_factory=lambda: torch.zeros(0, 4))


def tagged(n: int = 4, names: list[str] | None = CLASSES) -> Tagged:
    boxes = torch.tensor([[10.0, 20, 30, 40], [0, 0, 5, 5], [1, 2, 3, 4], [0, 0, 50, 50]])[:n]
    scores, labels = torch.tensor([0.75, 0.5, 0.5, 0.25])[:n], torch.tensor([1, 0, 2, 1])[:n]
    return Tagged(boxes, scores, labels, names, tag=torch.arange(n) + 7, twin=boxes)


@pytest.mark.parametrize(
    ("rows", "tags"),
    [
        (0, [7]), (-1, [10]), (np.int64(2), [9]), (torch.tensor(1), [8]), (slice(1, 3), [8, 9]),
        (slice(None, None, -1), [10, 9, 8, 7]),
        (slice(3, 0, -2), [10, 8]), ([2, 0], [9, 7]), ([], []), ([True, False, False, True], [7, 10]),
        (range(2), [7, 8]),
        (np.array([False, True, False, False]), [8]), (torch.tensor([3, 3]), [10, 10]), (torch.zeros(4, dtype=torch.bool), []),
    ],
)  # fmt: skip
def test_any_index_takes_the_rows_of_every_field(rows: Any, tags: list[int]):
    found = tagged()[rows]
    assert type(found) is Tagged and found.tag.tolist() == tags and torch.equal(found.twin, found.boxes)
    assert len(found) == len(tags) == len(found.names) and found.boxes.shape == (len(tags), 4)


def test_iteration_gives_each_detection_and_ends():
    assert [(len(one), one.tag.item(), one.names) for one in tagged()] == [
        (1, 7, ["dog"]), (1, 8, ["cat"]), (1, 9, ["<b>"]), (1, 10, ["dog"])
    ]  # fmt: skip
    assert list(tagged(0)) == []
    for beyond in (4, -5, torch.tensor(4)):
        with pytest.raises(IndexError, match="the record has 4"):
            tagged()[beyond]
    assert Proposals(torch.zeros(2, 4), torch.tensor([1.0, 2.0]))[1].scores.tolist() == [2]


def test_sorting_is_stable_and_by_any_number_per_row():
    orders = {
        "scores": [7, 8, 9, 10],
        "score": [7, 8, 9, 10],
        "tag": [10, 9, 8, 7],
        "area": [10, 7, 8, 9],
        "labels": [9, 7, 10, 8],
    }
    for by, tags in orders.items():
        assert tagged().sort(by).tag.tolist() == tags
    assert tagged().sort("names", descending=False).tag.tolist() == [9, 8, 7, 10]
    assert tagged()[::-1].sort().tag.tolist() == [7, 9, 8, 10] and len(tagged(0).sort("names")) == 0
    for by in ("twin", "scoring"):
        with pytest.raises(ValueError, match="choose one of area, labels, names, scores, tag"):
            tagged().sort(by)


def test_filtering_by_score_and_by_names_or_labels():
    found = tagged()
    assert found.filter(0.5).tag.tolist() == [7, 8, 9] and found.filter().tag.tolist() == found.tag.tolist()
    assert found.filter(classes="dog").tag.tolist() == found.filter(classes=1).tag.tolist() == [7, 10]
    assert found.filter(classes=("cat", 2), score=0.1).tag.tolist() == [8, 9]
    assert len(found.filter(classes=[])) == len(tagged(0).filter(0.5, ["cat"])) == 0
    with pytest.raises(ValueError, match="there is no class 'cow'; nearest: dog"):
        found.filter(classes=["dog", "cow"])
    assert tagged(names=None).filter(classes=2).tag.tolist() == [9]
    with pytest.raises(ValueError, match="call the predictor"):
        tagged(names=None).filter(classes="cat")


def test_plain_python_and_coco():
    found = tagged(2)
    plain = {"boxes": [[10, 20, 30, 40], [0, 0, 5, 5]], "scores": [0.75, 0.5], "labels": [1, 0], "tag": [7, 8]}
    assert json.loads(json.dumps(found.to_dict())) == plain | {"twin": plain["boxes"], "names": ["dog", "cat"]}
    assert tagged(0, None).to_dict() == {key: [] for key in ("boxes", "scores", "labels", "tag", "twin")}
    row = {"image_id": 5, "category_id": 90, "bbox": [10, 20, 20, 20], "score": 0.75, "category_name": "dog"}
    expected = row | {"tag": 7, "twin": [10, 20, 30, 40]}
    assert found[:1].to_coco(5, [7, 90, 91]) == [expected] and tagged(0).to_coco(5, [7]) == []
    found.category_ids = [7, 90, 91]
    assert found.to_coco(5)[0] == expected
    with pytest.raises(ValueError, match="give `category_ids`"):
        tagged().to_coco(5)


@pytest.mark.parametrize("n", [4, 0])
@pytest.mark.parametrize("names", [CLASSES, None])
def test_pandas_has_a_row_for_each(n: int, names: list[str] | None):
    pytest.importorskip("pandas", reason="needs pandas: pip install pandas")
    table = tagged(n, names).to_pandas()
    name = [] if names is None else ["name"]
    assert list(table) == ["x1", "y1", "x2", "y2", "score", "label", *name, "tag", "twin"] and len(table) == n
    assert [str(table[column].dtype) for column in ("x1", "score", "label")] == ["float32", "float32", "int64"]
    if n and names:
        assert table.loc[0, ["x1", "y2", "score", "name", "tag"]].tolist() == [10, 40, 0.75, "dog", 7]


@pytest.mark.parametrize("n", [4, 0])
def test_supervision_has_all_fields(n: int):
    pytest.importorskip("supervision", reason="needs supervision: pip install supervision")
    found = tagged(n).to_supervision()
    assert found.xyxy.shape == (n, 4) and found.confidence.tolist() == tagged(n).scores.tolist()
    assert found.class_id.tolist() == tagged(n).labels.tolist() and found.data["tag"].tolist() == tagged(n).tag.tolist()
    assert list(found.data["class_name"]) == tagged(n).names and len(found[found.confidence > 0.3]) == min(n, 3)
    assert "class_name" not in tagged(n, None).to_supervision().data


@pytest.mark.parametrize("package", ["pandas", "supervision"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch):
    def without(name: str, *args: Any, _import: Any = builtins.__import__, **options: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return _import(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        getattr(tagged(), f"to_{package}")()


def test_printing_shows_counts_and_the_first_rows():
    assert repr(tagged()).splitlines() == [
        "Tagged: 4 (2 dog, 1 cat, 1 <b>)",
        "  score  class    x1    y1    x2    y2  tag",
        "  0.750  dog    10.0  20.0  30.0  40.0    7",
        "  0.500  cat     0.0   0.0   5.0   5.0    8",
        "  0.500  <b>     1.0   2.0   3.0   4.0    9",
        "  0.250  dog     0.0   0.0  50.0  50.0   10",
    ]
    many = Detections.joined([Detections(torch.zeros(1, 4), torch.ones(1), torch.tensor([3]))] * 20)
    assert repr(many).startswith("Detections: 20 (20 class 3)\n") and repr(many).endswith("\n  ... 12 more")
    assert repr(tagged(0)) == "Tagged: 0" and tagged(0)._repr_html_() == "<div>Tagged: 0</div>"
    page = tagged()._repr_html_()
    assert page.count("<tr>") == 5 and "<td>&lt;b&gt;</td>" in page and "<b>" not in page


def test_numpy_orders_and_numbers_are_taken():
    found = tagged()
    assert found[np.argsort(found.scores.numpy())[::-1]].scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert found.filter(classes=np.int64(1)).labels.tolist() == found.filter(classes=1).labels.tolist()
    plain = Detections(torch.zeros(2, 4), torch.ones(2), torch.zeros(2, dtype=torch.int64))
    assert plain == plain and plain != plain[:]
    with pytest.raises(ValueError, match=r"score=50: expected a number in 0\.\.1"):
        found.filter(50)
    with pytest.raises(TypeError, match="not True"):
        found[True]


def test_a_picture_of_them_on_whatever_the_image_comes_as(tmp_path: Path):
    image = picture(64, 96)
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = predictor_of(tiny_model(), CONFIG)(image)
    assert found.category_ids == IDS and found.to_coco(1)[0]["category_id"] == IDS[NAMES.index(found.names[0])]
    expected = draw_detections(image, found)
    again = pickle.loads(pickle.dumps(found[:])).cpu()  # as it travels between processes
    for same in (image, pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert ImageChops.difference(again.plot(same), expected).getbbox() is None
    assert ImageChops.difference(found[::-1].plot(image), draw_detections(image, found[::-1].sort())).getbbox() is None
    for other in (image.float(), image[None], pixels.astype(float)):
        with pytest.raises(ValueError, match="expected a uint8"):
            found.plot(other)
    with pytest.raises(ValueError, match=r"detector\.inference\.drawing\.plot"):
        tagged().plot(image)
    assert plot(image, tagged()).size == (96, 64)
