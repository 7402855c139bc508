"""ResNet and ResNeXt: sizes, strides, freezing, and torchvision's weights and function."""

import logging
import zipfile

import pytest
import torch
import torchvision
from helpers.necks import count
from torch import nn

from detector.errors import CheckpointError
from detector.files import load_tensors
from detector.modeling.backbones.resnet import ResNet
from detector.modeling.layers import AffineBatchNorm, BatchNorm, FrozenBatchNorm, GroupNorm, SyncBatchNorm, fold_norms

DEPTHS = (18, 34, 50, 101, 152)


def on_meta(*args, **kwargs) -> ResNet:
    """A network without memory: shapes and counts cost nothing."""
    with torch.device("meta"):
        return ResNet(*args, **kwargs)


def randomise_norms(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if "running_" in name or (tensor.ndim == 1 and tensor.is_floating_point()):
            tensor.uniform_(0.5, 1.5)


def theirs(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """[C2..C5] of torchvision's classifier."""
    x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
    maps = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = layer(x)
        maps.append(x)
    return maps


def assert_same_maps(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.std()


RESNEXTS = {"resnext50_32x4d": (50, 32, 4), "resnext101_32x8d": (101, 32, 8), "resnext101_64x4d": (101, 64, 4)}


@pytest.mark.parametrize(
    ("name", "options"), [*((f"resnet{depth}", (depth, 1, 64)) for depth in DEPTHS), *RESNEXTS.items()]
)
def test_as_many_parameters_as_torchvisions(name, options):
    depth, groups, width = options
    with torch.device("meta"):
        classifier = torchvision.models.get_model(name, weights=None)
    ours = on_meta(depth, norm="batch", groups=groups, width_per_group=width)
    assert count(ours) == count(classifier) - count(classifier.fc)


@pytest.mark.parametrize("depth", DEPTHS)
def test_maps_have_the_channels_and_strides_that_are_promised(depth):
    """Also with a dilated C5, and of three stages, which have no fourth layer."""
    channels = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
    for settings, strides in (
        ({}, [4, 8, 16, 32]),
        ({"dilated_c5": True}, [4, 8, 16, 16]),
        ({"stages": 3}, [4, 8, 16]),
    ):
        net = on_meta(depth, **settings)
        assert net.channels == channels[: len(strides)] and net.strides == strides
        assert hasattr(net, "layer4") == (len(strides) == 4)
        shapes = [c.shape for c in net(torch.zeros(2, 3, 64, 96, device="meta"))]
        assert shapes == [(2, c, 64 // stride, 96 // stride) for c, stride in zip(net.channels, strides, strict=True)]


def test_width_dilation_and_stride_are_those_of_the_convolutions_that_are_named():
    net = on_meta(18, width=16)
    assert net.channels == [16, 32, 64, 128] and net.conv1.out_channels == 16
    assert on_meta(50, width=16).channels == [64, 128, 256, 512]
    net = on_meta(50, dilated_c5=True)
    assert all(block.conv2.dilation == block.conv2.padding == (2, 2) for block in net.layer4)
    assert all(block.conv2.dilation == (1, 1) for block in net.layer3)
    for name, conv1, conv2 in (("3x3", 1, 2), ("1x1", 2, 1)):
        block = on_meta(50, stride_in=name).layer2[0]
        assert block.conv1.stride == (conv1, conv1) and block.conv2.stride == (conv2, conv2)
        assert block.downsample[0].stride == (2, 2)
    assert on_meta(18).layer2[0].conv1.stride == (2, 2)  # the first of the two
    with pytest.raises(ValueError, match="no ResNet-51; choose one of 18, 34, 50, 101, 152"):
        on_meta(51)
    for settings in (dict(groups=32), dict(width_per_group=8), dict(stride_in="1x1")):
        with pytest.raises(ValueError, match="depth >= 50, not 18"):
            on_meta(18, **settings)


def test_five_stages_can_be_frozen_or_four_of_three():
    layers = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    for settings, frozen in (({}, 0), ({}, 1), ({}, 2), ({}, 5), ({"stages": 3}, 4)):
        net = on_meta(18, frozen_stages=frozen, **settings)
        trainable = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
        assert sorted(trainable) == layers[frozen : 1 + settings.get("stages", 4)]
    # -1 means "none" in another framework; as an index it would freeze nearly everything.
    for settings, stages, message in (
        ({}, -1, r"a whole number in 0\.\.5"), ({}, 6, r"a whole number in 0\.\.5"), ({"stages": 3}, 5, r"0 \(all train\) to 4")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"frozen_stages: expected {message}"):
            on_meta(18, frozen_stages=stages, **settings)


def moved(net: ResNet) -> set[str]:
    """The parts whose statistics a batch changes."""
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net(torch.rand(2, 3, 64, 64))
    return {k.split(".")[0] for k, v in net.state_dict().items() if not torch.equal(v, before[k])}


def test_every_norm_is_of_its_kind_and_affine_or_frozen_ones_keep_their_statistics():
    kinds = {"frozen": FrozenBatchNorm, "affine": AffineBatchNorm, "batch": BatchNorm, "sync": SyncBatchNorm}
    for norm, kind in (kinds | {"group": GroupNorm}).items():
        modules = on_meta(50, norm=norm, norm_eps=1e-3).modules()
        norms = [m for m in modules if isinstance(m, (FrozenBatchNorm, nn.modules.batchnorm._NormBase, nn.GroupNorm))]
        assert len(norms) == 1 + 3 * (3 + 4 + 6 + 3) + 4  # stem, blocks, shortcuts
        assert all(type(m) is kind and m.eps == 1e-3 for m in norms)
    affine, batch = (ResNet(18, norm=norm, frozen_stages=2) for norm in ("affine", "batch"))
    assert affine.layer2[0].bn1.weight.requires_grad and not affine.layer1[0].bn1.weight.requires_grad
    assert moved(affine) == moved(affine.train()) == set()  # as built, too
    for _ in range(2):  # as built, and after train()
        assert moved(batch) == {"layer2", "layer3", "layer4"}
        batch.eval().train()


@pytest.mark.parametrize("norm", ["frozen", "affine", "batch", "group"])
def test_every_parameter_of_an_unfrozen_network_learns(norm):
    net = ResNet(18, norm=norm, frozen_stages=0)
    sum(c.square().mean() for c in net(torch.rand(2, 3, 64, 64))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    randomise_norms(model)
    return model


@pytest.fixture
def weights(classifier, tmp_path):
    torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


@pytest.mark.parametrize("norm", ["frozen", "affine", "batch"])
def test_the_function_is_torchvisions(classifier, weights, norm):
    net, x = ResNet(18, weights=str(weights), norm=norm).eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert_same_maps(net(x), theirs(classifier, x))


def test_the_function_of_a_bottleneck_is_torchvisions(tmp_path):
    model = torchvision.models.resnext50_32x4d(weights=None).eval()
    randomise_norms(model)
    torch.save(model.state_dict(), tmp_path / "resnext.pth")
    net = ResNet(50, weights=str(tmp_path / "resnext.pth"), groups=32, width_per_group=4).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_same_maps(net(x), theirs(model, x))


def test_weights_may_lie_in_several_forms_and_one_line_says_what_was_loaded(classifier, tmp_path, weights, caplog):
    state = classifier.state_dict()
    for content, is_new in (
        ({"state_dict": state, "epoch": 3}, True),
        ({"model": state, "epoch": 3}, True),
        (state, False),
    ):
        torch.save(content, tmp_path / "other.pth", _use_new_zipfile_serialization=is_new)
        assert torch.equal(ResNet(18, weights=str(tmp_path / "other.pth")).conv1.weight, classifier.conv1.weight)
    # Of three stages all but the fourth.
    for stages, number in ((4, 100), (3, 75)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            net = ResNet(18, weights=str(weights), stages=stages)
        (line,) = caplog.messages
        assert f"backbone: {number} tensors loaded" in line and str(weights) in line
        assert torch.equal(net.conv1.weight, torch.load(weights)["conv1.weight"])


def test_folding_keeps_the_function_and_leaves_group_norms_alone(weights):
    x = torch.randn(1, 3, 64, 64)
    for net in (ResNet(18, weights=str(weights)).eval(), ResNet(18, norm="group").eval()):
        with torch.no_grad():
            expected = net(x)
            assert_same_maps(fold_norms(net)(x), expected)
        assert not any(isinstance(m, FrozenBatchNorm) for m in net.modules())


def refused(weights: object, **settings: object) -> str:
    with pytest.raises(CheckpointError) as error:
        ResNet(**{"depth": 18, "weights": str(weights)} | settings)
    return str(error.value)


def test_what_is_no_file_of_weights_or_of_another_depth_width_or_name_is_refused(classifier, tmp_path, weights):
    for name in ("none.pth", "."):
        assert f"{tmp_path / name}: no such file" in refused(tmp_path / name)
    (tmp_path / "text.pth").write_text("hello")
    torch.save({"model": print}, tmp_path / "evil.pth")
    for name in ("text.pth", "evil.pth"):
        assert f"{tmp_path / name}: not a file of tensors that torch can read safely" in refused(tmp_path / name)
    for content in ([1, 2], 3, {"a": 1}, {"state_dict": [1]}, {"conv1.weight": 3}, {1: 2}, {}):
        torch.save(content, tmp_path / "else.pth")
        assert "not the weights of this resnet18" in refused(tmp_path / "else.pth")
    torch.save({"backbone." + k: v for k, v in classifier.state_dict().items()}, tmp_path / "other.pth")
    assert "unknown: backbone.conv1.weight" in refused(tmp_path / "other.pth")
    message = refused(weights, depth=34)
    assert "not the weights of this resnet34 (missing: layer1.2." in message and "model.backbone.depth" in message
    assert "other shape: " in refused(weights, depth=50)
    message = refused("IMAGENET1K_V9")
    assert "'IMAGENET1K_V9' is neither a file nor one of torchvision's resnet18 weights (IMAGENET1K_V1" in message
    assert "torchvision has no resnext50_8x8d" in refused("DEFAULT", depth=50, groups=8, width_per_group=8)


def test_damaged_and_packed_weights_are_refused_and_mapped_ones_are_those_that_are_read(weights):
    mapped, read = load_tensors(weights, mmap=True), load_tensors(weights)
    assert mapped.keys() == read.keys() and all(torch.equal(mapped[key], tensor) for key, tensor in read.items())
    # A few bytes would fill the memory: entries of zeros, which are compressed.
    packed = weights.with_name("packed.pth")
    with zipfile.ZipFile(weights) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry) if entry.file_size < 10**5 else bytes(entry.file_size))
    assert "damaged (its entries are larger than the file)" in refused(packed)
    # Torch itself would take the changed bytes for weights.
    content = bytearray(weights.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(255 - byte for byte in content[middle : middle + 64])
    weights.write_bytes(content)
    torch.load(weights, weights_only=True)
    assert f"{weights}: damaged (changed since it was written)" in refused(weights)
    with pytest.raises(zipfile.BadZipFile):
        load_tensors(weights)
    assert load_tensors(weights, intact=True).keys() == torch.load(weights, weights_only=True).keys()
