"""Broken, hostile and exotic images: pixels or one line, in bounded time and memory, whatever the bytes are."""

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
from helpers.fuzz import damaged, fuzz, grown, outcome, tries, watchdog  # noqa: F401
from hypothesis import strategies as st
from PIL import Image

from detector.data.image import ImageError, read_image, read_size

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


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pillow would hand it to Ghostscript."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was run"))
    FRAMES[0].save(tmp_path / "a.jpg", "eps")
    with pytest.raises(ImageError, match="not a readable image"):
        read_image(tmp_path / "a.jpg")
