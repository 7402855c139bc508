"""Names in both directions, recognition, ImageNet backbones, and the command that converts files."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path

import pytest
import torch
from helpers.golden_rules import PROJECT
from helpers.tiny import CONFIG, built, tiny_model
from helpers.training import draw_set, script, train, write_config
from torch import Tensor
from yaml import safe_dump, safe_load

from detector.checkpoint import read_checkpoint, save_checkpoint
from detector.config.config import load_config
from detector.config.inherit import SHIPPED, merge
from detector.errors import CheckpointError
from detector.interop.convert import export_weights
from detector.interop.imagenet import CAFFE2, DETECTRON2, to_classifier
from detector.interop.names import rename
from detector.interop.recognise import COMPAT, FRAMEWORKS, blank_state, fitting, inference_options, which_framework
from detector.modeling.backbones.resnet import ResNet

CONFIGS = sorted(path.stem for path in COMPAT.glob("[a-z]*.yaml"))
QUICK = (
    "detectron2_faster_rcnn_R_50_C4",
    "mmdetection_faster_rcnn_r50_nasfpn",
    "torchvision_fasterrcnn_resnet50_fpn_v2",
)
TWINS = {  # of the same tensors: what is recognised is the plain one
    "mmdetection_faster_rcnn_r50_fpn_softnms": "mmdetection_faster_rcnn_r50_fpn",
    "torchvision_fasterrcnn_resnet50_fpn_coco_v1": "torchvision_fasterrcnn_resnet50_fpn",
    "torchvision_maskrcnn_resnet50_fpn_coco_v1": "torchvision_maskrcnn_resnet50_fpn",
    "torchvision_keypointrcnn_resnet50_fpn_coco_v1": "torchvision_keypointrcnn_resnet50_fpn",
}
each_config = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
)

State = dict[str, Tensor]


@functools.cache
def ours_and_theirs(name: str) -> tuple[State, State]:
    """Shapes of a reference model under both names."""
    ours = blank_state(load_config(COMPAT / f"{name}.yaml"))
    return ours, FRAMEWORKS[name.partition("_")[0]].export_state(ours)


@each_config
def test_names_go_there_and_back(name):
    ours, theirs = ours_and_theirs(name)
    assert len(theirs) == len(ours)
    back = FRAMEWORKS[name.partition("_")[0]].import_state(theirs, ours)
    assert back.keys() == ours.keys() and all(back[key].shape == ours[key].shape for key in ours)
    if not name.startswith("torchvision"):  # which lays the classes out otherwise
        same = [key for key in ours if ".point_head." not in key]  # whose layers are convolutions there
        assert all(back[key] is ours[key] for key in same)


@each_config
def test_a_configuration_is_recognised_by_names_and_shapes(name):
    _, theirs = ours_and_theirs(name)
    framework = name.partition("_")[0]
    assert which_framework(theirs) == framework
    assert fitting(framework, theirs)[0].path.stem == TWINS.get(name, name)


@pytest.mark.slow
def test_the_one_mask_head_of_a_cascade_becomes_three_and_three_do_not_become_one():
    ours, theirs = ours_and_theirs("detectron2_cascade_mask_rcnn_R_50_FPN")
    elsewhere = FRAMEWORKS["mmdetection"].export_state(ours)
    assert fitting("mmdetection", elsewhere)[0].path.stem == "mmdetection_cascade_mask_rcnn_r50_fpn"
    for number in range(3):
        assert elsewhere[f"roi_head.mask_head.{number}.upsample.weight"] is theirs["roi_heads.mask_head.deconv.weight"]
    each, _ = ours_and_theirs("mmdetection_cascade_mask_rcnn_r50_fpn")
    with pytest.raises(CheckpointError, match=r"no name there: roi_head\.masks\.1\.head"):
        FRAMEWORKS["detectron2"].export_state(each)


@pytest.mark.slow
def test_other_depths_and_numbers_of_classes_are_read_off():
    settings = ["model.backbone.depth=152", "model.num_classes=7"]
    ours = blank_state(load_config(COMPAT / "torchvision_fasterrcnn_resnet50_fpn.yaml", settings))
    fit = fitting("torchvision", FRAMEWORKS["torchvision"].export_state(ours))[0]
    assert fit.config.model.calls["backbone"].arguments["depth"] == 152 and fit.config.model.num_classes == 7


def test_a_detector_of_no_known_framework_is_said():
    message = r"not .* exactly one of torchvision, detectron2, mmdetection \(its tensors are model\.0\.w"
    with pytest.raises(CheckpointError, match=message):
        which_framework({"model.0.weight": torch.ones(1)})


def test_options_are_complete_with_their_defaults():
    settings = inference_options(load_config(COMPAT / "detectron2_faster_rcnn_R_50_FPN.yaml"))
    assert settings["model.preprocess.order"] == "bgr" and settings["model.backbone.stride_in"] == "1x1"
    assert settings["model.backbone.norm_eps"] == 1e-5 and settings["model.roi_head.pool.aligned"] is True
    assert not any("sampling" in key for key in settings)  # only training reads it


# --- ImageNet backbones


def caffe2(state: State) -> dict[str, object]:
    """MSRA's R-50.pkl: no statistics, a classifier, momenta."""
    names = {key: rename(key, CAFFE2, back=True) for key in state}
    blobs = {found[0]: state[key].numpy() for key, found in names.items() if found and "running" not in key}
    extra = {name: torch.ones(3).numpy() for name in ("fc1000_w", "fc1000_b", "conv1_b", "conv1_w_momentum")}
    return {"blobs": blobs | extra}


