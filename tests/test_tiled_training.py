"""Training on tiles: which there are, what is learnt in each, and that a training and its commands know of them."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import (
    add_outlines,
    assert_same_training,
    before_steps,
    draw_set,
    rows,
    script,
    train,
    write_config,
)
from PIL import Image

import detector
from detector.config.config import load_config
from detector.data.coco import CocoDataset
from detector.data.settings import build_dataset
from detector.data.tiled_dataset import TiledDataset, part_of, shares
from detector.data.tiles import Tiles, TrainingTiles
from detector.errors import ConfigError, DataError
from detector.insight.collect import trace_run
from detector.records.keypoints import Keypoints
from detector.records.outlines import Outlines
from detector.structures import Target

TILES = ["data.tiles={size: 48, overlap: 0, keep: 0.3}"]


def test_the_share_of_a_box_in_a_window():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [20, 0, 30, 10], [2, 2, 4, 4]], dtype=np.float32)
    assert shares(boxes, (0, 5, 10, 10)).tolist() == [0.5, 0.5, 0, 0]
    assert shares(boxes, (0, 0, 100, 100)).tolist() == [1, 1, 1, 1]


def test_an_object_is_learnt_from_its_least_share_on_and_less_of_it_is_neither_object_nor_background():
    boxes = torch.tensor([[40.0, 10, 60, 30], [36, 40, 56, 60], [0, 0, 9, 9], [70, 0, 90, 20]])
    target = Target(boxes, torch.tensor([0, 1, 2, 3]), crowd=torch.tensor([[0.0, 0, 20, 50], [60, 0, 90, 9]]))
    found = part_of(target, (5, 0, 60, 50), TrainingTiles(60, keep=0.6))  # half of the first, 0.7 of the second
    assert found.labels.tolist() == [1] and found.boxes.tolist() == [[36, 35, 50, 55]]
    assert found.crowd.tolist() == [[0, 0, 20, 45], [40, 5, 50, 25], [0, 0, 9, 4]]  # 4/9 of the third
    found = part_of(target, (5, 0, 60, 50), TrainingTiles(60, keep=0.5))
    assert found.labels.tolist() == [0, 1] and len(found.crowd) == 2
    assert part_of(target, (5, 0, 60, 50), TrainingTiles(60, keep=0)).labels.tolist() == [0, 1, 2]


def test_outlines_and_keypoints_are_cut_with_their_object():
    triangle = [
        [0.0, 0, 40, 0, 0, 40]
    ]  # of its box (0, 0, 40, 40) the window shows x >= 20, of the triangle (20, 0, 40, 20)
    keypoints = Keypoints.of(torch.tensor([[[10.0, 10, 2], [30, 5, 2]]]))
    target = Target(
        torch.tensor([[0.0, 0, 40, 40]]),
        torch.tensor([0]),
        outlines=Outlines.of([triangle], (60, 60)),
        keypoints=keypoints,
    )
    found = part_of(target, (0, 20, 60, 40), TrainingTiles(40, keep=0.5))
    assert found.boxes.tolist() == [[0, 0, 20, 20]]
    assert found.keypoints.visible.tolist() == [[0, 2]] and found.keypoints.points[0, 1].tolist() == [10, 5]
    mask = found.drawn((60, 40)).masks[0]
    assert abs(int(mask.sum()) - 200) < 25 and not mask[:, 21:].any()
    corner = part_of(
        target, (25, 25, 30, 30), TrainingTiles(30, keep=0.1)
    )  # 0.14 of the box and nothing of the triangle
    assert len(corner) == 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return draw_set(tmp_path / "data")


def test_the_index_has_every_tile_with_an_object_and_its_picture(data: Path):
    plain = CocoDataset(data / "images", data / "train.json")
    every = TiledDataset(plain, TrainingTiles(48, 0.0), keep_empty=True)
    # 64 x 96 and 96 x 64 pixels: two rows and two columns, the last moved inward
    assert len(every) == 6 * 4 and every.sizes.tolist() == [[48, 48]] * 24
    assert every.image_ids.tolist() == [image for image in range(10, 16) for _ in range(4)]
    for i, (number, (top, left)) in enumerate((n, place) for n in range(6) for place in corners(plain.sizes[n])):
        image, target, image_id = every[i]
        assert torch.equal(image, plain.image(number)[:, top : top + 48, left : left + 48]) and image_id == 10 + number
        whole = plain.target(number)
        inside = shares(whole.boxes.numpy(), (top, left, 48, 48))
        assert len(target) == (inside >= 0.3).sum() and len(target.crowd) == ((inside > 0) & (inside < 0.3)).sum()
        assert image.untyped_storage().nbytes() == 3 * 48 * 48  # what another process is sent
    owner, labels = every.objects()
    assert labels.tolist() == [label for i in range(24) for label in every[i][1].labels.tolist()]
    assert (np.bincount(owner, minlength=24) == [len(every[i][1]) for i in range(24)]).all()
    some = TiledDataset(plain, TrainingTiles(48, 0.0), keep_empty=False)
    assert len(some) == len(np.unique(owner)) < 24 and all(len(some[i][1]) for i in range(len(some)))
    assert some.report.endswith(f"; {len(some)} tiles of 48 x 48 pixels, overlap 0, with {len(owner)} objects")


def test_where_no_tile_shows_enough_of_any_object_the_keys_are_named(data: Path):
    with pytest.raises(
        DataError, match=r"train.json: no tile shows 1 of an object; raise data\.tiles\.size or lower data\.tiles\.keep"
    ):
        TiledDataset(CocoDataset(data / "images", data / "train.json"), TrainingTiles(8, 0.0, keep=1), keep_empty=False)


def corners(size: np.ndarray) -> list[tuple[int, int]]:
    return [(top, left) for top in (0, size[0] - 48) for left in (0, size[1] - 48)]


def test_tiles_in_order_read_their_image_once(data: Path, monkeypatch: pytest.MonkeyPatch):
    tiles = TiledDataset(CocoDataset(data / "images", data / "train.json"), TrainingTiles(48, 0.0), keep_empty=True)
    read: list[int] = []
    look = CocoDataset.image
    monkeypatch.setattr(CocoDataset, "image", lambda self, i: read.append(i) or look(self, i))
    for i in (0, 1, 2, 3, 4, 0):
        tiles[i]
    assert read == [0, 1, 0]


def test_an_object_is_judged_in_the_tile_that_has_it_in_its_middle():
    boxes = np.array([[10.0, 10, 20, 20], [90, 40, 110, 60], [60, 0, 64, 4], [0, 0, 100, 200]])
    images = np.array([[100, 200], [100, 200], [100, 200], [300, 100]])
    moved, sizes = TrainingTiles(64, 0.5).nearest(
        boxes, images
    )  # columns begin at 0, 32, ... 128, 136; rows at 0, 32, 36
    assert moved.tolist() == [[10, 10, 20, 20], [26, 8, 46, 28], [28, 0, 32, 4], [0, 0, 64, 64]]
    assert sizes.tolist() == [[64, 64]] * 4


def test_a_training_on_tiles_resumes_exactly_and_its_commands_say_what_they_see(tmp_path, data, monkeypatch, capsys):
    config = write_config(tmp_path / "tiny.yaml", data)
    assert train(config, tmp_path / "whole", TILES) == 0
    before_steps(monkeypatch, lambda number: signal.raise_signal(signal.SIGINT) if number == 3 else None)
    assert train(config, tmp_path / "run", TILES) == 130
    monkeypatch.undo()
    assert train(config, tmp_path / "run", [*TILES, "--resume"]) == 0
    assert_same_training(tmp_path / "run", tmp_path / "whole")
    log = (tmp_path / "whole/train.log").read_text()
    assert re.search(
        r"train .* 6 images, 10 objects .*; \d\d tiles of 48 x 48 pixels, overlap 0, with \d\d objects", log
    )
    assert "each epoch is scored in tiles of 48 x 48 pixels, overlap 0, and the whole image" in log
    row = rows(tmp_path / "whole")[-1]
    scored = detector.evaluate(tmp_path / "whole/last.pth", tiles=Tiles(48, 0), trust=True, device="cpu")
    assert scored["bbox"]["AP"] == pytest.approx(float(row["AP"]), abs=1e-6)
    assert scored["tiles"] == {"size": [48, 48], "overlap": 0, "whole": True}
    common = [str(tmp_path / "whole/last.pth"), "--trust", "--device", "cpu", "--output"]
    capsys.readouterr()
    assert script("evaluate").main([*common, str(tmp_path / "scores"), "--tiles", "32x48", "--no-whole"]) == 0
    assert "in tiles of 48 x 32 pixels, overlap 0.2, without the whole image" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores/metrics.json").read_text())["tiles"]["size"] == [32, 48]
    assert script("evaluate").main([*common, str(tmp_path / "scores")]) == 0
    assert "tiles" not in json.loads((tmp_path / "scores/metrics.json").read_text())
    images = [str(tmp_path / "found"), str(data / "images"), "--score", "0"]
    assert script("infer").main([*common, *images]) == 0
    assert (
        "trained on tiles of 48 x 48 pixels, overlap 0, and now sees whole images; --tiles 48"
        in capsys.readouterr().err
    )
    assert script("infer").main([*common, *images, "--tiles", "48", "--overlap", "0", "--batch", "2"]) == 0
    assert "objects in detections.json; tiles of 48 x 48 pixels" in capsys.readouterr().out
    found = json.loads((tmp_path / "found/detections.json").read_text())
    name = found[0]["file_name"]
    predictor = detector.load(tmp_path / "whole/last.pth", trust=True, device="cpu")
    expected = predictor(data / "images" / name, tiles=Tiles(48, 0)).to_coco(1)
    assert len(expected) == sum(one["file_name"] == name for one in found) > 0
    assert Image.open(tmp_path / "found" / name).size in ((96, 64), (64, 96))


def test_a_report_is_of_the_tiles_that_the_training_is_scored_on(tmp_path: Path, data: Path, capsys):
    assert train(write_config(tmp_path / "tiny.yaml", data, report=True, epochs=1), tmp_path / "run", TILES) == 0
    traced = trace_run(tmp_path / "run", trust=True, device="cpu")
    predictor = detector.load(tmp_path / "run/best.pth", trust=True, device="cpu")

    def scores(**how: Any) -> list[float]:
        images = (traced.dataset.image(i) for i in range(len(traced.dataset)))
        return sorted(score for image in images for score in predictor(image, **how).scores.tolist())

    assert traced.scored is not None and traced.losses is None
    found = sorted(entry["score"] for entry in traced.scored.detections)
    assert found == pytest.approx(scores(tiles=Tiles(48, 0)), abs=1e-5) and len(found) > len(scores()) > 0
    image = str(next((data / "images").glob("*.png")))
    arguments = [str(tmp_path / "run/best.pth"), image, "--trust", "--device", "cpu", "--output", str(tmp_path / "why")]
    assert script("explain").main(arguments) == 0
    assert "now sees whole images; give a tile that is cut out of the image" in capsys.readouterr().err
    page = (tmp_path / "run/report.html").read_text()
    assert "tiles of 48 x 48 pixels, overlap 0, and the whole image" in page and "the detector sees tiles" in page


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        ("evaluate", ["--tiles", "0"], "--tiles: Tiles: size: expected a whole number in 1"),
        ("evaluate", ["--tiles", "640", "--overlap", "1"], "overlap: expected a number at least 0 and below 1"),
        ("evaluate", ["--tiles", "640", "--proposals", "p"], "a file of proposals is that of whole images"),
        (
            "infer",
            ["--tiles", "large", "--output", "o", "a.png"],
            "whole pixels, 640 or 480x640 (height first), not 'large'",
        ),
        (
            "infer",
            ["--tiles", "64x", "--output", "o", "a.png"],
            "whole pixels, 640 or 480x640 (height first), not '64x'",
        ),
        ("infer", ["--overlap", "0.2", "--output", "o", "a.png"], "--overlap and --no-whole go with --tiles SIZE"),
    ],
)
def test_options_that_make_no_tiles_are_refused(command, arguments, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        script(command).main(["best.pth", *arguments])
    assert words in capsys.readouterr().err


def test_masks_are_drawn_in_tiles_and_a_data_set_of_another_class_is_refused(tmp_path: Path, data: Path):
    for split in ("train", "val"):
        add_outlines(data / f"{split}.json")
    config = load_config(write_config(tmp_path / "tiny.yaml", data), TILES)
    tiles = build_dataset(config.data, "train", fields=["masks"])
    image, target, _ = tiles[0]
    assert target.masks.shape == (len(target), *image.shape[1:]) and target.masks.flatten(1).any(dim=1).all()
    with pytest.raises(ConfigError, match=r"data\.tiles: cuts the images of CocoDataset and its subclasses; list"):
        TiledDataset([], TrainingTiles(48), keep_empty=True)
