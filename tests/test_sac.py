"""DetectoRS' convolutions: the plain one at the start, by hand, against slow loops, and in whole networks."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detector.modeling.backbones.resnet import ResNet
from detector.modeling.backbones.sac import SAC, VARIANCE_EPS, AWSConv, mean_5x5
from detector.modeling.layers import FrozenBatchNorm, fold_norms

KINDS = ["aws", "sac", "deformable_sac"]


def started(conv: AWSConv) -> AWSConv:
    conv.start_plain()
    return conv


def scrambled(module: nn.Module, std: float = 0.3) -> nn.Module:
    """No switch is 1, no context and no offset 0, and the filters are really standardised."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not name.endswith(("running_var", "num_batches_tracked")):
                tensor.add_(torch.randn(tensor.shape, generator=generator) * std)
    return module


def test_weights_that_come_alone_keep_their_function_and_those_with_gamma_and_beta_are_kept():
    for make in (AWSConv, SAC):
        conv, weight = make(4, 4, 3, padding=1, bias=False), torch.randn(4, 4, 3, 3) + 0.5
        conv.load_state_dict({"weight": weight}, strict=False)
        torch.testing.assert_close(conv.filters(), weight, rtol=1e-5, atol=1e-6)
    conv, other = scrambled(AWSConv(4, 5, 3, bias=False)), AWSConv(4, 5, 3, bias=False)
    other.load_state_dict(conv.state_dict())
    assert torch.equal(other.weight_gamma, conv.weight_gamma) and torch.equal(other.filters(), conv.filters())


@pytest.mark.parametrize("deformable", [False, True])
@pytest.mark.parametrize(("stride", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_at_the_start_it_is_the_plain_convolution(deformable, stride, dilation, groups):
    options = dict(padding=dilation, dilation=dilation, groups=groups, bias=False)
    conv = started(SAC(4, 6, 3, stride, deformable=deformable, **options))
    plain = nn.Conv2d(4, 6, 3, stride, **options)
    plain.load_state_dict({"weight": conv.weight})
    for size in ((9, 7), (3, 3), (2, 5), (1, 1)):
        x = torch.randn(2, 4, *size)
        torch.testing.assert_close(conv(x), plain(x), rtol=1e-5, atol=1e-5)


def test_the_mean_around_a_pixel_by_hand():
    """A row 0 1 2 3 is mirrored to 2 1 0 1 2 3 2 1; one of two pixels has no second to mirror and repeats its end."""
    assert mean_5x5(torch.arange(4.0).expand(1, 1, 4, 4))[0, 0, 0].tolist() == pytest.approx([1.2, 1.4, 1.6, 1.8])
    assert mean_5x5(torch.arange(2.0).expand(1, 1, 4, 2))[0, 0, 0].tolist() == pytest.approx([0.4, 0.6])


def test_the_switch_is_bounded_by_nothing():
    """S = 3 takes three of the small and minus two of the large; both see one pixel of value 1."""
    conv = started(SAC(1, 1, 3, padding=1, bias=False))
    with torch.no_grad():
        conv.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
        conv.start_plain()
        conv.weight_diff.fill_(0.5)
        conv.switch.bias.fill_(3)
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 4] = 1
    y = conv(x)[0, 0]
    assert y[4, 4].item() == pytest.approx(3 * 4 - 2 * 4.5, abs=1e-4)
    assert y[3, 3].item() == pytest.approx(3 * 8, abs=1e-4)  # the last tap of the small one
    assert y[1, 1].item() == pytest.approx(-2 * 8.5, abs=1e-4)  # of the large one, three pixels away


def bilinear(x: Tensor, row: float, col: float) -> Tensor:
    """(C, H, W) at a point between pixels, zero outside: (C,)."""
    out = torch.zeros(x.shape[0], dtype=x.dtype)
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(col), math.floor(col) + 1):
            if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                out += x[:, r, c] * (1 - abs(row - r)) * (1 - abs(col - c))
    return out


