"""Our balanced feature pyramid gives the recorded maps and gradients of mmdetection's."""

from __future__ import annotations

import pytest
from helpers.golden_rules import check_neck, filled, golden, neck_inputs
from torch import nn

from detector.interop.mmdetection import BFP as ROWS
from detector.interop.names import rename
from detector.modeling.necks.bfp import BFP

REFINEMENTS = {"bfp_conv": "conv", "bfp_non_local": "non_local"}


@pytest.mark.parametrize("entry", REFINEMENTS)
def test_neck(entry):
    """Of the levels of an FPN, which the entry does not have."""
    file = golden("necks_mmdet")
    record = file["entries"][entry]
    neck = BFP([256], [4], refine=REFINEMENTS[entry])
    neck.fpn = nn.Identity()
    names = neck.state_dict().keys()

    def ours(theirs: str) -> str:
        """By the rows of a whole detector, where it is the second neck."""
        [name] = {name.removeprefix("pyramid.neck.") for name in rename(f"neck.1.{theirs}", ROWS)} & names
        return name

    neck.load_state_dict({ours(key): tensor for key, tensor in filled(record, file["seed_text"]).items()})
    check_neck(neck, neck_inputs(record, file["seed_text"], "p2"), record, ours)


def test_every_entry_of_the_family_is_compared():
    assert {e for e in golden("necks_mmdet")["entries"] if e.startswith("bfp")} == set(REFINEMENTS)
