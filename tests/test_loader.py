"""The loaders: every image once, by chance of seed, epoch and index alone; bad images give way to others, and only so many."""

import logging
import pickle
import random
import re
from itertools import chain
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.training import draw_set, train, write_config
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from detector.data.image import ImageError
from detector.data.loader import eval_loader, train_loader
from detector.data.sampler import EpochIndex, GroupedBatchSampler, repeat_factors
from detector.data.skip_bad import BadImages
from detector.errors import DataError
from detector.rng import mix
from detector.structures import Target


class Noise(Dataset):
    """Images made of chance alone, as if every transform drew; those in `broken` raise. Every third is tall."""

    def __init__(self, n: int = 11, broken: dict[int, Exception] | None = None, first_id: int = 100) -> None:
        self.sizes = np.array([(8, 12) if i % 3 else (12, 8) for i in range(n)])  # (h, w)
        self.image_ids, self.broken = np.arange(n) + first_id, broken or {}

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, i: int) -> Tensor:
        if i in self.broken:
            raise self.broken[i]
        return torch.full((3, *self.sizes[i]), i, dtype=torch.uint8)

    def __getitem__(self, i: int) -> tuple[Tensor, Target, int]:
        image = self.image(i) + torch.randint(0, 100, (3, *self.sizes[i]), dtype=torch.uint8)
        return image, Target(torch.rand(i % 3, 4), torch.randint(5, (i % 3,))), int(self.image_ids[i])


def halve(image: Tensor) -> Tensor:
    return image[:, ::2, ::2]


def sampler(n_wide: int, n_tall: int, batch_size: int, **options: Any) -> GroupedBatchSampler:
    sizes = np.array([(1, 2)] * n_wide + [(2, 1)] * n_tall).reshape(-1, 2)
    return GroupedBatchSampler(sizes, batch_size, **{"seed": 0, **options})


def epoch(loader: Any, number: int = 0, start: int = 0) -> list[Any]:
    loader.batch_sampler.set_epoch(number, start)
    return list(loader)


def flat(batches: list[Any]) -> list[Any]:
    """Everything in the batches, as nested lists that `==` compares."""
    return [
        ([x.tolist() for x in images], [(t.boxes.tolist(), t.labels.tolist()) for t in targets], image_ids)
        for images, targets, image_ids in batches
    ]


def test_what_chance_does_is_a_function_of_seed_epoch_and_index_whoever_draws() -> None:
    """Python's and NumPy's generators too, for transforms of the user's own; the training's are left alone."""

    class Drawing(Noise):
        def __getitem__(self, i: int) -> tuple[Tensor, Target, int]:
            draws = [random.random(), np.random.rand(), torch.rand(1).item()]
            return torch.tensor(draws), Target(torch.zeros(0, 4), torch.zeros(0)), i

    def drawn() -> list:
        return [
            tuple(image.tolist()) for images, _, _ in epoch(train_loader(Drawing(), 4, 0, seed=0)) for image in images
        ]

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = drawn()
    after = random.random(), np.random.rand(), torch.rand(1).item()
    assert drawn() == first and len(set(first)) == len(first)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == after


# The order


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9), st.integers(0, 3))
def test_every_image_once_in_batches_of_one_shape(n_wide: int, n_tall: int, batch_size: int, number: int) -> None:
    it = sampler(n_wide, n_tall, batch_size)
    it.set_epoch(number)
    batches = it.batches()
    assert sorted(chain(*batches)) == list(range(n_wide + n_tall))
    assert len(it) == len(batches) and all(len(batch) == batch_size for batch in batches[:-1])
    mixed = [batch for batch in batches if len({index < n_wide for index in batch}) > 1]
    assert len(mixed) <= 1  # where the leftovers of the two groups meet
    assert not mixed or mixed[0] in batches[-2:]


