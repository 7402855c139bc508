"""Configurations, checkpoints and trainings of version 0.1 keep working: see fixtures/v0_1_0/README.md."""

import csv
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import draw_set, train

import detector
from detector.checkpoint import read_checkpoint
from detector.config.config import Config, build_detector, load_config, parse_config
from detector.config.describe import effective_options
from detector.config.inherit import shipped_configs
from detector.config.keys import key_table
from detector.data.settings import DATASETS, TRANSFORMS
from detector.errors import ConfigError
from detector.renames import KEYS, VALUES, rename_config, rename_tensor, rename_tensors
from detector.structures import Proposals

OLD = Path(__file__).parent / "fixtures" / "v0_1_0"
EXPECTED = json.loads((OLD / "expected.json").read_text())
MODELS = [name for name in EXPECTED if name != "proposals"]
CONFIGS = json.loads(gzip.decompress((OLD / "configs.json.gz").read_bytes()))
CLASSES = {"Pixels": "ImagePreprocessor", "Pyramid": "PlainPyramid"}
Y, X = torch.meshgrid(torch.arange(96), torch.arange(128), indexing="ij")
IMAGE = torch.stack([(37 * c + 5 * Y + 3 * X + (X * Y) // 7) % 256 for c in range(3)]).to(torch.uint8)
TARGET = {
    "boxes": torch.tensor([[8.0, 8, 40, 50], [50, 20, 90, 60], [2, 2, 126, 90]]),
    "labels": torch.tensor([0, 2, 1]),
    "crowd": torch.tensor([[60.0, 60, 120, 90]]),
}


def proposals(name: str) -> list[Proposals] | None:
    boxes = torch.tensor(EXPECTED["proposals"]).float()
    return [Proposals(boxes, torch.arange(len(boxes)).float())] if name == "precomputed" else None


CHANGED = {  # values of 0.1 that are others now, by intent: defaults that fit any length, and bfloat16 only where it is fast
    "train.milestones": [[[8, 11], [2 / 3, 11 / 12]]],
    "train.warmup_steps": [[500, None]],
    "train.save_seconds": [[15.0, None]],
    "train.precision": [["bfloat16", "auto"]],
}


def assert_same_options(config: Config, old: dict[str, Any]) -> None:
    """Every option of 0.1, under today's name, has the value that it had."""
    new = effective_options(config, key_table(config))
    for key, value in old.items():
        path = key if key in new else KEYS.get(key, key)
        path = path if path in new else key.replace("model.pixels", "model.preprocess")
        if key.startswith("model") and key.endswith(".type"):
            part = path.removeprefix("model.").removesuffix(".type")
            assert config.model.calls[part].constructor.__name__ == CLASSES.get(value, value), key
        elif key == "data.type":
            assert new[key] is DATASETS[value]
        elif key == "data.transforms":
            made = [TRANSFORMS[t["type"]](**{name: t[name] for name in t if name != "type"}) for t in value]
            assert [(type(t), vars(t)) for t in new[key]] == [(type(t), vars(t)) for t in made], config.source
        elif path in CHANGED and [value, json.loads(json.dumps(new[path]))] in CHANGED[path]:
            continue
        else:
            now = json.loads(json.dumps(new[path]))
            now = [now] if key == "data.resize.short" and isinstance(now, int) else now
            assert now == (VALUES.get(path, {}).get(value, value) if isinstance(value, str) else value), (
                key,
                config.source,
            )


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_gives_the_same_detections(name: str):
    predictor, expected = detector.load(OLD / f"{name}.pth", device="cpu"), EXPECTED[name]
    (found,) = predictor.detect([predictor.prepare(IMAGE)], [(96, 128)], proposals(name))
    assert found.labels.tolist() == expected["labels"]
    torch.testing.assert_close(found.boxes, torch.tensor(expected["boxes"]), rtol=0, atol=1e-3)
    torch.testing.assert_close(found.scores, torch.tensor(expected["scores"]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_gives_the_same_losses(name: str):
    checkpoint = read_checkpoint(OLD / f"{name}.pth")
    model = build_detector(parse_config(checkpoint["config"], trust=False), pretrained=False)
    model.load_state_dict(rename_tensors(checkpoint["model"]))
    given = {"proposals": proposals(name)} if name == "precomputed" else {}
    torch.manual_seed(0)
    losses = {key: loss.item() for key, loss in model.train()([IMAGE], [TARGET], **given).items()}
    assert losses == pytest.approx(EXPECTED[name]["losses"], rel=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_has_the_same_options(name: str):
    config = parse_config(read_checkpoint(OLD / f"{name}.pth")["config"], trust=False)
    assert_same_options(config, EXPECTED[name]["options"])


@pytest.mark.slow
def test_every_shipped_configuration_builds_the_same_model():
    as_in_0_1 = [
        "model.backbone.width=64",
        "model.neck.width=128",
        "train.lr=0.0005",
    ]  # the demo is narrower since then
    for name, old in CONFIGS.items():
        overrides = as_in_0_1 if name == "shapes_r18_fpn.yaml" else []
        assert_same_model(load_config(shipped_configs() / name, overrides), old)


def assert_same_model(config: Config, old: dict[str, Any]) -> None:
    """The options, the tensors and their order are those of 0.1."""
    assert_same_options(config, old["options"])
    with torch.device("meta"):
        model = build_detector(config if config.model.num_classes else config.with_num_classes(5), pretrained=False)
    assert [(k, list(v.shape)) for k, v in model.state_dict().items()] == [
        (rename_tensor(k), s) for k, s in old["names"]
    ]
    # an optimiser's state is by the number of a parameter
    assert [k for k, _ in model.named_parameters()] == [rename_tensor(k) for k in old["parameters"]]


def test_a_training_goes_on_as_it_would_have(tmp_path: Path):
    draw_set(tmp_path / "data")
    output = tmp_path / "output"
    output.mkdir()
    for name in ("last.pth", "config.yaml"):
        (output / name).write_bytes((OLD / "training" / name).read_bytes())
    config = OLD / "training" / "config.yaml"
    with torch.backends.mkldnn.flags(
        enabled=False
    ):  # its network is narrower than oneDNN can train, see ResNet's `width`
        assert train(config, output, ["--resume", f"data.root={tmp_path / 'data'}"]) == 0
    with open(OLD / "training" / "metrics.csv", newline="") as old, open(output / "metrics.csv", newline="") as new:
        wanted = {(row["step"], row["AP"] == ""): row for row in csv.DictReader(old)}
        rows = list(csv.DictReader(new))
    assert [row["step"] for row in rows][-1] == "6"
    for row in rows:
        for column in ("loss", "lr", "grad_norm", "val_loss", "AP"):
            assert row[column] == "" or float(row[column]) == pytest.approx(
                float(wanted[row["step"], row["AP"] == ""][column]), rel=1e-3
            )


def test_keys_and_values_of_0_1_are_renamed_and_a_note_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "a.yaml").write_text("model: {num_classes: 2, pixels: {divisor: 64}, rpn: {force_match: promoter}}")
    with caplog.at_level(logging.INFO, "detector"):
        config = load_config(tmp_path / "a.yaml", ["model.rpn.nms_iou=0.6"])
    assert config.raw["model"]["rpn"] == {"matching": {"low_quality": "force_gt"}, "selection": {"nms_iou": 0.6}}
    assert config.model.calls["preprocess"].arguments["divisor"] == 64
    for old, new in (
        ("pixels", "preprocess"),
        ("rpn.force_match", "rpn.matching.low_quality"),
        ("rpn.nms_iou", "rpn.selection.nms_iou"),
    ):
        assert f"model.{old} is now model.{new}" in caplog.text


def test_either_name_of_a_key_goes_over_either_name_both_agree_and_a_custom_part_keeps_its_keys(tmp_path: Path):
    old, new = "model.rpn.nms_iou", "model.rpn.selection.nms_iou"
    for in_file in ("{rpn: {nms_iou: 0.5}}", "{rpn: {selection: {nms_iou: 0.5}}}"):
        (tmp_path / "a.yaml").write_text(f"model: {in_file}")
        for key in (old, new):
            config = load_config(tmp_path / "a.yaml", [f"{key}=0.6"])
            assert config.model.calls["rpn"].arguments["selection"].nms_iou == 0.6
    (tmp_path / "a.yaml").write_text("model: {rpn: {nms_iou: 0.5, selection: {nms_iou: 0.6}}}")
    with pytest.raises(ConfigError, match=r"a\.yaml: model\.rpn\.nms_iou .* model\.rpn\.selection\.nms_iou"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("model: {rpn: {nms_iou: 0.5, selection: {nms_iou: 0.5}}}")
    assert load_config(tmp_path / "a.yaml").model.calls["rpn"].arguments["selection"].nms_iou == 0.5
    raw = {"model": {"num_classes": 2, "rpn": {"type": "my_package.RPN", "nms_iou": 0.5}}}
    assert rename_config(raw) == raw
    change = {"model": {"rpn": {"nms_iou": 0.6}}}
    for base in ("my_package.RPN", {"type": "my_package.RPN"}):  # the type stands in the base file alone
        assert rename_config(change, {"model": {"rpn": base}}) == change
    for base in ({}, {"model": {"rpn": "rpn"}}):
        assert rename_config(change, base) == {"model": {"rpn": {"selection": {"nms_iou": 0.6}}}}


@pytest.mark.parametrize("text", ["model: {rpn.nms_iou: 0.5}", "model.rpn: {nms_iou: 0.5}"])
def test_a_dotted_key_in_a_file_is_an_unknown_key_under_old_names_too(tmp_path: Path, text: str):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"model\.rpn(\.nms_iou)?: unknown key"):
        load_config(tmp_path / "a.yaml")


def test_a_cascade_takes_the_weights_of_its_stages_alone():
    for key in ("box_weights", "coder.weights"):
        with pytest.raises(ConfigError, match="box_weights"):
            build_detector(
                parse_config(
                    {"model": {"num_classes": 2}},
                    ["model.roi_head.type=cascade", f"model.roi_head.{key}=[9, 9, 5, 5]"],
                    trust=False,
                )
            )
