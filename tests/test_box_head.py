"""The heads that turn a pooled region into a vector."""

from __future__ import annotations

import pytest
import torch

from detector.modeling.layers import fold_norms
from detector.modeling.roi_heads.box_head import ConvFC, TwoFC

SIZES = dict(convs=2, conv_width=32, width=16)
HEADS = {
    "two_fc": lambda: TwoFC(6, 7, width=16),
    "conv_fc": lambda: ConvFC(6, 7, **SIZES),
    "conv_fc with group norm": lambda: ConvFC(6, 7, **SIZES, norm="group"),
    "conv_fc with batch norm": lambda: ConvFC(6, 7, **SIZES, norm="batch"),
    "conv_fc with frozen norm": lambda: ConvFC(6, 7, **SIZES, norm="frozen"),
}


def test_two_fc_by_hand():
    head = TwoFC(2, 1, width=2)
    with torch.no_grad():
        head.fc1.weight.copy_(torch.tensor([[1.0, 1], [1, -1]]))
        head.fc2.weight.copy_(torch.tensor([[1.0, 2], [-1, 0]]))
    x = torch.tensor([[3.0, 1], [1, 3]])[:, :, None, None]
    assert head(x).tolist() == [[8, 0], [4, 0]]  # fc1: (4, 2) and (4, relu(-2)); fc2: 4 + 2 * 2 and 4 + 2 * 0


def test_the_first_layer_reads_channels_then_rows_then_columns():
    """As torchvision, Detectron2 and mmdetection: their weights fit, whatever the memory format."""
    head = TwoFC(3, 2, width=12)
    x = torch.arange(12.0).reshape(1, 3, 2, 2)
    with torch.no_grad():
        head.fc1.weight.copy_(torch.eye(12)), head.fc2.weight.copy_(torch.eye(12))
        assert head(x).tolist() == head(x.contiguous(memory_format=torch.channels_last)).tolist() == [list(range(12))]


def test_convolutions_keep_the_size_and_have_a_bias_without_a_norm():
    head = ConvFC(6, 5, convs=3, conv_width=8, width=4)
    assert [layer.conv.in_channels for layer in head.convs] == [6, 8, 8]
    assert all(layer.conv.bias is not None for layer in head.convs)
    assert head.fc1.in_features == 8 * 5 * 5


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_rows_are_vectors_every_parameter_has_a_gradient_and_folding_keeps_the_function(make):
    head = make()
    out = head(torch.randn(8, 6, 7, 7))  # moves the statistics of batch norms away from 0 and 1
    assert out.shape == (8, head.width) == (8, 16) and (out >= 0).all()
    (out * torch.randn(8, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    x = torch.randn(4, 6, 7, 7)
    expected = head.eval()(x)
    torch.testing.assert_close(fold_norms(head)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_no_regions(make):
    head = make()
    before = {k: v.clone() for k, v in head.state_dict().items() if "running" in k}
    out = head(torch.zeros(0, 6, 7, 7))
    assert out.shape == (0, 16)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert all(torch.equal(head.state_dict()[k], v) for k, v in before.items())  # nothing is no statistic