def test_order_is_a_function_of_seed_and_epoch_and_batches_begin_where_told() -> None:
    it, twin = sampler(30, 20, 4), sampler(30, 20, 4)
    first = it.batches()
    it.set_epoch(1)
    second = it.batches()
    assert first != second
    twin.set_epoch(1)
    assert twin.batches() == second
    it.set_epoch(0)
    assert it.batches() == first
    assert sampler(30, 20, 4, seed=1).batches() != first
    wide = [batch[0] < 30 for batch in first]
    assert wide != sorted(wide) and wide != sorted(wide, reverse=True)  # neither group comes first
    it = sampler(10, 5, 2)
    it.set_epoch(3, start=2)
    assert list(it) == [[EpochIndex(3, index) for index in batch] for batch in it.batches()[2:]]
    assert len(it) == 8  # of the whole epoch
    it.set_epoch(4)
    assert len(list(it)) == 8
    it.set_epoch(4, start=8)
    assert list(it) == []


@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_share_every_batch_and_have_equally_many(world: int) -> None:
    ranks = [list(sampler(9, 0, 4, rank=rank, world=world)) for rank in range(world)]
    whole = list(sampler(9, 0, 4))
    assert [len(batch) for batch in whole] == [4, 4, 1]
    for batch, *shares in zip(whole, *ranks, strict=True):
        assert {len(share) for share in shares} == {-(-len(batch) // world)}
        learnt = [place for place in chain(*shares) if not place.is_padding]
        assert sorted(learnt) == sorted(batch)
        assert {place.index for place in chain(*shares)} == {place.index for place in batch}


def test_a_padding_sample_has_no_objects_and_no_background() -> None:
    [[images, targets, ids]], [[twins, others, _]] = (
        epoch(train_loader(Noise(), 11, 0, seed=0, rank=rank, world=22)) for rank in (0, 21)
    )
    assert torch.equal(images[0], twins[0]) and len(targets[0].boxes) == (ids[0] - 100) % 3
    assert len(others[0].boxes) == len(others[0].labels) == 0 and others[0].crowd.shape == (1, 4)


# Repetition


@given(st.lists(st.floats(1, 4), min_size=1, max_size=40), st.integers(0, 40), st.integers(1, 5))
def test_an_image_comes_as_often_as_it_should(repeats: list[float], n_wide: int, batch_size: int) -> None:
    n_wide = min(n_wide, len(repeats))
    it = sampler(n_wide, len(repeats) - n_wide, batch_size, repeats=np.array(repeats))
    for number in range(3):
        it.set_epoch(number)
        batches = it.batches()
        counts = np.bincount(list(chain(*batches)), minlength=len(repeats))
        assert len(it) == len(batches)
        assert (counts >= np.floor(repeats)).all() and (counts <= np.ceil(repeats) + 1).all()


def test_repeats_are_by_hand_and_chance_settles_their_fractions() -> None:
    # Class 0 is in all 4 images, class 1 in one (twice), class 2 in none.
    owner, labels = np.array([0, 1, 1, 1, 2, 3]), np.array([0, 0, 1, 1, 0, 0])
    assert repeat_factors(owner, labels, 4, threshold=1.0).tolist() == [1, 2, 1, 1]
    assert repeat_factors(owner, labels, 4, threshold=0.25).tolist() == [1] * 4
    assert repeat_factors(owner[:0], labels[:0], 2, threshold=1.0).tolist() == [1, 1]
    it, counts = sampler(3, 3, 2, repeats=np.array([1, 1.5, 2.25, 1, 1.25, 1.5])), np.zeros(6)
    for number in range(400):
        it.set_epoch(number)
        counts += np.bincount(list(chain(*it.batches())), minlength=6)
    # wide: 4.75 asked of 5 drawn, tall: 3.75 of 4
    assert np.allclose(
        counts / 400, np.array([1, 1.5, 2.25, 1, 1.25, 1.5]) * [*[5 / 4.75] * 3, *[4 / 3.75] * 3], atol=0.1
    )


# Samples


def test_samples_do_not_depend_on_workers_resumption_or_processes() -> None:
    alone = flat(epoch(train_loader(Noise(), 3, 0, seed=5), 2))
    loader = train_loader(Noise(), 3, 2, seed=5)
    epoch(loader, 1)
    assert flat(epoch(loader, 2)) == alone  # the same workers went through another epoch before
    loader.batch_sampler.set_epoch(3)
    next(iter(loader))  # stopped in the middle
    assert flat(epoch(loader, 2)) == alone
    for start in (1, 2, 4):
        assert flat(epoch(train_loader(Noise(), 3, 0, seed=5), 2, start)) == alone[start:]
        assert flat(epoch(loader, 2, start)) == alone[start:]
    shares = [flat(epoch(train_loader(Noise(), 3, 0, seed=5, rank=rank, world=2), 2)) for rank in (0, 1)]
    assert shares[0][0][0][0] == alone[0][0][0] and shares[1][0][0][0] == alone[0][0][1]


def test_chance_differs_between_samples_epochs_and_seeds_which_do_not_meet() -> None:
    def by_id(seed: int, number: int) -> dict[int, Any]:
        batches = flat(epoch(train_loader(Noise(), 3, 0, seed=seed), number))
        return {i: image for images, _, ids in batches for image, i in zip(images, ids)}

    first, later, other = by_id(0, 0), by_id(0, 1), by_id(1, 0)
    assert by_id(0, 0) == first
    assert all(first[i] != later[i] and first[i] != other[i] for i in first)
    seeds = {mix(seed, number, index) for seed in range(5) for number in range(20) for index in range(100)}
    assert len(seeds) == 5 * 20 * 100
    assert mix(0, 1) != mix(1, 0) and mix(2**40, 5) == mix(2**40, 5)


def test_evaluation_batches_follow_the_data_set_the_global_generator_is_left_alone_and_errors_keep_their_traceback():
    for workers in [0, 1]:
        batches = list(eval_loader(Noise(5), halve, workers, batch_size=2))
        assert [ids for _, _, ids in batches] == [[100, 101], [102, 103], [104]]
        assert [sizes for _, sizes, _ in batches] == [[(12, 8), (8, 12)], [(8, 12), (12, 8)], [(8, 12)]]
        assert [tuple(x.shape) for x in batches[0][0]] == [(3, 6, 4), (3, 4, 6)]
        assert [int(x.max()) for images, _, _ in batches for x in images] == [0, 1, 2, 3, 4]
    for workers in [0, 1]:
        before = torch.get_rng_state()
        epoch(train_loader(Noise(), 4, workers, seed=0))
        list(eval_loader(Noise(), halve, workers))
        assert torch.equal(torch.get_rng_state(), before)
    for workers in [0, 1]:
        broken = Noise(11, {4: ZeroDivisionError("a bug")})
        with pytest.raises(ZeroDivisionError, match="a bug"):
            list(train_loader(broken, 4, workers, seed=0))


def test_what_goes_to_the_workers_can_be_pickled() -> None:
    for loader in (train_loader(Noise(), 4, 0, seed=0), eval_loader(Noise(), halve, 0)):
        pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.batch_sampler)))
    dataset = pickle.loads(pickle.dumps(train_loader(Noise(), 4, 0, seed=3).dataset))
    assert torch.equal(dataset[EpochIndex(2, 5)][0], train_loader(Noise(), 4, 0, seed=3).dataset[EpochIndex(2, 5)][0])


