"""Whatever pictures come as, the boxes are the same; many of them take the memory of a batch."""

import functools
import gc
import io
import itertools
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import CONFIG, DATA, columns, picture, predictor_of, tiny_model
from PIL import Image
from torch import Tensor

from detector.errors import DataError
from detector.inference import pictures
from detector.inference.folder import find_images
from detector.inference.predictor import Predictor
from detector.inference.tta import TTAPredictor
from detector.structures import Detections

SETTINGS = CONFIG | {"data": DATA | {"resize": {"short": 64, "long": 96}, "max_pixels": 20_000, "tta": {"scales": [1]}}}
TENSOR = picture(64, 96)
ARRAY = TENSOR.permute(1, 2, 0).numpy()
IMAGE = Image.fromarray(ARRAY)


def content(image: Image.Image = IMAGE) -> bytes:
    memory = io.BytesIO()
    image.save(memory, "png")
    return memory.getvalue()


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return predictor_of(tiny_model(), SETTINGS)


def same(found: Any, expected: Detections) -> bool:
    return len(expected) > 0 and all(map(torch.equal, columns(found), columns(expected)))


def test_every_kind_of_picture_has_the_same_boxes(predictor: Predictor, tmp_path: Path):
    expected = predictor(TENSOR)
    assert isinstance(expected, Detections)
    (tmp_path / "a.png").write_bytes(content())
    written = io.BytesIO()
    IMAGE.save(written, "png")  # which leaves its position at the end
    alpha = np.dstack([ARRAY, np.zeros((64, 96), np.uint8)])
    frozen = ARRAY.copy()
    frozen.flags.writeable = False
    with open(tmp_path / "a.png", "rb") as file:
        for one in (
            tmp_path / "a.png", str(tmp_path / "a.png"), content(), bytearray(content()), memoryview(content()), written, file,
            IMAGE, ARRAY, frozen, alpha, ARRAY.astype(np.uint16) << 8, np.asfortranarray(ARRAY),
        ):  # fmt: skip
            assert same(predictor(one), expected), type(one)
        assert not file.closed and not written.closed and same(predictor(file), expected)
    for blue_first in (ARRAY[:, :, ::-1], alpha[:, :, [2, 1, 0, 3]]):
        assert same(predictor(blue_first, bgr=True), expected)
    assert same(predictor(TENSOR, bgr=True), expected)  # says nothing about what is no array
    assert not same(predictor(ARRAY, bgr=True), expected)


def test_views_of_every_kind_of_picture_are_merged_alike():
    views = predictor_of(tiny_model(), SETTINGS, TTAPredictor)
    expected = views(TENSOR, max_detections=5)
    assert len(expected) == 5 and all(
        same(next(views.stream(one, bgr=True, max_detections=5)), expected) for one in (content(), ARRAY[:, :, ::-1])
    )


