"""Which score selects best.pth."""

from __future__ import annotations

from collections.abc import Collection

from detector.errors import ConfigError

PROPOSALS = "AR1000"  # of an RPN alone
# title of the scores in metrics.csv -> field of the targets that a model with such scores learns; the finest first
FIELD_OF = {"keypoints": "keypoints", "segm": "masks", "boundary": "masks"}


def criterion_of(wanted: str, fields: Collection[str], *, reports_proposals: bool) -> str:
    """The column of metrics.csv that `train.best` means, for a model that learns these `fields` of its targets.

    `auto` is the score of the finest thing that the model finds: keypoints before masks before boxes before proposals.
    Raises ConfigError for a score that the model does not have.
    """
    learned = {"masks" if field == "outlines" else field for field in fields}
    if wanted != "auto":
        title = wanted.rpartition("/")[0]
        if title and FIELD_OF[title] not in learned:
            raise ConfigError(f"train.best: {wanted}: the model finds no {FIELD_OF[title]}; choose AP, or leave it out")
        return wanted
    if reports_proposals:
        return PROPOSALS
    return next((f"{title}/AP" for title, field in FIELD_OF.items() if field in learned), "AP")
