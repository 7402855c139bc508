"""Training, check and evaluation accept and refuse the same COCO files, in the same words."""

from __future__ import annotations

import copy
import gc
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.data.coco import CocoDataset
from detector.data.coco_json import OUTLINE, read_document
from detector.data.coco_reader import EntryFaults, read_coco_file
from detector.dataset_check.checked_split import read_split
from detector.dataset_check.findings import Findings
from detector.errors import DataError
from detector.evaluation.coco import evaluate_results
from detector.evaluation.proposals import proposal_recall

FILE: dict[str, Any] = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 10} for i in (5, 3)],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 7, "bbox": [1, 2, 3, 4]},
        {"id": 2, "image_id": 5, "category_id": 9, "bbox": [0, 0, 9, 9], "iscrowd": 1, "area": 50},
    ],
    "categories": [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}],
}
FAULTS = [  # section, key, value (... removes the key), words of the message
    ("images", "id", "5", 'images[0], id "5": `id` is "5"; it must be an integer (no quotes'),
    ("images", "id", 3, "images[1], id 3: `id` is 3; two images share it"),
    ("images", "file_name", ..., "`file_name` is missing; it must be a path"),
    ("images", "file_name", "../a.png", '`file_name` is "../a.png"; it must be a path inside the image folder'),
    ("images", "height", 0, "`height` is 0; it must be an integer of at least 1"),
    ("images", "width", 2.5, "`width` is 2.5; it must be an integer of at least 1"),
    ("categories", "id", 7, "two categories share it"),
    ("categories", "name", ..., "categories[0], id 9: `name` is missing; it must be a name without"),
    ("categories", "name", "cat", '`name` is "cat"; two categories share it'),
    ("categories", "name", "a\nb", "it must be a name without control characters"),
    ("annotations", "id", "a", 'annotations[0], id "a": `id` is "a"; it must be an integer'),
    ("annotations", "image_id", 99, "`image_id` is 99; no such image"),
    ("annotations", "category_id", 8, "`category_id` is 8; no such category"),
    ("annotations", "iscrowd", "no", '`iscrowd` is "no"; it must be 0 or 1'),
    ("annotations", "id", ..., "annotations[0], id missing: `id` is missing; it must be an integer"),
    ("annotations", "bbox", ..., "annotations[0], id 1: `bbox` is missing; it must be four finite numbers"),
    ("annotations", "bbox", [1, 2, "3", 4], '`bbox` is [1, 2, "3", 4]; it must be four finite numbers'),
    ("annotations", "bbox", [0, 0, float("nan"), 3], "`bbox` is [0, 0, NaN, 3]; it must be four finite numbers"),
    ("annotations", "bbox", [0, float("inf"), 1, 3], "`bbox` is [0, Infinity, 1, 3]; it must be four finite numbers"),
    ("annotations", "bbox", [0, 10**400, 1, 3], "; it must be four finite numbers"),
    ("annotations", "bbox", [1, 2, 3], "`bbox` is [1, 2, 3]; it must be four finite numbers"),
    ("annotations", "bbox", [1, 2, -3, 4], "`bbox` is [1, 2, -3, 4]; width and height must not be negative"),
    ("annotations", "area", float("inf"), "`area` is Infinity; it must be a finite number"),
    ("annotations", "area", 10**400, "; it must be a finite number"),
    ("annotations", "area", -1, "`area` is -1; it must be a finite number, not negative"),
    ("categories", None, "cat", 'categories[0] is "cat"; it must be an object'),
    ("annotations", None, "text", 'annotations[0] is "text"; it must be an object'),
]


def write(folder: Path, document: Any) -> Path:
    (folder / "a.json").write_text(json.dumps(document))
    return folder / "a.json"


def spoilt(section: str, key: str | None, value: Any) -> dict[str, Any]:
    document = copy.deepcopy(FILE)
    if key is None:
        document[section][0] = value
    else:
        document[section][0][key] = value
        if value is ...:
            del document[section][0][key]
    return document


def refusal(read: Callable[[], object]) -> str | None:
    """The error of a reader; None where it accepts the file."""
    try:
        read()
    except DataError as error:
        return str(error)
    return None


def verdicts(path: Path) -> list[str | None]:
    """The errors of training, evaluation and recall; None where the file is accepted."""
    readers = (
        lambda: CocoDataset(path.parent, path),
        lambda: evaluate_results(path, []),
        lambda: proposal_recall(path, {}),
    )
    return [refusal(read) for read in readers]


@pytest.mark.parametrize("fault", FAULTS, ids=[f"{n}-{fault[0]}-{fault[1]}" for n, fault in enumerate(FAULTS)])
def test_a_fault_is_one_to_all_readers_in_the_same_words(
    tmp_path: Path, fault: tuple[str, str | None, Any, str]
) -> None:
    *place, rule = fault
    path = write(tmp_path, spoilt(*place))
    message, *others = verdicts(path)
    assert message is not None and others == [message] * 2
    assert message.startswith(str(path)) and "\n" not in message
    assert rule in message
    findings = Findings()
    read_split("train", path, None, None, findings)
    words = rule.rpartition("; ")[2]
    (finding,) = [f for f in findings.all() if words in f.places[0].note]
    assert (finding.severity, finding.count) == ("error", 1)
    assert finding.effect.endswith(message.rpartition("; ")[2])