def dirty(broken: dict[int, Exception]) -> Noise:
    """Twelve images, whose ids are their indices."""
    return Noise(12, broken, first_id=0)


def bad(*indices: int) -> dict[int, Exception]:
    return {i: ImageError(f"{i}.jpg: not a readable image") for i in indices}


def pixels_of(loader: Any, number: int = 0, start: int = 0) -> list[tuple[list, list[int]]]:
    """Pixels and image ids of every batch."""
    loader.batch_sampler.set_epoch(number, start)
    return [([image.tolist() for image in images], ids) for images, _, ids in loader]


def stopped(loader: Any) -> str:
    """The error that ends an epoch. (`pytest.raises` would keep it, that the loader, and that its processes.)"""
    try:
        pixels_of(loader)
    except DataError as error:
        return str(error)
    raise AssertionError("no error")


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_give_way_to_others_of_their_shape_and_are_named_once(workers: int, caplog):
    loader = train_loader(dirty(bad(1, 2, 9)), 4, workers, seed=3, skip_bad=3)
    with caplog.at_level(logging.WARNING, "detector"):
        seen = [ids for number in range(3) for _, ids in pixels_of(loader, number)]
    assert sum(map(len, seen)) == 3 * 12 and not {1, 2, 9} & {i for ids in seen for i in ids}
    assert all(len({i % 3 == 0 for i in ids}) == 1 for ids in seen)  # wide ones alone, or tall ones
    messages = [record.getMessage() for record in caplog.records]
    assert sorted(m.partition("): ")[2] for m in messages) == [f"{i}.jpg: not a readable image" for i in (1, 2, 9)]
    assert "(3 of 3)" in messages[2] and loader.bad.found.keys() == {1, 2, 9}


