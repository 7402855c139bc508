"""Transforms: sizes and boxes by hand, boxes that follow their pixels, and chance that a seed repeats."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.data.transforms import (
    ColorJitter,
    Compose,
    HorizontalFlip,
    LargeScaleJitter,
    Resize,
    VerticalFlip,
    resized_size,
)
from detector.structures import Target

Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]

EVERY: dict[str, Transform] = {
    "resize": Resize([60, 90, 150], 200),
    "horizontal": HorizontalFlip(),
    "vertical": VerticalFlip(),
    "color": ColorJitter(0.2, 0.2, 0.2, 0.1),
    "large scale": LargeScaleJitter(90, 0.5, 2.0),
    "all": Compose([Resize([60, 90], 200), HorizontalFlip(), VerticalFlip(), LargeScaleJitter(90)]),
}


def sample(h: int = 80, w: int = 120) -> tuple[Tensor, Target]:
    """A white box on black, which is an object and a crowd region too."""
    image = torch.zeros(3, h, w, dtype=torch.uint8)
    image[:, 20:50, 30:80] = 255
    boxes = torch.tensor([[30.0, 20, 80, 50]])
    return image, Target(boxes, torch.tensor([1]), boxes.clone())


def target_of(*boxes: list[float]) -> Target:
    xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Target(xyxy, torch.arange(len(boxes)), xyxy.clone())


def triangles(old: int, new: int) -> Tensor:
    """Antialiased bilinear interpolation of one axis, as a matrix (new, old)."""
    reach = max(1.0, old / new)
    centre = (torch.arange(new).double()[:, None] + 0.5) * old / new
    weight = (1 - (torch.arange(old) + 0.5 - centre).abs() / reach).clamp(min=0)
    return weight / weight.sum(dim=1, keepdim=True)


# Sizes


@pytest.mark.parametrize(
    ("size", "short", "long", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 1066.67
        ((640, 480), 800, 1333, (1067, 800)),
        ((427, 640), 800, 1333, (800, 1199)),  # 1199.06
        ((200, 1000), 800, 1333, (267, 1333)),  # the long side decides: 266.6
        ((800, 1333), 800, 1333, (800, 1333)),
        ((1, 5000), 800, 1333, (1, 1333)),  # 0.27 would be no image
    ],
)
def test_resized_sizes(size: tuple[int, int], short: int, long: int, expected: tuple[int, int]) -> None:
    assert resized_size(*size, short, long) == expected


@given(*[st.integers(1, 3000)] * 4)
def test_resized_sizes_keep_to_their_limits(h: int, w: int, short: int, more: int) -> None:
    new_h, new_w = resized_size(h, w, short, short + more)
    assert 1 <= min(new_h, new_w) <= short and max(new_h, new_w) <= short + more
    assert min(new_h, new_w) == short or max(new_h, new_w) == short + more


# Boxes by hand


def test_resize_scales_boxes_by_the_true_ratio_of_each_axis() -> None:
    image = torch.zeros(3, 3, 10, dtype=torch.uint8)
    image, target = Resize(5, 100)(image, target_of([1, 1, 5, 2]))  # 3 x 10 -> 5 x 17 (16.67)
    assert image.shape == (3, 5, 17)
    torch.testing.assert_close(target.boxes, torch.tensor([[1.7, 5 / 3, 8.5, 10 / 3]]))
    torch.testing.assert_close(target.crowd, target.boxes)


def test_flips() -> None:
    image = torch.arange(6, dtype=torch.uint8).reshape(1, 2, 3).expand(3, 2, 3)
    flipped, target = HorizontalFlip(1.0)(image, target_of([0, 0, 1, 2]))
    assert flipped[0].tolist() == [[2, 1, 0], [5, 4, 3]] and target.boxes.tolist() == [[2, 0, 3, 2]]
    assert target.crowd.tolist() == [[2, 0, 3, 2]] and target.labels.tolist() == [0]
    flipped, target = VerticalFlip(1.0)(image, target_of([0, 0, 1, 0.5]))
    assert flipped[0].tolist() == [[3, 4, 5], [0, 1, 2]] and target.boxes.tolist() == [[0, 1.5, 1, 2]]


@pytest.mark.parametrize("flip", [HorizontalFlip, VerticalFlip])
def test_probability_of_a_flip(flip: type) -> None:
    image, target = sample()
    assert torch.equal(flip(0.0)(image, target)[0], image)
    assert torch.equal(flip(1.0)(*flip(1.0)(image, target))[0], image)
    torch.manual_seed(0)
    turned = sum(not torch.equal(flip()(image, target)[0], image) for _ in range(200))
    assert 70 < turned < 130


def test_color_jitter_moves_nothing() -> None:
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    target = target_of([1, 1, 5, 2])
    jittered, same = ColorJitter(0.9, 0.9, 0.9, 0.5)(image, target)
    assert same is target and jittered.shape == image.shape and jittered.dtype == torch.uint8
    assert not torch.equal(jittered, image)
    assert torch.equal(ColorJitter()(image, target)[0], image)


def test_large_scale_jitter_fits_or_cuts() -> None:
    image, target = sample(60, 120)
    fitted, same = LargeScaleJitter(60, 1.0, 1.0)(image, target)
    assert fitted.shape == (3, 30, 60)
    torch.testing.assert_close(same.boxes, target.boxes / 2)
    assert LargeScaleJitter(60, 3.0, 3.0)(image, target)[0].shape == (3, 60, 60)
    assert LargeScaleJitter(60, 1.5, 1.5)(image, target)[0].shape == (3, 45, 60)
    assert LargeScaleJitter(60, 0.001, 0.001)(image, target)[0].shape == (3, 1, 1)


def test_the_window_of_large_scale_jitter_may_lie_at_either_end() -> None:
    """61 pixels leave the corner of a window of 60 the places 0 and 1."""
    image, jitter = torch.zeros(3, 30, 61, dtype=torch.uint8), LargeScaleJitter(60, 61 / 60, 61 / 60)
    target = Target(torch.tensor([[20.0, 5, 30, 15]]), torch.tensor([0]))
    assert {jitter(image, target)[1].boxes[0, 0].item() for _ in range(30)} == {19, 20}


# Invariants


@pytest.mark.parametrize("name", EVERY)
def test_boxes_follow_their_pixels(name: str) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = EVERY[name](*sample())
        bright = image.float().mean(dim=0) > 127
        columns, rows = (torch.where(bright.any(dim=axis))[0] for axis in (0, 1))
        for boxes in (target.boxes, target.crowd):
            if bright.sum() > 16:
                seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
                assert (boxes[0] - seen).abs().max() <= 1.0
        assert len(target.boxes) == len(target.labels)


@pytest.mark.parametrize("name", EVERY)
def test_plain_tensors_come_out_and_nothing_goes_in_place(name: str) -> None:
    image, target = sample()
    before = image.clone(), target.boxes.clone()
    new_image, new = EVERY[name](image, target)
    assert {type(x) for x in (new_image, new.boxes, new.labels, new.crowd)} == {Tensor}
    assert new_image.dtype == torch.uint8 and new.boxes.dtype == torch.float32 and new.labels.dtype == torch.int64
    assert torch.equal(image, before[0]) and torch.equal(target.boxes, before[1])
    _, none = EVERY[name](image, target_of())
    assert none.boxes.shape == none.crowd.shape == (0, 4) and none.labels.shape == (0,)


@pytest.mark.parametrize("name", EVERY)
def test_a_seed_repeats_chance_and_a_copy_is_the_same(name: str) -> None:
    results = []
    for transform in (EVERY[name], pickle.loads(pickle.dumps(EVERY[name]))):
        torch.manual_seed(7)
        results.append([transform(*sample()) for _ in range(5)])
    for (image, target), (other, again) in zip(*results):
        assert torch.equal(image, other) and torch.equal(target.boxes, again.boxes)


# Evaluation


def test_training_draws_a_short_side_and_evaluation_takes_the_largest() -> None:
    resize = Resize([60, 90, 150], 200)
    image, target = sample()
    torch.manual_seed(0)
    assert {resize(image, target)[0].shape[1] for _ in range(40)} == {60, 90, 133}  # 150 would make 225 wide
    before = torch.get_rng_state()
    assert resize.resize_image(image).shape == (3, 133, 200)
    assert torch.equal(torch.get_rng_state(), before)
    assert resize.evaluation().sides == [150] and resize.evaluation().long == 200
    assert torch.equal(resize.evaluation()(image, target)[0], resize.resize_image(image))


@pytest.mark.parametrize("size", [(37, 53), (60, 2), (2, 60), (40, 1), (1, 1)])
@pytest.mark.parametrize("short", [1, 20, 90])
def test_resizing_is_right_whatever_the_memory_layout(size: tuple[int, int], short: int) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    as_decoded = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    resize = Resize(short, 200)
    small = resize.resize_image(image)
    assert torch.equal(small, resize.resize_image(as_decoded))
    rows, columns = (triangles(old, new) for old, new in zip(size, small.shape[1:]))
    assert (small - rows @ image.double() @ columns.T).abs().max() <= 1.01  # torch rounds after each axis


# The end of the chain


def test_compose_clips_and_drops_what_has_no_area_left() -> None:
    def shift(image: Tensor, target: Target) -> tuple[Tensor, Target]:
        return image, Target(target.boxes + 6, target.labels, target.crowd + 6)

    compose = Compose([shift])
    image = torch.zeros(3, 10, 20, dtype=torch.uint8)
    target = target_of([0, 0, 3, 3], [13, 0, 18, 9], [14, 0, 18, 9], [0, 4, 5, 9], [1, 1, 1, 3], [-8, -8, -3, -2])
    _, target = compose(image, target)
    assert target.boxes.tolist() == [[6, 6, 9, 9], [19, 6, 20, 10], [0, 0, 3, 4]]
    assert target.labels.tolist() == [0, 1, 5]
    assert target.crowd.tolist() == target.boxes.tolist()
    assert int(compose.dropped) == 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 10_000))
def test_what_comes_out_lies_inside_and_has_an_area(h: int, w: int, seed: int) -> None:
    torch.manual_seed(seed)
    corners = torch.rand(6, 2, 2) * torch.tensor([w, h]) * 1.2 - 2
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    image = torch.zeros(3, h, w, dtype=torch.uint8)
    image, target = EVERY["all"](image, Target(boxes, torch.arange(6), boxes))
    for boxes in (target.boxes, target.crowd):
        assert (boxes >= 0).all() and (boxes[:, 2] <= image.shape[2]).all() and (boxes[:, 3] <= image.shape[1]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
