"""Inference on files, folders and patterns: what is found, written, skipped and refused; and the pictures of detections."""

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageChops
from torch import Tensor

import detector
from detector.cli.infer import main
from detector.data.image import SUFFIXES, WRITABLE
from detector.errors import DataError
from detector.inference.drawing import class_colour, draw_detections, luminance
from detector.inference.folder import find_images, infer_images
from detector.inference.label_places import place_labels
from detector.structures import Detections


class FakePredictor:
    """Finds in every image one object of 0.9 in its left half and one of 0.3 in the other."""

    max_pixels = 10_000
    bit_depth = None
    label_ids = (3, 7)
    config = SimpleNamespace(data=None)

    def __init__(self):
        self.batches: list[int] = []

    def stream(self, images: Iterable[Tensor], batch: int, tiles: None) -> Iterator[Detections]:
        images = list(images)
        self.batches.append(len(images))
        return iter([self.find(image.shape[2], image.shape[1]) for image in images])

    def check_pictures(self) -> None:
        """Pictures are enough."""

    def find(self, w: int, h: int) -> Detections:
        boxes = torch.tensor([[0.0, 0.0, w / 2, h], [w / 2, 0.0, w, h]])
        return Detections(boxes, torch.tensor([0.9, 0.3]), torch.tensor([1, 0]), ["cell", "dust"])


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """photos/{a.png, b.jpg, notes.txt, .hidden.png, day/a.png}; the current folder is the one above."""
    for name in ("a.png", "b.jpg", ".hidden.png", "day/a.png"):
        write_image(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def write_image(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(path)


def names(paths: list[str], output: str = "out") -> list[str]:
    return [job.name for job in find_images(paths, Path(output))]


def test_folders_files_and_patterns_are_searched_and_what_is_no_image_is_counted_or_refused(photos, caplog):
    # Equal names are told apart, equal files are not repeated.
    assert names(["photos"]) == names(["photos/"]) == names([str(photos)]) == ["a.png", "b.jpg", "day/a.png"]
    assert names(["photos/day/a.png"]) == ["a.png"]
    assert names(["photos/*"]) == ["a.png", "b.jpg"]
    assert names(["photos/**/*.png"]) == ["a.png", "day/a.png"]
    assert names(["pho*/d?y/[ab].png"]) == ["photos/day/a.png"]
    assert names(["photos/day/a.png", "photos/a.png", "./photos/../photos/a.png"]) == ["day/a.png", "a.png"]
    assert names(["photos/day", "photos"]) == ["day/a.png", "a.png", "b.jpg"]
    (photos / "day/clip.mp4").write_bytes(b"")
    assert names(["photos"]) == ["a.png", "b.jpg", "day/a.png"]
    assert "photos: 2 files are no images, passed over: day/clip.mp4, notes.txt" in caplog.text
    Path("empty").mkdir()
    for path in ["missing", "missing/*.jpg", "photos/*.gif", "empty"]:
        with pytest.raises(DataError, match=path.replace("*", r"\*")):
            find_images(["photos", path], Path("out"))


def test_pictures_of_an_earlier_run_are_no_inputs_and_inputs_are_never_written_over(photos: Path):
    write_image(photos / "found" / "a.png")
    with pytest.raises(DataError, match=r"a.png: not of an earlier run, and would be written over"):
        names(["photos"], "photos/found")
    (photos / "found" / "detections.json").write_text("[]")  # which an earlier run writes
    assert names(["photos"], "photos/found") == names(["photos/**"], "photos/found") == ["a.png", "b.jpg", "day/a.png"]
    for paths, output in ((["photos"], "photos"), (["photos/day/a.png"], "photos"), (["photos/*.jpg"], "photos")):
        with pytest.raises(DataError, match="choose another --output"):
            find_images([*paths, "photos/a.png"], Path(output))
    shutil.copy(photos / "a.png", photos / "scan")  # whose picture is scan.png, too
    shutil.copy(photos / "a.png", photos / "scan.png")
    with pytest.raises(DataError, match="choose another --output"):
        find_images(["photos/scan", "photos/scan.png"], Path("out"))
    Path("out").mkdir()
    Path("out/day").symlink_to(photos.parent / "elsewhere")
    with pytest.raises(DataError, match="elsewhere"):
        find_images(["photos"], Path("out"))


def test_pictures_and_results_are_written(photos: Path, capsys: pytest.CaptureFixture):
    predictor, output = FakePredictor(), Path("out")
    output.mkdir()
    before = {path: path.read_bytes() for path in photos.rglob("*.*g")}
    results, failed = infer_images(predictor, find_images(["photos"], output), output, score=0.5, batch_size=2)
    assert not failed and predictor.batches == [2, 1]
    assert sorted(str(p.relative_to(output)) for p in output.rglob("*.*")) == [
        "a.png", "b.jpg", "day/a.png", "detections.json"
    ]  # fmt: skip
    assert Image.open(output / "day/a.png").size == (40, 30)
    assert json.loads((output / "detections.json").read_text()) == results
    assert [(r["image_id"], r["file_name"]) for r in results] == [(1, "a.png"), (2, "b.jpg"), (3, "day/a.png")]
    assert results[0]["category_id"] == 7 and results[0]["bbox"] == [0, 0, 20, 30]
    assert results[0]["score"] == pytest.approx(0.9)
    assert {path: path.read_bytes() for path in photos.rglob("*.*g")} == before
    assert "3/3" in capsys.readouterr().err  # the progress bar


def test_a_file_may_look_like_a_pattern_or_have_any_suffix_and_the_score_decides_what_is_kept(photos: Path):
    jobs = find_images(["photos"], Path("out"))
    for score, count in ((0.0, 6), (0.5, 3), (1.0, 0)):
        results, _ = infer_images(FakePredictor(), jobs, Path(), score=score, batch_size=8)
        assert len(results) == count
    write_image(photos / "x[1].png")
    shutil.copy(photos / "a.png", photos / "scan")
    jobs = find_images(["photos/x[1].png", "photos/scan"], Path("out"))
    assert [job.name for job in jobs] == ["x[1].png", "scan"]
    assert [job.picture.name for job in jobs] == ["x[1].png", "scan.png"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_read_and_its_picture_written(tmp_path: Path, suffix: str):
    try:
        write_image(tmp_path / "in" / f"a{suffix.upper()}")
    except (OSError, ValueError):
        pytest.skip(f"this Pillow writes no {suffix}")
    jobs = find_images([str(tmp_path / "in")], tmp_path / "out")
    infer_images(FakePredictor(), jobs, tmp_path, score=0.5, batch_size=1)
    name = f"a{suffix.upper()}" + ("" if suffix in WRITABLE else ".png")
    assert Image.open(tmp_path / "out" / name).size == (40, 30)


@pytest.fixture
def any_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is loaded is a FakePredictor."""
    monkeypatch.setattr(detector, "load", lambda path, trust, **how: FakePredictor(), raising=False)


def test_it_names_a_corrupt_image_goes_on_and_ends_with_2(photos: Path, any_checkpoint, capsys: pytest.CaptureFixture):
    assert main(["any.pth", "photos", "--output", "good"]) == 0
    (photos / "b.jpg").write_bytes(b"no image")
    write_image(photos / "big.png", size=(200, 200))  # more than FakePredictor.max_pixels
    capsys.readouterr()
    assert main(["any.pth", "photos", "--output", "out"]) == 2
    captured = capsys.readouterr()
    assert "b.jpg" in captured.err and "big.png" in captured.err and "2 of 4 images" in captured.err
    found = json.loads(Path("out/detections.json").read_text())
    assert [(r["image_id"], r["file_name"]) for r in found] == [(1, "a.png"), (4, "day/a.png")]
    assert not Path("out/b.jpg").exists() and Path("out/day/a.png").exists()
    assert main(["any.pth", "photos/notes.txt", "--output", "none"]) == 2
    assert json.loads(Path("none/detections.json").read_text()) == []


def test_wrong_paths_and_options_are_known_before_the_checkpoint_is_read(photos, monkeypatch, capsys):
    for arguments in [
        ["missing", "--output", "out"],
        ["photos", "--output", "photos"],
        ["photos", "--output", "photos/notes.txt"],
    ]:
        monkeypatch.setattr(detector, "load", lambda path, trust, **how: pytest.fail("loaded"), raising=False)
        assert main(["any.pth", *arguments]) == 2
        assert arguments[-1 if len(arguments[0]) < 7 else 0] in capsys.readouterr().err
        assert not Path("out").exists()
    for option in [["--score", "50"], ["--score", "nan"], ["--batch", "0"], []]:
        output = ["--output", "out"] if option else []
        with pytest.raises(SystemExit, match="2"):
            main(["any.pth", "photos", *output, *option])


BLACK, WHITE = 0, 255


def canvas(h: int, w: int, grey: int = 128) -> Tensor:
    return torch.full((3, h, w), grey, dtype=torch.uint8)


def detections(*boxes: list[float], names: list[str] | None = None) -> Detections:
    n = len(boxes)
    return Detections(torch.tensor(boxes).reshape(n, 4), torch.linspace(0.9, 0.6, n), torch.arange(n), names)


def as_tensor(picture) -> Tensor:
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)


def test_colours_of_classes_are_far_from_each_other_and_bright_under_black_letters():
    for label in range(200):
        assert (luminance(class_colour(label)) + 0.05) / 0.05 >= 4.5  # WCAG 2
    assert luminance((0, 0, 0)) == 0
    assert luminance((255, 255, 255)) == pytest.approx(1)
    assert luminance((255, 0, 0)) == pytest.approx(0.2126)
    colours = [class_colour(label) for label in range(10)]
    for a, b in itertools.combinations(colours, 2):
        assert sum(abs(x - y) for x, y in zip(a, b)) >= 60


@pytest.mark.parametrize("grey", [BLACK, WHITE])
def test_a_box_stands_out_and_its_object_stays_visible(grey: int):
    drawn = as_tensor(draw_detections(canvas(240, 320, grey), detections([100.0, 100.0, 160.0, 180.0]))).int()
    differs = (drawn - grey).abs().amax(dim=2) > 100  # (H, W)
    assert differs[98, 100:160].all() and differs[181, 100:160].all()  # a line and its seam lie just outside of the box
    assert differs[100:180, 98].all() and differs[100:180, 161].all()
    assert not differs[100:180, 100:160].any()  # the label lies above
    assert differs[86:97, 98:120].any()


def test_lines_and_letters_grow_with_the_image_and_labels_avoid_each_other():
    def marked(scale: int) -> float:
        box = [100.0 * scale, 100.0 * scale, 160.0 * scale, 180.0 * scale]
        picture = draw_detections(canvas(480 * scale, 640 * scale), detections(box, names=["cell"]))
        return (as_tensor(picture) != 128).any(dim=2).float().mean().item()

    assert marked(4) == pytest.approx(marked(1), rel=0.15)
    sizes = [(40, 12)]
    assert place_labels([(10, 50, 80, 90)], sizes, (200, 100)) == [(10, 38, 50, 50)]
    assert place_labels([(10, 0, 80, 90)], sizes, (200, 100)) == [(10, 0, 50, 12)]
    assert place_labels([(180, 50, 200, 90)], sizes, (200, 100)) == [(160, 38, 200, 50)]  # moved into the picture
    boxes = [(50, 50, 120, 90)] * 6  # one object, six guesses
    placed = place_labels(boxes, [(30, 12)] * 6, (200, 120))
    assert placed[0] == (50, 38, 80, 50)
    for x1, y1, x2, y2 in placed:
        assert x1 >= 0 and y1 >= 0 and x2 <= 200 and y2 <= 120
    for a, b in itertools.combinations(placed, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_small_objects_in_a_large_image_are_not_hidden_by_their_lines_and_letters():
    def marked(side: int) -> int:
        box = [100.0, 100.0, 110.0, 112.0]
        return int(
            (as_tensor(draw_detections(canvas(side, side), detections(box, names=["cell"]))) != 128).any(dim=2).sum()
        )

    assert marked(4000) == marked(1000) < 2000  # pixels, of which a line of 17 and letters of 80 would take 30,000


def test_any_size_and_box_and_class_without_a_name_can_be_drawn_and_the_image_itself_is_not():
    image = torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8)
    assert torch.equal(as_tensor(draw_detections(image, detections())), image.permute(1, 2, 0))
    image = canvas(60, 80)
    draw_detections(image, detections([5.0, 5.0, 30.0, 30.0]))
    assert (image == 128).all()
    for size in [(1, 1), (8, 200), (20, 12), (600, 30)]:
        h, w = size
        boxes = [0.0, 0.0, float(w), float(h)], [w / 2, h / 2, w / 2, h / 2], [-9.0, -9.0, w + 9.0, h + 9.0]
        picture = draw_detections(canvas(h, w), detections(*boxes, names=["a very long name of a class", "b", ""]))
        assert picture.size == (w, h)
    boxes = [10.0, 60.0, 50.0, 90.0], [100.0, 60.0, 150.0, 90.0]
    numbered = draw_detections(canvas(120, 200), detections(*boxes))
    named = draw_detections(canvas(120, 200), detections(*boxes, names=["0", "1"]))
    assert ImageChops.difference(numbered, named).getbbox() is None
