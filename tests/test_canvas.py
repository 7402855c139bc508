"""Views of an image: boxes and maps lie where they belong, windows stay in the image, and nothing of a caption is lost."""

import numpy as np
import pytest
import torch
from PIL import Image

from detector.insight.canvas import WIDTH, TitledView, View, around, compose, panel_width
from detector.insight.exhibits import LevelMap

BLACK = torch.zeros(3, 64, 96, dtype=torch.uint8)
WHOLE = (0.0, 0.0, 96.0, 64.0)


def lit(picture: Image.Image, channel: int = 0, least: int = 60) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of the pixels that are brighter than `least` in a channel."""
    y, x = np.nonzero(np.asarray(picture)[..., channel] > least)
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def map_of(*cells: tuple[int, int, float]) -> LevelMap:
    """A level of stride 16 with values (row, column, value)."""
    values = torch.zeros(4, 6)
    for y, x, value in cells:
        values[y, x] = value
    return LevelMap(4, values, (16.0, 16.0))


def test_a_map_is_bright_at_its_own_cell_in_the_whole_image_and_in_a_window():
    view = View(BLACK, WHOLE, (192, 500))  # twice as large
    view.heat(map_of((1, 2, 1.0)))
    assert view.picture.size == (192, 128) and lit(view.picture) == (64, 32, 96, 64)
    close = View(BLACK, (32.0, 16.0, 64.0, 48.0), (64, 64))
    close.heat(map_of((1, 2, 1.0)))
    assert lit(close.picture) == (0, 0, 32, 32)
    padded = View(BLACK, WHOLE, (96, 64))  # a level reaches beyond the image, which is padded
    padded.heat(LevelMap(6, torch.tensor([[0.0, 1.0]]), (64.0, 64.0)))
    assert lit(padded.picture) == (64, 0, 96, 64)


def test_what_speaks_for_a_class_is_red_and_what_against_it_blue():
    view = View(BLACK, WHOLE, (96, 64))
    view.signed(map_of((0, 0, 2.0), (3, 5, -2.0)))
    pixels = np.asarray(view.picture).astype(int)
    red, blue = pixels[8, 8], pixels[56, 88]
    assert red[0] > red[2] + 100 and blue[2] > blue[0] + 100 and not pixels[24, 40].any()


def test_frames_and_grids_are_at_their_boxes():
    view = View(BLACK, WHOLE, (192, 128))
    view.frame((10, 20, 30, 40), (255, 0, 0))
    assert lit(view.picture) == (20, 40, 61, 81)
    view = View(BLACK, (40.0, 20.0, 72.0, 52.0), (64, 64))
    view.grid((48, 28, 64, 44), 2, (0, 255, 0))
    assert lit(view.picture, channel=1) == (16, 16, 49, 49)
    assert np.asarray(view.picture)[32, 20, 1] == 255 and np.asarray(view.picture)[24, 20, 1] == 0
    view.frame((-500, -500, 5000, 5000), (255, 0, 0))  # its lines are outside
    assert np.asarray(view.picture)[..., 0].max() == 0


@pytest.mark.parametrize("size", [(640, 480), (90, 700), (20, 20), (3, 500)])
@pytest.mark.parametrize(
    "box", [(0.0, 0.0, 0.1, 0.1), (0.2, 0.3, 0.4, 0.9), (0.9, 0.9, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0)]
)
def test_a_window_holds_its_box_and_stays_in_the_image(size: tuple[int, int], box: tuple[float, ...]):
    x1, y1, x2, y2 = (v * size[i % 2] for i, v in enumerate(box))
    left, top, right, bottom = around((x1, y1, x2, y2), size, (500, 380))
    assert 0 <= left <= x1 + 1e-6 and x2 - 1e-6 <= right <= size[0] + 1e-6
    assert 0 <= top <= y1 + 1e-6 and y2 - 1e-6 <= bottom <= size[1] + 1e-6


def test_titles_and_captions_of_any_length_and_script_fit_below_each_other():
    view = View(BLACK, WHOLE, (panel_width(3), 380)).picture
    short = compose("Title", [], [[TitledView("a", view, "b")] * 2])
    rows = [[TitledView("a", view, "word " * 90)] * 2, [TitledView("Ω\u0007\n", view, "x" * 400)]]
    long = compose("Title " * 60, ["line"], rows)
    assert short.width == long.width == WIDTH and long.height > 2 * short.height - 200
    assert np.asarray(long.convert("L"))[-10:].min() == 255  # a margin below
