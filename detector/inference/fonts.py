"""Which installed font has the characters of a text: Pillow's own has ASCII, other scripts need a font of the system."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, cast
from unicodedata import category

from PIL import ImageFont, features

HOME = Path(os.path.expanduser("~"))  # unlike Path.home(), no error without one
FOLDERS = {  # of fonts, by `sys.platform`; the user's own first
    "darwin": [HOME / "Library/Fonts", Path("/Library/Fonts"), Path("/System/Library/Fonts")],
    "win32": [
        Path(os.environ.get("LOCALAPPDATA", HOME)) / "Microsoft/Windows/Fonts",
        Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts",
    ],
}.get(
    sys.platform,
    [HOME / ".local/share/fonts", HOME / ".fonts", Path("/usr/local/share/fonts"), Path("/usr/share/fonts")],
)
SUFFIXES = (".ttf", ".ttc", ".otf", ".otc")
PLACEHOLDERS = re.compile("lastresort|adobeblank", re.I)  # a placeholder for every character of Unicode
FAMILIES = ("notocoloremoji", "applecoloremoji", "seguiemj", "dejavusans", "notosans", "arial", "segoeui")  # preferred
STYLES = re.compile(
    "bold|italic|oblique|light|thin|black|heavy|medium|serif|mono|condensed|narrow|display|kufi|nastaliq|rashi|looped",
    re.I,
)
SCALABLE = 33  # pixels; no font of bitmaps comes in this size
BITMAPS = (109, 160, 136, 128, 96, 64)  # sizes of the usual fonts of bitmaps (colour emoji)
# libraqm joins letters and orders them from right to left; Pillow has it where the system has libfribidi
LAYOUT = ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC
NO_CHARACTER = "\U0010ffff"  # for ever unassigned: drawn as a font draws what it lacks


class Face(NamedTuple):
    """A font file; `bitmap` is its only size in pixels, None if it is scalable."""

    path: str | None = None  # None: Pillow's own
    bitmap: int | None = None


OWN = Face()
Fonts = tuple[tuple[Face, frozenset[str]], ...]  # fonts, the preferred first, with the characters that each is used for


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own scalable font."""
    return load_face(OWN, size)


@lru_cache(maxsize=32)
def load_face(face: Face, size: int) -> ImageFont.FreeTypeFont:
    """The font at a size in pixels; a font of bitmaps has its own. Raises OSError if it cannot be read at that size."""
    return _load(face, size, LAYOUT)


def _load(face: Face, size: int, layout: ImageFont.Layout) -> ImageFont.FreeTypeFont:
    if face.path is None:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size=size))
    return ImageFont.truetype(face.path, face.bitmap or size, layout_engine=layout)


@lru_cache(maxsize=16)
def find_faces(texts: tuple[str, ...]) -> Fonts:
    """Fonts with the characters of the texts that each has.

    Fonts of the system are opened only while a text has characters that no single font so far has.
    """
    wanted = [needed(text) for text in texts]
    own = has_glyphs(OWN, frozenset().union(*wanted))
    found, missing = [(OWN, own)], [characters for characters in wanted if not characters <= own]
    for path in font_files(tuple(FOLDERS)) if missing else ():
        face, has = _probe(path, frozenset().union(*missing))
        left = [characters for characters in missing if not characters <= has]
        if len(left) < len(missing) or not has <= frozenset().union(*(others for _, others in found)):
            found.append((face, has))
        missing = left
        if not missing:
            break
    return tuple(found)


def needed(text: str) -> frozenset[str]:
    """The characters of a text that take a glyph: no spaces, joiners and variation selectors."""
    return frozenset(c for c in text if category(c) not in ("Cf", "Zs") and not "\ufe00" <= c <= "\ufe0f")


def has_glyphs(face: Face, characters: Iterable[str]) -> frozenset[str]:
    """The characters that are drawn with a font, and not as those that it lacks. Raises OSError for a damaged font."""
    font = _load(face, SCALABLE, ImageFont.Layout.BASIC)  # libraqm adds a circle under a lone mark
    lacking = _pixels(font, NO_CHARACTER)
    return frozenset(c for c in characters if _pixels(font, c) not in (lacking, None))


def _pixels(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes] | None:
    """What is drawn; None if nothing is."""
    mask = font.getmask(character)
    content = bytes(mask)
    return (mask.size, content) if any(content) else None


def _probe(path: Path, characters: frozenset[str]) -> tuple[Face, frozenset[str]]:
    """The font of a file with the characters that it has; none for a damaged file."""
    for bitmap in (None, *BITMAPS):
        face = Face(str(path), bitmap)
        with contextlib.suppress(OSError):  # not in this size
            return face, has_glyphs(face, characters)
    return Face(str(path)), frozenset()


@lru_cache(maxsize=4)
def font_files(folders: Sequence[Path]) -> list[Path]:
    """All font files below the folders, and those that matplotlib comes with: plain sans-serif families first."""
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        folders = [*folders, Path(matplotlib.origin).parent / "mpl-data/fonts/ttf"]
    files = [Path(at) / name for folder in folders for at, _, names in os.walk(folder) for name in sorted(names)]
    files = [file for file in files if file.suffix.lower() in SUFFIXES and not PLACEHOLDERS.search(file.stem)]
    return sorted(files, key=_preference)


def _preference(file: Path) -> tuple[bool, int]:
    name = re.sub("[^a-z]", "", file.stem.lower())
    ranks = [rank for rank, family in enumerate(FAMILIES) if name.startswith(family)]
    return STYLES.search(name) is not None, min(ranks, default=len(FAMILIES))
