"""Proposals that somebody else computed: Fast R-CNN (Girshick 2015, arXiv 1504.08083) takes them as its input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from detector.errors import check_range
from detector.structures import Batch, Proposals, Target


class Precomputed(nn.Module):
    """In the place of an RPN: the best of the proposals that came with the images. Nothing here learns.

    `keep`: how many of an image (in training, at test), by score.
    """

    def __init__(self, *, keep: tuple[int, int] = (2000, 1000)):
        super().__init__()
        check_range("model.rpn", 1, 1e9, keep=keep)
        self.keep = keep

    def losses(self, p: list[Tensor], batch: Batch, targets: list[Target]) -> tuple[list[Proposals], dict[str, Tensor]]:
        """Proposals of every image as in training, and no losses. Raises ValueError as `propose`."""
        return self._best(batch, self.keep[0]), {}

    def propose(self, p: list[Tensor], batch: Batch) -> list[Proposals]:
        """Proposals of every image as at test time, best first. Raises ValueError where an image came without."""
        return self._best(batch, self.keep[1])

    @torch.no_grad()
    def _best(self, batch: Batch, count: int) -> list[Proposals]:
        given = batch.proposals
        if len(given) != len(batch.images) or any(proposals is None for proposals in given):
            raise ValueError(
                "this detector has no RPN: give it the proposals of every image, model(images, proposals=[...]) or in the "
                "targets (`data.train.proposals` in a configuration)"
            )
        best = [proposals.scores.argsort(descending=True, stable=True)[:count] for proposals in given]
        return [Proposals(proposals.boxes[i], proposals.scores[i]) for proposals, i in zip(given, best)]
