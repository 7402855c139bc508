"""Winograd's convolution: the values of the direct one, and where it is taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from detector.modeling import convolution
from detector.modeling import winograd as algorithm
from detector.modeling.convolution import Conv2d, convolve
from detector.modeling.layers import ConvNorm, fold_norms
from detector.modeling.shapes import fixed_shapes
from detector.modeling.winograd import winograd

CL = torch.channels_last


def tensors(n: int, channels: int, h: int, w: int, out: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    x, weight = torch.randn(n, channels, h, w), torch.randn(out, channels, 3, 3) / (9 * channels) ** 0.5
    return x.contiguous(memory_format=CL), weight.contiguous(memory_format=CL), torch.randn(out)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the maps that go this way, here from 2 channels and 16 cells on."""
    shapes: list[tuple[int, ...]] = []

    def counted(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return winograd(x, *others)

    monkeypatch.setattr(convolution, "winograd", counted)
    monkeypatch.setattr(convolution, "CHANNELS", 2)
    monkeypatch.setattr(convolution, "CELLS", 16)
    return shapes


@pytest.mark.parametrize("strip", [1, 3, 300])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (4, 4), (5, 9), (16, 12), (23, 30)])
@torch.no_grad()
def test_values_are_those_of_the_direct_convolution(size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(algorithm, "STRIP", strip)
    x, weight, bias = tensors(2, 6, *size, 5)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    for b, want in ((bias, exact), (None, exact - bias.double()[:, None, None])):
        found = winograd(x, weight, b)
        assert found.shape == want.shape and found.is_contiguous(memory_format=CL)
        assert (found - want).abs().max() < 3e-5
    assert torch.equal(winograd(x.contiguous(), weight.contiguous(), bias), winograd(x, weight, bias))


@torch.no_grad()
def test_the_error_is_that_of_float32():
    x, weight, bias = tensors(1, 256, 48, 52, 256)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    error = [
        (y - exact).pow(2).mean().sqrt() for y in (winograd(x, weight, bias), F.conv2d(x, weight, bias, padding=1))
    ]
    assert error[0] < 5e-6 and error[0] < 10 * error[1]


@torch.no_grad()
def test_an_image_does_not_see_its_batch():
    x, weight, bias = tensors(3, 200, 50, 44, 192)
    one_by_one = torch.cat([winograd(image[None], weight, bias) for image in x])
    assert torch.equal(winograd(x, weight, bias), one_by_one)


@torch.no_grad()
def test_what_is_not_finite_stays_near():
    """A wrong value reaches the squares that read it, no others."""
    x, weight, bias = tensors(1, 4, 24, 24, 4)
    x[0, 0, 10, 10] = torch.nan
    found = winograd(x, weight, bias).isfinite().all(dim=1)[0]
    assert (
        not found[9:12, 9:12].any()
        and found[:8].all()
        and found[16:].all()
        and found[:, :8].all()
        and found[:, 16:].all()
    )


def no_gradient(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, **changed: object) -> torch.Tensor:
    options = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, **changed}
    with torch.no_grad():
        return convolve(x, weight, bias, **options)  # type: ignore[arg-type]


def test_large_maps_at_inference_take_it(taken: list):
    x, weight, bias = tensors(1, 4, 8, 8, 4)
    torch.testing.assert_close(no_gradient(x, weight, bias), F.conv2d(x, weight, bias, padding=1), rtol=0, atol=3e-5)
    assert taken == [(1, 4, 8, 8)]


@pytest.mark.parametrize("case", [
    lambda x, w, b: convolve(x, w.requires_grad_(), b, (1, 1), (1, 1), (1, 1), 1),
    lambda x, w, b: no_gradient(x, w, b, stride=(2, 2)),
    lambda x, w, b: no_gradient(x, w, b, padding=(0, 0)),
    lambda x, w, b: no_gradient(x, w, b, padding=(2, 2), dilation=(2, 2)),
    lambda x, w, b: no_gradient(x, w[:, :2], b, groups=2),
    lambda x, w, b: no_gradient(x, w[:, :, :1, :1], b, padding=(0, 0)),
    lambda x, w, b: no_gradient(x, w[:1], b[:1]),
    lambda x, w, b: no_gradient(x[:, :, :3, :5], w, b),
    lambda x, w, b: no_gradient(x.contiguous(), w, b),
    lambda x, w, b: no_gradient(x.double(), w.double(), b.double()),
])  # fmt: skip
def test_everything_else_does_not(case: Callable, taken: list):
    case(*tensors(1, 4, 8, 8, 4))
    assert not taken


def test_neither_half_precision_nor_other_engines(taken: list):
    with torch.autocast("cpu", torch.bfloat16):
        no_gradient(*tensors(1, 4, 8, 8, 4))
    with fixed_shapes(portable=True):
        no_gradient(*tensors(1, 4, 8, 8, 4))
    assert not taken


@pytest.mark.parametrize("norm", [None, "frozen", "batch"])
@torch.no_grad()
def test_a_folded_norm_is_part_of_it(norm: str | None, taken: list):
    torch.manual_seed(0)
    layer = ConvNorm(4, 4, 3, norm=norm).eval().to(memory_format=CL)  # type: ignore[arg-type]
    if norm:
        torch.nn.init.uniform_(layer.norm.running_mean), torch.nn.init.uniform_(layer.norm.running_var)
    x = tensors(1, 4, 8, 8, 4)[0]
    with fixed_shapes(portable=True):
        want = layer(x)
    assert not taken
    torch.testing.assert_close(fold_norms(layer)(x), want, rtol=0, atol=3e-5)
    assert len(taken) == 1 and isinstance(layer.conv, Conv2d)


def test_a_compiler_takes_it_as_one_operator(taken: list):
    layer = torch.compile(ConvNorm(4, 4, 3).eval().to(memory_format=CL), fullgraph=True, backend="eager", dynamic=True)
    with torch.no_grad():
        for side in (8, 9, 12):
            x = tensors(1, 4, side, side, 4)[0]
            torch.testing.assert_close(
                layer(x), F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1), rtol=0, atol=3e-5
            )
    assert taken


def test_the_operator_keeps_torchs_rules():
    torch.library.opcheck(winograd, tensors(1, 4, 8, 8, 4), test_utils=("test_schema", "test_faketensor"))
