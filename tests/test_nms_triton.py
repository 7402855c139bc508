"""NMS on a GPU, as far as a CPU can tell: what the kernels compute, that they compile, and when they are used."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from helpers.nms_cases import random_case

from detector.modeling import nms
from detector.modeling.shapes import fixed_shapes

ROOT = Path(__file__).parents[1]


def has_triton() -> bool:
    """Whether the package is there, not older than the kernels need."""
    try:
        return tuple(map(int, importlib.metadata.version("triton").split(".")[:2])) >= (3, 6)
    except importlib.metadata.PackageNotFoundError:
        return False


needs_triton = pytest.mark.skipif(not has_triton(), reason="needs Triton 3.6 or newer")


def run(function: str, tmp_path: Path, **environment: str) -> None:
    """A function of helpers/nms_kernel.py in a process of its own."""
    places = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TRITON_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    code = f"import torch; torch.manual_seed(0); from helpers.nms_kernel import {function}; {function}()"
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | places | environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


@needs_triton
def test_the_kernels_leave_what_torchvision_leaves_on_a_cpu(tmp_path: Path):
    run("cases_of_torchvision", tmp_path, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.slow
def test_a_detector_finds_and_learns_the_same_with_the_kernels(tmp_path: Path):
    run("whole_detector", tmp_path, TRITON_INTERPRET="1")


@needs_triton
@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its assembler for Linux alone")
def test_the_kernels_compile_without_a_gpu_and_round_every_operation(tmp_path: Path):
    run("compiled", tmp_path)


def test_importing_the_package_and_a_cpu_leave_triton_alone():
    code = (
        "import sys, torch, detector; from detector.modeling.nms import left_by_nms; b = torch.rand(3, 4);"
        "left_by_nms(b, b[:, 0], b[:, 0] > 0, 0.5); assert 'detector.modeling.nms_triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


class OnGPU:
    """Stands for boxes on a GPU."""

    device = torch.device("cuda", 0)


def test_graphs_for_other_engines_keep_the_operator_and_a_gpu_takes_the_kernel(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nms, "_compiled_kernel", lambda device: "kernel")
    assert nms._kernel_without_waits(OnGPU()) == "kernel"
    assert nms._kernel_without_waits(torch.zeros(1, 4)) is None
    with fixed_shapes():
        assert nms._kernel_without_waits(OnGPU()) == "kernel"
    with fixed_shapes(portable=True):
        assert nms._kernel_without_waits(OnGPU()) is None
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert nms._kernel_without_waits(OnGPU()) is None


def test_without_triton_torchvision_finds_the_same_and_the_wait_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    case = random_case(2, 90, 3, 0.5)
    boxes = torch.where(case.valid[..., None], case.boxes, 0)
    monkeypatch.setitem(sys.modules, "detector.modeling.nms_triton", None)  # its import fails
    monkeypatch.setattr(nms, "_kernel_without_waits", lambda boxes: nms._compiled_kernel(torch.device("cpu")))
    nms._compiled_kernel.cache_clear()
    with caplog.at_level(logging.WARNING, "detector"):
        found = [nms.left_by_nms(*of_image[:3], 0.5, of_image[3]) for of_image in zip(boxes, *case[1:4])]
    nms._compiled_kernel.cache_clear()
    assert torch.equal(torch.stack(found), case.expected())
    [message] = caplog.messages
    assert message.startswith("NMS waits for the GPU, because Triton's kernel does not work here (")


@pytest.mark.parametrize("right", [True, False])
def test_a_kernel_is_tried_before_it_is_used(
    right: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def kernel(boxes: torch.Tensor, scores: torch.Tensor, *_: torch.Tensor, iou: float, largest: int) -> torch.Tensor:
        kept = torchvision.ops.nms(boxes[0], scores[0], iou)
        assert 100 < len(kept) < largest - 100
        return torch.zeros(1, largest, dtype=torch.bool).index_fill(1, kept if right else kept[:-1], True)

    monkeypatch.setitem(sys.modules, "detector.modeling.nms_triton", SimpleNamespace(greedy_nms=kernel))
    nms._compiled_kernel.cache_clear()
    with caplog.at_level(logging.WARNING, "detector"):
        found = nms._compiled_kernel(torch.device("cpu"))
    nms._compiled_kernel.cache_clear()
    assert found is (kernel if right else None)
    assert ("leaves other boxes than torchvision" in caplog.text) is not right


def test_levels_do_not_see_each_other():
    case = random_case(2, 150, 1, 0.3)
    boxes, levels = torch.where(case.valid[..., None], case.boxes, 0), [100, 1, 49]
    group = torch.cat([torch.full((count,), i) for i, count in enumerate(levels)]).expand(2, -1)
    left = nms.left_in_levels(boxes, case.scores, case.valid, levels, 0.3)
    assert torch.equal(left, case._replace(group=group).expected())
    assert not torch.equal(left, case.expected())
