"""torchvision's checkpoints in and out: names, the order of classes, and what does not fit."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from helpers.golden_rules import PROJECT, match_sets
from helpers.tiny import picture
from helpers.training import script
from torch import Tensor
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    maskrcnn_resnet50_fpn,
    maskrcnn_resnet50_fpn_v2,
)

import detector
from detector.checkpoint import read_checkpoint
from detector.config.config import load_config
from detector.errors import CheckpointError
from detector.interop.classes import COCO_80
from detector.interop.recognise import blank_state, fitting
from detector.interop.torchvision import TORCHVISION

V1, V2 = "torchvision_fasterrcnn_resnet50_fpn", "torchvision_fasterrcnn_resnet50_fpn_v2"
MASK_V1, MASK_V2 = "torchvision_maskrcnn_resnet50_fpn", "torchvision_maskrcnn_resnet50_fpn_v2"
MAKERS = {
    V1: fasterrcnn_resnet50_fpn,
    V2: fasterrcnn_resnet50_fpn_v2,
    MASK_V1: maskrcnn_resnet50_fpn,
    MASK_V2: maskrcnn_resnet50_fpn_v2,
}
CONFIGS = PROJECT / "configs/compat"
SMALL = ("data.resize.short=160", "data.resize.long=256")
both = pytest.mark.parametrize("version", [V1, V2, MASK_V1, MASK_V2])
only_v1 = pytest.mark.parametrize("built", [V1], indirect=True)

State = dict[str, Tensor]


@functools.cache
def our_state(version: str, classes: int = 90) -> State:
    """Names and shapes of our model, no data."""
    return blank_state(load_config(CONFIGS / f"{version}.yaml", [f"model.num_classes={classes}"]))


@functools.cache
def their_state(version: str) -> State:
    """torchvision's state dict with a different number everywhere in the predictor, ones elsewhere."""
    with torch.device("meta"):
        like = MAKERS[version](weights=None, weights_backbone=None).state_dict()
    state = {key: torch.ones(tensor.shape, dtype=tensor.dtype) for key, tensor in like.items()}
    for key in state:
        if "box_predictor" in key or "mask_fcn_logits" in key:
            state[key] = torch.arange(state[key].numel()).view(state[key].shape).float()
    return state


def read_part(key: str, tensor: Tensor) -> Tensor:
    """Without the deltas and the mask of torchvision's background."""
    unread = {"roi_heads.box_predictor.bbox_pred": 4, "roi_heads.mask_predictor.mask_fcn_logits": 1}
    first = unread.get(key.rpartition(".")[0])
    return tensor[first:] if first else tensor


def convert(state: State, version: str, classes: int = 90) -> State:
    return TORCHVISION.import_state(state, our_state(version, classes))


@both
def test_there_and_back_is_the_identity(version):
    """But for the deltas of the background, which nothing reads: they come back as zeros."""
    state = their_state(version)
    back = TORCHVISION.export_state(convert(state, version))
    for key, tensor in state.items():
        if key in back:
            assert read_part(key, back[key]).equal(read_part(key, tensor))
        else:
            assert version in (V1, MASK_V1) and key.endswith("num_batches_tracked")
    assert not back["roi_heads.box_predictor.bbox_pred.weight"][:4].any()
    ours, again = convert(state, version), convert(back, version)
    assert all(again[key].equal(tensor) for key, tensor in ours.items())


def test_masks_drop_the_background_and_the_ten_unused_rows():
    state = their_state(MASK_V1)
    rows = convert(state, MASK_V1)["roi_head.mask.head.predictor.bias"]
    assert rows.tolist() == [*range(1, 91)]
    real = convert(state, MASK_V1, classes=80)["roi_head.mask.head.predictor.bias"]
    assert real.tolist() == COCO_80
    back = TORCHVISION.export_state(convert(state, MASK_V1))["roi_heads.mask_predictor.mask_fcn_logits.bias"]
    assert back.tolist() == [0, *range(1, 91)]


