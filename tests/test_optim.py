"""Learning rates and averages of weights by hand, what the optimisers hold, and which recipes are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import draw_set, train, write_config
from torch import nn
from torchvision.models.convnext import LayerNorm2d

from detector.checkpoint import read_checkpoint
from detector.modeling.layers import make_norm
from detector.recipe import Recipe
from detector.training.ema import ModelEMA
from detector.training.optim import learning_rate, make_optimizer, warmup_steps
from detector.training.plan import plan_faults, plan_lines
from detector.training.step import TrainStep

FLAT = dict(lr=1.0, lr_batch=1, batch_size=1, warmup_steps=0, milestones=[])


def rates(steps_per_epoch: int, **recipe: Any) -> list[float]:
    made = Recipe(**FLAT | recipe)
    return [learning_rate(made, step, steps_per_epoch) for step in range(made.epochs * steps_per_epoch)]


def test_rates_by_hand_and_schedules_that_fit_any_length():
    warm_up = rates(12, epochs=1, lr=8.0, warmup_steps=4, warmup_factor=0.5)
    assert warm_up == pytest.approx([4, 5, 6, 7, *[8] * 8])
    assert rates(2, epochs=4, milestones=[1, 3]) == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert rates(4, epochs=1, milestones=[0.5]) == pytest.approx([1, 1, 0.1, 0.1])  # within an epoch
    both = rates(2, epochs=6, milestones=[1], warmup_steps=4, warmup_factor=0.0)
    assert both[:5] == pytest.approx([0, 0.25, 0.05, 0.075, 0.1])
    cosine = rates(2, epochs=2, schedule="cosine")
    assert cosine == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
    assert learning_rate(Recipe(**FLAT, epochs=2, schedule="cosine"), 4, 2) == pytest.approx(0)
    assert rates(2, epochs=2, schedule="cosine", milestones=[1]) == cosine  # which knows none
    # Fractions of the training; a warm-up of at most a tenth by itself, of at most a third where it is asked for.
    short = Recipe(epochs=20, lr=1.0, lr_batch=16)
    steps = [learning_rate(short, step, 37) for step in range(740)]
    assert steps[73] < 1 and steps[74] == steps[493] == 1
    assert steps[494] == steps[678] == pytest.approx(0.1) and steps[679] == pytest.approx(0.01)
    twelve = [Recipe(milestones=m) for m in ([8, 11], Recipe().milestones)]
    assert [learning_rate(twelve[0], i, 7) for i in range(84)] == [learning_rate(twelve[1], i, 7) for i in range(84)]
    assert warmup_steps(Recipe(), 10**5) == 500 and warmup_steps(Recipe(warmup_steps=500), 740) == 246
    assert plan_faults(short, 37) == [] and plan_faults(Recipe(), 7000) == []


def test_the_plan_and_its_faults_are_said():
    plain = Recipe(epochs=20, lr_batch=16, milestones=[8, 11], warmup_steps=37)
    assert plan_lines(plain, 37) == [
        "warm-up: 2e-05 to 0.02 in 37 steps", "epochs 1 to 8: 0.02", "epochs 9 to 11: 0.002", "epochs 12 to 20: 0.0002",
    ]  # fmt: skip
    [fault] = plan_faults(plain, 37)
    assert fault.startswith(
        "45% of the steps have less than 2% of the learning rate: train.milestones=[8, 11] for 20 epochs"
    )
    [fault] = plan_faults(Recipe(epochs=2, milestones=[0.1], warmup_steps=100), 100)
    assert fault.startswith("the learning rate never exceeds 29% of 0.02")
    assert plan_lines(Recipe(epochs=3, schedule="cosine", warmup_steps=0), 10) == [
        "epoch 1: 0.02", "epoch 2: 0.015", "epoch 3: 0.005",
    ]  # fmt: skip


@pytest.fixture
def model() -> nn.Module:
    """A frozen convolution, a trained one, two kinds of norms, a layer."""
    made = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2)
    )
    made[0].requires_grad_(False)
    return made


def held(optimizer: torch.optim.Optimizer) -> list[tuple[float, set[int]]]:
    return [(group["weight_decay"], {id(p) for p in group["params"]}) for group in optimizer.param_groups]


def ids(*modules: nn.Module) -> set[int]:
    return {id(p) for module in modules for p in module.parameters()}


def test_kinds_and_settings_and_every_kind_of_norm_has_a_weight_decay_of_its_own(model: nn.Module):
    for name in ["sgd", "adamw"]:
        optimizer = make_optimizer(model, Recipe(optimizer=name, weight_decay=0.1, norm_weight_decay=0.0))
        assert held(optimizer) == [(0.1, ids(model[1], model[5])), (0.0, ids(model[2], model[3]))]
    assert [decay for decay, _ in held(make_optimizer(model, Recipe(weight_decay=0.1)))] == [0.1, 0.1]
    assert len(make_optimizer(nn.Linear(2, 2), Recipe()).param_groups) == 1
    others = [nn.LayerNorm(4), nn.InstanceNorm2d(4, affine=True), nn.RMSNorm(4), nn.SyncBatchNorm(4), LayerNorm2d(4)]
    for norm in [*others, ChannelRMSNorm(), *(make_norm(kind, 32) for kind in ("batch", "group", "affine", "sync"))]:
        linear = nn.Linear(4, 2)
        optimizer = make_optimizer(nn.Sequential(linear, norm), Recipe(weight_decay=0.1, norm_weight_decay=0.0))
        assert held(optimizer) == [(0.1, ids(linear)), (0.0, ids(norm))] and ids(norm)
    sgd = make_optimizer(model, Recipe(lr=0.02, batch_size=8, momentum=0.5))
    assert type(sgd) is torch.optim.SGD and sgd.defaults["lr"] == pytest.approx(0.01)
    assert sgd.defaults["momentum"] == 0.5
    adamw = make_optimizer(model, Recipe(lr=1e-4, batch_size=8, optimizer="adamw"))
    assert type(adamw) is torch.optim.AdamW and adamw.defaults["lr"] == 1e-4


class ChannelRMSNorm(nn.Module):
    """A normalisation layer of another package."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))


