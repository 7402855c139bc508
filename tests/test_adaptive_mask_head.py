"""PANet's mask branch: the plain head behind adaptive pooling if the fully connected path says nothing, and what it can say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.necks import count

from detector.modeling.roi_heads.adaptive_mask_head import AdaptiveFusedMaskHead
from detector.modeling.roi_heads.mask_head import ConvUpsample

REGIONS, CHANNELS, SIDE, CLASSES = 3, 8, 14, 5


def make(**settings) -> AdaptiveFusedMaskHead:
    torch.manual_seed(0)
    return AdaptiveFusedMaskHead(CHANNELS, SIDE, 4, CLASSES, **({"width": 16, "norm": None} | settings))


def maps() -> list[torch.Tensor]:
    return list(torch.randn(4, REGIONS, CHANNELS, SIDE, SIDE))


@torch.no_grad()
def test_without_the_fully_connected_path_it_is_the_plain_head_behind_the_greatest_of_all_levels():
    head, xs = make(), maps()
    head.fc.weight.zero_()
    plain = ConvUpsample(16, SIDE, CLASSES, convs=3, width=16)
    for mine, theirs in zip(
        (*head.convs, head.conv4, head.deconv, head.predictor), (*plain.convs, plain.deconv, plain.predictor)
    ):
        theirs.load_state_dict(mine.state_dict())
    fused = torch.stack([F.relu(conv(x)) for conv, x in zip(head.conv1, xs)]).amax(dim=0)
    torch.testing.assert_close(head(xs), plain(fused))


@torch.no_grad()
def test_the_fully_connected_path_raises_the_logits_of_all_classes_alike_and_lowers_none():
    head, xs = make(), maps()
    with_path, path = head(xs), head.fc
    head.fc = torch.nn.Linear(path.in_features, path.out_features)
    torch.nn.init.zeros_(head.fc.weight)
    torch.nn.init.zeros_(head.fc.bias)
    raised = with_path - head(xs)
    assert raised.min() >= -1e-6 and raised.max() > 1e-3
    torch.testing.assert_close(raised, raised[:, :1].expand_as(raised), atol=1e-6, rtol=0)


def test_as_many_parameters_as_published():
    """With 32 groups also where the fully connected path has 128 channels."""
    with torch.device("meta"):
        head = AdaptiveFusedMaskHead(256, SIDE, 4, 80)
    assert count(head.fc_convs) + count(head.fc) == 20_555_280
    assert [conv.norm.num_groups for conv in head.fc_convs] == [32, 32]
    plain = 7 * (256 * 256 * 9 + 2 * 256) + 262_400 + 20_560  # four first convolutions and three for all levels
    assert count(head) == plain + 20_555_280


def test_one_map_is_not_enough():
    with pytest.raises(ValueError, match="all_levels"):
        AdaptiveFusedMaskHead(CHANNELS, SIDE, 1, CLASSES)
