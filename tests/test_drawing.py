"""Pictures of detections: lines and labels that can be read, inside the picture, out of each other's way."""

import itertools

import pytest
import torch
from PIL import ImageChops
from torch import Tensor

from detector.inference.drawing import class_colour, draw_detections, luminance, place_labels
from detector.structures import Detections

BLACK, WHITE = 0, 255


def canvas(h: int, w: int, grey: int = 128) -> Tensor:
    return torch.full((3, h, w), grey, dtype=torch.uint8)


def detections(*boxes: list[float], names: list[str] | None = None) -> Detections:
    n = len(boxes)
    return Detections(torch.tensor(boxes).reshape(n, 4), torch.linspace(0.9, 0.6, n), torch.arange(n), names)


def as_tensor(picture) -> Tensor:
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)


def test_colours_of_classes_are_far_from_each_other_and_bright_under_black_letters():
    for label in range(200):
        assert (luminance(class_colour(label)) + 0.05) / 0.05 >= 4.5  # WCAG 2
    assert luminance((0, 0, 0)) == 0
    assert luminance((255, 255, 255)) == pytest.approx(1)
    assert luminance((255, 0, 0)) == pytest.approx(0.2126)
    colours = [class_colour(label) for label in range(10)]
    for a, b in itertools.combinations(colours, 2):
        assert sum(abs(x - y) for x, y in zip(a, b)) >= 60


@pytest.mark.parametrize("grey", [BLACK, WHITE])
def test_a_box_stands_out_and_its_object_stays_visible(grey: int):
    drawn = as_tensor(draw_detections(canvas(240, 320, grey), detections([100.0, 100.0, 160.0, 180.0]))).int()
    differs = (drawn - grey).abs().amax(dim=2) > 100  # (H, W)
    assert differs[98, 100:160].all() and differs[181, 100:160].all()  # a line and its seam lie just outside of the box
    assert differs[100:180, 98].all() and differs[100:180, 161].all()
    assert not differs[100:180, 100:160].any()  # the label lies above
    assert differs[86:97, 98:120].any()


def test_lines_and_letters_grow_with_the_image():
    def marked(scale: int) -> float:
        box = [100.0 * scale, 100.0 * scale, 160.0 * scale, 180.0 * scale]
        picture = draw_detections(canvas(480 * scale, 640 * scale), detections(box, names=["cell"]))
        return (as_tensor(picture) != 128).any(dim=2).float().mean().item()

    assert marked(4) == pytest.approx(marked(1), rel=0.15)


def test_the_image_itself_is_not_drawn_on_and_nothing_is_drawn_without_detections():
    image = torch.randint(0, 256, (3, 50, 40), dtype=torch.uint8)
    assert torch.equal(as_tensor(draw_detections(image, detections())), image.permute(1, 2, 0))
    image = canvas(60, 80)
    draw_detections(image, detections([5.0, 5.0, 30.0, 30.0]))
    assert (image == 128).all()


@pytest.mark.parametrize("size", [(1, 1), (8, 200), (20, 12), (600, 30)])
def test_any_size_and_any_box_can_be_drawn(size: tuple[int, int]):
    h, w = size
    boxes = [0.0, 0.0, float(w), float(h)], [w / 2, h / 2, w / 2, h / 2], [-9.0, -9.0, w + 9.0, h + 9.0]
    picture = draw_detections(canvas(h, w), detections(*boxes, names=["a very long name of a class", "b", ""]))
    assert picture.size == (w, h)


def test_classes_without_names_are_numbered():
    boxes = [10.0, 60.0, 50.0, 90.0], [100.0, 60.0, 150.0, 90.0]
    numbered = draw_detections(canvas(120, 200), detections(*boxes))
    named = draw_detections(canvas(120, 200), detections(*boxes, names=["0", "1"]))
    assert ImageChops.difference(numbered, named).getbbox() is None


def test_labels_lie_above_or_inside_their_box_and_avoid_each_other():
    sizes = [(40, 12)]
    assert place_labels([(10, 50, 80, 90)], sizes, (200, 100)) == [(10, 38, 50, 50)]
    assert place_labels([(10, 0, 80, 90)], sizes, (200, 100)) == [(10, 0, 50, 12)]
    assert place_labels([(180, 50, 200, 90)], sizes, (200, 100)) == [(160, 38, 200, 50)]  # moved into the picture
    boxes = [(50, 50, 120, 90)] * 6  # one object, six guesses
    placed = place_labels(boxes, [(30, 12)] * 6, (200, 120))
    assert placed[0] == (50, 38, 80, 50)
    for x1, y1, x2, y2 in placed:
        assert x1 >= 0 and y1 >= 0 and x2 <= 200 and y2 <= 120
    for a, b in itertools.combinations(placed, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
