"""The convolution whose weight gradient is computed in contiguous memory: torch's values, whatever the processor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from detector.modeling import convolution
from detector.modeling.convolution import Conv2d, convolve

CASES = [  # kernel, stride, padding, dilation
    (3, (1, 1), (1, 1), (1, 1)),
    (3, (2, 2), (1, 1), (1, 1)),
    (3, (1, 1), (3, 3), (3, 3)),
    (2, (2, 2), (0, 0), (1, 1)),
    (5, (2, 1), (2, 0), (1, 1)),
]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """As on a processor where torch is slow; a list with one entry for each convolution that goes another way."""
    taken: list[bool] = []

    def always(*_) -> bool:
        taken.append(True)
        return True

    monkeypatch.setattr(convolution, "_has_slow_weight_gradient", always)
    return taken


def tensors(kernel: int, *, bias: bool, layout: torch.memory_format) -> list[torch.Tensor]:
    torch.manual_seed(0)
    out = [torch.randn(2, 3, 9, 11, dtype=torch.float64), torch.randn(4, 3, kernel, kernel, dtype=torch.float64)]
    out = [x.contiguous(memory_format=layout) for x in out] + [torch.randn(4, dtype=torch.float64)] * bias
    return [x.requires_grad_() for x in out]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_torchs(slow, case, bias, layout):
    kernel, stride, padding, dilation = case
    inputs = tensors(kernel, bias=bias, layout=layout)
    x, weight, b = inputs if bias else [*inputs, None]
    expected = F.conv2d(x, weight, b, stride, padding, dilation)
    found = convolve(x, weight, b, stride, padding, dilation, 1)
    assert torch.equal(found, expected) and slow
    towards = torch.randn_like(expected)
    assert torch.autograd.grad(found, weight, towards, retain_graph=True)[0].stride() == weight.stride()
    for mine, theirs in zip(
        torch.autograd.grad(found, inputs, towards), torch.autograd.grad(expected, inputs, towards)
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_of_an_image_and_a_frozen_bias_no_gradient_is_computed(slow):
    x, weight, bias = tensors(3, bias=True, layout=torch.channels_last)
    y = convolve(x.detach(), weight, bias.detach(), (1, 1), (1, 1), (1, 1), 1)
    (dw,) = torch.autograd.grad(y.sum(), [weight])
    torch.testing.assert_close(dw, torch.autograd.grad(F.conv2d(x, weight, bias, 1, 1).sum(), [weight])[0])


@pytest.mark.parametrize(
    ("capability", "changes", "expected"),
    [
        ("AVX2", {}, True),
        ("AVX512", {}, False),
        ("DEFAULT", {}, False),
        ("AVX2", {"kernel_size": 1}, False),
        ("AVX2", {"groups": 4}, False),
        ("AVX2", {"dtype": torch.float64}, False),
    ],
)
def test_where_the_other_way_is_taken(monkeypatch, capability, changes, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    conv = Conv2d(**({"in_channels": 4, "out_channels": 4, "kernel_size": 3} | changes))
    x = torch.randn(1, 4, 8, 8, dtype=conv.weight.dtype)
    assert (type(conv(x).grad_fn).__name__ == "_ConvolutionBackward") is expected
    with torch.no_grad():
        assert conv(x).grad_fn is None
    with torch.autocast("cpu", torch.bfloat16):
        assert type(conv(x).grad_fn).__name__ != "_ConvolutionBackward"
    conv.requires_grad_(False)
    assert type(conv(x.requires_grad_()).grad_fn).__name__ != "_ConvolutionBackward"
