"""The NMS kernels without a GPU. Each function needs a process of its own: Triton decides once how it runs."""

from __future__ import annotations

from typing import Any

import torch
from test_fixed_shapes import FixedShapes, detector_of, find, learn, learner, lesson
from torch import Tensor

from detector.modeling import nms
from detector.modeling.nms_triton import greedy_nms
from detector.modeling.shapes import fixed_shapes
from detector.records.record import Record
from helpers.nms_cases import borders, random_case


def cases_of_torchvision() -> None:
    """In Triton's interpreter the kernels leave what torchvision leaves on the CPU."""
    drawn = [
        random_case(images, count, groups, iou, dtype=dtype)
        for images, count, groups in ((1, 64, 1), (2, 65, 3), (3, 130, 40), (1, 300, 2), (2, 190, 1))
        for iou in (0.3, 0.7)
        for dtype in (torch.float32, torch.float64)
    ]
    for case in drawn:
        assert 0 < case.expected().sum() < case.valid.sum(), "a case that shows nothing"
    for case in [*drawn, *borders()]:
        left = case.found("cpu")
        assert left.dtype == torch.bool and torch.equal(left, case.expected()), (case, left)


def _without_torchvision(run: Any) -> Any:
    """What `run` gives where every NMS is the kernel's, and no shape depends on data."""
    before, nms._kernel_without_waits = nms._kernel_without_waits, lambda boxes: greedy_nms
    try:
        with FixedShapes() as mode, fixed_shapes():
            result = run()
    finally:
        nms._kernel_without_waits = before
    assert mode.lists == [], "torchvision's NMS ran"
    return result


def _same(found: Any, expected: Any) -> None:
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, Record):
        _same(found.row_fields(), expected.row_fields())
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        _same(list(found.values()), list(expected.values()))
    else:
        for a, b in zip(found, expected, strict=True):
            _same(a, b)


@torch.inference_mode()
def whole_detector() -> None:
    """A detector finds and learns the same, to the bit, with the kernels as with torchvision's NMS."""
    model, images = detector_of("fpn"), lesson()[0]
    batch = model.preprocess.batch(images, torch.device("cpu"), torch.float32)
    with fixed_shapes():
        proposals, rows, valid = find(model, batch)
    found = _without_torchvision(lambda: find(model, batch))
    assert valid.any(dim=1).all()
    _same((found[0].rows, found[0].valid, found[1], found[2]), (proposals.rows, proposals.valid, rows, valid))
    with torch.inference_mode(False), torch.enable_grad():
        student, (images, targets) = learner("fpn"), lesson()
        with fixed_shapes():
            torch.manual_seed(0)
            expected = learn(student, images, targets)
        torch.manual_seed(0)
        _same(_without_torchvision(lambda: learn(student, images, targets)), expected)


def compiled() -> None:
    """As `greedy_nms` launches them, the kernels become machine code for GPUs of 2020 and 2022."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver, jit

    run, made = jit.JITFunction.run, []

    def only_compile(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        made.append(run(kernel, *args, grid=grid, warmup=True, **options))

    jit.JITFunction.run = only_compile
    for number, dtype in ((80, torch.float32), (90, torch.float32), (90, torch.float64)):
        driver.set_active(_Driver(GPUTarget("cuda", number, 32)))
        greedy_nms(*random_case(1, 200, 2, 0.5, dtype=dtype)[:4], iou=0.5, largest=200)
    assert [kernel.metadata.target.arch for kernel in made] == [80, 80, 90, 90, 90, 90]
    for kernel in made:
        assert len(kernel.asm["cubin"]) > 1000
    for overlaps in made[::2]:
        code = overlaps.asm["ptx"]
        assert "div.rn.f" in code and not any(word in code for word in ("fma.", "div.full", "div.approx", ".ftz"))


class _Driver:
    """What Triton asks of a driver before it compiles; each target has a number of its own."""

    def __init__(self, target: Any):
        self.target = target

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: int) -> int:
        return 0
