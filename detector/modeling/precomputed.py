"""Proposals that somebody else computed: Fast R-CNN (Girshick 2015, arXiv 1504.08083) takes them as its input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detector.schema.ranges import Count
from detector.schema.signatures import checked
from detector.structures import Batch, Proposals, Target


@checked
class Precomputed(nn.Module):
    """In the place of an RPN: the best of the proposals that came with the images. Nothing here is trained.

    Args:
        keep: proposals per image, the best by score: in training, at test time.
    """

    needs_proposals = True

    def __init__(self, *, keep: tuple[Count, Count] = (2000, 1000)):
        super().__init__()
        self.keep = keep

    def losses(self, p: list[Tensor], batch: Batch, targets: list[Target]) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Proposals of every image as in training, and no losses. Raises ValueError as `propose`."""
        return self._best(batch, self.keep[0]), {}

    def propose(self, p: list[Tensor], batch: Batch) -> list[Proposals]:
        """Proposals of every image as at test time, best first. Raises ValueError where an image came without."""
        return self._best(batch, self.keep[1])

    def merge(self, views: Sequence[Proposals]) -> Proposals:
        """All views of an image had the same proposals."""
        return views[0]

    @torch.no_grad()
    def _best(self, batch: Batch, count: int) -> list[Proposals]:
        given = [proposals for proposals in batch.proposals if proposals is not None]
        if not len(given) == len(batch.proposals) == len(batch.images):
            raise ValueError(
                "this detector has no RPN: give it the proposals of every image, model(images, proposals=[...]) or in the "
                "targets (`data.train.proposals` in a configuration)"
            )
        best = [proposals.scores.argsort(descending=True, stable=True)[:count] for proposals in given]
        return [proposals[rows] for proposals, rows in zip(given, best)]
