"""The report of a run: every section, whatever the data; in a training it is refreshed, and never ends it."""

import json
import logging
import platform
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.insight import coco_file, results, scored
from helpers.training import MODEL, add_outlines, assert_same_training, draw_set, train, write_config, write_json

from detector.cli import report as command
from detector.config.config import parse_config
from detector.errors import DataError
from detector.evaluation.coco import Scored, score_results
from detector.insight.analysis import analyse
from detector.insight.funnel import STEPS, Loss
from detector.insight.page import MARK
from detector.insight.report import FILE, SECTIONS, report_page, run_report, write_report
from detector.insight.run_report import RunReport
from detector.insight.verdict import verdict
from detector.insight.versus import check_comparable
from detector.training import reporting

HOSTILE = '<script>alert("x")</script>'
MOST = 5_000_000  # bytes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of two epochs with its report."""
    folder = tmp_path_factory.mktemp("report")
    data = draw_set(folder / "data")
    assert train(write_config(folder / "tiny.yaml", data, report=True), folder / "run") == 0
    return folder / "run"


def check_page(text: str, sections: int = len(SECTIONS)) -> None:
    """Complete, below the limit, and without anything from elsewhere."""
    assert text.startswith(MARK) and text.endswith("</html>\n") and len(text.encode()) < MOST
    assert len(re.findall(r"<h2 ", text)) == sections
    assert not re.search(r"<script|<link|<iframe|@import|url\(|src=\"(?!data:image/jpeg;base64,)|href=\"(?!#)", text)
    for tag in ("table", "figure", "svg", "div", "p", "details"):
        assert len(re.findall(rf"<{tag}[ >]", text)) == text.count(f"</{tag}>"), tag


def test_a_training_leaves_a_complete_page(run: Path):
    text = (run / FILE).read_text()
    check_page(text)
    for words in (
        " of 2, step ",
        f"detector train {run / 'config.yaml'} --output {run}-again",
        "Losses in training",
        "GFLOPs",
    ):
        assert words in text
    assert all(f">{name}<" in text for name in list(STEPS)[:-1]) and "The training goes on" not in text
    assert f"report: {run / FILE}" in (run / "train.log").read_text()
    assert "machine: " in (run / "train.log").read_text()


def test_the_page_is_refreshed_at_each_evaluation_and_reports_change_no_training(tmp_path: Path, monkeypatch):
    data, seen = draw_set(tmp_path / "data"), []

    def record(path: Path, reports: list[RunReport]) -> None:
        write_report(path, reports)
        [report] = reports
        page = path.read_text()
        assert f"python {platform.python_version()}" in page and ("train.log from" in page) == report.finished
        seen.append(
            (report.finished, report.step, [row["epoch"] for row in report.record.evaluations], report.speed is None)
        )

    monkeypatch.setattr(reporting, "write_report", record)
    config = write_config(tmp_path / "c.yaml", data, report=True)
    assert train(config, tmp_path / "with") == 0
    assert seen == [(False, 3, [1], True), (False, 6, [1, 2], True), (True, seen[-1][1], [1, 2], False)]
    assert train(config, tmp_path / "without", ["train.report=false"]) == 0
    assert len(seen) == 3 and not (tmp_path / "without" / FILE).exists()
    assert_same_training(tmp_path / "with", tmp_path / "without", but="/config/train/report")


@pytest.mark.parametrize("part", ["run_report", "report_of_run"])
def test_a_report_that_fails_is_a_warning(part: str, tmp_path: Path, monkeypatch):
    def fail(*args: Any, **options: Any) -> None:
        raise ValueError("a fault")

    monkeypatch.setattr(reporting, part, fail)
    data = draw_set(tmp_path / "data")
    assert train(write_config(tmp_path / "c.yaml", data, report=True, epochs=1), tmp_path / "run") == 0
    log = (tmp_path / "run/train.log").read_text()
    assert f"{FILE}: not written (ValueError: a fault); the training is not affected" in log and "done: " in log


def test_a_file_of_somebody_else_is_not_written_over(run: Path, tmp_path: Path, capsys):
    page = tmp_path / "page.html"
    page.write_text("<html>mine</html>")
    assert command.main([str(run), "--output", str(page)]) == 2
    assert "page.html: not of an earlier report, and would be written over" in capsys.readouterr().err
    assert page.read_text() == "<html>mine</html>"


