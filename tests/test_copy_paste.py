"""Copy-paste: what is hidden is cut, boxes follow, and every sample is a function of its seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_target_shapes import write

from detector.config.config import load_config
from detector.data.coco import CocoDataset
from detector.data.copy_paste import CopyPaste, PastingDataset
from detector.data.loader import train_loader
from detector.data.settings import build_dataset
from detector.data.transforms import Compose, HorizontalFlip, LargeScaleJitter
from detector.records.keypoints import Keypoints
from detector.records.outlines import Outlines
from detector.structures import Target

CONFIGS = Path(__file__).parents[1] / "configs"


def scene(h: int, w: int, *boxes: list[int], colour: int) -> tuple[torch.Tensor, Target]:
    """Rectangles of a colour on black."""
    image, masks = torch.zeros(3, h, w, dtype=torch.uint8), torch.zeros(len(boxes), h, w, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes):
        image[:, y1:y2, x1:x2] = colour
        mask[y1:y2, x1:x2] = 1
    outlines = Outlines.of([[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes], (h, w))
    labels = torch.full((len(boxes),), colour)
    points = torch.tensor([[[x1 + 0.5, y1 + 0.5], [x2 - 0.5, y2 - 0.5]] for x1, y1, x2, y2 in boxes]).reshape(-1, 2, 2)
    keypoints = Keypoints(points, torch.full(points.shape[:2], 2))
    return image, Target(
        torch.tensor(boxes).float().reshape(-1, 4), labels, masks=masks, outlines=outlines, keypoints=keypoints
    )


def test_objects_are_pasted_over_others(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "rand", lambda n: torch.tensor([0.1, 0.1, 0.9])[:n])  # the third one is not pasted
    below = scene(20, 30, [0, 0, 10, 10], [12, 12, 16, 16], [25, 0, 30, 20], colour=50)
    above = scene(24, 20, [5, 0, 20, 10], [11, 11, 20, 24], [0, 20, 4, 24], colour=90)
    image, target = CopyPaste()(*below, *above)
    assert image.shape == (3, 24, 30) and target.masks is not None and target.masks.shape == (4, 24, 30)
    assert target.labels.tolist() == [50, 50, 90, 90]  # one is hidden as a whole
    assert target.boxes.tolist() == [[0, 0, 5, 10], [25, 0, 30, 20], [5, 0, 20, 10], [11, 11, 20, 24]]
    assert target.outlines is not None and target.outlines.boxes().tolist() == target.boxes.tolist()
    assert target.keypoints is not None
    assert target.keypoints.visible.tolist() == [[2, 1], [2, 2], [2, 2], [2, 2]]
    for mask, colour in zip(target.masks.bool(), target.labels):
        assert (image[:, mask] == colour).all()
    assert (image[0, :20, :][~target.masks[:, :20].any(0).bool()] == 0).all()  # what is not pasted stays out
    assert (image[:, 20:, 20:] == 114).all()


def test_nothing_to_paste_and_nothing_below(monkeypatch: pytest.MonkeyPatch):
    full, empty = scene(8, 8, [1, 1, 5, 5], colour=9), scene(8, 8, colour=7)
    monkeypatch.setattr(torch, "rand", lambda n: torch.zeros(n))
    for pair, labels in (((full, empty), [9]), ((empty, full), [9]), ((empty, empty), [])):
        assert CopyPaste()(*pair[0], *pair[1])[1].labels.tolist() == labels


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_those_of_an_uninterrupted_run(tmp_path: Path, workers: int):
    write(tmp_path, images=12)
    transform = Compose([LargeScaleJitter(100, 0.4, 2.0), HorizontalFlip()])
    inner = CocoDataset(tmp_path / "images", tmp_path / "a.json", fields=["masks"], transform=transform)
    dataset = PastingDataset(inner, CopyPaste(0.8), ["masks"])
    assert dataset.class_names == ["a", "b", "c"] and len(dataset) == 12
    whole = list(train_loader(dataset, 3, 0, seed=5))
    loader = train_loader(dataset, 3, workers, seed=5)
    loader.batch_sampler.set_epoch(0, 2)
    resumed = list(loader)
    assert len(resumed) == 2
    most = 0
    for (images, targets, ids), (again, others, same) in zip(whole[2:], resumed):
        assert ids == same and all(map(torch.equal, images, again))
        for target, other in zip(targets, others):
            assert torch.equal(target.masks, other.masks) and torch.equal(target.boxes, other.boxes)
            assert (target.masks.sum(0) <= 1).all()  # whoever is seen at a pixel is alone there
            most = max(most, len(target))
    assert most > 3  # more than any image has


def test_a_configuration_pastes_for_any_detector(tmp_path: Path):
    write(tmp_path, images=4)
    split = "{images: images, annotations: a.json}"
    values = [f"data.root={tmp_path}", f"data.train={split}", f"data.val={split}"]
    config = load_config(CONFIGS / "variants" / "copy_paste_lsj.yaml", values)
    train, val = (build_dataset(config.data, name, fields=config.model.target_fields) for name in ("train", "val"))
    assert isinstance(train, PastingDataset) and isinstance(val, CocoDataset)
    assert train[0][1].masks is None and train[0][1].outlines is None and len(train[0][1].boxes)
