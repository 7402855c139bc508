"""The moving average of weights, by hand; and that it is what a training scores and keeps."""

from pathlib import Path

import pytest
import torch
from helpers.training import draw_set, train, write_config
from torch import nn

from detector.checkpoint import read_checkpoint
from detector.training.ema import ModelEMA


def model(value: float) -> nn.Module:
    """A batch norm whose floats are all `value`, with a counter."""
    norm = nn.BatchNorm2d(2)
    for tensor in norm.state_dict().values():
        tensor.fill_(int(value) if tensor.dtype == torch.int64 else value)
    return norm


def test_by_hand():
    """Decays min(0.5, (1 + t) / (10 + t)): 2/11, 3/12; from 0 towards 11 and 8."""
    average = ModelEMA(model(0.0), 0.5)
    average.update(model(11.0))
    assert average.model.weight.tolist() == pytest.approx([9.0, 9.0])
    average.update(model(8.0))
    state = average.model.state_dict()
    assert state["bias"].tolist() == state["running_mean"].tolist() == pytest.approx([8.25, 8.25])
    assert int(state["num_batches_tracked"]) == 8
    for _ in range(20):
        average.update(model(0.0))
    before = average.model.weight[0].item()
    average.update(model(0.0))
    assert average.model.weight[0].item() == pytest.approx(0.5 * before)


def test_the_average_does_not_touch_the_model_nor_train():
    source = model(1.0)
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
