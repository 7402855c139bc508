"""Semantic maps: from a folder of PNGs through transforms to the model, and what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.golden_rules import PROJECT
from PIL import Image

import detector
from detector.data.image import ImageError
from detector.data.loader import _Seeded
from detector.data.sampler import EpochIndex
from detector.data.settings import build_dataset
from detector.errors import ConfigError, DataError

HTC = PROJECT / "configs/shapes/htc.yaml"
SIZE = (48, 64)  # (h, w)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One image with an object, and its map: the left half is class 7, the rest has none."""
    for name in ("images", "maps"):
        (tmp_path / name).mkdir()
    Image.fromarray(np.zeros((*SIZE, 3), dtype=np.uint8)).save(tmp_path / "images/a.jpg")
    save_map(tmp_path, SIZE)
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 20, 20], "area": 400, "iscrowd": 0}
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [annotation | {"segmentation": [[8, 8, 28, 8, 28, 28, 8, 28]]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    return tmp_path


def save_map(folder: Path, size: tuple[int, int], mode: str = "L") -> None:
    values = np.full(size, 255, dtype=np.uint8)
    values[:, : size[1] // 2] = 7
    Image.fromarray(values).convert(mode).save(folder / "maps/a.png")


def settings(folder: Path, **semantic: str) -> list[str]:
    split = json.dumps({"images": "images", "annotations": "a.json"} | semantic)
    return [f"data.root={folder}", f"data.train={split}", f"data.val={split}",
            "model.num_classes=1", "data.transforms=[]"]  # fmt: skip


SEMANTIC = ["model.roi_head.semantic_head={type: semantic, classes: 9, width: 32}"]


def test_a_map_is_resized_with_its_image_and_learnt_from(folder):
    overrides = [*settings(folder, semantic="maps"), *SEMANTIC]
    config = detector.load_config(HTC, overrides)
    dataset = build_dataset(config.data, "train", fields=config.model.target_fields)
    image, target, _ = dataset[0]
    assert target.semantic.shape == image.shape[1:] != SIZE and target.semantic.dtype == torch.uint8
    padding = _Seeded(dataset, seed=0, skip_bad=0)[EpochIndex(0, 0, is_padding=True)][1]
    assert (padding.semantic == 255).all() and len(padding) == 0  # fills the share of a process, and is not learnt from
    half = image.shape[2] // 2
    assert (target.semantic[:, : half - 1] == 7).all() and (target.semantic[:, half + 1 :] == 255).all()
    losses = detector.build_detector(config).train()([image], [target])
    assert losses["roi_semantic"].item() > 0
    assert build_dataset(config.data, "val", class_names=["thing"])[0][1].semantic is None


def test_what_is_wrong_with_a_map_is_named(folder):
    config = detector.load_config(HTC, [*settings(folder, semantic="maps"), *SEMANTIC])
    dataset = build_dataset(config.data, "train", fields=config.model.target_fields)
    for size, mode, message in (((48, 60), "L", "is 60 x 48, its image 64 x 48"), (SIZE, "RGB", r"colours \(RGB\)")):
        save_map(folder, size, mode)
        with pytest.raises(ImageError, match=message):
            dataset[0]
    Image.new("L", SIZE[::-1]).save(folder / "maps/a.png", "BMP")  # what it is decides, not its name
    with pytest.raises(ImageError, match=r"a\.png: cannot be read as a PNG"):
        dataset[0]
    (folder / "maps/a.png").unlink()
    with pytest.raises(ImageError, match=r"a\.png: no such file"):
        dataset[0]
    (folder / "maps").rmdir()
    with pytest.raises(DataError, match="no such folder of semantic maps"):
        build_dataset(config.data, "train", fields=config.model.target_fields)


def test_maps_and_the_branch_that_reads_them_come_together(folder):
    with pytest.raises(ConfigError, match=r"data\.train.semantic: must be given"):
        detector.load_config(HTC, [*settings(folder), *SEMANTIC])
    with pytest.raises(ConfigError, match=r"data\.train.semantic: nothing reads it"):
        detector.load_config(HTC, settings(folder, semantic="maps"))
