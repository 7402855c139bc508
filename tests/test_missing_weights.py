"""Named ImageNet weights that cannot be downloaded: a model can be built and filled otherwise, a training cannot start."""

from __future__ import annotations

import logging
from urllib.error import URLError

import pytest
from tiny_training import draw_set
from torchvision.models import WeightsEnum

import detector
from detector.errors import CheckpointError
from detector.training.run import train


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)


def test_the_model_is_built_and_the_reason_said_aloud(offline, caplog):
    config = {"model": {"backbone": {"depth": 18, "weights": "IMAGENET1K_V1"}, "num_classes": 3}}
    with caplog.at_level(logging.WARNING):
        model = detector.build_detector(config)
    assert "no network" in caplog.text and "resnet18-" in caplog.text  # the file to download elsewhere
    assert "could not be downloaded" in model.pyramid.backbone.missing_weights


def test_a_training_does_not_start(offline, tmp_path):
    data = {split: {"images": "images", "annotations": f"{split}.json"} for split in ("train", "val")}
    data["root"] = str(draw_set(tmp_path / "set"))
    config = {"model": {"backbone": {"depth": 18, "weights": "IMAGENET1K_V1"}}, "data": data}
    with pytest.raises(CheckpointError, match=r"resnet18-.*give the path of the file"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
