"""Runs in a browser: the counts at every score, a server that shows nothing else, and the page in a real browser."""

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.insight import coco_file, results
from helpers.training import ROOT, draw_set, train, write_config

from detector.browse.gallery import Gallery
from detector.browse.judged import COLUMNS, WRONG, Choice, Judged, outlines_of, size_numbers
from detector.browse.server import FILES, BrowseServer
from detector.cli import browse as command
from detector.data.image import ImageError
from detector.errors import DataError
from detector.evaluation.coco import Scored, score_results
from detector.insight.analysis import analyse
from detector.insight.errors import KINDS, errors_of
from detector.insight.funnel import Loss

HOSTILE = '<img src=x onerror="document.title=1">'
NAMES = ["a", HOSTILE, "c"]
LEFT, RIGHT, SMALL = (10, 10, 100, 100), (120, 20, 60, 60), (150, 150, 20, 20)
TRUTH = [(1, 1, LEFT), (1, 2, RIGHT), (2, 1, SMALL), (2, 1, LEFT), (3, 3, LEFT)]
NEAR = (10, 10, 100, 45)  # an IoU of 0.45 with LEFT
FOUND = [
    (1, 1, LEFT, 0.9), (1, 1, LEFT, 0.7), (1, 1, RIGHT, 0.6), (1, 3, SMALL, 0.3),  # right, Dupe, Cls, Bkg
    (2, 1, SMALL, 0.4), (2, 1, NEAR, 0.8), (2, 2, NEAR, 0.75),  # right, Loc, Both
]  # fmt: skip
OTHER = [(1, 1, LEFT, 0.9), (1, 2, RIGHT, 0.8), (2, 1, SMALL, 0.2), (3, 2, LEFT, 0.95)]  # three right, Cls
TOP_K = 1  # the step that loses every object here


class Pictures:
    """Plain pictures of 200 x 200 pixels, the last of which is gone."""

    def __init__(self, images: int):
        self.image_ids, self.sizes = np.arange(1, images + 1), np.full((images, 2), 200)
        self.annotation_file = Path("truth.json")

    def full_names(self) -> list[str]:
        return [f"images/{number}<b>&.png" for number in self.image_ids]

    def image(self, i: int) -> torch.Tensor:
        if i == len(self.image_ids) - 1:
            raise ImageError("images/last.png: no such image")
        return torch.full((3, 200, 200), (60 + 40 * i) % 256, dtype=torch.uint8)


def judged(folder: Path, rows: list[tuple], name: str = "run", **options: Any) -> Judged:
    path = coco_file(folder / "truth.json", TRUTH, images=4, names=NAMES)
    scored = score_results(path, results(*rows, **options))
    return Judged(name, scored, {entry["id"]: Loss(TOP_K, 3) for entry in scored.objects})


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery(Pictures(4), [judged(tmp_path, FOUND, "one"), judged(tmp_path, OTHER, "two <i>")])


