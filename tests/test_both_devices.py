"""What a GPU is asked, tried on the CPU as well, so that it is known to run before there is a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from test_fixed_shapes import FixedShapes, learner, lesson
from torch.nn.parallel import DistributedDataParallel

from detector import distributed
from detector.modeling.layers import BatchNorm, SyncBatchNorm
from detector.modeling.shapes import fixed_shapes
from detector.recipe import Recipe
from detector.training.step import TrainStep

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
DEVICES = ["cpu", pytest.param("cuda", marks=ON_GPU)]


@contextmanager
def no_waits(device: str) -> Iterator[None]:
    """A wait for the device is an error; on the CPU, that which shows there: a shape that depends on data."""
    if device == "cpu":
        with FixedShapes(), fixed_shapes():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["fpn", "cascade", "mask_rcnn"])
def test_losses_and_gradients_wait_for_nothing(name: str, device: str, monkeypatch: pytest.MonkeyPatch):
    model, (images, targets) = learner(name).to(device), lesson()
    sum(model(images, targets).values()).backward()  # kernels are compiled, libraries loaded
    model.zero_grad()
    monkeypatch.setattr(model, "_check", lambda *given: None)  # it reads the targets, on the host
    with no_waits(device):
        total = sum(model(images, targets).values())
        total.backward()
    assert total.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.fixture
def group_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A group of one process, which a synchronised norm takes for a larger one: it must then be the norm of its own batch."""
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_synchronised_norm_of_one_process_is_that_of_its_batch(dtype: torch.dtype, device: str, group_of_one: None):
    x = torch.randn(3, 8, 5, 6).mul(2).add(1).to(device, dtype).requires_grad_()
    weight, found = torch.randn(x.shape, device=device), []
    dist.all_reduce(torch.zeros(1, device=device))  # makes the connection
    for kind in (SyncBatchNorm, BatchNorm):
        norm = kind(8).to(device).train()
        norm.weight.data.copy_(torch.arange(1, 9))
        with no_waits(device):
            y = norm(x)
            (y.float() * weight).sum().backward()
        assert y.dtype == dtype and norm.num_batches_tracked == 1
        found.append([y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var])
        x.grad = None
    rough = {"rtol": 0.02, "atol": 0.05} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    for synchronised, plain in zip(*found, strict=True):
        torch.testing.assert_close(synchronised, plain, check_dtype=False, **rough)


@pytest.mark.parametrize("device", DEVICES)
def test_processes_that_share_a_batch_wait_for_nothing(
    device: str, group_of_one: None, monkeypatch: pytest.MonkeyPatch
):
    step, (images, targets) = TrainStep(learner("fpn"), Recipe(), torch.device(device)), lesson()
    step.connect()
    assert isinstance(step.losses, DistributedDataParallel)
    monkeypatch.setattr(step.model, "_check", lambda *given: None)
    for _ in range(2):  # it orders its gradients after the first step
        sum(step.losses(images, targets).values()).backward()
    with no_waits(device):
        losses = step.losses(images, targets)
        sum(losses.values()).backward()
    assert all(loss.isfinite() and loss.device.type == device for loss in losses.values())
