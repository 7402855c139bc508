"""Which keypoints a bone joins."""

from __future__ import annotations

from detector.records.keypoints import Keypoints

Bone = tuple[int, int]
# COCO's 17 points of a person, from 0: nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; left before right
HEAD = ((0, 1), (0, 2), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6))
ARMS = ((5, 7), (7, 9), (6, 8), (8, 10))
TRUNK = ((5, 6), (5, 11), (6, 12), (11, 12))
LEGS = ((11, 13), (13, 15), (12, 14), (14, 16))
PERSON = (*HEAD, *ARMS, *TRUNK, *LEGS)


def skeleton_of(keypoints: Keypoints) -> tuple[Bone, ...]:
    """The bones of COCO's person for its 17 points; none for other keypoints, which are drawn as points."""
    return PERSON if keypoints.points.shape[1] == 17 else ()
