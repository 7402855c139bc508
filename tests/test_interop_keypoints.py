"""torchvision's keypointrcnn_resnet50_fpn in and out, beside torchvision itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.golden_rules import PROJECT, match_sets
from helpers.tiny import picture
from helpers.training import script
from torchvision.models.detection import keypointrcnn_resnet50_fpn

import detector
from detector.checkpoint import read_checkpoint
from detector.config.config import load_config
from detector.interop.recognise import blank_state, fitting
from detector.interop.torchvision import TORCHVISION

NAME = "torchvision_keypointrcnn_resnet50_fpn"


def theirs(**options) -> torch.nn.Module:
    return keypointrcnn_resnet50_fpn(weights=None, weights_backbone=None, **options)


def test_names_go_there_and_back():
    with torch.device("meta"):
        state = theirs().state_dict()
    ours = blank_state(load_config(PROJECT / f"configs/compat/{NAME}.yaml"))
    state = {
        key: torch.zeros(x.shape, dtype=x.dtype) for key, x in state.items() if not key.endswith("num_batches_tracked")
    }
    back = TORCHVISION.export_state(TORCHVISION.import_state(state, ours))
    assert {key: x.shape for key, x in back.items()} == {key: x.shape for key, x in state.items()}
    assert fitting("torchvision", state)[0].path.stem == NAME


@pytest.mark.slow
@torch.no_grad()
def test_a_converted_file_finds_what_torchvision_finds(tmp_path: Path):
    torch.manual_seed(0)
    model = theirs(min_size=160, max_size=256).train()
    model.backbone(torch.randn(4, 3, 96, 96))  # running statistics
    model.roi_heads.box_predictor.cls_score.weight.normal_(std=0.4)
    model.rpn.head.bbox_pred.weight.normal_(std=0.03)
    torch.save(model.eval().state_dict(), tmp_path / "theirs.pth")
    small = ["data.resize.short=160", "data.resize.long=256"]
    files = [str(tmp_path / name) for name in ("theirs.pth", "ours.pth", "back.pth")]
    convert = script("convert_weights").main
    assert convert([files[0], "--from", "auto", "--output", files[1], *small]) == 0
    assert read_checkpoint(Path(files[1]))["class_names"] == ["person"]
    image = picture(160, 224)
    (expected,), found = model([image.float() / 255]), detector.load(files[1], device="cpu")(image)
    assert len(found) == len(expected["boxes"]) > 0
    sets = [(found.boxes, found.scores, found.labels + 1), tuple(expected[k] for k in ("boxes", "scores", "labels"))]
    assert match_sets(*sets, px=0.1, score=1e-3).unmatched == 0
    apart = (found.keypoints.points[:, None] - expected["keypoints"][None, :, :, :2]).abs().amax(dim=-1)
    nearest = (found.boxes[:, None] - expected["boxes"]).abs().amax(dim=-1).argmin(dim=1)
    moved = apart[torch.arange(len(found)), nearest] > 0.2
    assert moved.float().mean() < 0.01
    assert convert([files[1], "--to", "torchvision", "--output", files[2]]) == 0
    theirs().load_state_dict(torch.load(files[2], weights_only=True), strict=False)
    back, before = torch.load(files[2], weights_only=True), model.state_dict()
    layers = [key for key in before if "keypoint" in key]
    assert len(layers) == 18 and all(back[key].equal(before[key]) for key in layers)
