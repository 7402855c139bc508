"""The predictor: whatever a picture comes as, boxes in its own pixels; and a checkpoint that describes itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.golden_rules import match_sets
from helpers.tiny import (
    CLASSES,
    CONFIG,
    DATA,
    IDS,
    NAMES,
    assert_same_detections,
    built,
    columns,
    picture,
    predictor_of,
    tiny_model,
)
from helpers.training import MODEL

import detector
from detector.checkpoint import save_checkpoint
from detector.config.inherit import merge
from detector.device import pick_device
from detector.errors import CheckpointError, ConfigError
from detector.inference.predictor import Predictor, to_original
from detector.inference.predictor import load_predictor as load
from detector.modeling.layers import FrozenBatchNorm
from detector.modeling.rcnn import GeneralizedRCNN
from detector.structures import Detections

SETTINGS = {**CONFIG, "data": DATA | {"resize": {"short": [48, 64], "long": 96}, "max_pixels": 100_000}}


def wrap(model: GeneralizedRCNN, config: dict[str, Any] = SETTINGS, **options: Any) -> Predictor:
    return predictor_of(model, config, **options)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return wrap(tiny_model())


def assert_same(a: Detections, b: Detections) -> None:
    assert len(a) == len(b) > 0
    for x, y in zip(columns(a), columns(b)):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-3)


def test_boxes_names_and_scores_are_of_the_picture_which_no_box_leaves_by_rounding(predictor: Predictor):
    assert predictor([]) == []
    (found,) = predictor((picture(64, 96),))
    assert found.names == [NAMES[label] for label in found.labels.tolist()]
    assert set(found.labels.tolist()) <= set(range(CLASSES))
    assert (found.scores[:-1] >= found.scores[1:]).all() and 0 < found.scores.min() <= found.scores.max() <= 1
    assert [x.dtype for x in columns(found)] == [torch.float32, torch.float32, torch.int64]
    tensor = picture(111, 149)
    small = predictor.prepare(tensor)
    assert small.shape == (3, 64, 86)  # 149 * 64 / 111 = 85.9
    (inner,) = predictor.model([small])
    found = predictor(tensor)
    expected = inner.boxes * torch.tensor([149 / 86, 111 / 64, 149 / 86, 111 / 64])  # a ratio for each axis
    torch.testing.assert_close(found.boxes, expected, rtol=1e-5, atol=1e-3)
    assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([149, 111, 149, 111])).all()
    boxes = torch.tensor([[-1e-3, 8.0, 86.001, 64.0], [0.0, 0.0, 43.0, 32.0]])
    rows = Detections(boxes, torch.ones(2), torch.zeros(2, dtype=torch.int64))
    found = to_original(rows, torch.empty(3, 64, 86), (128, 172))
    assert found.boxes.tolist() == [[0, 16, 172, 128], [0, 0, 86, 64]]


def test_the_largest_short_side_is_taken_the_long_one_bounded_and_by_default_as_published(predictor):
    for size, expected in [
        ((64, 96), (64, 96)),
        ((480, 640), (64, 85)),
        ((100, 300), (32, 96)),
        ((300, 100), (96, 32)),
        ((7, 7), (64, 64)),
    ]:
        assert predictor.prepare(picture(*size)).shape == (3, *expected)
        assert predictor.resize.sides == [64]  # also where boxes come along, as for the loss on val
    assert wrap(tiny_model(), CONFIG).prepare(picture(100, 150)).shape == (3, 800, 1200)


def test_folding_changes_no_box_and_the_model_is_at_rest(predictor: Predictor):
    model = tiny_model(backbone={"norm": "batch", "frozen_stages": 0})
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    folded = wrap(model)
    norms = [m for m in folded.model.modules() if isinstance(m, torch.nn.BatchNorm2d | FrozenBatchNorm)]
    assert norms == [] and any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
    small = picture(64, 96)
    with torch.no_grad():
        (expected,) = model.eval()([small])
    assert len(expected) > 5
    assert_same_detections(folded(small), expected)
    model = predictor.model
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.pyramid is not None and model.rpn is not None and model.roi_head.num_classes == CLASSES


def test_bfloat16_stays_close():
    model = tiny_model()
    half = wrap(model, precision="bfloat16")
    expected, found = wrap(model)(picture(64, 96)), half(picture(64, 96))
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    sure = expected.scores >= 0.5
    assert sure.sum() >= 5
    match = match_sets(columns(found), tuple(x[sure] for x in columns(expected)), px=2.0, score=0.05)
    assert match.unmatched <= 0.1 * int(sure.sum())  # of random weights: NMS may turn on the last bit of a score


def test_what_is_no_picture_or_no_device_is_refused(predictor: Predictor):
    channels_last, batch = (torch.zeros(shape, dtype=torch.uint8) for shape in ((8, 8, 3), (1, 3, 8, 8)))
    expected = r"expected a uint8 RGB tensor of shape \(3, H, W\)"
    for wrong, kind, message in (
        (torch.zeros(3, 8, 8), ValueError, expected), (channels_last, ValueError, expected), (batch, ValueError, expected),
        (None, TypeError, r"expected a path, .* got NoneType"),
    ):  # fmt: skip
        for pictures in (wrong, [wrong]):
            with pytest.raises(kind, match=message):
                predictor(pictures)
    with pytest.raises(TypeError, match="got int"):
        predictor([3])
    for name in ["gpu", "cuda:999", "", "cpu0"]:
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here"):
            pick_device(name)
        assert pick_device("cpu") == torch.device("cpu")
        assert pick_device("auto").type in ("cpu", "cuda")


def save(path: Path, model: GeneralizedRCNN, config: dict[str, Any] = SETTINGS) -> Path:
    save_checkpoint(path, model=model, config=config, class_names=NAMES, category_ids=IDS)
    return path


def test_a_checkpoint_is_all_it_takes_and_is_named_where_its_parts_disagree(tmp_path, monkeypatch):
    model = tiny_model()
    config = merge(SETTINGS, {"model": {"backbone": {"weights": "gone.pth"}}})  # already in the checkpoint's weights
    path = save(tmp_path / "a.pth", model, config)
    monkeypatch.chdir(tmp_path)
    loaded = detector.load("a.pth")
    assert (loaded.class_names, loaded.category_ids, loaded.config.raw) == (NAMES, IDS, config)
    assert_same(loaded(picture(111, 149)), wrap(model)(picture(111, 149)))
    assert loaded.max_pixels == 100_000 and not loaded.model.training
    assert detector.Predictor is type(loaded) and path.exists()
    model = built({"model": {**MODEL, "num_classes": len(NAMES)}})
    for section, reason in (
        ({"neck": {"type": "fnp"}}, r"its configuration cannot be used: model\.neck\.type: 'fnp'"),
        ({"neck": {"wdith": 3}}, r"model\.neck\.wdith: unknown key"),
        ({"num_classes": None}, r"its configuration does not build a model: model\.num_classes"),
        ({"neck": {"width": 16}}, r"made for another architecture; of another shape: pyramid\.neck"),
        ({"num_classes": 5}, r"made for another architecture; of another shape: roi_head\.stage\.class_score"),
    ):
        config = merge({"model": {**MODEL, "num_classes": len(NAMES)}}, {"model": section})
        with pytest.raises(CheckpointError, match=rf"a\.pth: .*{reason}"):
            load(save(tmp_path / "a.pth", model, config), trust=True)


def test_weights_of_a_training_that_diverged_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = tiny_model()
    with caplog.at_level("WARNING", "detector"):
        load(save(tmp_path / "a.pth", model))
        assert not caplog.messages
        with torch.no_grad():
            model.rpn.deltas.weight[0, 0] = torch.nan
            model.rpn.deltas.bias[0] = torch.inf
        assert len(load(save(tmp_path / "a.pth", model))(picture(64, 64))) >= 0
    [message] = caplog.messages
    assert f"{tmp_path / 'a.pth'}: the weights are not finite (rpn.deltas.weight and 1 more)" in message


def test_the_configuration_can_be_overridden_and_code_of_the_users_own_runs_only_with_trust(tmp_path: Path):
    path = save(tmp_path / "a.pth", tiny_model())
    loaded = load(path, overrides=["data.resize.short=32", "model.roi_head.selection.max_detections=2"], device="cpu")
    assert loaded.prepare(picture(64, 64)).shape == (3, 32, 32) and len(loaded(picture(64, 96))) == 2
    with pytest.raises(ConfigError, match=r"data\.resize\.shrot: unknown key; did you mean 'short'"):
        load(path, overrides=["data.resize.shrot=32"])
    with pytest.raises(ConfigError, match="precision 'int8': choose one of float32, bfloat16"):
        load(path, precision="int8")
    config = {"model": {**MODEL, "num_classes": len(NAMES)}}
    path = save(tmp_path / "a.pth", built(config), config)
    with pytest.raises(CheckpointError, match=r"a\.pth: .*helpers.training\.TinyBackbone.*--trust"):
        load(path)
    assert load(path, trust=True, device="cpu").class_names == NAMES