def test_who_takes_the_place_depends_on_seed_epoch_and_index_alone():
    def loader(workers: int, seed: int = 3) -> Any:
        return train_loader(dirty(bad(1, 2, 9)), 4, workers, seed=seed, skip_bad=3)

    alone, parallel = loader(0), loader(2)
    first, later = pixels_of(alone), pixels_of(alone, 1)
    assert pixels_of(parallel, 1) == later and pixels_of(parallel) == first  # whatever was met before
    assert pixels_of(loader(0), 1, start=2) == later[2:]  # resumed
    assert pixels_of(loader(2, seed=4)) != first
    clean = pixels_of(train_loader(dirty({}), 4, 0, seed=3))
    taken = {one: other for a, b in zip(clean, first) for one, other in zip(a[1], b[1]) if one != other}
    assert taken.keys() == {1, 2, 9}


def test_one_more_than_allowed_stops_and_lists_them_without_looking_for_ever():
    for workers in [0, 2]:
        loader = train_loader(dirty(bad(1, 2, 9)), 4, workers, seed=3, skip_bad=2)
        message = stopped(loader)
        assert message.startswith("data.skip_bad: allows 2 bad images, but there are 3")
        assert all(f"{i}.jpg: not a readable image" in message for i in (1, 2, 9))
    for workers in [0, 2]:
        for allowed, message in ((5, "allows 5 bad images, but there are"), (50, r"\d+\.jpg: not a readable image")):
            assert re.search(
                message, stopped(train_loader(dirty(bad(*range(12))), 4, workers, seed=0, skip_bad=allowed))
            )
    bad_images = BadImages(30)
    with pytest.raises(DataError, match=r"there are 31: .* 0\.jpg; .*; 19\.jpg; and 11 more$"):
        bad_images.add({i: f"{i}.jpg" for i in range(31)})


def test_without_the_key_the_first_bad_image_stops_and_with_it_all_other_errors():
    for workers in [0, 2]:
        dataset, before = dirty(bad(5)), set(active_children())
        assert stopped(train_loader(dataset, 4, workers, seed=0)) == "5.jpg: not a readable image"
        assert set(active_children()) <= before  # workers end at once, not when the loader is collected
        with pytest.raises(DataError, match=r"^5\.jpg: not a readable image$"):
            list(eval_loader(dataset, lambda image: image, 0))
    for workers in [0, 2]:
        for broken in (
            {5: DataError("proposals.pth: damaged")},
            bad(5) | {i: DataError("x") for i in range(12) if i != 5},
        ):
            assert stopped(train_loader(dirty(broken), 4, workers, seed=0, skip_bad=9)) in (
                "proposals.pth: damaged",
                "x",
            )


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