@pytest.mark.parametrize("section", FILE)
def test_a_file_without_a_section_is_refused_by_all(tmp_path: Path, section: str) -> None:
    for spoilt_section in ({}, {section: "text"}):
        document = {key: value for key, value in FILE.items() if key != section} | spoilt_section
        path = write(tmp_path, document)
        message, *others = verdicts(path)
        assert message is not None and others == [message] * 2
        assert f"{path}: `{section}` is missing or is not a list; a COCO file is an object with the lists" in message
        with pytest.raises(DataError, match=f"`{section}` is missing"):
            read_split("train", path, None, None, Findings())


ABSENT = object()
VALUES: list[Any] = [
    ABSENT, None, True, False, 0, 1, 2, -1, 3, 5, 7, 2**31, 2**53, 2**53 + 1, 10**400, 0.0, 1.0, 1.5, -0.0, 1e308,
    float("nan"), float("inf"), "", "0", "1", "false", "a.png", "../a", "C:/a.png", "a\nb", "\ud800", "고양이", [], [1], {},
    {"a": 1}, [0, 0, 5, 5], [0, 0, 0, 0], [0, 0, -1, 5], ["0", "0", "5", "5"], [0, 0, 5], [True, 0, 5, 5], [[0, 0, 5, 5]],
]  # fmt: skip
PLACES = [(section, key) for section in FILE for key in (None, *dict.fromkeys(k for e in FILE[section] for k in e))]
DOCUMENTS = [
    [],
    None,
    1,
    "images",
    {},
    *({**FILE, name: value} for name in FILE for value in ([], None, {}, "", 0, [None])),
]


def spoilt_documents() -> Iterator[Any]:
    """Every value at every place, and every fault of a whole file."""
    for (section, key), value in itertools.product(PLACES, VALUES):
        document = copy.deepcopy(FILE)
        entries = document[section]
        if key is None:
            entries[-1] = None if value is ABSENT else value
        elif value is ABSENT:
            entries[-1].pop(key, None)
        else:
            entries[-1][key] = value
        yield document
    yield from DOCUMENTS


def test_training_evaluation_and_check_agree_on_every_value_at_every_key(tmp_path: Path) -> None:
    path, refused = tmp_path / "any name", 0
    for document in spoilt_documents():
        path.write_text(json.dumps(document))
        message, *others = verdicts(path)
        assert others == [message] * 2, document
        findings = Findings()
        stopped = refusal(lambda findings=findings: read_split("train", path, None, None, findings))
        errors = [found for found in findings.all() if found.severity == "error"]
        assert (message is None) == (stopped is None and not errors), document
        if message is not None:
            assert stopped == message or any(
                str(DataError(error.places[0].note)) in message and message.endswith(error.effect.partition(": ")[2])
                for error in errors
            ), (message, errors)
        refused += message is not None
    assert 400 < refused < len(PLACES) * len(VALUES)


OUTLINES: list[Any] = [
    ABSENT, *VALUES, [[0, 0, 5, 0, 5, 5]], [[0, 0, 5, 0, 5]], [[0, 0, 5, 0]], [[]], [[0, 0, 5, 0, 5, float("nan")]], [["0"] * 6],
    {"size": [10, 20], "counts": [200]}, {"size": [20, 10], "counts": [200]}, {"size": [10, 20], "counts": [100]},
    {"size": [10, 20], "counts": "0"}, {"size": [10, 20], "counts": "\ud800"}, {"size": [10, 20]}, {"counts": [1]},
]  # fmt: skip


def test_training_and_check_agree_on_every_outline(tmp_path: Path) -> None:
    path, refused = tmp_path / "any name", 0
    for value, entry, crowd in itertools.product(OUTLINES, (0, 1), (0, 1)):
        document = copy.deepcopy(FILE)
        for a in document["annotations"]:
            a |= {"segmentation": [[0, 0, 9, 0, 9, 9]], "iscrowd": crowd}
        document["annotations"][entry]["segmentation"] = value
        if value is ABSENT:
            del document["annotations"][entry]["segmentation"]
        path.write_text(json.dumps(document))
        message = refusal(lambda: CocoDataset(path.parent, path, fields=["masks"]))
        assert message == refusal(lambda: read_coco_file(path, fields=["outlines"]))
        findings = Findings()
        read_split("train", path, None, None, findings, ["masks"])
        errors = [found for found in findings.all() if found.severity == "error"]
        assert [message.endswith(e.effect.partition(": ")[2]) for e in errors] == [True] * (message is not None), value
        assert refusal(lambda: CocoDataset(path.parent, path)) is None
        refused += message is not None
    assert refused > 120


