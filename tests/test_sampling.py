"""Random balanced sampling: how many, of what, and at random."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.modeling.matching import IGNORE, NEGATIVE, POSITIVE
from detector.modeling.sampling import Sampling


def labels(positive: int = 0, negative: int = 0, ignore: int = 0) -> torch.Tensor:
    """So many of each, shuffled."""
    label = torch.tensor([POSITIVE] * positive + [NEGATIVE] * negative + [IGNORE] * ignore, dtype=torch.long)
    return label[torch.randperm(len(label))]


@pytest.mark.parametrize(
    ("there", "wanted", "drawn"),
    [
        ((300, 3000), (256, 0.5), (128, 128)),
        ((300, 3000), (512, 0.25), (128, 384)),
        ((3, 3000), (256, 0.5), (3, 253)),  # negatives fill what positives leave
        ((0, 3000), (256, 0.5), (0, 256)),
        ((300, 10), (256, 0.5), (128, 10)),  # positives never fill what negatives leave
        ((9, 9), (5, 0.5), (2, 3)),  # the share is rounded down
        ((0, 0, 5), (256, 0.5), (0, 0)),
        ((), (256, 0.5), (0, 0)),
    ],
)
def test_how_many_of_each_are_drawn(there, wanted, drawn):
    positive, negative = Sampling(*wanted)(labels(*there))
    assert (len(positive), len(negative)) == drawn and positive.dtype == negative.dtype == torch.int64


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(1, 12), st.floats(0, 1))
def test_each_index_once_and_of_the_right_label(positives, negatives, ignored, num, fraction):
    label = labels(positives, negatives, ignored)
    positive, negative = Sampling(num, fraction)(label)
    assert (label[positive] == POSITIVE).all() and (label[negative] == NEGATIVE).all()
    assert len(positive.unique()) == len(positive) == min(positives, int(num * fraction))
    assert len(negative.unique()) == len(negative) == min(negatives, num - len(positive))


def test_the_draw_is_torchs_and_every_candidate_has_its_chance():
    label, sampling = labels(6, 20), Sampling(6, 0.5)
    torch.manual_seed(1)
    first = sampling(label)
    torch.manual_seed(1)
    assert all(torch.equal(a, b) for a, b in zip(first, sampling(label)))
    drawn = torch.cat([torch.cat(sampling(label)) for _ in range(200)])
    share = drawn.bincount(minlength=26) / 200
    assert ((share[label == POSITIVE] - 3 / 6).abs() < 0.15).all()  # 3 of 6 positives, 3 of 20 negatives in a draw
    assert ((share[label == NEGATIVE] - 3 / 20).abs() < 0.15).all()
