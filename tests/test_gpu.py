"""On a GPU: what the CPU finds, without waiting for the device. `make gpu` runs these."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.nms_cases import borders, random_case
from helpers.tiny import picture

from detector.config.config import build_detector, load_config
from detector.modeling.nms import _kernel_without_waits
from detector.modeling.rcnn import GeneralizedRCNN
from detector.recipe import Recipe
from detector.rng import make_deterministic
from detector.structures import Batch, Target
from detector.training.step import TrainStep

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
SHAPES = Path(__file__).parents[1] / "configs" / "shapes"
NAMES = ["fpn", "cascade", "mask_rcnn", "bifpn", "soft_nms"]
DEVICE = torch.device("cuda")
IMAGES = [picture(100, 120), picture(128, 128, seed=1)]
TARGETS = [{"boxes": torch.tensor([[10.0, 12, 60, 70], [50, 40, 90, 95]]), "labels": torch.tensor([0, 2])}] * 2


@pytest.fixture(autouse=True)
def exact_float32():
    parts = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [part.allow_tf32 for part in parts]
    for part in parts:
        part.allow_tf32 = False
    yield
    for part, value in zip(parts, before, strict=True):
        part.allow_tf32 = value


def detector_of(name: str) -> GeneralizedRCNN:
    """A detector of the comparison with spread scores."""
    torch.manual_seed(0)
    model = build_detector(load_config(SHAPES / f"{name}.yaml", ["model.num_classes=3"]))
    with torch.no_grad():
        model.rpn.deltas.weight.normal_(std=0.05)
        for stage in getattr(model.roi_head, "stages", [getattr(model.roi_head, "stage", None)]):
            if stage is not None:
                stage.class_score.weight.normal_(std=0.3)
    return model.eval()


def batch_of(model: GeneralizedRCNN, device: torch.device, dtype: torch.dtype = torch.float32) -> Batch:
    return model.preprocess.batch(IMAGES, device, dtype)


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_a_gpu_finds_what_the_cpu_finds(name: str):
    model = detector_of(name)
    expected = model.detect_batch(batch_of(model, torch.device("cpu")))
    model.to(DEVICE)
    for found, want in zip(model.detect_batch(batch_of(model, DEVICE)), expected, strict=True):
        found = found.cpu()
        assert len(found) == len(want) > 0
        gap = (found.boxes[:, None] - want.boxes).abs().amax(-1) + (found.scores[:, None] - want.scores).abs() * 1e3
        assert gap.amin(dim=1).median() < 0.05  # equal scores may be ranked otherwise


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_half_precision_finds_nearly_the_same(dtype: torch.dtype):
    model = detector_of("fpn").to(DEVICE)
    want = model.detect_batch(batch_of(model, DEVICE))[0]
    model.to(dtype)
    found = model.detect_batch(batch_of(model, DEVICE, dtype))[0]
    assert found.scores.isfinite().all() and (found.scores[:10].float() - want.scores[:10]).abs().max() < 0.05


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_inference_does_not_wait_for_the_device(name: str):
    model = detector_of(name).to(DEVICE)
    batch = batch_of(model, DEVICE)

    def run() -> None:
        p = model.pyramid(batch.images)
        model.roi_head.find(p, model.rpn.propose(p, batch), batch)

    run()  # anchors and kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_nms_leaves_what_torchvision_leaves_on_a_cpu():
    assert _kernel_without_waits(torch.zeros(1, 4, device=DEVICE)) is not None, "Triton does not work; the log says why"
    sizes = ((1, 4096, 80), (5, 1000, 1), (2, 4741, 5), (1, 12000, 1), (16, 300, 4))
    drawn = [
        random_case(*size, iou, dtype=dtype)
        for size in sizes
        for iou in (0.3, 0.7)
        for dtype in (torch.float32, torch.float64)
    ]
    drawn += [random_case(1 + i % 3, 7 * i, 1 + i % 9, 0.5) for i in range(1, 60)]
    for case in [*drawn, *borders()]:
        left = case.found(DEVICE)
        assert torch.equal(left, case.expected()), (case.boxes.shape, case.boxes.dtype, case.iou, left.sum())


@torch.inference_mode()
def test_nms_is_recorded_in_a_graph_and_replayed_with_other_boxes():
    cases = [random_case(2, 700, 3, 0.5) for _ in range(2)]
    given = [x.to(DEVICE) for x in cases[0][:4]]
    run = partial(_kernel_without_waits(given[0]), *given, iou=0.5, largest=700)
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        run()
    beside.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        left = run()
    for case in reversed(cases):
        for place, value in zip(given, case[:4], strict=True):
            place.copy_(value)
        graph.replay()
        assert torch.equal(left.cpu(), case.expected())


def test_what_is_pinned_arrives_and_what_comes_back_is_waited_for():
    boxes = torch.rand(200_000, 4)
    target = Target(boxes, torch.arange(len(boxes)), masks=torch.ones(len(boxes), 2, 2, dtype=torch.uint8)).pin_memory()
    assert target.boxes.is_pinned() and target.masks.is_pinned()
    back = target.to(DEVICE).to("cpu")
    assert torch.equal(back.boxes, boxes) and torch.equal(back.labels, torch.arange(len(boxes))) and back.masks.all()


@torch.inference_mode()
def test_images_on_a_gpu_reach_a_model_on_the_cpu():
    model = detector_of("fpn")
    images = [torch.randint(0, 256, (3, 1000, 1300), dtype=torch.uint8)] * 2
    want = model.preprocess.batch(images, torch.device("cpu"), torch.float32)
    found = model.preprocess.batch([image.to(DEVICE) for image in images], torch.device("cpu"), torch.float32)
    assert torch.equal(found.images, want.images)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_training_step_lowers_the_loss(precision: str):
    step = TrainStep(detector_of("fpn").train(), Recipe(lr=0.002, precision=precision), DEVICE)
    losses = [step(0.002, IMAGES, TARGETS)["loss"] for _ in range(20)]
    assert sum(losses[-5:]) < sum(losses[:5])


def test_the_losses_of_a_gpu_are_those_of_the_cpu():
    model = detector_of("fpn").train()
    rows = []
    for device in (torch.device("cpu"), DEVICE):
        torch.manual_seed(0)
        step = TrainStep(copy.deepcopy(model), Recipe(lr=0.0), device)
        rows.append(step(0.0, IMAGES, TARGETS))
    assert rows[0]["rpn_objectness"] == pytest.approx(rows[1]["rpn_objectness"], rel=0.1)  # other samples are drawn


def test_deterministic_kernels_give_the_same_bits_twice():
    model = detector_of("fpn").train()
    make_deterministic(True)
    try:
        found = []
        for _ in range(2):
            torch.manual_seed(0)
            step = TrainStep(copy.deepcopy(model), Recipe(lr=0.002), DEVICE)
            found.append([step(0.002, IMAGES, TARGETS) for _ in range(3)])
    finally:
        make_deterministic(False)
    assert found[0] == found[1]
