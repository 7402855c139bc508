"""Names in any script, in fonts of the system; and crowds whose labels and lines leave the picture visible."""

import itertools
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageFont, ImageStat

from detector.inference import fonts, label_places, lettering
from detector.inference.drawing import draw_detections
from detector.inference.label_places import MOST_COVERED, MOST_HIDDEN, place_labels, shared_area
from detector.inference.right_to_left import in_visual_order
from detector.structures import Detections

GREY = 120


def picture(*names: str):
    n = len(names)
    boxes = torch.tensor([[10.0, 30 + 40 * i, 90, 50 + 40 * i] for i in range(n)]).reshape(n, 4)
    found = Detections(boxes, torch.full((n,), 0.5), torch.arange(n), list(names))
    return draw_detections(torch.full((3, 40 + 40 * n, 160), GREY, dtype=torch.uint8), found)


def difference(a, b) -> float:
    """Mean absolute difference of the pixels."""
    return sum(ImageStat.Stat(ImageChops.difference(a, b)).mean)


def font_with(letters: dict[int, tuple[int, int]]) -> bytes:
    """Pillow's own font, where segments of the character map, by number, are (first character, first letter of ASCII)."""
    font = bytearray(ImageFont.load_default(20).path.getvalue())
    tables = [struct.unpack_from(">4sIII", font, 12 + 16 * i) for i in range(struct.unpack_from(">H", font, 4)[0])]
    base = next(offset for tag, _, offset, _ in tables if tag == b"cmap") + 28 + 14  # its one subtable of format 4
    count = struct.unpack_from(">H", font, base - 8)[0] // 2
    starts, deltas = base + 2 * count + 2, base + 4 * count + 2
    ascii_delta = struct.unpack_from(">H", font, deltas)[0]
    for segment, (first, letter) in letters.items():
        struct.pack_into(">H", font, base + 2 * segment, first + 126 - letter)
        struct.pack_into(">H", font, starts + 2 * segment, first)
        struct.pack_into(">H", font, deltas + 2 * segment, (ascii_delta + letter - first) % 65536)
    return bytes(font)