def slow_convolution(x: Tensor, weight: Tensor, stride: int, dilation: int, offset: Tensor) -> Tensor:
    """(C, H, W) and the offsets (18, H', W') of the nine taps -> (C_out, H', W')."""
    out = torch.zeros(weight.shape[0], *offset.shape[1:], dtype=x.dtype)
    for i in range(offset.shape[1]):
        for j in range(offset.shape[2]):
            for tap in range(9):
                dy, dx = offset[2 * tap : 2 * tap + 2, i, j].tolist()
                row, col = i * stride + (tap // 3 - 1) * dilation + dy, j * stride + (tap % 3 - 1) * dilation + dx
                out[:, i, j] += weight[:, :, tap // 3, tap % 3] @ bilinear(x, row, col)
    return out


def slow_sac(conv: SAC, x: Tensor) -> Tensor:
    """(C, H, W) -> (C_out, H', W'), pixel by pixel."""

    def point(layer: nn.Conv2d, v: Tensor) -> Tensor:
        return layer.weight[:, :, 0, 0] @ v + layer.bias

    x = x + point(conv.pre_context, x.mean((1, 2)))[:, None, None]
    h, w = x.shape[1:]
    near = torch.zeros_like(x)
    for i in range(h):
        for j in range(w):
            rows = [abs(r) if r < h else 2 * (h - 1) - r for r in range(i - 2, i + 3)]
            cols = [abs(c) if c < w else 2 * (w - 1) - c for c in range(j - 2, j + 3)]
            near[:, i, j] = sum(x[:, r, c] for r in rows for c in cols) / 25
    stride, dilation = conv.stride[0], conv.dilation[0]
    switch = torch.stack([torch.stack([point(conv.switch, near[:, i, j]) for j in range(0, w, stride)], dim=-1)
                          for i in range(0, h, stride)], dim=-2)  # fmt: skip
    w0 = conv.weight
    spread = (w0.flatten(1).var(dim=1) + VARIANCE_EPS).sqrt().view(-1, 1, 1, 1)
    weight = conv.weight_gamma * (w0 - w0.flatten(1).mean(dim=1).view(-1, 1, 1, 1)) / spread + conv.weight_beta
    offsets = [torch.zeros(18, *switch.shape[1:], dtype=x.dtype)] * 2
    if conv.offset_s is not None:
        offsets = [F.conv2d(near[None], o.weight, o.bias, stride, 1)[0] for o in (conv.offset_s, conv.offset_l)]
    small = slow_convolution(x, weight, stride, dilation, offsets[0])
    large = slow_convolution(x, weight + conv.weight_diff, stride, 3 * dilation, offsets[1])
    y = switch * small + (1 - switch) * large
    return y + point(conv.post_context, y.mean((1, 2)))[:, None, None]


@pytest.mark.parametrize("deformable", [False, True])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2)])
def test_it_is_what_slow_loops_compute(deformable, stride, dilation):
    conv = SAC(3, 4, 3, stride, padding=dilation, dilation=dilation, bias=False, deformable=deformable)
    conv = scrambled(started(conv)).double()
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), torch.stack([slow_sac(conv, image) for image in x]))


def test_every_parameter_learns():
    conv = scrambled(started(SAC(4, 4, 3, padding=1, bias=False, deformable=True)))
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    (conv(x) * torch.randn(2, 4, 8, 8)).sum().backward()
    assert all(t.grad is not None and t.grad.abs().sum() > 0 for t in [x, *conv.parameters()])


@pytest.mark.parametrize("deformable", [False, True])
def test_bfloat16_and_the_memory_format_change_little(deformable):
    conv = scrambled(started(SAC(8, 8, 3, 2, padding=1, bias=False, deformable=deformable)), std=0.05)
    x = torch.randn(2, 8, 16, 16)
    with torch.no_grad():
        expected = conv(x)
        last = conv.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = conv(x)
        low = conv.bfloat16()(x.bfloat16())
    assert low.dtype is torch.bfloat16
    for y in (mixed, low):
        assert (y.float() - expected).abs().max() < 0.05 * expected.std()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [18, 50])
def test_which_convolutions_are_switchable(depth, kind):
    """The 3x3 of a bottleneck, the second 3x3 of a basic block; nothing in layer1."""
    with torch.device("meta"):
        net = ResNet(depth, conv=kind)
    wanted = {f"layer{n}.{i}.conv2" for n in (2, 3, 4) for i in range(len(getattr(net, f"layer{n}")))}
    modules = dict(net.named_modules())
    switchable = {name for name, m in modules.items() if type(m) is SAC}
    assert switchable == (set() if kind == "aws" else wanted)
    inner = tuple(f"{name}." for name in switchable)
    others = [m for name, m in modules.items() if isinstance(m, nn.Conv2d) and name not in switchable
              and not name.startswith(inner or "-")]  # fmt: skip
    assert all(type(m) is AWSConv for m in others)
    assert all((modules[name].offset_s is not None) == (kind == "deformable_sac") for name in switchable)


def assert_same_maps(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-4 * b.std()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("norm", ["frozen", "affine"])
@torch.no_grad()
def test_with_imagenet_weights_it_starts_as_the_plain_network(tmp_path, depth, kind, norm):
    plain = scrambled(ResNet(depth, width=16, norm=norm), std=0.05).eval()
    torch.save(plain.state_dict() | {"fc.weight": torch.zeros(3, 4), "fc.bias": torch.zeros(3)}, tmp_path / "net.pth")
    net = ResNet(depth, width=16, norm=norm, conv=kind, weights=str(tmp_path / "net.pth")).eval()
    x = torch.randn(1, 3, 64, 96)
    assert_same_maps(net(x), plain(x))


@torch.no_grad()
def test_without_weights_it_starts_as_the_plain_network_of_its_filters():
    net = ResNet(18, width=16, norm="batch", conv="sac").eval()
    plain, x = ResNet(18, width=16, norm="batch").eval(), torch.randn(1, 3, 64, 64)
    plain.load_state_dict({name: net.state_dict()[name] for name in plain.state_dict()})
    assert_same_maps(net(x), plain(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", ["frozen", "affine", "group"])
def test_folding_keeps_the_function(kind, norm):
    net = scrambled(ResNet(50, width=32, norm=norm, conv=kind), std=0.01).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
        found = fold_norms(net)(x)
    for a, b in zip(found[:2], expected[:2]):  # random switches multiply, so rounding grows with the depth
        assert (a - b).abs().max() < 1e-4 * b.abs().max()
    modules = list(net.modules())
    assert not any(type(m) is AWSConv for m in modules)
    kept = sum(isinstance(m, FrozenBatchNorm | nn.BatchNorm2d) for m in modules)
    assert kept == (0 if kind == "aws" or norm == "group" else 4 + 6 + 3)  # one after each switchable convolution
