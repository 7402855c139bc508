"""Our FPN and PANet give the recorded maps and gradients of torchvision's, Detectron2's and mmdetection's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from helpers.golden_rules import check_neck, filled, golden, neck_inputs
from torch import Tensor, nn

from detector.modeling.necks.fpn import FPN
from detector.modeling.necks.panet import PANet

# what the entries' constructors mean in our words
SETTINGS = {
    "torchvision": {
        "fpn_maxpool_even": {},
        "fpn_maxpool_odd": {},
        "fpn_p6p7_from_p5_even": {"extra": "p5"},
        "fpn_p6p7_from_p5_odd": {"extra": "p5"},
        "fpn_p6p7_from_c5_even": {"extra": "c5"},
        "fpn_p6p7_from_c5_odd": {"extra": "c5"},
    },
    "detectron2": {
        "fpn_sum": {},
        "fpn_avg": {"fuse": "average"},
        "fpn_gn": {"norm": "group"},
        "fpn_p6p7": {"extra": "c5"},
    },
    "mmdet": {
        "fpn_even": {},
        "fpn_odd": {},
        "pafpn_even": {},
        "pafpn_odd": {},
        "fpn_extra_on_input": {"extra": "c5", "extra_relu": False},
        "fpn_extra_on_lateral": {"extra": "m5", "extra_relu": False},
        "fpn_extra_on_output_relu": {"extra": "p5"},
    },
}
ENTRIES = [(framework, entry) for framework, entries in SETTINGS.items() for entry in entries]

NAMES = [  # theirs, ours
    (r"(?:inner_blocks|lateral_convs)\.(\d)\.(?:0|conv)", r"lateral.\1.conv"),
    (r"(?:layer_blocks|fpn_convs)\.(\d)\.(?:0|conv)", r"output.\1.conv"),
    (r"(?:extra_blocks|top_block)\.", r"extra."),
    (r"downsample_convs\.", r"down."),
    (r"pafpn_convs\.", r"output."),
]


def ours(theirs: str, entry: str) -> str:
    """Our name of a neck's tensor."""
    detectron2 = re.fullmatch(r"fpn_(lateral|output)(\d)\.(norm\.)?(\w+)", theirs)
    if detectron2:
        part, level, norm, last = detectron2.groups()
        return f"{part}.{int(level) - 2}.{norm or 'conv.'}{last}"
    extra = re.fullmatch(r"fpn_convs\.([34])\.conv\.(\w+)", theirs)
    if extra and "extra" in entry:  # after the outputs of three levels
        return f"extra.p{int(extra[1]) + 3}.{extra[2]}"
    name = theirs
    for pattern, new in NAMES:
        name = re.sub("^" + pattern, new, name)
    return f"fpn.{name}" if entry.startswith("pafpn") and not theirs.startswith(("down", "pafpn")) else name


def build(framework: str, entry: str, record: Mapping[str, Any], seed_text: str) -> tuple[nn.Module, list[Tensor]]:
    """Our neck with the prescribed weights, and the maps that it reads."""
    first = 1 if "start_level" in record["note"] else 0  # mmdetection's way of leaving C2 alone
    maps = neck_inputs(record, seed_text)[first:]
    channels, strides = [m.shape[1] for m in maps], [4, 8, 16, 32][first:]
    kind = PANet if entry.startswith("pafpn") else FPN
    neck = kind(channels, strides, **SETTINGS[framework][entry])
    neck.load_state_dict({ours(key, entry): tensor for key, tensor in filled(record, seed_text).items()})
    return neck, maps


@pytest.mark.parametrize(("framework", "entry"), ENTRIES)
def test_neck(framework, entry):
    file = golden(f"necks_{framework}")
    record = file["entries"][entry]
    neck, c = build(framework, entry, record, file["seed_text"])
    check_neck(neck, c, record, lambda theirs: ours(theirs, entry))


def test_every_entry_of_the_family_is_compared():
    for framework, entries in SETTINGS.items():
        family = {e for e in golden(f"necks_{framework}")["entries"] if e.startswith(("fpn", "pafpn"))}
        assert family == set(entries)
