"""`detector check-data`: every fault is found once, at its place; only the report is written."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.fuzz import json_values
from helpers.health import CATEGORIES, DirtySet, box, check, clean_set, clean_split, configure, entry, noise, run
from helpers.training import snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from detector.cli.check_data import is_annotation_file
from detector.config.config import load_config
from detector.config.match_data import with_num_classes
from detector.data.plausible import REMEDIES as IMPLAUSIBLE
from detector.data.settings import build_dataset
from detector.dataset_check.findings import KINDS
from detector.errors import ConfigError, DataError

DOUBTS = {*IMPLAUSIBLE, "part of the bit depth", "beyond the bit depth", "anchors far from objects"}
SMALL = ["model.backbone.depth=18", "model.neck.width=8", "model.roi_head.box_head.width=8", "data.workers=0"]


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> DirtySet:
    made = DirtySet(tmp_path_factory.mktemp("dirty"))
    made.configure()
    return made


def found(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(f["kind"], f["split"]): f for f in report["findings"]}


def test_every_fault_of_a_dirty_set_is_found_once_and_at_its_place(dirty: DirtySet, tmp_path: Path) -> None:
    status, out, err = check(dirty.folder, "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert status == 1 and "Traceback" not in err
    faults = found(report)
    shapes = {kind for kind in KINDS if "outline" in kind or "keypoint" in kind}  # in test_check_outlines
    of_their_own = shapes | {
        "unknown class",
        "no images",
        "other counts",
        "equal names in two splits",
        *DOUBTS,
    }  # below, or in test_plausible
    assert {kind for kind, _ in dirty.expected} == KINDS.keys() - of_their_own
    assert {place for place in faults if place[0] not in DOUBTS} == dirty.expected.keys()
    for kind, place in dirty.expected.items():
        (only,) = faults[kind]["places"]
        assert faults[kind]["count"] == 1
        assert place == {key: only.get(key) for key in place}, kind
        assert faults[kind]["effect"] in out


def test_without_images_their_content_is_left_alone(dirty: DirtySet, tmp_path: Path) -> None:
    status, _, _ = check(dirty.folder, "--no-images", "--json", tmp_path / "report.json")
    content = {"corrupt file", "oversized file", "rotated file", "other size", "equal files"}
    seen = {kind for kind, _ in found(json.loads((tmp_path / "report.json").read_text()))}
    assert status == 1
    assert seen - DOUBTS == {kind for kind, _ in dirty.expected} - content - {"equal files in two splits"}


def test_a_clean_set_has_no_findings(tmp_path: Path) -> None:
    configure(tmp_path, clean_set(tmp_path))
    status, out, err = check(tmp_path)
    assert status == 0 and "nothing is wrong" in out and "error" not in err
    squares = next(line for line in out.splitlines() if line.startswith("square"))
    assert squares.split() == ["square", *("3", "50.0", "%", "3") * 2] and str(tmp_path / "train.json") in out


def test_nothing_is_written_but_the_report_whatever_the_number_of_processes(dirty: DirtySet, tmp_path: Path) -> None:
    before = snapshot(dirty.folder)
    outputs = ["--json", tmp_path / "a.json", "--picture", tmp_path / "new/a.png"]
    alone, parallel = (check(dirty.folder, f"data.workers={n}", *outputs) for n in (0, 2))
    assert alone[1] == parallel[1]
    assert snapshot(dirty.folder) == before
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"a.json", "a.png"}
    with Image.open(tmp_path / "new/a.png") as picture:
        assert picture.size == (1600, 900)


def test_reports_of_earlier_runs_alone_are_written_over(tmp_path: Path) -> None:
    configure(tmp_path, clean_set(tmp_path))
    report, picture = tmp_path / "report.json", tmp_path / "picture.png"
    for _ in range(2):
        assert check(tmp_path, "--no-images", "--json", report, "--picture", picture)[0] == 0
    for option, foreign in (("--json", tmp_path / "train.json"), ("--picture", tmp_path / "train" / "1.png")):
        content = foreign.read_bytes()
        status, out, err = check(tmp_path, option, foreign)
        assert (status, out) == (2, "") and "would be written over" in err and foreign.read_bytes() == content


def test_what_is_called_an_error_stops_a_training_and_what_is_called_a_warning_does_not(tmp_path: Path) -> None:
    documents = clean_set(tmp_path)
    train = documents["train"]
    for spoilt, status in ((box(90, 1, [5, 5, 0, 9]), 0), (box(90, 1, [5, 5, -1, 9]), 1)):
        config = configure(tmp_path, {**documents, "train": {**train, "annotations": [*train["annotations"], spoilt]}})
        assert check(tmp_path)[0] == status
        data = load_config(config, (tmp_path / "overrides").read_text().splitlines())
        if status:
            with pytest.raises(DataError, match="must not be negative"):
                build_dataset(data.data, "train")
        else:
            assert len(build_dataset(data.data, "train")) == 3


def test_a_class_that_the_file_lacks_and_nothing_to_learn_from_are_errors(tmp_path: Path) -> None:
    configure(tmp_path, clean_set(tmp_path))
    status, out, _ = check(tmp_path, "data.classes=[square, ring]")
    assert status == 1 and out.count("unknown class") == 2 and "data.classes: ring" in out
    assert "disc" not in out.split("class ")[1].split("box sizes")[0]
    documents = clean_set(tmp_path)
    documents["train"]["annotations"] = []
    configure(tmp_path, documents)
    assert "no images" in check(tmp_path)[1]
    assert "no images" not in check(tmp_path, "data.keep_empty=true")[1]


@pytest.mark.parametrize(
    "model, told",
    [("num_classes=9", "model.num_classes: 9, but .* has 2 classes .*; set it to 2, or leave it out"),
     ("roi_head.keypoint_head={keypoints: 4}", r"keypoint_head.keypoints: 4, but .* has 3 keypoints \(tip, .*set it to 3")],
)  # fmt: skip
def test_a_model_for_another_number_of_classes_or_keypoints_is_an_error(tmp_path: Path, model: str, told: str) -> None:
    documents = clean_set(tmp_path)
    for document in documents.values():
        for category in document["categories"]:
            category |= {"keypoints": ["tip", "left", "right"], "skeleton": []}
        for annotation in document["annotations"]:
            annotation |= {"keypoints": [1, 1, 2] * 3, "num_keypoints": 3}
    config = configure(tmp_path, documents)
    status, out, _ = check(tmp_path, f"model.{model}")
    assert status == 1 and "1 error" in out and re.search(told, out)
    settings = load_config(config, [*(tmp_path / "overrides").read_text().splitlines(), f"model.{model}"])
    train_set = build_dataset(settings.data, "train", fields=settings.model.target_fields)
    with pytest.raises(ConfigError, match=told):
        with_num_classes(settings, train_set)
    for category in documents["train"]["categories"]:
        del category["keypoints"]
    configure(tmp_path, documents)
    if "keypoint" in model:
        assert "no category lists `keypoints`" in check(tmp_path, f"model.{model}")[1]


def test_equal_names_are_suspicious_only_where_the_content_is_not_known(tmp_path: Path) -> None:
    documents = clean_set(tmp_path)
    noise(tmp_path / "val" / "1.png", (96, 64), seed=70)
    documents["val"]["images"].append(entry(30, "1.png"))
    documents["val"]["annotations"].append(box(90, 30, [4, 4, 20, 20]))
    configure(tmp_path, documents)
    assert "nothing is wrong" in check(tmp_path)[1]
    status, out, _ = check(tmp_path, "--no-images")
    assert status == 0 and "equal names in two splits  val  1" in out and "like 1.png, image 1 of train" in out


def test_an_annotation_file_alone_is_checked_with_or_without_its_images(tmp_path: Path) -> None:
    configure(tmp_path, clean_set(tmp_path))
    (tmp_path / "val" / "22.png").unlink()
    status, out, _ = run(tmp_path / "val.json", *SMALL)
    assert status == 0 and "nothing is wrong" in out and "best possible recall (IoU >= 0.7)" in out
    status, out, _ = run(tmp_path / "val.json", "--images", tmp_path / "val", "model.rpn.pos_iou=0.6", *SMALL)
    assert status == 1 and "22.png, image 22" in out and "best possible recall (IoU >= 0.6)" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.yaml"], "no such configuration file"), (["missing.json"], "cannot read the annotations"),
        (["list.json"], "`images` is missing or is not a list"), (["text.json"], "not a JSON file"),
        (["train.json", "--images", "nowhere"], "no such image folder"),
        (["train.json", "data.worker=1"], "did you mean 'workers'?"),
        (["train.json", "--json", "train.json/x.json"], "is no folder"),
        (["none.yaml"], "the configuration has no such section"),
        (["config.yaml", "data.test={images: train, annotations: missing.json}"], "cannot read the annotations"),
    ],
)  # fmt: skip
def test_what_cannot_be_checked_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    configure(tmp_path, clean_set(tmp_path))
    for name, content in (("list.json", "[]"), ("text.json", "{"), ("none.yaml", "train: {epochs: 1}")):
        Path(name).write_text(content)
    own = {"config.yaml": (tmp_path / "overrides").read_text().splitlines(), "train.json": SMALL}
    overrides = own.get(arguments[0], [])
    status, out, err = run(*arguments, *overrides)
    assert (status, out) == (2, "") and message in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["config.yaml", "--images", "train"], ["a.json", "--json", "b", "--picture", "b"]]
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        run(*arguments)
    assert left.value.code == 2


def test_names_cannot_command_the_terminal(tmp_path: Path) -> None:
    documents = clean_set(tmp_path)
    for document in documents.values():
        document["categories"][1]["name"] = "disc\x1b[2J\n\ud800"
        document["images"][0]["file_name"] += "\x1b[2J"
    configure(tmp_path, documents)
    status, out, err = check(tmp_path, "--picture", tmp_path / "a.png")
    assert status == 1 and "\x1b" not in out + err and r"disc\u001b[2J\n\ud800" in out and r"1.png\x1b[2J" in out


KEYS = ("id", "file_name", "width", "height", "image_id", "category_id", "bbox", "iscrowd", "name")
MANGLED = st.lists(
    st.tuples(
        st.sampled_from(["images", "annotations", "categories"]),
        st.integers(0, 5),
        st.sampled_from(("", *KEYS)),
        json_values,
    ),
    max_size=4,
)
SAME_FILE: dict[str, Any] = {
    "images": [entry(1, "1.png"), entry(2, "2.png")],
    "annotations": [box(1, 1, [4, 4, 20, 20]), box(2, 2, [4, 4, 30, 10], 7), box(3, 2, [1, 1, 9, 9])],
    "categories": CATEGORIES,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    configure(
        folder, {"train": clean_split(folder, "train", 1, count=2), "val": clean_split(folder, "val", 21, count=1)}
    )
    return folder


def agrees_with_training(faults: list[tuple[str, int, str, Any]], folder: Path) -> None:
    """Change entries of the training split: the check ends without a traceback, and finds errors where training stops."""
    document = json.loads(json.dumps(SAME_FILE))
    for section, index, key, value in faults:
        entries = document[section]
        row = index % len(entries)
        if key and isinstance(entries[row], dict):
            entries[row][key] = value
        else:
            entries[row] = value
    (folder / "train.json").write_text(json.dumps(document))
    report, picture = folder / "report.json", folder / "picture.png"
    status, out, err = check(folder, "--json", report, "--picture", picture, "data.keep_empty=true")
    assert status in (0, 1) and out and "Traceback" not in err
    assert status == trainable(folder), out


def trainable(folder: Path) -> int:
    """0 if training can read every image of both splits."""
    overrides = [*(folder / "overrides").read_text().splitlines(), "data.keep_empty=true"]
    config = load_config(folder / "config.yaml", overrides)
    try:
        train = build_dataset(config.data, "train")
        for split in (train, build_dataset(config.data, "val", class_names=train.class_names)):
            for i in range(len(split)):
                split.image(i)
    except DataError:
        return 1
    return 0


@pytest.mark.parametrize("examples", [15, pytest.param(600, marks=pytest.mark.torture)])
def test_what_is_wrong_with_a_mangled_file_is_an_error_just_where_training_stops(pictures: Path, examples: int) -> None:
    def agrees(faults: list[tuple[str, int, str, Any]]) -> None:
        agrees_with_training(faults, pictures)

    settings(max_examples=examples)(given(faults=MANGLED)(agrees))()


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    documents = clean_set(tmp_path)
    (tmp_path / "train" / "1.png").unlink()
    os.mkfifo(tmp_path / "train" / "1.png")
    configure(tmp_path, documents)
    status, out, _ = check(tmp_path)
    assert status == 1 and "1.png, image 1: it is not a file" in out


def test_splits_that_share_a_folder_list_its_images_together(tmp_path: Path) -> None:
    documents = clean_set(tmp_path)
    for path in (tmp_path / "val").iterdir():
        path.rename(tmp_path / "train" / path.name)
    (tmp_path / "val").rmdir()
    (tmp_path / "val").symlink_to(tmp_path / "train")  # one folder under two names
    configure(tmp_path, documents)
    assert "nothing is wrong" in check(tmp_path)[1]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.JSON", "", True), ("a", '{"images": []}', True), ("a.txt", "\ufeff\n { \"images\": []}", True),
        ("a.yaml", "[1]", True),        ("a.yaml", "{_base_: b.yaml}", False), ("a.yaml", "model: {}", False),
        ("gone.yaml", None, False),
    ],
)  # fmt: skip
def test_an_annotation_file_is_told_from_a_configuration(
    tmp_path: Path, name: str, content: str | None, expected: bool
):
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert is_annotation_file(str(tmp_path / name)) == expected
