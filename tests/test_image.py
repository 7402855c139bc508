"""Decoding: every mode and orientation gives the same upright RGB, and whatever the bytes are, one line names the file."""

import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.fuzz import damaged, fuzz, grown, outcome, tries
from hypothesis import strategies as st
from PIL import Image, ImageOps

from detector.data.image import ORIENTATION, ImageError, read_image, read_size, to_rgb
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


@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_made_upright_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    for suffix, options in (("png", {}), ("tiff", {}), ("webp", {"lossless": True})):
        path = tmp_path / f"a.{suffix}"
        grey(STORED[orientation]).convert("RGB").save(path, exif=oriented(orientation), **options)
        assert read_image(path).tolist() == [UPRIGHT] * 3
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


def test_cmyk_is_converted_sixteen_bits_give_their_high_byte_and_floating_point_is_refused(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")  # no cyan, all magenta, all yellow: red
    red, green, blue = read_image(tmp_path / "a.jpg").float().mean(dim=(1, 2)).tolist()
    assert red > 250 and green < 5 and blue < 5
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff: .*floating-point.*8 or 16 bits"):
        read_image(tmp_path / "a.tiff")
    for name in ("a.png", "a.tiff", "a.pgm"):
        Image.fromarray(np.array([[0, 255, 256, 0x80FF, 65535]], dtype=np.uint16)).save(tmp_path / name)
        assert read_image(tmp_path / name).tolist() == [[[0, 0, 1, 0x80, 255]]] * 3


def test_what_is_no_image_is_named_and_postscript_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    # Pillow would hand it to Ghostscript.
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was run"))
    FRAMES[0].save(tmp_path / "a.jpg", "eps")
    with pytest.raises(ImageError, match="not a readable image"):
        read_image(tmp_path / "a.jpg")


def test_the_pixel_limit_is_inclusive_names_its_key_and_raises_pillows_own(tmp_path, monkeypatch):
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


NOISE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
MIB = 2**20


def encoded(form: str, mode: str = "RGB", **options: object) -> bytes:
    memory = io.BytesIO()
    Image.fromarray(NOISE).convert(mode).save(memory, form, **options)
    return memory.getvalue()


FRAMES = [Image.fromarray(np.roll(NOISE, i)) for i in range(4)]
FORMS = {
    "png": encoded("png"), "png of a palette": encoded("png", "P", transparency=3),
    "animated png": encoded("png", save_all=True, append_images=FRAMES),
    "jpeg": encoded("jpeg", exif=b"Exif\0\0" + Image.Exif().tobytes()),
    "progressive jpeg": encoded("jpeg", progressive=True), "cmyk jpeg": encoded("jpeg", "CMYK"), "gif": encoded("gif"),
    "animated gif": encoded("gif", save_all=True, append_images=FRAMES), "tiff": encoded("tiff"),
    "compressed tiff": encoded("tiff", compression="tiff_lzw"),
    "tiff of pages": encoded("tiff", save_all=True, append_images=FRAMES), "webp": encoded("webp"),
    "animated webp": encoded("webp", save_all=True, append_images=FRAMES), "bmp": encoded("bmp"), "ppm": encoded("ppm"),
    "tga": encoded("tga"), "jpeg 2000": encoded("jpeg2000"),
}  # fmt: skip


def check(path: Path, limit: int = 10**6) -> None:
    """An image within the limit, and of the size that its header gives, or a refusal that names the file."""
    image = outcome(lambda: read_image(path, limit))
    if image is not None:
        assert image.dtype == torch.uint8 and image.shape[0] == 3 and image.shape[1] * image.shape[2] <= limit
        assert read_size(path, limit) == tuple(image.shape[1:])


@pytest.mark.filterwarnings("ignore")
@tries(1500)
def test_a_damaged_image_is_read_or_refused(tmp_path: Path, tries: int):
    path = tmp_path / "a.jpg"  # the name says nothing

    def damage(content: bytes) -> None:
        path.write_bytes(content)
        check(path)

    for content in FORMS.values():
        fuzz(tries // 6, damage, content=damaged(content))
    assert [p.name for p in tmp_path.iterdir()] == ["a.jpg"]


@pytest.mark.filterwarnings("ignore")
@tries(3000)
def test_bytes_after_any_magic_number_are_read_or_refused(tmp_path: Path, tries: int):
    path = tmp_path / "a.png"
    heads = [content[:n] for content in FORMS.values() for n in (4, 16, 60)]
    heads += [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"\x89HDF\r\n\x1a\n", b"8BPS", b"GRIB", b"\0\0\1\0"]

    def garbage(head: bytes, tail: bytes) -> None:
        path.write_bytes(head + tail)
        check(path)

    fuzz(tries, garbage, head=st.sampled_from(heads), tail=st.binary(max_size=300))


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"]


def test_every_mode_that_a_format_can_hold(tmp_path: Path):
    held = 0
    for form in ("png", "tiff", "webp", "bmp", "gif", "jpeg", "ppm", "tga", "jpeg2000"):
        for mode in MODES:
            colours = Image.new("RGB", (3, 2)).convert("L" if mode in ("PA", "I;16") else mode)
            image = Image.new("I;16", (3, 2)) if mode == "I;16" else colours.convert(mode)
            try:
                image.save(tmp_path / "a", form)
                Image.open(tmp_path / "a").load()  # Pillow 12 cannot read its own YCbCr TIFF
            except (OSError, ValueError, KeyError):
                continue
            held += 1
            check(tmp_path / "a")
            assert mode == "F" or read_image(tmp_path / "a").shape == (3, 2, 3), (form, mode)
    assert held >= 70


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(side: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 9 * MIB)) + chunk(b"IEND", b"")


def patched(form: str, sizes: dict[int, str], side: int) -> bytes:
    """The file with its side (or sides) written over, at these places in these forms."""
    data = bytearray(FORMS[form])
    for place, code in sizes.items():
        struct.pack_into(code, data, place, min(side, 2 ** (8 * struct.calcsize(code)) - 1))
    return bytes(data)


def tiff(side: int) -> bytes:
    entries = [(256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (278, side), (279, side)]
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + rows + b"\0" * 4


def webp(side: int) -> bytes:
    """An extended file, whose canvas of up to 16384 x 16384 is far larger than its frame."""
    side = min(side, 2**14)
    data = bytearray(FORMS["animated webp"])
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (side - 1).to_bytes(3, "little") * 2
    return bytes(data)


# form -> its file; the last is small, but its text is not
GIANTS: dict[str, Callable[[int], bytes]] = {
    "png": png,
    "gif": lambda side: patched("gif", {6: "<H", 8: "<H"}, side),
    "bmp": lambda side: patched("bmp", {18: "<i", 22: "<i"}, min(side, 2**31 - 1)),
    "jpeg": lambda side: patched("jpeg", {FORMS["jpeg"].index(b"\xff\xc0") + i: ">H" for i in (5, 7)}, side),
    "tiff": tiff,
    "webp": webp,
    "ppm": lambda side: f"P6 {side} {side} 255\n".encode(),
    "tga": lambda side: patched("tga", {12: "<H", 14: "<H"}, side),
    "text": lambda side: png(8)[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 100 * MIB, 1)) + png(8)[33:],
}  # fmt: skip


@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_giant_takes_no_memory(tmp_path: Path, action: str):
    """Sides over Pillow's warning, over its error, and over all bounds."""
    warnings.simplefilter(action)
    for form, make in GIANTS.items():
        for side in (10_000, 60_000, 2**31 - 1):
            (tmp_path / "a.png").write_bytes(make(side))
            assert grown(lambda: check(tmp_path / "a.png", 10**7)) < 64, (form, side)
    for side in (10_000, 60_000):
        (tmp_path / "a.png").write_bytes(png(side))
        with pytest.raises(ImageError, match=r"a\.png: too large .* raise data\.max_pixels"):
            read_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    "make",
    [Path.touch, Path.mkdir, os.mkfifo, lambda p: p.symlink_to(p), lambda p: p.symlink_to("/dev/zero"), lambda p: None],
    ids=["empty", "folder", "pipe", "link to itself", "endless device", "nothing"],
)
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, make: Callable[[Path], object]):
    make(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"a\.jpg: (not a readable|no such) image"):
        read_image(tmp_path / "a.jpg")


def test_a_large_picture_is_copied_in_strips_to_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (37, 20, 3), dtype=np.uint8))
    picture.save(tmp_path / "a.png")
    whole = read_image(tmp_path / "a.png")
    for pixels in (20 * 5, 20 * 37, 1):  # strips of five rows, all rows, one row
        monkeypatch.setattr("detector.data.image.STRIP", pixels)
        strips = read_image(tmp_path / "a.png")
        assert torch.equal(strips, whole) and strips.stride() == whole.stride()
