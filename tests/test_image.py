"""Decoding: every mode and orientation gives the same upright RGB, and what is wrong with a file names the file."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from detector.data.image import ORIENTATION, read_image, to_rgb
from detector.errors import DataError

UPRIGHT = [[10, 20, 30], [40, 50, 60]]
STORED = {  # what a file of this EXIF orientation holds, to look UPRIGHT: row 0 is the visual ..., column 0 ...
    1: [[10, 20, 30], [40, 50, 60]],  # top, left
    2: [[30, 20, 10], [60, 50, 40]],  # top, right
    3: [[60, 50, 40], [30, 20, 10]],  # bottom, right
    4: [[40, 50, 60], [10, 20, 30]],  # bottom, left
    5: [[10, 40], [20, 50], [30, 60]],  # left, top
    6: [[30, 60], [20, 50], [10, 40]],  # right, top
    7: [[60, 30], [50, 20], [40, 10]],  # right, bottom
    8: [[40, 10], [50, 20], [60, 30]],  # left, bottom
}


def grey(rows: list[list[int]]) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=np.uint8))


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif


def test_colours_are_red_green_blue_of_a_file_or_an_open_image(tmp_path: Path) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)  # (H, W, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert type(image) is torch.Tensor and image.dtype == torch.uint8 and image.shape == (3, 2, 3)
    assert image.tolist() == pixels.transpose(2, 0, 1).tolist()
    grey(STORED[6]).save(tmp_path / "a.png", exif=oriented(6))
    with Image.open(tmp_path / "a.png") as image:
        assert torch.equal(to_rgb(image), read_image(str(tmp_path / "a.png")))
    assert to_rgb(grey(UPRIGHT)).tolist() == [UPRIGHT] * 3  # never a file


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_made_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    grey(STORED[orientation]).convert("RGB").save(path, exif=oriented(orientation), **options)
    assert read_image(path).tolist() == [UPRIGHT] * 3


@pytest.mark.parametrize("orientation", STORED)
def test_orientation_of_a_jpeg_agrees_with_pillow(tmp_path: Path, orientation: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (7, 12, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", exif=oriented(orientation))
    expected = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.jpg")))
    assert read_image(tmp_path / "a.jpg").tolist() == expected.transpose(2, 0, 1).tolist()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_meaningless_orientation_is_upright_and_broken_exif_does_not_spoil_good_pixels(tmp_path: Path) -> None:
    broken = b"Exif\0\0MM\0*\xff\xff\xff\xff"
    for exif in (oriented(0), oriented(9), oriented(65535), broken):
        grey(UPRIGHT).save(tmp_path / "a.png", exif=exif)
        assert read_image(tmp_path / "a.png").tolist() == [UPRIGHT] * 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
@pytest.mark.filterwarnings("error")
def test_modes_of_a_png(tmp_path: Path, mode: str) -> None:
    black_and_white = grey([[0, 255, 0], [255, 255, 0]])
    black_and_white.convert("RGB").convert(mode).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[0, 255, 0], [255, 255, 0]]] * 3


@pytest.mark.filterwarnings("error")
def test_alpha_is_dropped_and_the_colour_kept(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (200, 100, 50, 0)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").flatten().tolist() == [200, 100, 50]
    palette = Image.new("P", (1, 1))
    palette.putpalette([200, 100, 50])
    palette.save(tmp_path / "p.png", transparency=b"\x07")
    assert read_image(tmp_path / "p.png").flatten().tolist() == [200, 100, 50]


def test_cmyk_is_converted_and_floating_point_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")  # no cyan, all magenta, all yellow: red
    red, green, blue = read_image(tmp_path / "a.jpg").float().mean(dim=(1, 2)).tolist()
    assert red > 250 and green < 5 and blue < 5
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff: .*floating-point.*8 or 16 bits"):
        read_image(tmp_path / "a.tiff")


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.pgm"])
def test_sixteen_bits_give_their_high_byte(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.array([[0, 255, 256, 0x80FF, 65535]], dtype=np.uint16)).save(tmp_path / name)
    assert read_image(tmp_path / name).tolist() == [[[0, 0, 1, 0x80, 255]]] * 3


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    (tmp_path / "folder").mkdir()
    for suffix in ("jpg", "png", "webp"):
        memory = io.BytesIO()
        Image.fromarray(noise).save(memory, {"jpg": "jpeg"}.get(suffix, suffix))
        (tmp_path / f"half.{suffix}").write_bytes(memory.getvalue()[: len(memory.getvalue()) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("<html>404</html>")
    for path in tmp_path.iterdir():
        with pytest.raises(DataError) as caught:
            read_image(path)
        assert str(path) in str(caught.value) and "replace the file or remove its entry" in str(caught.value)


def test_the_pixel_limit_is_inclusive_names_its_key_and_raises_pillows_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey(UPRIGHT).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=6).shape == (3, 2, 3)
    with pytest.raises(DataError, match=r"a\.png: too large \(3 x 2 pixels\); .* 5: raise data\.max_pixels"):
        read_image(tmp_path / "a.png", max_pixels=5)
    grey(UPRIGHT).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)  # Pillow raises above twice this
    assert read_image(tmp_path / "a.png", max_pixels=100).shape == (3, 2, 3)
    assert read_image(tmp_path / "a.png", max_pixels=6).shape == (3, 2, 3)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # switched off by the user
    assert read_image(tmp_path / "a.png", max_pixels=100).shape == (3, 2, 3)
    assert Image.MAX_IMAGE_PIXELS is None