def test_wrong_numbers_are_named_zero_is_one_like_others_and_only_sgd_is_scaled_to_the_batch():
    for wrong in [
        {"epochs": 0}, {"batch_size": 0}, {"lr_batch": -1}, {"evaluate_every": 0}, {"lr": -0.1}, {"lr": float("nan")},
        {"lr": float("inf")}, {"momentum": -0.5}, {"weight_decay": -1e-4}, {"norm_weight_decay": -1e-4},
        {"warmup_steps": -1}, {"warmup_factor": -0.1}, {"clip_norm": 0.0}, {"clip_norm": float("nan")},
        {"save_seconds": -1.0}, {"seed": -1}, {"seed": 2**63},
    ]:  # fmt: skip
        ((key, value),) = wrong.items()
        with pytest.raises(ValueError) as error:
            Recipe(**wrong)
        assert str(error.value).startswith(f"Recipe: {key}: ") and f"got {value}" in str(error.value)
    Recipe(lr=0, momentum=0, weight_decay=0, norm_weight_decay=0, warmup_steps=0, warmup_factor=0, save_seconds=0)
    for batch, rate in [(16, 0.02), (8, 0.01), (2, 0.0025), (32, 0.04)]:
        assert Recipe(lr=0.02, batch_size=batch).scaled_lr() == pytest.approx(rate)
        assert Recipe(lr=0.02, batch_size=batch, lr_batch=batch).scaled_lr() == pytest.approx(0.02)
        assert Recipe(lr=0.02, batch_size=batch, optimizer="adamw").scaled_lr() == 0.02


def filled(value: float) -> nn.Module:
    """A batch norm whose floats are all `value`, with a counter."""
    norm = nn.BatchNorm2d(2)
    for tensor in norm.state_dict().values():
        tensor.fill_(int(value) if tensor.dtype == torch.int64 else value)
    return norm


def test_the_average_by_hand_which_does_not_touch_the_model_nor_train():
    # Decays min(0.5, (1 + t) / (10 + t)): 2/11, 3/12; from 0 towards 11 and 8.
    average = ModelEMA(filled(0.0), 0.5)
    average.update(filled(11.0))
    assert average.model.weight.tolist() == pytest.approx([9.0, 9.0])
    average.update(filled(8.0))
    state = average.model.state_dict()
    assert state["bias"].tolist() == state["running_mean"].tolist() == pytest.approx([8.25, 8.25])
    assert int(state["num_batches_tracked"]) == 8
    for _ in range(20):
        average.update(filled(0.0))
    before = average.model.weight[0].item()
    average.update(filled(0.0))
    assert average.model.weight[0].item() == pytest.approx(0.5 * before)
    source = filled(1.0)
    average = ModelEMA(source, 0.9)
    source.weight.data.fill_(5.0)
    assert average.model.weight.tolist() == [1.0, 1.0]
    assert not average.model.training and not any(p.requires_grad for p in average.model.parameters())
    average.update(source)
    assert source.weight.tolist() == [5.0, 5.0]


def test_checkpoints_hold_the_average_and_what_trains(tmp_path: Path):
    config = write_config(tmp_path / "tiny.yaml", draw_set(tmp_path / "data"), epochs=1, ema=0.9)
    assert train(config, tmp_path / "run") == 0
    last, best = (read_checkpoint(tmp_path / "run" / name) for name in ("last.pth", "best.pth"))
    key = "rpn.objectness.weight"
    assert torch.equal(last["model"][key], best["model"][key])
    assert not torch.equal(last["model"][key], last["training"]["weights"][key])
    assert last["training"]["averaged"] == 3 and "weights" not in best["training"]


class Brightness(nn.Module):
    """Its loss is the mean of the images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: list[torch.Tensor], targets: list) -> dict[str, torch.Tensor]:
        return {"mean": self.weight * torch.stack(images).mean()}


def test_the_parts_of_an_accumulated_batch_count_by_their_images():
    """Three images in parts of two and one: a mean of all, not of the two means."""
    step = TrainStep(Brightness(), Recipe(batch_size=3, accumulate=2, lr=0.0), torch.device("cpu"))
    row = step(0.0, [torch.tensor(value) for value in (1.0, 2.0, 6.0)], [None] * 3)
    assert row["mean"] == row["grad_norm"] == pytest.approx(3)
