"""The tracking example, on a video of two things that move, with the package trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

import detector
from detector.structures import Detections

EXAMPLE = Path(__file__).parents[1] / "examples/track.py"
FRAMES = 24


@pytest.fixture
def example() -> ModuleType:
    for package in ("av", "supervision", "trackers"):
        pytest.importorskip(package, reason=f"examples/track.py needs {package}", exc_type=ImportError)
    spec = importlib.util.spec_from_file_location("track_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ColourPredictor:
    """Finds what is red or green, each as one box; in frames 10 to 12 the green thing is almost missed."""

    def stream(self, frames: Iterator[Tensor]) -> Iterator[Detections]:
        for number, frame in enumerate(frames):
            boxes, labels, scores = [], [], []
            for label in (0, 1):
                ys, xs = torch.nonzero((frame[label] > 150) & (frame[1 - label] < 100), as_tuple=True)
                boxes.append([float(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)])
                labels.append(label)
                scores.append(0.3 if label and 10 <= number < 13 else 0.95)
            yield Detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), ["red", "green"])


def write_video(path: Path) -> None:
    """A red square goes right, a green one left, below it."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 160, 120, "yuv420p", 4_000_000
        for i in range(FRAMES):
            pixels = np.zeros((120, 160, 3), np.uint8)
            pixels[10:40, 8 + 4 * i : 38 + 4 * i, 0] = 255
            pixels[70:100, 120 - 4 * i : 150 - 4 * i, 1] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_two_objects_keep_their_numbers_through_a_video(example: ModuleType, tmp_path: Path, monkeypatch):
    from detector.inference.video import video_frames

    write_video(tmp_path / "in.mp4")
    monkeypatch.setattr(detector, "load", lambda path: ColourPredictor())
    seen = example.track("best.pth", str(tmp_path / "in.mp4"), str(tmp_path / "out.mp4"))
    assert sorted(seen.values()) == ["green", "red"]
    frames = list(video_frames(tmp_path / "out.mp4"))
    assert len(frames) == FRAMES and frames[0].shape == (3, 120, 160)
    edges = (frames[-1].float() - list(video_frames(tmp_path / "in.mp4"))[-1].float()).abs().amax(dim=0) > 60
    assert edges.any(dim=1).sum() > 50  # boxes and labels are drawn around both