def test_the_names_of_2019_are_known():
    """The published maskrcnn file is older than the containers around some of its layers."""
    state = their_state(MASK_V1)
    renamed = {}
    for key, tensor in state.items():
        for new, old in ((r"(inner|layer)_blocks\.(\d)\.0", r"\1_blocks.\2"), (r"head\.conv\.0\.0", "head.conv"),
                         (r"mask_head\.(\d)\.0", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}")):  # fmt: skip
            key = re.sub(new, old, key)
        renamed[key] = tensor
    assert "roi_heads.mask_head.mask_fcn4.bias" in renamed
    ours, again = convert(state, MASK_V1), convert(renamed, MASK_V1)
    assert all(again[key].equal(tensor) for key, tensor in ours.items())
    assert fitting("torchvision", renamed)[0].path.stem == f"{MASK_V1}_coco_v1"


def test_classes_move_the_background_to_the_end_and_coco80_drops_the_ten_unused_columns():
    ours = convert(their_state(V1), V1)
    assert ours["roi_head.stage.class_score.bias"].tolist() == [*range(1, 91), 0]
    assert ours["roi_head.stage.box_delta.bias"].tolist() == [*range(4, 364)]
    assert len(COCO_80) == 80 and {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}.isdisjoint(COCO_80)
    ours = convert(their_state(V1), V1, classes=80)
    assert ours["roi_head.stage.class_score.bias"].tolist() == [*COCO_80, 0]
    assert ours["roi_head.stage.box_delta.bias"][::4].tolist() == [4 * column for column in COCO_80]


def test_names_of_2019_are_understood():
    """The published v1 file has no second and third number in its FPN and RPN keys."""
    old = {}
    for key, tensor in their_state(V1).items():
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        is_fpn = key.startswith("backbone.fpn.")
        old[key.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if is_fpn else key] = tensor
    assert "backbone.fpn.inner_blocks.0.weight" in old and "rpn.head.conv.weight" in old
    assert convert(old, V1).keys() == convert(their_state(V1), V1).keys()
    assert fitting("torchvision", old)[0].path.stem == f"{V1}_coco_v1"


def test_what_does_not_fit_is_listed():
    bias, deltas = "rpn.head.cls_logits.bias", "roi_heads.box_predictor.bbox_pred.bias"
    state = their_state(V1)
    for change, message in (
        (state | {"mask_head.weight": torch.ones(1)}, "not part of this model: mask_head.weight"),
        ({key: tensor for key, tensor in state.items() if key != bias}, "missing: rpn.objectness.bias"),
        (state | {bias: torch.ones(5)}, r"rpn.objectness.bias \(5,\) for \(3,\)"),
        (state | {deltas: torch.ones(7)}, r"roi_head.stage.box_delta.bias \(7,\)"),
        ({}, "missing: pyramid.backbone.conv1.weight"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert(change, V1)


# --- detector convert-weights


@pytest.fixture(scope="module", params=[V1, *(pytest.param(v, marks=pytest.mark.slow) for v in (V2, MASK_V1, MASK_V2))])
def built(request: pytest.FixtureRequest) -> str:
    """The version that `theirs` is of."""
    return request.param


@pytest.fixture(scope="module")
def theirs(built: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path]:
    """A model of torchvision's with random weights, and its .pth. Its norms get statistics, its scores a spread."""
    torch.manual_seed(0)
    model = MAKERS[built](weights=None, weights_backbone=None, min_size=160, max_size=256).train()
    with torch.no_grad():
        p = list(model.backbone(torch.randn(4, 3, 96, 96)).values())  # running statistics
        large = p[0].repeat(1, 1, 2, 2)
        model.roi_heads.box_head(large[:, :, :7, :7])
        if model.roi_heads.mask_head is not None:
            model.roi_heads.mask_head(large[:, :, :14, :14])
        model.roi_heads.box_predictor.cls_score.weight.normal_(std=0.4)
        model.rpn.head.bbox_pred.weight.normal_(std=0.03)
    path = tmp_path_factory.mktemp("weights") / "theirs.pth"
    torch.save(model.state_dict(), path)
    return model.eval(), path


@pytest.fixture(scope="module")
def ours(theirs: tuple[torch.nn.Module, Path]) -> Path:
    """What the command makes of it, told nothing but the size of the pictures."""
    path = theirs[1].with_name("ours.pth")
    assert run(theirs[1], "--from", "auto", "--output", path, *SMALL) == 0
    return path


def run(*args: object) -> int:
    return script("convert_weights").main([str(arg) for arg in args])


def arguments(source: Path, output: Path, *more: str) -> list[object]:
    return [source, "--from", "torchvision", "--config", CONFIGS / f"{V1}.yaml", "--output", output, *more]


def test_a_converted_file_finds_what_torchvision_finds(theirs, ours):
    image = picture(160, 224)
    found = detector.load(ours, device="cpu")(image)
    with torch.no_grad():
        [expected] = theirs[0]([image.float() / 255])
    assert len(found) == len(expected["boxes"]) > 0
    sets = [(found.boxes, found.scores, found.labels + 1), tuple(expected[k] for k in ("boxes", "scores", "labels"))]
    assert match_sets(*sets, px=0.1, score=1e-3).unmatched == 0
    if "masks" in expected:
        nearest = (expected["boxes"][:, None] - found.boxes).abs().amax(dim=-1).argmin(dim=1)
        masks = found[nearest].masks.paste("torchvision")
        assert float((masks != (expected["masks"][:, 0] >= 0.5)).float().mean()) < 1e-3 < float(masks.float().mean())


@only_v1
def test_class_names_and_ids_are_stored(theirs, ours, tmp_path):
    every = read_checkpoint(ours)
    assert every["category_ids"] == list(range(1, 91)) and len(set(every["class_names"])) == 90
    assert every["class_names"][0] == "person" and every["class_names"][11] == "unused 12"
    assert run(*arguments(theirs[1], tmp_path / "real.pth", "--classes", "coco80")) == 0
    real = read_checkpoint(tmp_path / "real.pth")
    assert real["category_ids"] == COCO_80 and real["class_names"][-1] == "toothbrush"
    assert len(real["model"]["roi_head.stage.class_score.bias"]) == 81


def test_a_checkpoint_goes_back_to_torchvision(built, theirs, ours, capsys):
    """All that torchvision reads is as it was, and computes as it did."""
    model, source = theirs
    back = source.with_name("back.pth")
    assert run(ours, "--to", "torchvision", "--output", back) == 0
    assert "expect other boxes" not in capsys.readouterr().out
    state, before = torch.load(back, weights_only=True), model.state_dict()
    for key, tensor in before.items():
        assert key.endswith("num_batches_tracked") or read_part(key, state[key]).equal(read_part(key, tensor))
    with torch.device("meta"):
        other = MAKERS[built](weights=None, weights_backbone=None)
    other.load_state_dict(state, assign=True)  # strictly


@only_v1
def test_bad_input_is_one_message_and_status_2(theirs, tmp_path, capsys):
    existing, link, new = (tmp_path / name for name in ("there.pth", "link.pth", "new.pth"))
    existing.write_text("precious")
    link.symlink_to(tmp_path / "elsewhere.pth")  # no free place either
    for source, output, overrides, message in [
        (theirs[1], existing, [], "exists already"),
        (theirs[1], link, [], "exists already"),
        (theirs[1], tmp_path / ("long" * 99), [], "cannot be a file (File name too long)"),
        (tmp_path / "absent.pth", new, [], "no such file"),
        (theirs[1], new, ["model.rpn.convs=2"], "missing: rpn.conv.1.weight"),
        (theirs[1], new, ["model.rpn.conv=2"], "unknown key"),
    ]:
        assert run(*arguments(source, output, *overrides)) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert existing.read_text() == "precious" and not new.exists() and link.is_symlink()


@pytest.mark.parametrize("wrong", [["--from", "tensorflow"], ["--to", "torchvision", "--classes", "coco80"], []])
def test_a_wrong_command_line_has_status_2(wrong):
    with pytest.raises(SystemExit, match="2"):
        run("a.pth", "--output", "b.pth", *wrong)