def test_the_command_and_its_errors(run: Path, tmp_path: Path, capsys):
    page = tmp_path / "new/folder/page.html"
    for _ in range(2):  # an earlier report is replaced
        assert command.main([str(run), "--output", str(page), "--device", "cpu", "--trust"]) == 0
    assert re.fullmatch(r".*page.html: \d\.\d\d MB\n", capsys.readouterr().out.splitlines(keepends=True)[-1])
    check_page(page.read_text())
    assert command.main([str(tmp_path / "none")]) == 2
    assert "none: no such folder; name that of a training" in capsys.readouterr().err
    assert command.main([str(run), str(tmp_path), "--trust", "--output", str(page)]) == 2
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path / 'best.pth'}: no such checkpoint\n"  # before the first run is looked at
    with pytest.raises(SystemExit, match="2"):
        command.main(["data.root=x"])
    assert command.main([str(run), "--trust", f"data.root={tmp_path}"]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_two_runs_are_compared_and_must_have_the_same_val(run: Path, tmp_path: Path, capsys):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    page = tmp_path / "both.html"
    assert command.main([str(run), str(other), "--trust", "--output", str(page)]) == 0
    text = page.read_text()
    check_page(text, 1 + 2 * len(SECTIONS))
    assert (
        "other less run" in text and "No clear difference: +0.0 AP" in text and "are of 1000 bootstrap samples" in text
    )
    assert re.findall(r'id="(r\d-misses|versus)"', text) == ["versus", "r0-misses", "r1-misses"]
    shutil.copytree(run.parent / "data", tmp_path / "data")
    content = json.loads((tmp_path / "data/val.json").read_text())
    content["images"] = content["images"][:1]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    write_json(tmp_path / "data/val.json", content)
    config = write_config(tmp_path / "c.yaml", tmp_path / "data", report=False, epochs=1)
    assert train(config, tmp_path / "less") == 0
    capsys.readouterr()
    assert command.main([str(run), str(tmp_path / "less"), "--trust", "--output", str(page)]) == 2
    assert "are scored on different images or objects (data.val)" in capsys.readouterr().err


def test_names_of_classes_and_files_are_text(tmp_path: Path):
    data = draw_hostile(tmp_path)
    assert train(write_config(tmp_path / "c.yaml", data, report=True, epochs=1), tmp_path / "run") == 0
    text = (tmp_path / "run" / FILE).read_text()
    check_page(text)
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;" in text and "&lt;b&gt;&amp;.png" in text


def draw_hostile(folder: Path) -> Path:
    """A set whose class and file names look like HTML."""
    data = draw_set(folder / "data")
    for split in ("train", "val"):
        content = json.loads((data / f"{split}.json").read_text())
        content["categories"][0]["name"] = HOSTILE
        for entry in content["images"]:
            new = f"{entry['file_name'][:-4]}<b>&.png"
            (data / "images" / entry["file_name"]).rename(data / "images" / new)
            entry["file_name"] = new
        write_json(data / f"{split}.json", content)
    return data


def test_a_run_with_masks_reports_both(tmp_path: Path):
    data = draw_set(tmp_path / "data")
    for split in ("train", "val"):
        add_outlines(data / f"{split}.json")
    config = write_config(tmp_path / "c.yaml", data, report=True, epochs=1)
    mask = "model.roi_head.mask_head={width: 16, convs: 1}"
    assert train(config, tmp_path / "run", [mask]) == 0
    text = (tmp_path / "run" / FILE).read_text()
    check_page(text)
    assert text.count("<h3>Masks</h3>") == 6 == text.count("<h3>Boxes</h3>") and "poor mask" in text


@pytest.mark.parametrize("kind", ["no objects", "one image", "an RPN alone"])
def test_small_and_empty_sets_give_a_page(kind: str, tmp_path: Path):
    data, changes = draw_set(tmp_path / "data"), []
    content = json.loads((data / "val.json").read_text())
    if kind == "no objects":
        content["annotations"] = []
    elif kind == "one image":
        content["images"] = content["images"][1:]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
    else:
        changes = ["model.roi_head=none"]
    write_json(data / "val.json", content)
    assert train(write_config(tmp_path / "c.yaml", data, report=True, epochs=1), tmp_path / "run", changes) == 0
    text = (tmp_path / "run" / FILE).read_text()
    check_page(text)
    assert "not written" not in (tmp_path / "run/train.log").read_text()
    words = {
        "no objects": "Nothing can be scored",
        "one image": "1 image in the split",
        "an RPN alone": "suppressed at the end",
    }
    assert words[kind] in text and "nan" not in re.sub(r"base64,[\w+/=]*", "", text).lower().replace("nano", "")


def test_a_verdict_praises_no_detector_that_finds_nothing(tmp_path: Path):
    box, far = (10.0, 10.0, 50.0, 50.0), (120.0, 120.0, 30.0, 30.0)
    objects = [(1, 1, box)]
    wrong = verdict(analyse(scored(tmp_path / "a.json", objects, [(1, 1, far, 0.9)]), samples=2)["bbox"])
    assert wrong[0].startswith(
        "No kind of error alone costs more than 0.5 AP50, which is 0.0:"
    )  # each kind hides the other
    right = verdict(analyse(scored(tmp_path / "a.json", objects, [(1, 1, box, 0.9)]), samples=2)["bbox"])
    assert right[0].endswith("what is left is how exactly objects are outlined.")


class Pictures:
    """A data set of grey images, as large as a test wants it."""

    def __init__(self, scored: Scored):
        self.image_ids, self.annotation_file = np.array(scored.scope.coco.image_ids), scored.scope.coco.path

    def image(self, i: int) -> torch.Tensor:
        return torch.full((3, 120, 160), 128, dtype=torch.uint8)


def synthetic(folder: Path, images: int, classes: int, objects: int) -> tuple[Scored, dict[int, Loss]]:
    """So many images, classes and objects an image, of which some are found."""
    rng = np.random.default_rng(0)
    names = [f"class {k} with a name" for k in range(classes)]
    truth, found = [], []
    for image in range(1, images + 1):
        for _ in range(objects):
            category = int(rng.integers(1, classes + 1))
            box = (*rng.uniform(0, 150, 2).tolist(), *rng.uniform(8, 50, 2).tolist())
            truth.append((image, category, box))
            if rng.random() < 0.8:
                moved = (box[0] + float(rng.normal(0, 3)), *box[1:])
                found.append((image, category if rng.random() < 0.9 else 1, moved, float(rng.beta(4, 2))))
            found.append((image, int(rng.integers(1, classes + 1)), (1.0, 1.0, 30.0, 30.0), float(rng.beta(2, 4))))
    path = coco_file(folder / "a.json", truth, images=images, names=names)
    scored = score_results(path, results(*found))
    return scored, {entry["id"]: Loss(int(rng.integers(0, 7)), int(rng.integers(2, 6))) for entry in scored.objects}


@pytest.mark.slow
@pytest.mark.parametrize(
    "images, classes, objects", [(60, 1203, 20), (10_000, 1, 2)], ids=["1203 classes", "10000 images"]
)
def test_large_sets_give_a_page_in_bounded_time_and_size(images: int, classes: int, objects: int, tmp_path: Path):
    scored, losses = synthetic(tmp_path, images, classes, objects)
    config = parse_config({"model": MODEL | {"num_classes": classes}, "train": {}}, trust=True)
    began = time.perf_counter()
    report = run_report(tmp_path, config, scored, Pictures(scored), losses, data="not checked")
    report.finished = True
    text = report_page([report])
    seconds = time.perf_counter() - began
    logging.getLogger("detector").info(
        "%d images, %d classes: %.1f s, %.2f MB", images, classes, seconds, len(text) / 1e6
    )
    check_page(text)
    assert seconds < 120
    assert sum(counts["all"] for counts in report.boxes.funnel.values()) == report.boxes.missed() > 0


def test_reports_of_other_objects_cannot_be_compared(tmp_path: Path):
    first, _ = synthetic(tmp_path, 3, 2, 2)
    config = parse_config({"model": MODEL | {"num_classes": 2}}, trust=True)
    one = run_report(tmp_path, config, first, Pictures(first), None, data="", samples=3)
    second, _ = synthetic(tmp_path, 4, 2, 2)
    other = run_report(tmp_path, config, second, Pictures(second), None, data="", samples=3)
    check_comparable([one, one])
    with pytest.raises(DataError, match="different images or objects"):
        check_comparable([one, other])
    assert "Where each is lost was not followed" in report_page([one])


def test_a_moved_object_is_another_truth_and_a_new_order_of_the_classes_is_none(tmp_path: Path):
    def report(name: str, width: float, names: list[str]) -> RunReport:
        truth = [(1, names.index("cat") + 1, (0, 0, 20, 10)), (2, names.index("dog") + 1, (5, 5, width, 9))]
        path = coco_file(tmp_path / name, truth, names=names)
        scored = score_results(path, results((1, 1, (0, 0, 20, 10), 0.9)))
        config = parse_config({"model": MODEL | {"num_classes": 2}}, trust=True)
        return run_report(tmp_path, config, scored, Pictures(scored), None, data="", samples=3)

    first = report("a.json", 30, ["cat", "dog"])
    check_comparable([first, report("b.json", 30, ["dog", "cat"])])
    with pytest.raises(DataError, match="different images or objects"):
        check_comparable([first, report("c.json", 31, ["cat", "dog"])])


@pytest.mark.slow
def test_a_browser_without_network_shows_every_section(run: Path, browser: Any):
    for width, scheme in ((1200, "light"), (1200, "dark"), (390, "light")):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        page, asked, faults = context.new_page(), [], []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("console", lambda message, faults=faults: faults.append(message.text))
        page.goto((run / FILE).as_uri())
        shown = page.evaluate("[...document.querySelectorAll('h2')].map(h => [h.innerText, h.offsetHeight > 0])")
        assert shown == [[name, True] for name in SECTIONS]
        assert page.evaluate("[...document.querySelectorAll('.verdict, svg')].every(e => e.clientHeight > 0)")
        page.evaluate("document.querySelector('.facts code').textContent = 'x'.repeat(300)")  # a path without a blank
        tables = ".facts" if width < 500 else "table"  # on a phone the others may scroll
        hidden = f"[...document.querySelectorAll('{tables}')].map(t => t.scrollWidth - t.parentElement.clientWidth)"
        assert max(page.evaluate(hidden)) <= 0
        images = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
        assert images and all(images)
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # wide tables scroll by themselves
        assert not faults and all(url.startswith(("file:", "data:")) for url in asked)
        paper = "getComputedStyle(document.body).backgroundColor"
        assert (page.evaluate(paper) == "rgb(255, 255, 255)") == (scheme == "light")
        page.emulate_media(media="print", color_scheme=scheme)
        assert page.evaluate(paper) == "rgb(255, 255, 255)" and not page.locator("nav").first.is_visible()
        context.close()
