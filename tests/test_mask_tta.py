"""Masks of several views of an image: those of one where all are alike, mirrored back, and the mean of them."""

from __future__ import annotations

from typing import Any

import torch
from helpers.tiny import CONFIG, DATA, built, picture, predictor_of

from detector.config.inherit import merge
from detector.inference.predictor import Predictor
from detector.inference.tta import TTAPredictor, best_keypoints
from detector.records.keypoints import Keypoints

MASKED = merge(CONFIG, {"model": {"roi_head": {"mask_head": {"width": 16}}}})


def augmented(kind: type[Predictor] = TTAPredictor, **tta: Any) -> Predictor:
    torch.manual_seed(0)
    data = DATA | {"resize": {"short": 64, "long": 200}, "tta": tta}
    return predictor_of(built({**MASKED, "data": data}), {**MASKED, "data": data}, kind)


def test_equal_views_give_the_masks_of_one():
    image = picture(111, 149)
    expected, found = augmented(Predictor)(image), augmented(scales=[1, 1], flip=False)(image)
    assert len(found) == len(expected) > 5
    assert torch.equal(found.masks.boxes, found.boxes) and found.masks.size == (111, 149)
    order = [(expected.boxes - box).abs().sum(dim=1).argmin().item() for box in found.boxes]
    difference = found.masks.probabilities.float() - expected.masks[order].probabilities.float()
    assert difference.abs().max() < 2e-3


def test_the_masks_of_both_sides_are_averaged_in_place():
    image, views = picture(96, 128), augmented(scales=[1])
    found = views(image)
    for probabilities, mirrored in (
        (found.masks.probabilities, False),
        (found.mirrored(128).masks.probabilities, True),
    ):
        seen = image.flip(-1) if mirrored else image
        boxes = found.mirrored(128) if mirrored else found
        parts = []
        for flip in (False, True):
            given = views.prepare(seen.flip(-1) if flip else seen)[0]
            there = (boxes.mirrored(128) if flip else boxes).resized((96, 128), tuple(given.shape[1:]))
            [one] = views.model.complete([given], [there])
            parts.append((one.masks.mirrored(given.shape[2]) if flip else one.masks).probabilities)
        assert (parts[0] - parts[1]).abs().max() > 1e-4  # the views differ
        assert (torch.stack(parts).mean(dim=0) - probabilities.float()).abs().max() < 1e-3


def test_nothing_found_has_no_masks():
    views = augmented(scales=[1, 1.5])
    views.model.roi_head.selection = views.model.roi_head.selection.__class__(score_threshold=0.999)
    found = views(picture(96, 128))
    assert len(found) == 0 and found.masks.paste().shape == (0, 96, 128)


def test_each_keypoint_is_the_one_of_the_surest_view():
    points = torch.arange(12.0).view(3, 2, 1, 2).expand(-1, -1, 2, -1)  # three views, two detections, two keypoints
    scores = torch.tensor([[[0.1, 0.9], [0.2, 0.3]], [[0.5, 0.1], [0.1, 0.2]], [[0.2, 0.2], [0.9, 0.1]]])
    found = best_keypoints([Keypoints(p, torch.ones(2, 2, dtype=torch.int64), s) for p, s in zip(points, scores)])
    assert found.scores.tolist() == scores.amax(dim=0).tolist()
    assert found.points[..., 0].tolist() == [[4, 0], [10, 2]]
