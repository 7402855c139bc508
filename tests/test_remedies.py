"""Remedies that messages name: every key and option exists, and the command that printed a remedy accepts it."""

import ast
import contextlib
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.training import draw_set, script, train, write_config
from PIL import Image

PACKAGE = Path(__file__).parents[1] / "detector"
KEYS_PAGE = PACKAGE.parent / "docs" / "keys.md"
FILES_NAMED_LIKE_KEYS = {"data.yaml", "train.json", "train.log"}
OPTIONS_OF_OTHERS = {"--nproc-per-node", "--index-url", "--peak-of"}  # of torchrun, of pip, and a hidden one


def texts() -> Iterator[tuple[Path, str]]:
    """Every string of the package but those of `renames.py`, which has names of version 0.1."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name != "renames.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield path, node.value


def test_every_key_and_every_option_that_a_text_names_exists():
    known: set[str] = set()
    section = ""
    for line in KEYS_PAGE.read_text().splitlines():
        if heading := re.match(r"#+ `([\w.]+)", line):
            section = heading[1]
            known |= {section, f"{section}.type"}
        elif row := re.match(r"\| `([\w.]+)` \|", line):
            known |= {f"{section}.{row[1]}", section + "." + row[1].partition(".")[0]}
    wrong = {
        (path.name, key)
        for path, text in texts()
        for key in re.findall(
            r"(?<![\w./])(?:model|data|train|evaluate)\.[a-z_]+(?:\.[a-z_]+)*(?=$|[^\w.(]|\.\W|\.$)", text
        )
        if not any(name == key or name.startswith(f"{key}.") for name in known) and key not in FILES_NAMED_LIKE_KEYS
    }
    assert not wrong
    commands = sorted(path.stem for path in (PACKAGE / "cli").glob("*.py") if "\ndef main(" in path.read_text())
    known = set().union(*map(options_of, commands)) | OPTIONS_OF_OTHERS | {"--version"}
    named = {(path.name, option) for path, text in texts() for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)}
    assert len(named) > 50 and {(name, option) for name, option in named if option not in known} == set()


def options_of(command: str) -> set[str]:
    out = io.StringIO()
    formats = (["voc"], ["yolo"], ["cvat"], ["to-yolo"], ["to-voc"]) if command == "convert_annotations" else ([],)
    for arguments in formats:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            script(command).main([*arguments, "--help"])
    return set(re.findall(r"--[a-z][a-z-]+", out.getvalue()))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on `data` beside it."""
    folder = tmp_path_factory.mktemp("remedies")
    data = draw_set(folder / "data")
    assert train(write_config(folder / "tiny.yaml", data), folder / "run", ["train.epochs=1"]) == 0
    return folder


def run(command: str, *arguments: Any) -> tuple[int, str]:
    """Exit status and what was printed on stderr."""
    err, log = io.StringIO(), logging.getLogger("detector")
    handler = logging.StreamHandler(err)
    log.addHandler(handler)
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            status = script(command).main([str(argument) for argument in arguments])
    finally:
        log.removeHandler(handler)
    return status, err.getvalue()


def test_a_split_with_some_of_the_classes(trained: Path):
    some = json.loads((trained / "data/val.json").read_text())
    kept = some["categories"][0]
    some["categories"] = [kept]
    some["annotations"] = [a for a in some["annotations"] if a["category_id"] == kept["id"]]
    (trained / "data/some.json").write_text(json.dumps(some))
    arguments = (trained / "run/best.pth", "--trust", "--output", trained / "scored", "data.val.annotations=some.json")
    status, said = run("evaluate", *arguments)
    (remedy,) = re.findall(r"data\.classes=\[[^\]]*\]", said)
    assert status == 2 and run("evaluate", *arguments, remedy)[0] == 0
    metrics = json.loads((trained / "scored/metrics.json").read_text())
    assert list(metrics["per_class"]) == [kept["name"]]
    found = json.loads((trained / "scored/detections.json").read_text())
    assert {row["category_id"] for row in found} <= {kept["id"]}


def test_a_picture_above_the_limit(trained: Path, tmp_path: Path):
    Image.new("L", (10000, 9000)).save(tmp_path / "large.png")
    arguments = (trained / "run/best.pth", tmp_path / "large.png", "--trust", "--output", tmp_path / "out")
    status, said = run("infer", *arguments)
    assert status == 2 and "raise data.max_pixels" in said
    assert run("infer", *arguments, "data.max_pixels=90000000")[0] == 0
    large = draw_set(tmp_path / "data")
    (tmp_path / "yolo/images").mkdir(parents=True)
    (tmp_path / "yolo/labels").mkdir()
    (tmp_path / "large.png").rename(tmp_path / "yolo/images/large.png")
    (tmp_path / "yolo/labels/large.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    arguments = ("yolo", tmp_path / "yolo", "--classes", "cat", "--output", large / "yolo.json")
    status, said = run("convert_annotations", *arguments)
    assert status == 2 and "raise --max-pixels" in said
    assert run("convert_annotations", *arguments, "--max-pixels", 90000000)[0] == 0


def test_other_scales_of_test_time_augmentation(trained: Path, tmp_path: Path):
    image = next((trained / "data/images").iterdir())
    arguments = (trained / "run/best.pth", image, "--trust", "--output", tmp_path / "out", "--tta")
    assert run("infer", *arguments, "data.tta.scales=[0.75,1]")[0] == 0
    status, said = run("infer", *arguments, "data.tta.scale=[1]")
    assert status == 2 and "did you mean 'scales'" in said


def test_a_folder_that_holds_a_training(trained: Path):
    status, said = run("train", trained / "tiny.yaml", "--output", trained / "run")
    assert status == 2 and "add --resume" in said
    assert run("train", trained / "tiny.yaml", "--output", trained / "run", "--resume")[0] == 0


def test_more_objects_than_detections_that_count(trained: Path, tmp_path: Path):
    truth = json.loads((trained / "data/val.json").read_text())
    image, category = truth["images"][0]["id"], truth["categories"][0]["id"]
    boxes = [[n % 12 * 4.0, n // 12 * 3.0, 3.0, 2.0] for n in range(150)]
    truth["annotations"] = [
        {"id": n, "image_id": image, "category_id": category, "bbox": box} for n, box in enumerate(boxes, start=1)
    ]
    found = [{"image_id": image, "category_id": category, "bbox": box, "score": 0.5} for box in boxes]
    (tmp_path / "a.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(found))
    arguments = (
        "--detections",
        tmp_path / "found.json",
        "--annotations",
        tmp_path / "a.json",
        "--output",
        tmp_path / "out",
    )
    status, said = run("evaluate", *arguments)
    (remedy,) = re.findall(r"evaluate\.max_detections=\[[\d,]*\]", said)
    assert status == 0 and run("evaluate", *arguments, remedy)[0] == 0
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["bbox"]["AP"] < 0.7 and metrics["configured"]["AP@1000"] == pytest.approx(1)
