"""Norms, convolutions with norms, folding, and the box losses."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detector.modeling.layers import (
    ConvNorm,
    FrozenBatchNorm,
    GroupNorm,
    SyncBatchNorm,
    balanced_l1,
    caffe2_msra_,
    caffe2_xavier_,
    conv_norm,
    fold_norms,
    folded,
    glorot_,
    log2_stride,
    make_norm,
)


def randomised(norm: nn.Module) -> nn.Module:
    """A norm that has seen data: no weight is one, no mean is zero."""
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            tensor.uniform_(0.5, 2) if tensor.is_floating_point() else None
    return norm


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_frozen_norms_and_folded_convolutions_have_the_function_of_the_norm_and_its_gradients():
    for eps in [1e-5, 0.0, 0.1]:
        batch = randomised(nn.BatchNorm2d(6, eps=eps)).eval()
        frozen = FrozenBatchNorm(6, eps)
        frozen.load_state_dict(batch.state_dict())  # which counts its batches; a frozen one does not
        x = torch.randn(2, 6, 5, 5)
        assert close(frozen(x), batch(x))
    for kind in ["frozen", "batch", "group"]:
        for bias in [False, True]:
            conv, norm = nn.Conv2d(6, 32, 3, stride=2, padding=2, dilation=2, groups=2, bias=bias), make_norm(kind, 32)
            x = torch.randn(2, 6, 9, 8)
            assert close(conv_norm(conv, randomised(norm), x), norm(conv(x)))
    conv, norm = nn.Conv2d(3, 4, 3, bias=False), randomised(FrozenBatchNorm(4))
    x, weight = torch.randn(1, 3, 6, 6), conv.weight
    (ours,) = torch.autograd.grad(conv_norm(conv, norm, x).square().sum(), weight)
    (expected,) = torch.autograd.grad(norm(conv(x)).square().sum(), weight)
    assert close(ours, expected)
    for kind in ["frozen", "batch"]:
        for bias in [False, True]:
            conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2, bias=bias)
            norm = randomised(make_norm(kind, 8)).eval()
            x = torch.randn(2, 6, 7, 7)
            assert close(folded(conv, norm)(x), norm(conv(x)))


def test_which_norm_is_made_when_a_convolution_has_a_bias_and_that_frozen_ones_do_not_learn():
    kinds = {"frozen": FrozenBatchNorm, "batch": nn.BatchNorm2d, "sync": SyncBatchNorm, "group": nn.GroupNorm}
    for name, kind in kinds.items():
        norm = make_norm(name, 64, eps=1e-3)
        assert isinstance(norm, kind) and norm.eps == 1e-3
    assert make_norm("group", 64).num_groups == 32
    assert ConvNorm(3, 32, 3).conv.bias is not None
    assert ConvNorm(3, 32, 3, norm="group").conv.bias is None
    assert ConvNorm(3, 32, 3, norm="group", bias=True).conv.bias is not None
    assert [log2_stride(stride) for stride in (4, 8, 64)] == [2, 3, 6]
    frozen = randomised(FrozenBatchNorm(4)).train()
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    frozen(torch.randn(2, 4, 3, 3))
    assert not list(frozen.parameters())
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())


@pytest.mark.parametrize("kind", ["batch", "sync"])
def test_of_one_value_per_channel_a_batch_norm_takes_the_running_statistics(kind):
    norm, x = randomised(make_norm(kind, 6)).train(), torch.randn(1, 6, 1, 1, requires_grad=True)
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    y = norm(x)
    y.sum().backward()
    assert close(y, norm.eval()(x)) and (x.grad != 0).all() and (norm.weight.grad != 0).all()
    assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
    norm.train()
    two = torch.randn(2, 6, 1, 1)
    expected = F.batch_norm(two, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    assert close(norm(two), expected)  # all else as ever
    assert not torch.equal(norm.running_mean, before["running_mean"])


def test_fold_norms_folds_what_is_constant_and_keeps_the_function():
    layers = nn.Sequential(*(ConvNorm(32, 32, 3, norm=kind) for kind in ("frozen", "batch", "sync", "group", None)))
    for layer in layers:
        randomised(layer.norm)
    layers.eval()
    x = torch.randn(2, 32, 6, 6)
    expected = layers(x)
    assert close(fold_norms(layers)(x), expected)
    assert [type(layer.norm) for layer in layers] == [nn.Identity] * 3 + [GroupNorm, nn.Identity]
    assert close(fold_norms(layers)(x), expected)  # twice is once


def test_a_group_norm_keeps_its_digits_in_channels_last():
    """Where the mean is large beside the spread."""
    x = (torch.randn(1, 64, 20, 30) + 300).to(memory_format=torch.channels_last)
    expected = F.group_norm(x.double(), 32)
    assert (GroupNorm(32, 64)(x) - expected).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("fill_", "weight", "uniform"),
    [(caffe2_xavier_, 1 / 576, True), (caffe2_msra_, 2 / 1152, False), (glorot_, 2 / (576 + 1152), True)],
)
def test_initialisers_have_the_variance_that_they_promise_in_every_layer(fill_, weight, uniform):
    """Of 64 * 9 inputs and 128 * 9 outputs; norms keep what they have."""
    layers = nn.Sequential(nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128), nn.Sequential(nn.Linear(576, 1152)))
    fill_(layers)
    for layer in (layers[0], layers[2][0]):
        assert layer.weight.var().item() == pytest.approx(weight, rel=0.05)
        assert (layer.weight.abs().max().item() <= (3 * weight) ** 0.5 * 1.001) == uniform
        assert not layer.bias.any()
    assert layers[1].weight.unique().tolist() == [1]


@pytest.mark.parametrize("beta", [0.5, 1.0])
def test_the_gradient_of_balanced_l1_is_a_logarithm_up_to_its_corner(beta):
    """Libra R-CNN eq. 7: alpha ln(b d / beta + 1), gamma beyond the corner; b makes the two meet (eq. 9)."""
    d = torch.tensor([0.0, 0.1, 0.3, beta, 1.2, 5.0], requires_grad=True)
    balanced_l1(d, torch.zeros(6), beta).backward()
    b = math.exp(1.5 / 0.5) - 1
    inner = 0.5 * torch.log(b * d.detach() / beta + 1)
    torch.testing.assert_close(d.grad, torch.where(d.detach() < beta, inner, 1.5))
    losses = [balanced_l1(torch.tensor([x]), torch.zeros(1), beta).item() for x in (0.0, beta - 1e-6, beta + 1e-6)]
    assert losses[0] == 0 and losses[2] - losses[1] == pytest.approx(3e-6, abs=2e-6)  # it has no step
    assert balanced_l1(torch.zeros(0, 4), torch.zeros(0, 4), beta).item() == 0
