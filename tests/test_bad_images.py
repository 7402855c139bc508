"""A training on a dirty set: bad images give way to others, the same ones however it is run, and only so many."""

import logging
import re
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import draw_set, train, write_config
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from detector.data.image import ImageError
from detector.data.loader import eval_loader, train_loader
from detector.data.skip_bad import BadImages
from detector.errors import DataError
from detector.structures import Target


class Dirty(Dataset):
    """Images made of chance alone; the first third is wide. Those in `broken` raise."""

    def __init__(self, broken: dict[int, Exception], n: int = 12) -> None:
        self.sizes = np.array([(8, 12) if i < n // 3 else (12, 8) for i in range(n)])  # (h, w)
        self.image_ids, self.broken = np.arange(n), broken

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, i: int) -> Tensor:
        if i in self.broken:
            raise self.broken[i]
        return torch.randint(0, 100, (3, *self.sizes[i]), dtype=torch.uint8)

    def __getitem__(self, i: int) -> tuple[Tensor, Target, int]:
        return self.image(i), Target(torch.rand(2, 4), torch.randint(5, (2,))), i


def bad(*indices: int) -> dict[int, Exception]:
    return {i: ImageError(f"{i}.jpg: not a readable image") for i in indices}


def epoch(loader: Any, number: int = 0, start: int = 0) -> list[tuple[list, list[int]]]:
    """Pixels and image ids of every batch."""
    loader.batch_sampler.set_epoch(number, start)
    return [([image.tolist() for image in images], ids) for images, _, ids in loader]


def stopped(loader: Any) -> str:
    """The error that ends an epoch. (`pytest.raises` would keep it, that the loader, and that its processes.)"""
    try:
        epoch(loader)
    except DataError as error:
        return str(error)
    raise AssertionError("no error")


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_give_way_to_others_of_their_shape_and_are_named_once(workers: int, caplog):
    loader = train_loader(Dirty(bad(1, 2, 9)), 4, workers, seed=3, skip_bad=3)
    with caplog.at_level(logging.WARNING, "detector"):
        seen = [ids for number in range(3) for _, ids in epoch(loader, number)]
    assert sum(map(len, seen)) == 3 * 12 and not {1, 2, 9} & {i for ids in seen for i in ids}
    assert all(len({i < 4 for i in ids}) == 1 for ids in seen)  # wide ones alone, or tall ones
    messages = [record.getMessage() for record in caplog.records]
    assert sorted(m.partition("): ")[2] for m in messages) == [f"{i}.jpg: not a readable image" for i in (1, 2, 9)]
    assert "(3 of 3)" in messages[2] and loader.bad.found.keys() == {1, 2, 9}


def test_who_takes_the_place_depends_on_seed_epoch_and_index_alone():
    def loader(workers: int, seed: int = 3) -> Any:
        return train_loader(Dirty(bad(1, 2, 9)), 4, workers, seed=seed, skip_bad=3)

    alone, parallel = loader(0), loader(2)
    first, later = epoch(alone), epoch(alone, 1)
    assert epoch(parallel, 1) == later and epoch(parallel) == first  # whatever was met before
    assert epoch(loader(0), 1, start=2) == later[2:]  # resumed
    assert epoch(loader(2, seed=4)) != first
    clean = epoch(train_loader(Dirty({}), 4, 0, seed=3))
    taken = {one: other for a, b in zip(clean, first) for one, other in zip(a[1], b[1]) if one != other}
    assert taken.keys() == {1, 2, 9}


@pytest.mark.parametrize("workers", [0, 2])
def test_one_more_than_allowed_stops_and_lists_them(workers: int):
    loader = train_loader(Dirty(bad(1, 2, 9)), 4, workers, seed=3, skip_bad=2)
    message = stopped(loader)
    assert message.startswith("data.skip_bad: allows 2 bad images, but there are 3")
    assert all(f"{i}.jpg: not a readable image" in message for i in (1, 2, 9))


@pytest.mark.parametrize("workers", [0, 2])
def test_it_does_not_look_for_ever(workers: int):
    for allowed, message in ((5, "allows 5 bad images, but there are"), (50, r"\d+\.jpg: not a readable image")):
        assert re.search(message, stopped(train_loader(Dirty(bad(*range(12))), 4, workers, seed=0, skip_bad=allowed)))


def test_a_long_list_is_cut_short():
    bad_images = BadImages(30)
    with pytest.raises(DataError, match=r"there are 31: .* 0\.jpg; .*; 19\.jpg; and 11 more$"):
        bad_images.add({i: f"{i}.jpg" for i in range(31)})


@pytest.mark.parametrize("workers", [0, 2])
def test_without_the_key_the_first_bad_image_stops_and_evaluation_always(workers: int):
    dataset, before = Dirty(bad(5)), set(active_children())
    assert stopped(train_loader(dataset, 4, workers, seed=0)) == "5.jpg: not a readable image"
    assert set(active_children()) <= before  # workers end at once, not when the loader is collected
    with pytest.raises(DataError, match=r"^5\.jpg: not a readable image$"):
        list(eval_loader(dataset, lambda image: image, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_not_the_fault_of_an_image_is_not_skipped(workers: int):
    for broken in ({5: DataError("proposals.pth: damaged")}, bad(5) | {i: DataError("x") for i in range(12) if i != 5}):
        assert stopped(train_loader(Dirty(broken), 4, workers, seed=0, skip_bad=9)) in ("proposals.pth: damaged", "x")


def spoil(data: Path) -> None:
    """A training image is gone, one is broken, one has another size than its annotations say."""
    (data / "images/train0.png").unlink()
    (data / "images/train1.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (10, 10)).save(data / "images/train2.png")


def test_a_training_goes_on_without_bad_images_and_resumes_exactly(tmp_path: Path):
    config = write_config(tmp_path / "tiny.yaml", draw_set(tmp_path / "data"))
    spoil(tmp_path / "data")
    option = ["data.skip_bad=3", "train.evaluate_every=2"]
    assert train(config, tmp_path / "whole", option) == 0
    assert train(config, tmp_path / "parts", [*option, "train.epochs=1"]) == 0
    assert train(config, tmp_path / "parts", [*option, "--resume", "data.workers=1"]) == 0
    whole, parts = (torch.load(tmp_path / run / "last.pth")["model"] for run in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    text = (tmp_path / "whole/train.log").read_text()
    assert text.count("another image replaces a bad one") == 3
    for reason in ("train0.png: no such image", "train1.png: not a readable image", "train2.png: the image (upright"):
        assert text.count(reason) == 1


def test_a_training_stops_at_one_bad_image_too_many(tmp_path: Path, capsys: pytest.CaptureFixture):
    config = write_config(tmp_path / "tiny.yaml", draw_set(tmp_path / "data"))
    spoil(tmp_path / "data")
    assert train(config, tmp_path / "run", ["data.skip_bad=2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: data.skip_bad: allows 2 bad images, but there are 3")
    assert train(config, tmp_path / "other", ["data.skip_bad=-1"]) == 2
    assert "data.skip_bad: expected a whole number in 0.." in capsys.readouterr().err
    (tmp_path / "data/images/val0.png").unlink()
    assert train(config, tmp_path / "third", ["data.skip_bad=9"]) == 2
    assert "val0.png: no such image" in capsys.readouterr().err
