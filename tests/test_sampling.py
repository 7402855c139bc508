"""Random balanced sampling: how many, of what, and at random."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from detector.modeling.matching import IGNORE, NEGATIVE, POSITIVE
from detector.modeling.sampling import Sampling


def sample(label: torch.Tensor, *, num: int, positive_fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    return Sampling(num, positive_fraction)(label)


def labels(positive: int = 0, negative: int = 0, ignore: int = 0) -> torch.Tensor:
    """So many of each, shuffled."""
    label = torch.tensor([POSITIVE] * positive + [NEGATIVE] * negative + [IGNORE] * ignore, dtype=torch.long)
    return label[torch.randperm(len(label))]


def counts(label: torch.Tensor, num: int, fraction: float) -> tuple[int, int]:
    positive, negative = sample(label, num=num, positive_fraction=fraction)
    return len(positive), len(negative)


def test_plenty_of_both():
    assert counts(labels(300, 3000), 256, 0.5) == (128, 128)
    assert counts(labels(300, 3000), 512, 0.25) == (128, 384)


def test_negatives_fill_what_positives_leave():
    assert counts(labels(3, 3000), 256, 0.5) == (3, 253)
    assert counts(labels(0, 3000), 256, 0.5) == (0, 256)


def test_positives_never_fill_what_negatives_leave():
    assert counts(labels(300, 10), 256, 0.5) == (128, 10)


def test_fewer_than_wanted_are_all_taken():
    label = labels(2, 3, 4)
    positive, negative = sample(label, num=256, positive_fraction=0.5)
    assert sorted(positive.tolist()) == torch.where(label == POSITIVE)[0].tolist()
    assert sorted(negative.tolist()) == torch.where(label == NEGATIVE)[0].tolist()


def test_nothing_to_sample():
    for label in (labels(), labels(ignore=5)):
        positive, negative = sample(label, num=256, positive_fraction=0.5)
        assert positive.shape == negative.shape == (0,) and positive.dtype == torch.int64


def test_the_share_of_positives_is_rounded_down():
    assert counts(labels(9, 9), 5, 0.5) == (2, 3)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(1, 12), st.floats(0, 1))
def test_each_index_once_and_of_the_right_label(positives, negatives, ignored, num, fraction):
    label = labels(positives, negatives, ignored)
    positive, negative = sample(label, num=num, positive_fraction=fraction)
    assert (label[positive] == POSITIVE).all() and (label[negative] == NEGATIVE).all()
    assert len(positive.unique()) == len(positive) == min(positives, int(num * fraction))
    assert len(negative.unique()) == len(negative) == min(negatives, num - len(positive))


def test_the_draw_is_torchs_and_every_candidate_has_its_chance():
    label = labels(6, 20)
    torch.manual_seed(1)
    first = sample(label, num=6, positive_fraction=0.5)
    torch.manual_seed(1)
    again = sample(label, num=6, positive_fraction=0.5)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    drawn = torch.cat([torch.cat(sample(label, num=6, positive_fraction=0.5)) for _ in range(200)])
    share = drawn.bincount(minlength=26) / 200
    assert ((share[label == POSITIVE] - 3 / 6).abs() < 0.15).all()  # 3 of 6 positives, 3 of 20 negatives in a draw
    assert ((share[label == NEGATIVE] - 3 / 20).abs() < 0.15).all()