@contextmanager
def served(gallery: Gallery) -> Iterator[BrowseServer]:
    with BrowseServer(0) as server:
        server.gallery = gallery
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def asked(
    server: BrowseServer, path: str, method: str = "GET", host: str | None = "127.0.0.1"
) -> tuple[int, dict, bytes]:
    """Status, headers and content."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read()


def sums(run: Judged, **choice: Any) -> dict[str, int]:
    """The totals that are not zero."""
    total = dict(zip(COLUMNS, run.counts(Choice(**choice)).sum(axis=0).tolist()))
    return {name: count for name, count in total.items() if count}


def test_counts_by_hand(tmp_path: Path):
    run = judged(tmp_path, FOUND)
    every = {"right": 2, "Cls": 1, "Loc": 1, "Both": 1, "Dupe": 1, "Bkg": 1, "Miss": 1, "unfound": 3}
    assert sums(run, score=0) == every
    # the small object is found with 0.4 alone; of the others only that of class c has nothing near
    assert sums(run, score=0.5) == {**{k: 1 for k in ("right", "Cls", "Loc", "Both", "Dupe")}, "Miss": 2, "unfound": 4}
    assert sums(run, score=0.8) == {"right": 1, "Loc": 1, "Miss": 3, "unfound": 4}  # a score counts from its value on
    assert sums(run, score=0.8001) == {"right": 1, "Miss": 4, "unfound": 4}
    assert sums(run, score=1) == {"Miss": 5, "unfound": 5}
    assert sums(run, score=0, label=1) == {"Both": 1, "unfound": 1}
    # 20 x 20 and 100 x 45 and 60 x 60 and 100 x 100 pixels
    assert sums(run, score=0, size=0) == {"right": 1, "Bkg": 1}
    assert sums(run, score=0, size=1) == {"Cls": 1, "Loc": 1, "Both": 1, "unfound": 1}
    assert sums(run, score=0, size=2) == {"right": 1, "Dupe": 1, "Miss": 1, "unfound": 2}
    assert size_numbers(np.array([1023, 1024, 9215, 9216])).tolist() == [0, 1, 1, 2]
    assert sums(judged(tmp_path, []), score=0) == {"Miss": 5, "unfound": 5}
    assert run.counts(Choice(0))[:, COLUMNS.index("right")].tolist() == [1, 1, 0, 0]


def test_images_of_subfolders_are_told_apart(tmp_path: Path):
    pictures, run = Pictures(3), judged(tmp_path, FOUND)
    run.image_ids = [1, 2, 3]
    pictures.full_names = lambda: ["val/day/1.png", "val/night/1.png", "val/night/<b>/2.png"]  # type: ignore[method-assign]
    assert Gallery(pictures, [run]).names == ["day/1.png", "night/1.png", "night/<b>/2.png"]
    pictures.full_names = lambda: ["val/a/1.png", "val/a/2.png", "val/a/3.png"]  # type: ignore[method-assign]
    assert Gallery(pictures, [run]).names == ["1.png", "2.png", "3.png"]


def drawn_at_random(folder: Path) -> Scored:
    rng, truth, found = np.random.default_rng(5), [], []
    for image in range(1, 13):
        for _ in range(5):
            category, box = int(rng.integers(1, 4)), (*rng.uniform(0, 120, 2), *rng.uniform(8, 110, 2))
            truth.append((image, category, tuple(map(float, box)), {"iscrowd": int(rng.random() < 0.1)}))
            for _ in range(3):
                near = tuple(map(float, np.array(box) + rng.normal(0, 8, 4).clip(-6, 30)))
                found.append((image, int(rng.integers(1, 4)), near, round(float(rng.random()), 2)))
    return score_results(coco_file(folder / "random.json", truth, images=12), results(*found))


def test_counts_are_the_reports_and_at_any_score_those_of_a_new_evaluation(tmp_path: Path):
    """Detections below the score are left out before COCO matches them: nothing else changes."""
    scored = drawn_at_random(tmp_path)
    losses = {entry["id"]: Loss(TOP_K, 3) for entry in scored.objects}
    run, report = Judged("run", scored, losses), analyse(scored, losses, samples=2)["bbox"]
    assert Judged("of stages that cannot be traced", scored, None).lost == {} != run.lost
    counts = sums(run, score=0)
    assert {kind: counts.get(kind, 0) for kind in KINDS} == {kind: report.errors.count(kind) for kind in KINDS}
    assert all(counts.get(kind, 0) > 3 for kind in KINDS)
    assert (counts["unfound"], len(run.lost)) == (report.missed(), report.missed())
    for score in (0.1, 0.5, 0.77, 0.95):
        kept = [
            {key: row[key] for key in ("image_id", "category_id", "bbox", "score")}
            for row in scored.detections
            if row["score"] >= score
        ]
        again = errors_of(score_results(tmp_path / "random.json", kept).counts["bbox"])
        counts = sums(run, score=score)
        assert {kind: counts.get(kind, 0) for kind in KINDS} == {kind: again.count(kind) for kind in KINDS}
        assert counts["unfound"] == (~again.found()).sum()
        by_choice = [run.counts(Choice(score, label, size)) for label in range(3) for size in range(3)]
        assert (sum(by_choice) == run.counts(Choice(score))).all()  # classes and sizes part all that there is


def test_an_image_has_its_objects_and_detections(gallery: Gallery):
    image = gallery.image(0)
    assert (image["name"], image["id"], image["width"], image["height"]) == ("1<b>&.png", 1, 200, 200)
    assert [(o["label"], o["box"], o["size"], o["outlines"]) for o in image["objects"]] == [
        (0, list(LEFT), 2, []), (1, list(RIGHT), 1, []),
    ]  # fmt: skip
    one, two = image["runs"]
    assert [(d["kind"], d["score"], d["object"], d["iou"]) for d in one["detections"]] == [
        ("right", 0.9, 0, 1), ("Dupe", 0.7, 0, 1), ("Cls", 0.6, 1, 1), ("Bkg", 0.3, -1, 0),
    ]  # fmt: skip
    assert one["lost"] == [None, "top-k"] and two["lost"] == [None, None]
    assert gallery.image(3) == {
        "name": "4<b>&.png", "id": 4, "width": 200, "height": 200, "objects": [],
        "runs": [{"detections": [], "lost": []}] * 2,
    }  # fmt: skip


def test_masks_are_outlines_and_judge(tmp_path: Path):
    run = judged(tmp_path, [(1, 1, LEFT, 0.9), (1, 2, NEAR, 0.8)], masks=True)
    assert run.shape == "segm"
    found = run.detections_of(0)
    assert [(d["kind"], d["outlines"]) for d in found] == [
        ("right", [[10, 10, 110, 10, 110, 110, 10, 110]]), ("Both", [[10, 10, 110, 10, 110, 55, 10, 55]]),
    ]  # fmt: skip
    bitmap = np.zeros((6, 7), dtype=np.uint8)
    bitmap[1:5, 2:6], bitmap[2, 3] = 1, 0
    from pycocotools import mask as coco_mask

    outer, hole = outlines_of(coco_mask.encode(np.asfortranarray(bitmap)))
    assert outer == [2, 1, 6, 1, 6, 5, 2, 5] and sorted(zip(hole[::2], hole[1::2])) == [(3, 2), (3, 3), (4, 2), (4, 3)]


def test_the_list_has_what_is_chosen_in_order(gallery: Gallery):
    def rows(kind: str = "", order: str = "errors", **choice: Any) -> list[int]:
        return [row[0] for row in gallery.listed(Choice(**choice), kind, order)["rows"]]

    assert gallery.listed(Choice(0.5))["rows"][0] == [
        1,
        0,
        2,
        2,
        4,
        0,
        0,
        2,
        2,
    ]  # right, wrong, unfound, errors: of each run
    assert rows(order="split") == [0, 1, 2, 3] and rows() == [1, 0, 2, 3]
    assert rows("Cls") == [0, 2] and rows("Dupe") == [0] and rows("Miss") == [1, 2]
    assert rows(label=2) == [2] and rows(size=0) == [1] and rows("Bkg") == []
    assert rows(order="worse")[0] == 2 and rows(order="better")[0] == 0
    totals = gallery.listed(Choice(0.5))["totals"]
    assert [total["right"] for total in totals] == [1, 2] and [total["unfound"] for total in totals] == [4, 3]


def test_runs_on_other_truth_cannot_be_compared(tmp_path: Path):
    one = judged(tmp_path, FOUND)
    path = coco_file(tmp_path / "less.json", TRUTH[:-1], images=4, names=NAMES)
    other = Judged("other", score_results(path, results(*FOUND)), {n: Loss(TOP_K, 3) for n in range(1, 6)})
    with pytest.raises(DataError, match="other and run are scored on different images, objects or classes"):
        Gallery(Pictures(4), [one, other])


def test_the_server_shows_the_page_and_nothing_else(gallery: Gallery):
    with served(gallery) as server:
        assert server.server_address[0] == "127.0.0.1"  # not reachable from elsewhere
        for path in FILES:
            status, headers, content = asked(server, path)
            assert status == 200 and content and "default-src 'none'" in headers["Content-Security-Policy"]
            assert not re.search(rb"https?://(?!www\.w3\.org/2000/svg)|@import|url\(|innerHTML|eval\(", content), path
        start = json.loads(asked(server, "/data.json")[2])
        assert start["classes"] == NAMES and start["runs"] == ["one", "two <i>"] and len(start["images"]) == 4
        status, headers, content = asked(server, "/image/0.jpg")
        assert (status, headers["Content-Type"], content[:2]) == (200, "image/jpeg", b"\xff\xd8")
        assert json.loads(asked(server, "/image/2.json")[2])["id"] == 3
        assert asked(server, "/image/3.jpg")[::2] == (410, b"images/last.png: no such image\n")
        for path in ("/image/4.jpg", "/image/-1.jpg", "/image/0.png", "/image/..%2f0.jpg", "/image/", "/detector",
                     "/../server.py", "/%2e%2e/server.py", "/page.py", "//etc/passwd", "/etc/passwd"):  # fmt: skip
            assert asked(server, path)[0] == 404, path
        for query in (
            "score=nan",
            "score=2",
            "label=3",
            "label=x",
            "size=9",
            "kind=right",
            "order=x",
            "path=/etc",
            "x",
        ):
            assert asked(server, f"/list.json?{query}")[0] == 400, query
        assert json.loads(asked(server, "/list.json?score=0&label=2&kind=Bkg&order=split")[2])["rows"][0][0] == 0


def test_the_server_only_reads_and_only_for_this_machine(gallery: Gallery):
    with served(gallery) as server:
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            assert asked(server, "/data.json", method)[0] == 501, method
        status, headers, content = asked(server, "/data.json", "HEAD")
        assert (status, content) == (200, b"") and int(headers["Content-Length"]) > 100
        for host in ("127.0.0.1:9", "localhost", "LOCALHOST:8900"):  # any port: a tunnel has another
            assert asked(server, "/data.json", host=host)[0] == 200, host
        for host in (
            None,
            "",
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "[",
            "user@127.0.0.2",
        ):
            status, headers, content = asked(server, "/image/0.jpg", host=host)
            assert (status, content) == (403, b"open the address that the command printed\n"), host
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and "Python" not in headers["Server"]


def test_a_port_that_is_taken_and_wrong_runs_are_one_error(tmp_path: Path, capsys: pytest.CaptureFixture):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "best.pth").touch()
        assert command.main([str(tmp_path), "--port", str(port)]) == 2
        (tmp_path / "best.pth").unlink()
    said = capsys.readouterr().err
    assert f"error: --port {port}: cannot be opened (another program has it); --port 0 takes a free one\n" == said
    exported = tmp_path / "model.onnx"
    exported.write_bytes(b"x")
    for run, words in [(tmp_path, "best.pth: no such checkpoint"), (tmp_path / "none", "no such folder; name that of a training"),
                       (exported, "no such folder; name that of a training")]:  # fmt: skip
        assert command.main([str(run), "--port", "0"]) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1
    for arguments in (["data.root=x"], ["a", "b", "c"], ["a", "--port", "65536"]):
        with pytest.raises(SystemExit, match="2"):
            command.main(arguments)


@pytest.mark.slow
def test_the_command_serves_a_run_until_it_is_interrupted_and_writes_nothing(tmp_path: Path):
    data = draw_set(tmp_path / "data")
    assert train(write_config(tmp_path / "tiny.yaml", data, epochs=1), tmp_path / "run") == 0
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    program = [
        sys.executable,
        "-m",
        "detector",
        "browse",
        tmp_path / "run",
        tmp_path / "other",
        "--trust",
        "--port",
        "0",
    ]
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    process = subprocess.Popen(
        program, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        port, images = re.fullmatch(
            r"http://127\.0\.0\.1:(\d+)/  run and other, (\d+) images; Ctrl-C ends it\n", line
        ).groups()
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=10)
        connection.request("GET", "/data.json")
        start = json.loads(connection.getresponse().read())
        assert len(start["images"]) == int(images) == 2 and start["runs"] == ["run", "other"]
    finally:
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=30)
    assert process.returncode == 130 and rest[0] == "" and rest[1].splitlines()[-1] == "stopped by SIGINT"
    assert "Traceback" not in rest[1] and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@contextmanager
def opened(browser: Any, server: BrowseServer, **options: Any) -> Iterator[Any]:
    """The page when it has its first counts; afterwards nothing was complained of, and nothing asked for elsewhere."""
    context = browser.new_context(**options)
    page, faults, addresses = context.new_page(), [], []
    page.on("console", lambda message: faults.append(message.text) if "410" not in message.text else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(server.url)
    page.wait_for_selector("body[data-counted]")
    yield page
    context.close()
    assert not faults and all(address.startswith((server.url, "data:")) for address in addresses)


def totals(page: Any) -> list[dict[str, str]]:
    head, *rows = [
        [cell.strip() for cell in row.split("\t")] for row in page.locator("#totals").inner_text().split("\n") if row
    ]
    return [dict(zip(head, row)) for row in rows]


def counted(page: Any, act: Any) -> list[dict[str, str]]:
    """The totals when they are new after an act."""
    page.evaluate("delete document.body.dataset.counted")
    act()
    page.wait_for_selector("body[data-counted]")
    return totals(page)


def wait_for(page: Any, part: str, text: str) -> None:
    """Until a part of the page begins so; the page's policy forbids the browser's own polling of expressions."""
    page.locator(f"#{part}", has_text=re.compile(f"^{re.escape(text)}")).wait_for()


def listed(page: Any) -> list[str]:
    return [text.split("\n")[0] for text in page.locator(".row").all_inner_texts()]


@pytest.mark.slow
def test_a_browser_counts_filters_and_walks(gallery: Gallery, browser: Any):
    with served(gallery) as server, opened(browser, server, viewport={"width": 1200, "height": 800}) as page:
        first, second = totals(page)
        assert (first["run"], second["run"]) == ("one", "two <i>") and page.title() == "one | two <i>"
        assert [first[name] for name in ("objects", "right", "not found", "Cls", "Bkg", "Miss", "precision", "recall")] == [
            "5", "1", "4", "1", "0", "2", "0.200", "0.200",
        ]  # fmt: skip
        assert listed(page) == ["2<b>&.png", "1<b>&.png", "3<b>&.png", "4<b>&.png"]
        # the slider
        first, _ = counted(page, lambda: page.locator("#score").fill("0.35"))
        assert (first["right"], first["not found"], page.locator("#least").inner_text()) == ("2", "3", "0.35")
        first, _ = counted(page, lambda: page.locator("#score").fill("0"))
        assert {kind: first[kind] for kind in KINDS} == dict.fromkeys(KINDS, "1")
        # filters
        counted(page, lambda: page.get_by_role("button", name="Bkg", exact=True).click())
        assert listed(page) == ["1<b>&.png"] and page.locator("#marks g:not(.aside)").count() == 1
        counts = page.locator("#row0 > div").last
        assert re.fullmatch(r"\d ✓1 Bkg\|\d ✓0 Bkg", counts.text_content()) and counts.evaluate(
            "e => e.scrollWidth <= e.clientWidth"
        )
        counted(page, lambda: page.get_by_role("button", name="Bkg", exact=True).click())
        first, _ = counted(page, lambda: page.locator("#size").select_option("small"))
        assert (first["right"], first["objects"]) == ("1", "1") and len(listed(page)) == 2
        counted(page, lambda: page.locator("#size").select_option("all"))
        first, second = counted(page, lambda: page.locator("#label").select_option(HOSTILE))
        assert (first["objects"], first["Both"], second["right"]) == ("1", "1", "1")
        counted(page, lambda: page.locator("#label").select_option("all"))
        # two runs: where the second is worse
        counted(page, lambda: page.locator("#order").select_option("second run worse"))
        assert listed(page)[0] == "3<b>&.png"
        counted(page, lambda: page.locator("#order").select_option("as in the split"))
        # keys
        name, place = page.locator("#name"), page.locator("#place")
        page.locator("body").click(position={"x": 2, "y": 2})
        page.keyboard.press("Home")
        wait_for(page, "name", "1")
        assert place.inner_text() == "1 of 4" and page.locator("#marks g").count() == 2 + 4 + 2
        page.keyboard.press("t")
        assert page.locator("#marks .object").count() == 0
        page.keyboard.press("t")
        page.keyboard.press("2")
        assert page.locator("#marks g").count() == 2 + 4 and page.locator("#marks .lost").count() == 1
        page.keyboard.press("1")
        assert page.locator("#marks g").count() == 2
        page.keyboard.press("d")
        assert page.locator("#marks g").count() == 2 + 4 + 2
        counted(page, lambda: page.keyboard.press("+"))
        assert page.locator("#least").inner_text() == "0.05"
        wide = page.locator("#picture").bounding_box()["width"]
        page.keyboard.press("z")
        assert page.locator("#picture").bounding_box()["width"] == pytest.approx(3 * wide, abs=2)
        page.keyboard.press("z")
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()
        page.keyboard.press("Escape")
        assert not page.locator("#help").is_visible()
        # a mark says what it is
        page.locator("#items button", has_text="Dupe").click()
        assert "an object that is found already. The object is a, IoU 1.00." in page.locator("#said").inner_text()
        assert page.locator("#marks g:not(.aside)").count() == 2  # with its object
        page.locator("#items button", has_text=HOSTILE).first.click()
        assert "one: Not found at any score. Lost as “top-k”" in page.locator("#said").inner_text()
        assert "two <i>: Found with score 0.80, IoU 1.00." in page.locator("#said").inner_text()
        page.keyboard.press("j")
        wait_for(page, "name", "2")
        page.keyboard.press("ArrowLeft")
        wait_for(page, "name", "1")
        page.keyboard.press("End")
        wait_for(page, "fault", "images/last.png: no such image")
        assert name.inner_text() == "4<b>&.png" and page.locator("#main b, #name b").count() == 0


@pytest.mark.slow
def test_the_marks_of_the_page_are_the_counts_of_the_server(gallery: Gallery, browser: Any):
    with served(gallery) as server, opened(browser, server, viewport={"width": 1200, "height": 800}) as page:
        for score in ("0", "0.45", "0.65", "0.78", "1"):
            counted(page, lambda score=score: page.locator("#score").fill(score))
            table = gallery.runs[0].counts(Choice(float(score)))
            page.keyboard.press("Escape")
            for image in range(3):
                page.locator(".row", has_text=f"{image + 1}<b>").click()
                wait_for(page, "name", f"{image + 1}")
                right, wrong = (page.locator(f"#marks .first.{kind}").count() for kind in ("right", "wrong"))
                assert [right, wrong] == [table[image, 0], table[image, WRONG].sum()]
                notes = page.locator("#items button .found, #items button .lost").all_inner_texts()
                first = [note.split(" | ")[0] for note in notes]
                assert first.count("Miss") == table[image, COLUMNS.index("Miss")], (score, image, notes)
                assert len(first) - first.count("found") == table[image, -1]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_everything_in_its_width(scheme: str, gallery: Gallery, browser: Any):
    options = {"viewport": {"width": 390, "height": 800}, "color_scheme": scheme}
    with served(gallery) as server, opened(browser, server, **options) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        page.get_by_role("button", name="Next image").click()
        wait_for(page, "name", "1")  # written together with the picture
        box = page.locator("#picture").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390 and box["width"] > 300
        assert page.locator("#list").is_visible() and page.locator("#items").is_visible()


@pytest.mark.slow
def test_ten_thousand_images_stay_small_and_quick(tmp_path: Path, browser: Any):
    rng = np.random.default_rng(0)
    truth = [(image, 1, LEFT) for image in range(1, 10_001)]
    found = [(image, 1, LEFT, float(rng.random())) for image in range(1, 10_001) for _ in range(3)]
    path = coco_file(tmp_path / "many.json", truth, images=10_000, names=NAMES[:1])
    scored = score_results(path, results(*found))
    gallery = Gallery(
        Pictures(10_000), [Judged("many", scored, {entry["id"]: Loss(TOP_K, 3) for entry in scored.objects})]
    )
    with served(gallery) as server, opened(browser, server, viewport={"width": 1200, "height": 800}) as page:
        assert len(asked(server, "/data.json")[2]) < 300_000 and len(asked(server, "/list.json")[2]) < 300_000
        assert page.locator(".row").count() < 60 and page.locator("#place").inner_text() == "1 of 10000"
        page.keyboard.press("End")
        wait_for(page, "place", "10000 of 10000")
        assert page.locator(".row[aria-selected=true]").is_visible()
