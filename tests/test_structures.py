"""The records: targets from dictionaries, names of detections."""

from __future__ import annotations

import pytest
import torch

from detector.structures import Detections, Target


def detections(class_names: list[str] | None = None) -> Detections:
    return Detections(torch.zeros(2, 4), torch.tensor([0.9, 0.8]), torch.tensor([1, 0]), class_names)


def test_a_target_may_be_a_plain_dictionary():
    boxes, labels = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)
    made = Target.of({"boxes": boxes, "labels": labels})
    assert made.boxes is boxes and made.labels is labels and made.crowd.shape == (0, 4)
    assert Target.of(made) is made


def test_names_are_aligned_with_labels():
    found = detections(["cat", "dog"])
    assert len(found) == 2 and found.names == ["dog", "cat"]
    assert found.cpu().names == ["dog", "cat"]


def test_detections_of_a_bare_model_have_no_names():
    with pytest.raises(ValueError, match="call the predictor"):
        _ = detections().names
