"""The rules of the golden files: weights and images by formula, and how recorded numbers are compared.

The recorded numbers of reference detectors lie beside the checkout in ../shared/golden; its README states the rules.
"""

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask
from torch import Tensor, nn

from detector.records.keypoints import Keypoints

PROJECT = Path(__file__).resolve().parents[2]
SHARED = PROJECT.parent / "shared"

Shapes = Mapping[str, Sequence[int]]


def shared(path: str) -> Path:
    """A file or folder of the reference material beside the checkout; the calling test is skipped without it."""
    if not (SHARED / path).exists():
        pytest.skip(f"needs the reference material {SHARED / path}")
    return SHARED / path


def golden(name: str) -> dict[str, Any]:
    """The recorded numbers of one reference model, neck collection, or of functions; or what all share, the "rules"."""
    folder = shared("golden")
    file = folder / f"{name}.json"
    return json.loads((file if file.is_file() else folder / f"masks/{name}.json").read_text())


@dataclass(frozen=True)
class Fill:
    """Section 1 of the README: a tensor from its name and shape. `gains` and the rest are those of a file's `fill`."""

    seed_text: str
    default_gain: float = 1.7
    last_norm: float = 0.25
    gains: Sequence[tuple[str, float]] = ()
    norm_gains: Sequence[tuple[str, float]] = ()
    bias_add: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def normal(self, key: str, shape: Sequence[int]) -> np.ndarray:
        """Standard normal numbers, rounded to float32 and kept in float64."""
        seed = zlib.crc32((self.seed_text + key).encode()) & 0xFFFFFFFF
        return np.random.RandomState(seed).standard_normal(shape).astype(np.float32).astype(np.float64)

    def tensor(self, key: str, shape: Sequence[int], shapes: Shapes) -> Tensor:
        """The float32 value of one tensor; `shapes` has those of its siblings."""
        return torch.from_numpy(np.asarray(self._value(key, tuple(shape), shapes)).astype(np.float32))

    def state(self, shapes: Shapes, left_alone: Sequence[str] = ()) -> dict[str, Tensor]:
        """All tensors but those that a model is to keep as it was built."""
        names = [key for key in shapes if key not in left_alone and not key.endswith("num_batches_tracked")]
        return {key: self.tensor(key, shapes[key], shapes) for key in names}

    def _value(self, key: str, shape: tuple[int, ...], shapes: Shapes) -> np.ndarray:
        z, last = self.normal(key, shape), key.rpartition(".")[2]
        if last == "running_var":
            return 0.9 + 0.1 * z**2
        if last == "running_mean":
            return 0.1 * z
        if last == "edge_weights":
            return 1 + 0.25 * z
        if last in ("weight_gamma", "weight_beta"):
            fan = math.prod(shapes[key.rpartition(".")[0] + ".weight"][1:])
            return (1.7 * (1 + 0.1 * z) if last == "weight_gamma" else 0.01 * z) / math.sqrt(fan)
        if last == "bias":
            return 0.1 * z + 0.5 * key.endswith("switch.bias") + np.asarray(self.bias_add.get(key, 0.0))
        return self._norm_gain(key, z) if len(shape) == 1 else self._weight(key, z)

    def _norm_gain(self, key: str, z: np.ndarray) -> np.ndarray:
        is_last = any(name in key for name in ("conv3.norm.", "bn3.", "gn3."))
        return (1 + 0.1 * z) * (self.last_norm if is_last else 1) * _first(self.norm_gains, key, 1.0)

    def _weight(self, key: str, z: np.ndarray) -> np.ndarray:
        centred = z - z.mean(axis=tuple(range(1, z.ndim)), keepdims=True) if z.shape[1] > 3 else z
        return centred * _first(self.gains, key, self.default_gain) / math.sqrt(math.prod(z.shape[1:]))


def _first(table: Sequence[tuple[str, float]], key: str, default: float) -> float:
    return next((number for part, number in table if part in key), default)


def filled(record: Mapping[str, Any], seed_text: str) -> dict[str, Tensor]:
    """The state dict that a model file or a neck entry prescribes, under the reference's own names."""
    fill = Fill(seed_text, **record["fill"])
    return fill.state(dict(record["state"]), record["left_alone"])


def formula_image(k: int, height: int, width: int) -> Tensor:
    """Section 2 of the README: image number k, uint8 RGB (3, H, W): waves, twelve discs, eight rectangles."""
    y, x = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    return torch.from_numpy(np.stack([_channel(c, k, x, y) for c in range(3)]))


