"""Which score selects best.pth."""

from __future__ import annotations

from collections.abc import Collection

from detector.errors import ConfigError
from detector.evaluation.scope import STANDARD
from detector.recipe import FIELD_OF, Scoring

PROPOSALS = "AR1000"  # of an RPN alone


def criterion_of(wanted: str, fields: Collection[str], scoring: Scoring = STANDARD, *, reports_proposals: bool) -> str:
    """The column of metrics.csv that `train.best` means, for a model that learns these `fields` of its targets.

    `auto` is the score of the finest thing that the model finds and `scoring` scores: keypoints before masks before boxes
    before proposals. Raises ConfigError for a score that the model does not have or that is not computed.
    """
    learned = {"masks" if field == "outlines" else field for field in fields}
    if wanted != "auto":
        title = wanted.rpartition("/")[0]
        if title and FIELD_OF[title] not in learned:
            raise ConfigError(f"train.best: {wanted}: the model finds no {FIELD_OF[title]}; choose AP, or leave it out")
        if title and title not in scoring.shapes:
            raise ConfigError(
                f"train.best: {wanted}: evaluate.shapes leaves it out; add {title} there, or choose another"
            )
        return wanted
    if reports_proposals:
        return PROPOSALS
    return next(
        (f"{title}/AP" for title, field in FIELD_OF.items() if field in learned and title in scoring.shapes), "AP"
    )
