"""ImageNet weights that are missing, in another form, or for other input: a training with them does not start."""

import logging
import pickle
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from helpers.tiny import picture
from helpers.training import draw_set, script, write_config
from torch import Tensor
from torchvision.models import WeightsEnum

import detector
from detector.config.config import parse_config
from detector.errors import CheckpointError
from detector.interop.imagenet import CAFFE2
from detector.interop.names import rename
from detector.modeling.backbones.resnet import ResNet
from detector.modeling.preprocess import IMAGENET_MEAN, IMAGENET_STD, ImagePreprocessor
from detector.training.run import run_training


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", refuse)


def test_a_model_is_built_and_the_reason_said_aloud_but_a_training_does_not_start(offline, caplog, tmp_path):
    config = {"model": {"backbone": {"depth": 18, "weights": "IMAGENET1K_V1"}, "num_classes": 3}}
    with caplog.at_level(logging.WARNING):
        model = detector.build_detector(parse_config(config, trust=True))
    file = "https://download.pytorch.org/models/resnet18-"  # to download elsewhere
    assert "no network" in caplog.text and file in caplog.text
    assert "could not be downloaded" in model.pyramid.backbone.missing_weights
    data = {split: {"images": "images", "annotations": f"{split}.json"} for split in ("train", "val")}
    data["root"] = str(draw_set(tmp_path / "set"))
    config = {"model": {"backbone": {"depth": 18, "weights": "IMAGENET1K_V1"}}, "data": data}
    with pytest.raises(CheckpointError, match=r"resnet18-.*give the path of the file"):
        run_training(parse_config(config, trust=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


State = dict[str, Tensor]
EPS = 1e-5


@pytest.fixture(scope="module")
def classifier() -> State:
    """A ResNet-50 under torchvision's names, whose norms have the statistics that Caffe2's files leave out."""
    torch.manual_seed(0)
    state = ResNet(50).state_dict()
    state["conv1.weight"] *= 20  # of a colour that std has divided
    for key, tensor in state.items():
        if key.endswith("running_var"):
            tensor.fill_(1 - EPS)
        elif tensor.ndim == 1:
            tensor.copy_(torch.rand_like(tensor) * (0.3 if key.endswith("weight") else 0))
    return state


@pytest.fixture(scope="module")
def caffe2(classifier: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network in MSRA's form: of BGR images, whose colours no std divides."""
    first = classifier["conv1.weight"] / torch.tensor(IMAGENET_STD)[:, None, None]
    names = {key: rename(key, CAFFE2, back=True) for key in classifier if "running" not in key}
    blobs = {found[0]: classifier[key].numpy() for key, found in names.items() if found}
    path = tmp_path_factory.mktemp("msra") / "R-50.pkl"
    path.write_bytes(pickle.dumps({"blobs": blobs | {"conv1_w": first.flip(1).numpy()}}, protocol=2))
    return path


@pytest.fixture(scope="module")
def converted(caffe2: Path) -> Path:
    output = caffe2.with_suffix(".pth")
    assert script("convert_weights").main([str(caffe2), "--from", "auto", "--output", str(output)]) == 0
    return output


def backbone_config(folder: Path, weights: object) -> Path:
    """A tiny training but for its backbone."""
    path = write_config(folder / "config.yaml", draw_set(folder / "set"), epochs=1)
    resnet = f"{{depth: 50, frozen_stages: 5, weights: {weights}}}"
    path.write_text(path.read_text().replace("type: helpers.training.TinyBackbone", resnet))
    return path


def run(config: Path, *settings: str) -> int:
    """scripts/train.py; its exit status."""
    return script("train").main([str(config), "--output", str(config.with_name("run")), *settings])


def test_the_message_says_what_to_set(converted, tmp_path, capsys):
    config = backbone_config(tmp_path, converted)
    assert run(config) == 2
    error = capsys.readouterr().err
    assert f"error: {config}: model.backbone.weights: {converted} was trained with other settings" in error
    settings = error.partition("; set ")[2].split()
    assert len(settings) == 4 and settings[-1] == "model.backbone.stride_in=1x1"
    assert run(config, *settings[1:]) == 2
    assert capsys.readouterr().err.endswith("than model.preprocess.order=rgb; set model.preprocess.order=bgr\n")
    assert not (tmp_path / "run").exists()
    assert run(config, *settings) == 0


def test_a_backbone_of_bgr_sees_the_same_in_the_same_images(classifier, converted):
    torch_net, msra = ResNet(50, stride_in="1x1").eval(), ResNet(50, weights=str(converted), stride_in="1x1").eval()
    torch_net.load_state_dict(classifier)
    bgr = ImagePreprocessor(order="bgr", mean=IMAGENET_MEAN[::-1], std=(1, 1, 1))
    msra.check_input(bgr)
    images = [picture(64, 96), picture(96, 64, seed=1)]
    with torch.no_grad():
        expected, found = (
            net(pixels.batch(images, torch.device("cpu"), torch.float32).images)
            for net, pixels in [(torch_net, ImagePreprocessor()), (msra, bgr)]
        )
    for one, other in zip(found, expected, strict=True):
        assert one.std() > 0 and (one - other).abs().max() < 1e-4 * other.std()


def test_weights_go_with_all_input_unless_they_say_otherwise_in_a_form_that_is_known(classifier, tmp_path):
    for weights in [None, "file"]:
        if weights:
            torch.save(classifier, weights := tmp_path / "r50.pth")
        ResNet(50, weights=weights and str(weights), stride_in="1x1").check_input(ImagePreprocessor(order="bgr"))
    for said in ("bgr", {"pixels": {}}, {"pixels": {"order": "bgr", "mean": 3, "std": "no"}, "stride_in": "1x1"}):
        torch.save({"state_dict": {}, "trained_with": said}, tmp_path / "r50.pth")
        with pytest.raises(CheckpointError, match="`trained_with` is malformed"):
            ResNet(50, weights=str(tmp_path / "r50.pth"))


def refused(weights: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        ResNet(50, weights=str(weights))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_frameworks_backbone_has_to_be_converted_and_a_whole_detector_is_none(caffe2, tmp_path):
    command = f"detector convert-weights {caffe2} --from auto --output {caffe2.parent}/R-50_converted.pth"
    assert refused(caffe2).endswith(f"convert it first: {command}")
    named = tmp_path / "my file.pth"
    torch.save({"model": {"stem.conv1.weight": torch.ones(1)}}, named)
    output = f"'{tmp_path}/my file_converted.pth'"
    advice = f"Convert weights with other names first: detector convert-weights '{named}' --from auto --output {output}"
    assert refused(named).endswith(advice)
    assert "R-60.pkl: no such file" in refused(tmp_path / "R-60.pkl")
    path = tmp_path / "ours.pth"
    torch.save({"format": "ours", "model": {"pyramid.backbone.conv1.weight": torch.ones(1)}}, path)
    assert refused(path).endswith(f"start from it by --init-from {path}")