@pytest.fixture
def use_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a folder with these files the only one that has fonts."""

    def use(files: dict[str, bytes], layout: ImageFont.Layout = fonts.LAYOUT) -> Path:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        for module in (fonts, lettering):
            monkeypatch.setattr(module, "FOLDERS", [tmp_path])
            monkeypatch.setattr(module, "LAYOUT", layout)
        clear()
        return tmp_path

    def clear() -> None:
        for cached in (fonts.find_faces, fonts.font_files, fonts.load_face, lettering.readable_names):
            cached.cache_clear()

    yield use
    clear()


def test_a_name_is_drawn_in_a_font_that_has_its_letters(use_fonts, caplog: pytest.LogCaptureFixture):
    """In this font the syllables from U+AC01 on look like a, b, c."""
    hangul = font_with({13: (0xAC01, ord("a"))})
    bold = font_with({13: (0xAC01, ord("b"))})
    use_fonts({"a-bold.ttf": bold, "a.ttf": b"no font", "b.otf": hangul}, ImageFont.Layout.BASIC)
    assert difference(picture("\uac01\uac02 \uac03", "cell"), picture("ab c", "cell")) == 0
    assert difference(picture("\uac01b"), picture("ab")) == 0
    assert not caplog.records


@pytest.mark.parametrize("layout", sorted({ImageFont.Layout.BASIC, fonts.LAYOUT}))
def test_hebrew_runs_from_right_to_left(use_fonts, layout: ImageFont.Layout):
    """In this font alef, bet, gimel look like a, b, c; other scripts are hinted a little differently."""
    use_fonts({"DejaVuSans.ttf": font_with({6: (0x5D0, ord("a"))})}, layout)

    def drawn(text: str) -> Image.Image:
        paper = Image.new("RGB", (400, 120), "white")
        lettering.typeset(text, 60, lettering.fonts_of([text])).draw(paper, 10, 80, (0, 0, 0))
        return paper

    for name, expected, mirrored in (
        ("אבג", "cba", "abc"),
        ("אב גd", "dc ba", "ab cd"),
        ("dog אב", "dog ba", "dog ab"),
    ):
        assert difference(drawn(name), drawn(expected)) < 0.5 * difference(drawn(name), drawn(mirrored))


def test_characters_stand_as_they_are_read():
    assert in_visual_order("cat 2") == "cat 2"
    assert in_visual_order("\u05d0\u05d1 12") == "12 \u05d1\u05d0"
    assert in_visual_order("a (\u05d0\u05b7\u05d1) b") == "a (\u05d1\u05d0\u05b7) b"  # the mark stays behind its letter
    assert (
        in_visual_order("\u0643\u0644\u0628") == "\ufe90\ufee0\ufedb"
    )  # kalb, dog: beh final, lam medial, kaf initial
    assert in_visual_order("\u0633\u0644\u0627\u0645") == "\ufee1\ufefc\ufeb3"  # salam: lam and alef are one shape


def test_names_that_no_font_has_are_readable_and_named_once(use_fonts, caplog: pytest.LogCaptureFixture):
    folder = use_fonts({"a.ttf": b"no font"})
    drawn = picture("고양이", "café", "cat \U0001f408", "cell\n2")
    assert difference(drawn, picture("#0", "cafe", "cat", "cell 2")) == 0
    (record,) = caplog.records
    text = record.getMessage()
    assert (
        record.levelno == logging.WARNING
        and "3 class names (HANGUL, LATIN, symbols)" in text
        and "고양이 as #0" in text
    )
    assert "apt install fonts-noto-cjk fonts-noto-color-emoji fonts-noto-core" in text and str(folder) in text
    (folder / "b.ttf").write_bytes(font_with({13: (0xAC00, ord("a"))}))  # the remedy works
    use_fonts({})
    assert lettering.readable_names(("\uac01",)) == ("\uac01",)


def test_labels_of_a_crowd_cover_little_and_none_hides_a_better_one(monkeypatch: pytest.MonkeyPatch):
    placed = place_labels([(50, 50, 120, 90)] * 40, [(30, 12)] * 40, (200, 120))
    labels = [box for box in placed if box is not None]
    assert placed[0] == (50, 38, 80, 50) and 4 <= len(labels) < 40
    for a, b in itertools.combinations(labels, 2):
        assert shared_area(a, b) <= MOST_HIDDEN * 30 * 12
    calls = []
    monkeypatch.setattr(label_places, "shared_area", lambda a, b: calls.append(0) or shared_area(a, b))
    for n in (1000, 8000):
        corners = (torch.rand(n, 2) * 3900).int()
        boxes = [(x, y, x + 60, y + 60) for x, y in corners.tolist()]
        labels = [box for box in place_labels(boxes, [(70, 14)] * n, (4000, 4000)) if box is not None]
        assert min(n, 3200) * 0.8 < len(labels) <= MOST_COVERED * 4000 * 4000 / (70 * 14)
        assert len(calls) < 20 * n
        calls.clear()


def test_a_crowd_stays_visible_and_a_note_counts_the_missing_labels():
    boxes = torch.rand(3000, 4) * 300
    boxes[:, 2:] = boxes[:, :2] + 15
    found = Detections(boxes, torch.linspace(1, 0, 3000), torch.zeros(3000, dtype=torch.int64), ["cell"])
    drawn = draw_detections(torch.full((3, 320, 320), GREY, dtype=torch.uint8), found)
    strong = sum(abs(drawn.getpixel(at)[0] - GREY) > 60 for at in itertools.product(range(320), repeat=2)) / 320**2
    assert strong < 0.5  # 0.9 with opaque lines of one pixel
    assert any(drawn.getpixel((x, 319)) == (0, 0, 0) for x in (0, 319)), "the note has a black ground"
    few = draw_detections(torch.full((3, 320, 320), GREY, dtype=torch.uint8), found[:2])
    assert (0, 0, 0) not in [few.getpixel((x, y)) for x in (0, 319) for y in (0, 319)]
