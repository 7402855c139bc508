"""Maps for necks, convolutions that hand a pixel on, and what every neck must pass."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.modeling.layers import fold_norms

CHANNELS, STRIDES = [256, 512, 1024, 2048], [4, 8, 16, 32]  # of a ResNet-50's C2..C5
NARROW = [8, 16, 24, 32]  # channels in most tests
ODD = [(17, 13), (9, 7), (5, 4), (3, 2)]  # no map is twice the next
EVEN = [(16, 24), (8, 12), (4, 6), (2, 3)]
ONE_PIXEL = [(1, 1)] * 4


def maps(sizes: Sequence[tuple[int, int]] = ODD) -> list[Tensor]:
    """Random [C2..C5] of two images, which require a gradient."""
    return [torch.randn(2, c, *size, requires_grad=True) for c, size in zip(NARROW, sizes, strict=True)]


def constant(*numbers: float, finest: int = 16) -> list[Tensor]:
    """Maps of one channel, each half as large as the one before it and filled with one number."""
    return [torch.full((1, 1, finest >> i, finest >> i), float(number)) for i, number in enumerate(numbers)]


def values(levels: Sequence[Tensor]) -> list[list[float]]:
    """The distinct numbers of each level."""
    return [level.unique().tolist() for level in levels]


def identity_(module: nn.Module) -> nn.Module:
    """Make every convolution and every norm the identity."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.dirac_(m.weight, groups=m.groups)
            nn.init.zeros_(m.bias) if m.bias is not None else None
        elif hasattr(m, "norm"):
            m.norm = nn.Identity()
    return module


def count(module: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for p in module.parameters())


def half(size: tuple[int, int]) -> tuple[int, int]:
    """Half the size of a map, rounded up."""
    return tuple(-(-side // 2) for side in size)


def assert_all_learn(neck: nn.Module, c: Sequence[Tensor], *, unread: int = 0) -> None:
    """Every parameter has a nonzero gradient, and every map except the finest `unread`, which have none."""
    sum((p * torch.randn_like(p)).sum() for p in neck(c)).backward()
    assert all(x.grad is None for x in c[:unread])
    for tensor in [*c[unread:], *neck.parameters()]:
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


def assert_folds(neck: nn.Module, c: Sequence[Tensor]) -> None:
    """A copy with its batch norms folded has the same function."""
    for _ in range(3):
        neck(c)  # statistics that are not 0 and 1
    folded = fold_norms(copy.deepcopy(neck.eval()))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    for found, expected in zip(folded(c), neck(c), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def assert_mixes(neck: nn.Module, c: Sequence[Tensor]) -> None:
    """Under mixed precision all maps are in bfloat16 and channels-last, and close to those in float32."""
    neck = neck.to(memory_format=torch.channels_last).eval()
    c = [x.contiguous(memory_format=torch.channels_last) for x in c]
    with torch.autocast("cpu", torch.bfloat16):
        p = neck(c)
    for found, expected in zip(p, neck(c), strict=True):
        assert found.dtype is torch.bfloat16 and found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)