def detectron2(state: State) -> dict[str, object]:
    """What Detectron2's tool makes of torchvision's file."""
    renamed = {rename(key, DETECTRON2, back=True)[0]: tensor.numpy() for key, tensor in state.items()}
    return {"model": renamed | {"stem.fc.bias": torch.ones(3).numpy()}, "matching_heuristics": True}


@pytest.fixture(scope="module")
def backbone() -> State:
    torch.manual_seed(0)
    return {key: torch.randn_like(tensor) for key, tensor in ResNet(50).state_dict().items()}


@pytest.mark.parametrize(("form", "order", "stride"), [(caffe2, "bgr", "1x1"), (detectron2, "rgb", "3x3")])
def test_a_backbone_becomes_a_file_for_the_backbones_weights(backbone, tmp_path, capsys, form, order, stride):
    source, output = tmp_path / "R-50.pkl", tmp_path / "r50.pth"
    source.write_bytes(pickle.dumps(form(backbone), protocol=2))
    assert convert(source, "--from", "detectron2", "--output", output) == 0
    assert f"stride_in={stride}" in capsys.readouterr().out
    loaded = ResNet(50, weights=str(output), stride_in=stride)
    for key, tensor in loaded.state_dict().items():
        if form is detectron2 or "running" not in key:
            assert tensor.equal(backbone[key])
    content = torch.load(output, weights_only=True)
    assert content["trained_with"]["pixels"]["order"] == order
    if form is caffe2:  # the norms are an affine map alone
        norm = loaded.layer3[2].bn2
        x = torch.randn(2, 256, 3, 3)
        assert torch.allclose(norm(x), x * norm.weight[:, None, None] + norm.bias[:, None, None], atol=1e-5)


def test_fairs_resnext_wants_a_std_and_its_stride_in_the_3x3():
    like = {key: t for key, t in ResNet(101, groups=32, width_per_group=8).state_dict().items() if "running" not in key}
    state, trained = to_classifier({rename(key, CAFFE2, back=True)[0]: tensor for key, tensor in like.items()})
    assert len(state) > len(like) and trained["stride_in"] == "3x3"
    assert trained["pixels"] == {"order": "bgr", "mean": [103.53, 116.28, 123.675], "std": [57.375, 57.12, 58.395]}


def test_a_backbone_with_a_key_too_many_is_refused(backbone):
    state = {key: torch.as_tensor(value) for key, value in caffe2(backbone)["blobs"].items()}
    with pytest.raises(CheckpointError, match="not part of this model: res6_0_branch2a_w"):
        to_classifier(state | {"res6_0_branch2a_w": torch.ones(1)})
    del state["res3_1_branch2b_w"]
    with pytest.raises(CheckpointError, match=r"missing: layer2\.1\.conv2\.weight"):
        to_classifier(state)


# --- detector convert-weights


def convert(*args: object) -> int:
    return script("convert_weights").main([str(arg) for arg in args])


def checkpoint_of(path: Path, classes: list[str], **sections: object) -> Path:
    """A small detector in our form."""
    config = {"model": merge(CONFIG["model"], sections)}
    model = built(config)
    model.load_state_dict(tiny_model(**sections).state_dict())
    ids = list(range(1, len(classes) + 1))
    save_checkpoint(path, model=model, config=config, class_names=classes, category_ids=ids)
    return path


CASCADE = {
    "neck": {"type": "fpn", "width": 32},
    "roi_head": {"type": "cascade", "box_head": {"type": "two_fc", "width": 32}},
}


MASKS = {"roi_head": {"mask_head": {"width": 16}}}


