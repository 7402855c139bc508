"""Our BiFPN gives the recorded maps and gradients of effdet's, our NAS-FPN those of mmdetection's."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from helpers.golden_rules import check_neck, filled, golden, neck_inputs
from torch import nn

from detector.interop.mmdetection import FPN
from detector.interop.mmdetection import NAS_FPN as NAS_FPN_ROWS
from detector.interop.names import Row, rename, translate
from detector.modeling.necks.bifpn import BiFPN
from detector.modeling.necks.nas_fpn import NASFPN

CHANNELS, STRIDES = [256, 512, 1024, 2048], [4, 8, 16, 32]
# what the entries' constructors mean in our words
BIFPN = {
    "bifpn_fa_same_p3p7": {},
    "bifpn_fa_own_p3p7": {"pool_padding": "symmetric", "bias": False},
    "bifpn_attn_same_p3p7": {"fuse": "softmax"},
    "bifpn_sum_same_p3p7": {"fuse": "sum"},
    "bifpn_fa_same_p2p6": {"first_level": 2},
    "bifpn_fa_full_conv_p3p7": {"separable": False},
}
NAS_FPN = {"nasfpn_7": {}, "nasfpn_3_odd": {"stacks": 3}, "nasfpn_1_nonorm": {"stacks": 1, "norm": None}}

# effdet's nodes 0..3 go down, the coarsest first, and 4..7 up; `i` counts the levels from the finest
NODES = [(3 - i, f"down.{i}", i) for i in range(4)] + [(3 + i, f"up.{i - 1}", i) for i in range(1, 5)]
EFFDET: list[Row] = [
    row
    for node, ours, i in NODES
    for theirs in [f"cell.#.fnode.{node}.after_combine.conv"]
    for row in [
        (f"cell.#.fnode.{node}.combine.edge_weights", f"layers.#.{ours}.weight"),
        (f"cell.0.fnode.{node}.combine.resample.{i}.conv.conv.{{}}", f"lateral_{ours}.conv.{{}}"),
        (f"cell.0.fnode.{node}.combine.resample.{i}.conv.bn.{{}}", f"lateral_{ours}.norm.{{}}"),
        (f"{theirs}.conv_dw.{{}}", f"layers.#.{ours}.conv.0.{{}}"),
        (f"{theirs}.conv_pw.{{}}", f"layers.#.{ours}.conv.1.conv.{{}}"),
        (f"{theirs}.conv.{{}}", f"layers.#.{ours}.conv.conv.{{}}"),
        (f"{theirs}.bn.{{}}", f"layers.#.{ours}.conv.1.norm.{{}}"),
        (f"{theirs}.bn.{{}}", f"layers.#.{ours}.conv.norm.{{}}"),
    ]
] + [
    (f"resample.{i}.conv.{bn}.{{}}", f"top.{norm}.{{}}") for i in (3, 4) for bn, norm in (("conv",) * 2, ("bn", "norm"))
]
MMDETECTION = [
    (theirs.removeprefix("neck."), ours.removeprefix("pyramid.neck.")) for theirs, ours in NAS_FPN_ROWS + FPN
]


def check(neck: nn.Module, rows: Sequence[Row], framework: str, entry: str) -> None:
    """Our neck with the prescribed weights against the entry."""
    file = golden(f"necks_{framework}")
    record, like = file["entries"][entry], neck.state_dict()
    neck.load_state_dict(translate(filled(record, file["seed_text"]), like, rows, entry), strict=False)

    def ours(theirs: str) -> str:
        return next(name for name in rename(theirs, rows) if name in like)

    finest = f"c{6 - len(record['inputs'])}"  # C2..C5 or C3..C5, as the entry has them
    check_neck(neck, neck_inputs(record, file["seed_text"], finest), record, ours)


@pytest.mark.parametrize("entry", BIFPN)
def test_bifpn(entry):
    settings = {"width": 64, "repeats": 3, "first_level": 3, "pool_padding": "same"} | BIFPN[entry]
    check(BiFPN(CHANNELS, STRIDES, **settings), EFFDET, "effdet", entry)


@pytest.mark.parametrize("entry", NAS_FPN)
def test_nas_fpn(entry):
    check(NASFPN(CHANNELS, STRIDES, form="mmdetection", **NAS_FPN[entry]), MMDETECTION, "mmdet", entry)


def test_every_entry_of_the_family_is_compared():
    assert set(golden("necks_effdet")["entries"]) == set(BIFPN)
    assert {e for e in golden("necks_mmdet")["entries"] if e.startswith("nasfpn")} == set(NAS_FPN)