def test_faults_of_a_kind_are_counted(tmp_path: Path) -> None:
    document = copy.deepcopy(FILE)
    for annotation in document["annotations"]:
        annotation["category_id"] = 8
    with pytest.raises(DataError, match=r"id 1: `category_id` is 8; no such category \(1 more like it\); add"):
        read_coco_file(write(tmp_path, document))


@pytest.mark.parametrize("text", ["", "not json", "[1, 2]", "null", '{"images": [', "[" * 100_000, "\ud800"])
def test_files_of_another_kind_are_refused_by_all(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    message, *others = verdicts(path)
    assert message is not None and others == [message] * 2 and message.startswith(f"{path}: ")
    path.unlink()
    assert all("a.json: cannot read the annotations (No such file" in str(message) for message in verdicts(path))


def test_files_that_one_reader_accepts_are_accepted_by_all(tmp_path: Path) -> None:
    twice = copy.deepcopy(FILE)
    twice["annotations"][1]["id"] = 1  # harmless: nothing looks up annotations by their ids
    for document in (FILE, twice, FILE | {"annotations": []}):
        path = write(tmp_path, document)
        assert verdicts(path) == [None] * 3
        findings = Findings()
        read_split("train", path, None, None, findings)
        assert findings.count("error") == 0 and findings.count("warning") == (document is twice)


def test_columns_are_those_of_the_file(tmp_path: Path) -> None:
    coco = read_coco_file(write(tmp_path, FILE))
    assert coco.image_ids.tolist() == [5, 3] and coco.file_names == ["5.png", "3.png"]
    assert coco.sizes.tolist() == [[10, 20]] * 2
    assert coco.category_ids.tolist() == [9, 7] and coco.category_names == ["dog", "cat"]
    assert coco.image_rows.tolist() == [1, 0] and coco.category_rows.tolist() == [1, 0]
    assert coco.xywh.tolist() == [[1, 2, 3, 4], [0, 0, 9, 9]] and coco.xywh.dtype == np.float64
    assert coco.areas.tolist() == [12, 50] and coco.crowd.tolist() == [False, True]


def test_all_faults_are_collected_and_their_entries_left_out(tmp_path: Path) -> None:
    document = copy.deepcopy(FILE)
    repeated = {"id": 5, "file_name": "b.png", "width": 1, "height": 1}
    document["images"] += [{"id": 4, "file_name": "4.png", "width": -1}, 7, repeated]
    document["annotations"] += [
        {"id": 3, "image_id": 4, "category_id": 7, "bbox": [0, 0, 1, 1]},  # of a faulty image, which is known
        {"id": 4, "image_id": 6, "category_id": 6, "bbox": "text", "area": "large"},
    ]
    faults: list[EntryFaults] = []
    coco = read_coco_file(write(tmp_path, document), faults.append)
    assert [(f.kind, f.where(0), len(f)) for f in faults] == [
        ("not an entry", "images[3]", 1), ("invalid value", "images[2].height", 1),
        ("invalid value", "images[2].width", 1), ("repeated id", "images[4].id", 1),
        ("invalid box", "annotations[3].bbox", 1), ("invalid value", "annotations[3].area", 1),
        ("unknown image", "annotations[3].image_id", 1), ("unknown category", "annotations[3].category_id", 1),
    ]  # fmt: skip
    assert coco.image_ids.tolist() == [5, 3] and coco.annotation_ids.tolist() == [1, 2]


# --- the document: without its outlines, and otherwise what json itself reads, errors and their places included


texts = st.sampled_from(['"segmentation": [1]', "segmentation", 'a"', "\\", '\\"segmentation": [[2, 3]]', "[", "é"])
outlines = st.sampled_from([[], [[1, 2.5, -3e-7]], [[1], [2]], {"counts": [1, 2], "size": [3, 4]}, "[1]", None])
entries = st.dictionaries(texts | st.just("segmentation"), texts | outlines, max_size=4)


def without_outlines(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_outlines(inner) for key, inner in value.items() if key != "segmentation"}
    return [without_outlines(inner) for inner in value] if isinstance(value, list) else value


@given(st.lists(entries, max_size=3), st.sampled_from([None, 1]), st.booleans())
def test_only_outlines_are_missing(tmp_path_factory, content: list, indent: int | None, ascii_only: bool):
    path = tmp_path_factory.getbasetemp() / "document.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    assert read_document(path) == without_outlines(content)


def test_an_outline_is_never_parsed():
    text = json.dumps({"segmentation": [[1.5, 2.5, 3.5]], "id": 1}).encode()
    assert OUTLINE.sub(b"", text) == b'{, "id": 1}'


@pytest.mark.parametrize("wrong", ["x", '"', "]", "}"])
def test_an_error_names_its_place_in_the_file(tmp_path: Path, wrong: str):
    text = '{"annotations": [{"segmentation": [[1, 2, 3, 4]], "id": 1' + wrong
    with pytest.raises(ValueError) as expected:
        json.loads(text)
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError) as error:
        read_document(tmp_path / "a.json")
    assert f"not a JSON file ({expected.value})" in str(error.value)
    assert gc.isenabled()