def _channel(c: int, k: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    height, width = x.shape
    v = 127.5 + 26 * np.sin(x / (5 + 2 * c + k)) * np.cos(y / (7 + 3 * c))
    v += 22 * np.sin((x + 2 * y) / (29 + 4 * c) + 0.7 * k) + 18 * np.cos((3 * x - y) / (61 + 7 * k) + c)
    for j in range(12):
        cx, cy = width * _frac(0.618034 * (j + 1) + 0.130 * k), height * _frac(0.414214 * (j + 1) + 0.290 * k)
        radius = min(height, width) * (0.02 + 0.015 * j)
        v += 55 * math.cos(1.3 * j + 2 * c + k) * ((x - cx) ** 2 + (y - cy) ** 2 < radius**2)
    for j in range(8):
        x0, y0 = width * _frac(0.754878 * (j + 1) + 0.210 * k), height * _frac(0.569840 * (j + 1) + 0.370 * k)
        w, h = width * (0.05 + 0.05 * j), height * (0.40 - 0.04 * j)
        v += 48 * math.sin(0.9 * j + 1.7 * c + 2 * k) * ((x0 <= x) & (x < x0 + w) & (y0 <= y) & (y < y0 + h))
    return np.floor(np.clip(v, 0, 255)).astype(np.uint8)


def _frac(t: float) -> float:
    return t - math.floor(t)


def ground_truth(*, empty_second: bool = False) -> list[dict[str, Tensor]]:
    """Section 3 of the README: `boxes` and `labels` of the case "batch"; without a box in the second image if wanted."""
    rows = [torch.tensor(r) for r in golden("rules")["ground_truth"]]  # (x1, y1, x2, y2, class)
    rows[1] = rows[1][: 0 if empty_second else None]
    return [{"boxes": r[:, :4], "labels": r[:, 4].long()} for r in rows]


def outlines_of(rows: Tensor) -> list[list[list[float]]]:
    """Section 10: the polygons of the boxes (x1, y1, x2, y2, ...) of one image, a list of parts for each."""
    return [_outline(i, *map(float, row[:4].double().numpy().round(2))) for i, row in enumerate(rows)]


def _outline(i: int, x1: float, y1: float, x2: float, y2: float) -> list[list[float]]:
    w, h = x2 - x1, y2 - y1
    if i in (0, 2):
        parts = [_oval(x1, y1, x2, y2)]
    elif i == 4:
        parts = [[x1, y1, x1 + 0.6 * w, y1, x1, y1 + 0.5 * h], _oval(x1 + 0.45 * w, y1 + 0.45 * h, x2, y2)]
    else:
        parts = [[x1, y1, x1 + 0.4 * w, y1, x1 + 0.4 * w, y1 + 0.6 * h, x2, y1 + 0.6 * h, x2, y2, x1, y2]]
    return [[round(number, 2) for number in part] for part in parts]


def _oval(a: float, b: float, c: float, d: float) -> list[float]:
    angles = [2 * math.pi * t / 24 for t in range(24)]
    return [
        number
        for t in angles
        for number in ((a + c) / 2 + (c - a) / 2 * math.cos(t), (b + d) / 2 + (d - b) / 2 * math.sin(t))
    ]


def bitmaps_of(outlines: Sequence[Sequence[Sequence[float]]], size: tuple[int, int]) -> Tensor:
    """Polygons of several parts as bitmaps (G, h, w) uint8 of their union."""
    shapes = [mask.decode(mask.merge(mask.frPyObjects(list(parts), *size))) for parts in outlines]
    return torch.from_numpy(np.stack(shapes)) if shapes else torch.zeros(0, *size, dtype=torch.uint8)


def keypoints_of(boxes: Tensor) -> Keypoints:
    """Section 10: the 17 keypoints of each box of one image."""
    rows = [_keypoints(i, *map(float, box.double().numpy().round(2))) for i, box in enumerate(boxes)]
    return Keypoints.of(torch.tensor(rows).view(-1, 17, 3))


def _keypoints(i: int, x1: float, y1: float, x2: float, y2: float) -> list[list[float]]:
    rows = []
    for j in range(17):
        visible = 0 if i == 5 else (i + j) % 3
        x = x2 if j == 16 else x1 + (x2 - x1) * _frac(0.618034 * (j + 1) + 0.13 * i)
        y = y1 + (y2 - y1) * _frac(0.414214 * (j + 1) + 0.29 * i)
        rows.append([round(x, 2), round(y, 2), visible] if visible else [0, 0, 0])
    return rows


def semantic_map(number: int, size: tuple[int, int]) -> Tensor:
    """Section 10: the class of every pixel (h, w) uint8 of an image of the batch; 255 is ignored."""
    y, x = torch.arange(size[0])[:, None], torch.arange(size[1])
    labels = (7 * (x // 24) + 11 * (y // 20) + 3 * number) % 183
    return torch.where((x + 2 * y) % 160 < 24, 255, labels).to(torch.uint8)


def fixed_proposals(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Section 6 of the README: the 120 boxes (120, 4) and logits (120,) that d2_fast_rcnn_R_50_FPN is given."""
    boxes, logits, phase = [], [], golden("rules")["fixed_proposals_phase"]
    for j in range(120):
        side = 14 * (1 + 0.065 * j) ** (1 + 0.6 * _frac(0.3819660 * (j + 1) + phase))
        a = 0.6 + 1.2 * _frac(0.7548777 * (j + 1) + phase)
        w, h = side * a, side / a
        cx, cy = width * _frac(0.6180340 * (j + 1) + phase), height * _frac(0.5698403 * (j + 1) + phase)
        box = max(0, cx - w / 2), max(0, cy - h / 2), min(width, cx + w / 2), min(height, cy + h / 2)
        boxes.append([round(side, 3) for side in box])
        logits.append(round(6 * _frac(0.2762 * (j + 1) + phase) - 3 + 0.001 * j, 4))
    return torch.tensor(boxes), torch.tensor(logits)


def record_errors(found: Tensor, record: Mapping[str, Any]) -> tuple[float, float]:
    """Largest difference at the recorded elements, and of mean and std; both over the recorded std."""
    assert list(found.shape) == record["shape"]
    found = found.detach().double().contiguous().flatten()
    values = (found[torch.tensor(record["idx"])] - torch.tensor(record["values"], dtype=torch.float64)).abs().max()
    mean, std = found.mean() - record["mean"], found.std(correction=0) - record["std"]
    return float(values) / record["std"], float(max(mean.abs(), std.abs())) / record["std"]


def neck_inputs(record: Mapping[str, Any], seed_text: str, finest: str = "c2") -> list[Tensor]:
    """The maps that a neck's entry lists, named from `finest` on."""
    named = enumerate(record["inputs"], start=int(finest[1:]))
    return [torch.from_numpy(Fill(seed_text).normal(f"{finest[0]}{level}", shape)) for level, shape in named]


def check_neck(neck: nn.Module, c: Sequence[Tensor], record: Mapping[str, Any], ours: Callable[[str], str]) -> None:
    """Maps, loss and gradients of a neck with the weights of the entry; `ours` is our name of a tensor of theirs.

    In float64, so that the reference's own rounding is all that is left, on every CPU: in float32 the gradients of two CPUs
    differ by up to 6e-4, where a block's maximum is nearly a tie.
    """
    neck, c = neck.double().eval(), [x.double().requires_grad_() for x in c]
    p = neck(c)
    tolerance = max(1e-5, 5 * record["noise_float64_over_std"], 5 * record["noise_other_kernels_over_std"])
    for level, expected in zip(p, record["outputs"], strict=True):
        assert max(record_errors(level, expected)) < tolerance
    loss = sum((level**2).mean() for level in p)
    assert relative_error(float(loss.detach()), record["loss_value"]) < 1e-5
    loss.backward()
    for level, expected in zip(c, record["input_grad_norms"][-len(c) :], strict=True):
        assert relative_error(grad_norm(level), expected, below=1e-9) < 1e-3
    parameters = dict(neck.named_parameters())
    for key, expected in record["grad_norms"].items():
        assert relative_error(grad_norm(parameters[ours(key)]), expected, below=0) < 1e-3


def grad_norm(tensor: Tensor) -> float:
    """The L2 norm of its gradient; 0 for what nothing read."""
    return 0.0 if tensor.grad is None else float(tensor.grad.double().norm())


@dataclass(frozen=True)
class Match:
    """Two sets of boxes laid on one another."""

    number: int  # of expected boxes
    unmatched: int
    px: float  # largest differences among the matched
    score: float


def match_sets(
    found: tuple[Tensor, Tensor, Tensor], expected: tuple[Tensor, Tensor, Tensor], *, px: float, score: float
) -> Match:
    """Greedily, every expected box takes the nearest found one of its label. Sets: boxes (D, 4), scores, labels.

    Nearest in box and score together, as parts of the tolerances `px` and `score`; farther than those is unmatched.
    """
    (boxes, scores, labels), (want_boxes, want_scores, want_labels) = found, expected
    d_box = (want_boxes[:, None].double() - boxes.double()).abs().amax(dim=-1)  # (expected, found)
    d_score = (want_scores[:, None].double() - scores.double()).abs()
    apart = torch.maximum(d_box / px, d_score / score)
    apart[want_labels[:, None] != labels] = math.inf
    unmatched, worst_px, worst_score = 0, 0.0, 0.0
    for i, row in enumerate(apart):
        if not len(row) or row.min() > 1:
            unmatched += 1
            continue
        j = int(row.argmin())
        worst_px, worst_score = max(worst_px, float(d_box[i, j])), max(worst_score, float(d_score[i, j]))
        apart[:, j] = math.inf  # taken
    return Match(len(apart), unmatched, worst_px, worst_score)


def relative_error(found: float, expected: float, *, below: float = 0.01) -> float:
    """|found - expected| / |expected|; over `below` where the expected value is smaller than that."""
    return abs(found - expected) / max(abs(expected), below)


def assert_near(found: Tensor, expected: float | list) -> None:
    """The README's tolerance for functions.json."""
    torch.testing.assert_close(found, torch.tensor(expected), rtol=2e-6, atol=2e-6)
