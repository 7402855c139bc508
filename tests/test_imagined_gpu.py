"""On a GPU the host waits for no number and for no copy, up to the door of the model: told without one."""

from __future__ import annotations

import inspect
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.imagined_gpu import GPU, NoWaits, imagined_gpu
from test_fixed_shapes import LEARNT_ALONE, SHAPES, detector_of, find, learner
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.data import dataloader
from torch.utils.data._utils.pin_memory import pin_memory

from detector.data.loader import train_loader
from detector.data.workers import PINNING_ENDED, is_lost_worker
from detector.modeling.rcnn import GeneralizedRCNN
from detector.recipe import Recipe
from detector.records.keypoints import Keypoints
from detector.records.outlines import Outlines
from detector.records.record import on_device
from detector.structures import Target
from detector.training.step import TrainStep

pytestmark = pytest.mark.skipif(torch.__version__ < (2, 11), reason="older versions ask for a driver to imagine a GPU")
NAMES = sorted(path.stem for path in SHAPES.glob("*.yaml"))


def images() -> list[torch.Tensor]:
    return [torch.zeros(3, 100, 120, dtype=torch.uint8), torch.zeros(3, 128, 128, dtype=torch.uint8)]


def targets() -> list[Target]:
    """Of two images, with everything that a detector may learn; each has a crowd region."""
    found = []
    for (h, w), count in (((100, 120), 3), ((128, 128), 1)):
        found.append(
            Target(
                torch.zeros(count, 4), torch.zeros(count, dtype=torch.int64), torch.zeros(1, 4),
                masks=torch.zeros(count, h, w, dtype=torch.uint8), semantic=torch.zeros(h, w, dtype=torch.uint8),
                keypoints=Keypoints(torch.zeros(count, 3, 2), torch.zeros(count, 3, dtype=torch.int64)),
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_inference_waits_for_nothing_up_to_the_detections(name: str, monkeypatch: pytest.MonkeyPatch):
    model = detector_of(name)
    with imagined_gpu(model, monkeypatch), NoWaits() as mode:
        batch = model.preprocess.batch(images(), GPU, torch.float32)
        proposals, rows, valid = find(model, batch)
    assert proposals.valid.device == valid.device == rows[0].boxes.device == GPU
    assert mode.lists == [] and mode.copies >= len(images())


LEARNT = [name for name in NAMES if name not in LEARNT_ALONE]


@pytest.mark.parametrize("name", LEARNT)
def test_a_training_step_waits_for_its_losses_alone(name: str, monkeypatch: pytest.MonkeyPatch):
    model, reads = learner(name), []

    def backward(loss: torch.Tensor) -> None:
        """Autograd asks for a GPU; test_fixed_shapes.py follows it on the CPU."""
        assert loss.device == GPU and loss.requires_grad
        for p in model.parameters():
            p.grad = torch.empty_like(p) if p.requires_grad else None

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(GeneralizedRCNN, "_check", lambda *args: None)  # it reads the targets, on the host
    monkeypatch.setattr(FakeTensor, "tolist", lambda x: reads.append(x) or [1.0] * len(x))
    with imagined_gpu(model, monkeypatch):
        step = TrainStep(model, Recipe(clip_norm=1.0), GPU)
        with NoWaits() as mode:
            step(0.1, images(), targets())
    assert [numbers.device for numbers in reads] == [GPU]
    assert mode.lists == [] and mode.copies > len(images())


class Recorded:
    """A tensor that is asked to move."""

    def __init__(self, place: str):
        self.device, self.dtype = torch.device(place), torch.float32

    def to(self, device: torch.device | str, dtype: torch.dtype, *, non_blocking: bool) -> bool:
        return non_blocking


def test_a_copy_to_a_gpu_is_queued_and_a_copy_from_it_never():
    assert on_device(Recorded("cpu"), "cuda") and on_device(Recorded("cpu"), GPU)
    for source, target in (("cuda", "cpu"), ("cpu", "cpu"), ("cuda:0", "cuda:1"), ("mps", "cpu"), ("cpu", "mps")):
        assert not on_device(Recorded(source), target)


def test_the_loader_pins_all_that_a_gpu_reads(monkeypatch: pytest.MonkeyPatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x)
    [first, _] = targets()
    outlines = Outlines.of([[[0.0, 0, 9, 0, 9, 9]]] * 3, (100, 120))
    found = pin_memory((images(), [replace(first, outlines=outlines)], [7]))
    held = [*found[0], first.boxes, first.labels, first.crowd, first.masks, first.semantic]
    held += [first.keypoints.points, first.keypoints.visible]
    assert sorted(map(id, pinned)) == sorted(map(id, held))
    assert found[1][0].outlines is outlines and found[2] == [7]


@pytest.mark.parametrize("pin", [False, True])
def test_the_training_loader_pins_for_a_gpu_alone(pin: bool):
    sized = SimpleNamespace(sizes=np.array([[4, 6]] * 4))
    assert train_loader(sized, 2, 0, seed=0, pin=pin).pin_memory is pin
    assert train_loader(sized, 2, 0, seed=0).pin_memory is False


def test_the_end_of_the_thread_that_pins_is_that_of_a_loading_process():
    assert PINNING_ENDED in inspect.getsource(dataloader)  # as torch words it
    assert is_lost_worker(RuntimeError(PINNING_ENDED))
    assert not is_lost_worker(RuntimeError("something else"))