def test_grey_arrays_are_as_grey_files_and_other_arrays_are_refused_with_what_to_do(predictor: Predictor):
    expected = predictor(content(Image.fromarray(ARRAY[:, :, 0])))
    for grey in (ARRAY[:, :, 0], ARRAY[:, :, :1], ARRAY[:, :, 0].astype(np.uint16) << 8):
        assert same(predictor(grey), expected)
    for array, remedy in [
        (np.zeros((8, 8, 3)), r"got float64 \(8, 8, 3\); .*\(255 \* array\)"),
        (np.zeros((3, 8, 9), np.uint8), r"channels come last: array\.transpose\(1, 2, 0\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"list\(array\)"),
        (np.zeros((8, 8, 3), np.int64), "got int64"),
        (np.zeros((8, 8, 2), np.uint8), r"got uint8 \(8, 8, 2\)"),
        (np.zeros((0, 8, 3), np.uint8), r"got uint8 \(0, 8, 3\)"),
        (np.zeros(8, np.uint8), r"got uint8 \(8,\)"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"expected a uint8 or uint16 array .*{remedy}"):
            predictor(array)


def test_the_pixel_limit_holds_for_every_kind(predictor: Predictor, tmp_path: Path):
    large = np.zeros((200, 101, 3), np.uint8)
    image = Image.fromarray(large)
    image.save(tmp_path / "a.png")
    tensor = torch.from_numpy(large).permute(2, 0, 1)
    for one in (tmp_path / "a.png", content(image), io.BytesIO(content(image)), image, large, large[:, :, 0], tensor):
        with pytest.raises(
            DataError, match=r"too large \(101 x 200 pixels\); the limit is 20000: raise data.max_pixels"
        ):
            predictor(one)
    broken = Image.open(io.BytesIO(content()[:-500]))
    for one in (content()[:-500], b"", broken, io.StringIO("text")):
        with pytest.raises(DataError, match="not a readable image"):
            predictor(one)


def test_folders_patterns_and_iterables_are_read_in_the_order_of_infer(predictor: Predictor, tmp_path: Path):
    for i, name in enumerate(("b.png", "a.png", "day/c.png", ".hidden.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(picture(64, 96, seed=i).permute(1, 2, 0).numpy()).save(tmp_path / name)
    paths = [job.path for job in find_images([str(tmp_path)], tmp_path / "out")]
    expected = predictor([predictor.read(path) for path in paths])
    assert len(expected) == 3 and not same(expected[0], expected[1])
    for source in (tmp_path, str(tmp_path / "**/*.png"), paths, [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "day"],
                   (np.asarray(Image.open(path)) for path in paths)):  # fmt: skip
        found = predictor(source)
        assert len(found) == 3 and all(map(same, found, expected))
    for source, reason in (
        (tmp_path / "none.png", "no such image"),
        (str(tmp_path / "*.jpg"), "no images found there"),
    ):
        with pytest.raises(DataError, match=reason):
            predictor(source)


def test_what_is_found_is_filtered_by_score_class_and_number(predictor: Predictor):
    found = predictor(TENSOR)
    middle = float(found.scores.median())
    kept = predictor(TENSOR, score=middle)
    assert same(kept, found[found.scores >= middle]) and 0 < len(kept) < len(found)
    assert same(predictor(TENSOR, max_detections=3), found[:3])
    for classes in ("dog", ["dog"], [1], 1, ["dog", 1]):
        assert same(predictor(TENSOR, classes=classes), found[found.labels == 1])
    two = predictor([TENSOR, picture(64, 96, seed=1)])
    both = predictor([TENSOR, picture(64, 96, seed=1)], classes=["dog", "cat"], score=0.1, max_detections=2)
    assert all(same(a, b[(b.labels <= 1) & (b.scores >= 0.1)][:2]) for a, b in zip(both, two, strict=True))
    for options, reason in (
        ({"classes": ["dgo"]}, "no class 'dgo'; nearest: dog"), ({"classes": 3}, "no class 3; labels are 0 to 2"),
        ({"score": 50}, r"score=50: .*0\.\.1"), ({"max_detections": 0}, "max_detections=0"), ({"batch": 0}, "batch=0"),
        ({"max_detections": 1.5}, "max_detections=1.5: expected an integer"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            predictor.stream([], **options)  # before the first picture


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Of a folder with a.png and text.png, on this machine."""
    (tmp_path / "a.png").write_bytes(content())
    (tmp_path / "text.png").write_text("<html>404</html>")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_urls_are_fetched_up_to_a_size(predictor: Predictor, url: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "*")
    assert same(predictor(f"{url}/a.png"), predictor(TENSOR))
    assert [len(one) > 0 for one in predictor([f"{url}/a.png", TENSOR])] == [True, True]
    for address, reason in (
        (f"{url}/none.png", "could not be fetched .*check the address and the network"), (f"{url}/a b", "could not be fetched"),
        ("http://127.0.0.1:9/a.png", "could not be fetched"), (f"{url}/text.png", "not a readable image"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"^{address}: {reason}"):
            predictor(address)
    monkeypatch.setattr(pictures, "MAX_BYTES", 100)
    with pytest.raises(DataError, match="more than 0 MiB; download the file"):
        predictor(f"{url}/a.png")


class Capture:
    """A cv2.VideoCapture of some frames (H, W, 3), BGR."""

    def __init__(self, frames: list[np.ndarray]):
        self.frames = iter(frames)
        self.isOpened = lambda: bool(frames)
        self.grab: Callable[[], bool] = lambda: True

    def read(self) -> tuple[bool, np.ndarray | None]:
        frame = next(self.frames, None)
        return frame is not None, frame


def test_the_frames_of_a_camera_are_a_stream(predictor: Predictor):
    frames = [picture(64, 96, seed=i) for i in range(3)]
    capture = Capture([frame.permute(1, 2, 0).flip(2).numpy() for frame in frames])
    found = list(predictor.stream(capture, batch=1))
    assert len(found) == 3 and all(map(same, found, map(predictor, frames)))
    with pytest.raises(DataError, match="not open"):
        predictor(Capture([]))


def video(path: Path, frames: list[Tensor]) -> Path:
    av = pytest.importorskip("av", reason="needs the extra detector[video]")
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *frames[0].shape[1:], "yuv420p", 10_000_000
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy(), format="rgb24")))
        file.mux(stream.encode())
    return path


def test_the_frames_of_a_video_are_a_stream(predictor: Predictor, tmp_path: Path):
    frames = [torch.full((3, 64, 96), value, dtype=torch.uint8) for value in (0, 100, 200)]
    frames[0][0, :32, :48] = 255  # red above on the left
    path = video(tmp_path / "a.mp4", frames)
    decoded = list(pictures.iterate_pictures(path, 20_000))
    assert len(decoded) == 3 and all(frame.dtype == torch.uint8 for frame in decoded)
    assert (decoded[2].float() - 200).abs().max() < 8 and decoded[0][:, 5, 5].tolist() > [200, 0, 0]
    found = predictor([str(path), TENSOR])
    assert len(found) == 4 and all(map(same, found, predictor([*decoded, TENSOR])))
    raw = path.read_bytes()
    at = raw.index(b"tkhd") + 44  # of the matrix that turns the frames, a b u c d v x y w in 16.16
    matrix = np.array([0, 65536, 0, -65536, 0, 0, 64 << 16, 0, 1 << 30], ">i4")  # by 90 degrees, clockwise
    (tmp_path / "turned.mp4").write_bytes(raw[:at] + matrix.tobytes() + raw[at + 36 :])
    turned = next(pictures.iterate_pictures(tmp_path / "turned.mp4", 20_000))
    assert torch.equal(turned, decoded[0].rot90(-1, (1, 2)))
    with pytest.raises(DataError, match=r"a\.mp4: too large \(96 x 64 pixels\)"):
        next(pictures.iterate_pictures(path, 1000))
    (tmp_path / "b.mp4").write_bytes(b"no video")
    for name, reason in (("b.mp4", "not a readable video"), ("c.mp4", "no such video")):
        with pytest.raises(DataError, match=f"{name}: {reason}"):
            predictor(tmp_path / name)


def test_without_its_package_a_video_names_the_extra_and_infer_says_what_reads_it(predictor, tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DataError, match=r"pip install 'detector\[video\]'"):
        predictor(tmp_path / "a.mp4")
    with pytest.raises(DataError, match=r"a\.mp4: a video, which `predictor\.stream` reads"):
        find_images([str(tmp_path / "a.mp4")], tmp_path / "out")


def test_a_stream_is_lazy_holds_a_batch_and_loses_no_picture_before_an_unreadable_one(predictor, monkeypatch):
    found = []
    with pytest.raises(DataError, match="nope"):
        for detections in predictor.stream([TENSOR, TENSOR, TENSOR, "nope.png"], batch=2):
            found.append(detections)
    assert len(found) == 3
    # Of an endless source: arrays and decoded images that are alive at any moment.
    alive: dict[str, int] = {"array": 0, "image": 0}
    most = dict(alive)

    def track(kind: str, thing: Any) -> Any:
        alive[kind] += 1
        most[kind] = max(most[kind], alive[kind])
        weakref.finalize(thing, lambda: alive.update({kind: alive[kind] - 1}))
        return thing

    def endless() -> Iterator[np.ndarray]:
        for i in itertools.count():
            yield track("array", picture(100, 150, seed=i % 3).permute(1, 2, 0).numpy())

    read = predictor.read
    monkeypatch.setattr(predictor, "read", lambda *args, **options: track("image", read(*args, **options)))
    gc.collect()
    stream = predictor.stream(endless(), batch=4)
    assert most["image"] == 0
    next(stream)
    found = list(itertools.islice(stream, 19))
    assert len(found) == 19 and most["array"] <= 2 and 1 <= most["image"] <= 2  # larger than what the network gets
    assert same(found[2], found[5])