@pytest.mark.parametrize(
    ("target", "suffix", "sections"),
    [
        ("torchvision", ".pth", MASKS),
        pytest.param("detectron2", ".pth", {}, marks=pytest.mark.slow),
        pytest.param("detectron2", ".pkl", merge(CASCADE, MASKS), marks=pytest.mark.slow),
        ("mmdetection", ".pth", CASCADE),
        pytest.param("mmdetection", ".safetensors", {"neck": {"type": "panet", "width": 32}}, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_goes_to_a_framework_and_comes_back(tmp_path, capsys, target, suffix, sections):
    if suffix == ".safetensors":
        pytest.importorskip("safetensors")
    ours = checkpoint_of(tmp_path / "ours.pth", ["cat", "dog", "cow"], **sections)
    theirs, back, config = tmp_path / f"theirs{suffix}", tmp_path / "back.pth", tmp_path / "config.yaml"
    assert convert(ours, "--to", target, "--output", theirs) == 0
    assert "check that the framework has this model" in capsys.readouterr().out  # a ResNet-18
    config.write_text(str(read_checkpoint(ours)["config"]))
    assert convert(theirs, "--from", "auto", "--config", config, "--output", back) == 0
    before, after = read_checkpoint(ours), read_checkpoint(back)
    assert all(after["model"][key].equal(tensor) for key, tensor in before["model"].items())
    named = target == "mmdetection" and suffix == ".pth"
    assert after["class_names"] == (["cat", "dog", "cow"] if named else ["class 1", "class 2", "class 3"])


@pytest.mark.parametrize(
    ("target", "sections", "classes", "afresh"),
    [
        ("torchvision", {}, 3, 4),
        # its deltas are of no class
        pytest.param("detectron2", CASCADE | {"num_classes": 5}, 5, 6, marks=pytest.mark.slow),
        pytest.param("mmdetection", {"num_classes": 2}, 2, 4, marks=pytest.mark.slow),
    ],
)
def test_a_converted_checkpoint_is_trained_on_other_classes(tmp_path, caplog, target, sections, classes, afresh):
    """The predictor alone starts afresh, whether the number of the classes differs or only their names."""
    ours = checkpoint_of(tmp_path / "ours.pth", [f"c{i}" for i in range(classes)], **sections)
    theirs, start, given = (tmp_path / name for name in ("theirs.pth", "start.pth", "given.yaml"))
    model = read_checkpoint(ours)["config"]["model"]
    given.write_text(safe_dump({"model": model}))
    assert convert(ours, "--to", target, "--output", theirs) == 0
    assert convert(theirs, "--from", "auto", "--config", given, "--output", start) == 0
    config = write_config(tmp_path / "config.yaml", draw_set(tmp_path / "set"), epochs=1)
    without_number = {key: value for key, value in model.items() if key != "num_classes"}
    config.write_text(safe_dump(safe_load(config.read_text()) | {"model": without_number}))
    assert train(config, tmp_path / "run", ["--init-from", start, "train.lr=1e-12"]) == 0
    [line] = [line for line in caplog.messages if line.startswith(str(start))]
    old, new = (read_checkpoint(path)["model"] for path in (start, tmp_path / "run/last.pth"))
    moved = {key for key, x in new.items() if x.shape != old[key].shape or not x.allclose(old[key])}
    fresh = line.rpartition("(")[2].rstrip(")").split(", ")
    assert "the predictor starts afresh" in line and len(fresh) == afresh and moved <= set(fresh)


PANET_HEAD = {"pool": {"type": "all_levels"}, "box_head": {"type": "adaptive_two_fc", "width": 32}}


@pytest.mark.parametrize(
    ("sections", "targets", "message"),
    [
        ({"neck": {"type": "bifpn", "width": 32}}, FRAMEWORKS, "does not have this model; no name there: pyramid.neck"),
        ({"roi_head": PANET_HEAD}, FRAMEWORKS, "no name there: roi_head.stage.box_head.fc1.0.weight"),
        ({"roi_head": {"class_agnostic": True}}, ["torchvision"], "its deltas are class-agnostic"),
        ({"roi_head": {"mask_head": {"class_agnostic": True}}}, ["torchvision"], "its masks are class-agnostic"),
    ],
)
def test_a_model_that_a_framework_lacks_stays_here(tmp_path, capsys, sections, targets, message):
    ours = checkpoint_of(tmp_path / "ours.pth", ["a", "b", "c"], **sections)
    for target in targets:
        assert convert(ours, "--to", target, "--output", tmp_path / "new/new.pth") == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, Path]:
    """The tensors of a small detector in torchvision's form, and its configuration."""
    folder = tmp_path_factory.mktemp("small")
    ours = checkpoint_of(folder / "ours.pth", ["a", "b", "c"])
    (folder / "config.yaml").write_text(str(read_checkpoint(ours)["config"]))
    assert convert(ours, "--to", "torchvision", "--output", folder / "theirs.pth") == 0
    return torch.load(folder / "theirs.pth"), folder / "config.yaml"


BIAS, SCORES = "rpn.head.cls_logits.bias", "roi_heads.box_predictor.cls_score."
BROKEN = {
    "not finite: rpn.objectness.bias": lambda state: {BIAS: torch.full((3,), float("nan"))},
    "not finite: rpn.objectness.weight": lambda state: {BIAS.replace("bias", "weight"): state[
        BIAS.replace("bias", "weight")].double() + 1e300},
    "integers instead of weights: rpn.objectness.bias": lambda state: {BIAS: torch.ones(3, dtype=torch.int8)},
    "given under two names: rpn.head.conv.bias": lambda state: {"rpn.head.conv.bias": torch.zeros(32)},
    "of another shape: roi_head.stage.class_score.bias () for (4,)": lambda state: {SCORES + "bias": torch.tensor(1.0)},
    "of another shape: roi_head.stage.class_score.bias (0,) for (4,)": lambda state: {SCORES + "bias": torch.ones(0)},
}  # fmt: skip


@pytest.mark.parametrize("message", BROKEN)
def test_tensors_that_are_no_weights_are_named(theirs, tmp_path, capsys, message):
    state, config = theirs
    torch.save(state | BROKEN[message](state), tmp_path / "broken.pth")
    output = tmp_path / "new/new.pth"
    recognised = [[]] if message == next(iter(BROKEN)) else []
    for recognise in [["--config", config], *recognised]:
        assert convert(tmp_path / "broken.pth", "--from", "auto", *recognise, "--output", output) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and (message in error or not recognise)
    assert not output.parent.exists()


def test_another_frameworks_name_is_corrected(theirs, tmp_path, capsys):
    torch.save(theirs[0], tmp_path / "theirs.pth")
    assert convert(tmp_path / "theirs.pth", "--from", "mmdetection", "--output", tmp_path / "new.pth") == 2
    assert capsys.readouterr().err == (
        "error: --from mmdetection: the names in the file are torchvision's; give --from torchvision\n"
    )


def test_a_checkpoint_whose_configuration_builds_nothing_stays_here(tmp_path, capsys):
    model = tiny_model()
    save_checkpoint(tmp_path / "a.pth", model=model, config={"model": 3}, class_names=["a"], category_ids=[1])
    assert convert(tmp_path / "a.pth", "--to", "torchvision", "--output", tmp_path / "b.pth") == 2
    assert "a.pth: its configuration does not build a model: " in capsys.readouterr().err


def test_what_would_compute_otherwise_there_is_said(tmp_path, monkeypatch):
    """The tensors fit a reference configuration, the settings are this project's own."""
    path = COMPAT / "detectron2_faster_rcnn_R_50_FPN.yaml"
    monkeypatch.setattr("detector.interop.convert.read_checkpoint", lambda source: {
        "config": load_config(path, ["model.roi_head.pool.aligned=false"]).raw, "model": {}, "class_names": ["a"] * 80,
    })  # fmt: skip
    monkeypatch.setattr("detector.interop.convert.load_weights", lambda *args: None)
    monkeypatch.setattr("detector.interop.convert.write_weights", lambda *args: None)
    _, note = export_weights(Path("ours.pth"), "detectron2", tmp_path / "theirs.pth")
    assert note.endswith(f"({SHIPPED}compat/{path.name}): model.roi_head.pool.aligned is False, there True")


def test_a_wrong_configuration_is_told_which_would_fit(tmp_path, capsys):
    _, theirs = ours_and_theirs("detectron2_faster_rcnn_R_50_C4")
    source = tmp_path / "c4.pth"
    torch.save({key: torch.zeros(tensor.shape) for key, tensor in theirs.items()}, source)
    given = COMPAT / "detectron2_faster_rcnn_R_50_FPN.yaml"
    assert convert(source, "--from", "detectron2", "--config", given, "--output", tmp_path / "new.pth") == 2
    error = capsys.readouterr().err
    assert "detector://compat/detectron2_faster_rcnn_R_50_C4.yaml would fit" in error and error.count("\n") == 1


def test_the_configurations_lie_where_the_converter_looks():
    assert COMPAT == PROJECT / "configs/compat" and len(CONFIGS) >= 19
