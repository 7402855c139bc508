"""Text in any script on a picture: each part of a text in a font that has its characters."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from unicodedata import category, name, normalize

from PIL import Image, ImageDraw, ImageFont

from detector.distributed import is_rank0
from detector.errors import UNPRINTABLE
from detector.inference.fonts import FOLDERS, LAYOUT, OWN, Face, Fonts, find_faces, load_face, needed
from detector.inference.right_to_left import in_visual_order, reads_right_to_left

log = logging.getLogger("detector")
PACKAGES = {  # Debian's and Ubuntu's fonts, by the first word of a character's name in Unicode
    **dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"), "fonts-noto-cjk"),
    "symbols": "fonts-noto-color-emoji",
}
JOINED = re.compile("[\u0900-\u0dff\u1000-\u109f\u1780-\u17ff]")  # scripts whose letters change places and shapes
OTHER_SCRIPTS = "fonts-noto-core"
JOINER = "\u200d"  # between the parts of an emoji
EXAMPLES = 5  # names that a message quotes


@dataclass(frozen=True)
class Line:
    """A text laid out at a size in pixels: parts of one font each, from left to right."""

    parts: tuple[tuple[str, Face], ...]
    size: int
    width: int
    ascent: int
    """Rows above the base line, at least those of Pillow's own font."""
    descent: int
    """Rows below it."""

    def draw(self, picture: Image.Image, x: float, base: int, colour: tuple[int, int, int]) -> None:
        """Draw on an RGB picture, from `x` on the base line."""
        for text, face in self.parts:
            font = load_face(face, self.size)
            if face.bitmap is None:
                ImageDraw.Draw(picture).text((x, base), text, fill=colour, font=font, anchor="ls")
            else:
                _paste(picture, text, font, self.size / face.bitmap, (round(x), base))
            x += _length(text, face, self.size)


@lru_cache(maxsize=16)
def readable_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names as they can be drawn. One that the fonts lack letters of is without its accents, or is its number, "#3".

    Symbols that no font has are left out. A warning says once which names these are and what to install.
    """
    names = tuple(UNPRINTABLE.sub(" ", given) for given in names)
    fonts = fonts_of(names)
    known = frozenset().union(*(has for _, has in fonts))
    readable = tuple(_readable(text, number, known) for number, text in enumerate(names))
    lost = {given: shown for given, shown in zip(names, readable) if needed(_ordered(given)) - known}
    if lost and is_rank0():
        log.warning("%s", _remedy(lost, known))
    if LAYOUT != ImageFont.Layout.RAQM and any(JOINED.search(given) for given in names) and is_rank0():
        log.warning(
            "class names in scripts of South and Southeast Asia are drawn letter by letter: install libfribidi, which "
            "Pillow needs to join them (Debian and Ubuntu: apt install libfribidi0; macOS: brew install fribidi)"
        )
    return readable


def joined(first: Line, second: Line) -> Line:
    """Two lines of a size, one after the other."""
    ascent, descent = max(first.ascent, second.ascent), max(first.descent, second.descent)
    return Line(first.parts + second.parts, first.size, first.width + second.width, ascent, descent)


def typeset(text: str, size: int, fonts: Fonts, room: float = float("inf")) -> Line:
    """The text in one line, truncated to `room` pixels. The fonts are from `find_faces`."""
    line = _line(text, size, fonts)
    while line.width > room and len(text) > 1:
        text = text[:-2] + "…"
        line = _line(text, size, fonts)
    return line


def fonts_of(texts: Sequence[str]) -> Fonts:
    """Fonts that together have the characters of the texts, as far as the system has any."""
    return find_faces(tuple(_ordered(text) for text in texts))


def _line(text: str, size: int, fonts: Fonts) -> Line:
    parts = tuple(_parts(_ordered(text), fonts))
    if LAYOUT == ImageFont.Layout.RAQM and reads_right_to_left(text):
        parts = parts[::-1]
    ascent, descent = load_face(OWN, size).getmetrics()
    for part, face in parts:
        if face != OWN and face.bitmap is None:
            _, top, _, bottom = load_face(face, size).getbbox(part, anchor="ls")
            ascent, descent = max(ascent, -round(top)), max(descent, round(bottom))
    width = round(sum(_length(part, face, size) for part, face in parts))
    return Line(parts, size, width, ascent, descent)


def _ordered(text: str) -> str:
    """The text in the order of drawing: libraqm orders and joins letters itself."""
    return text if LAYOUT == ImageFont.Layout.RAQM else in_visual_order(text)


def _parts(text: str, fonts: Fonts) -> Iterator[tuple[str, Face]]:
    """The text cut where its font changes; one font for all letters if possible, emoji in the first that has them."""
    letters = frozenset(c for c in needed(text) if not category(c).startswith("S"))
    common = next((face for face, has in fonts if letters <= has), None)
    faces: list[Face] = []
    for before, character in zip(["", *text], text):
        own = next((face for face, has in fonts if character in has), OWN)
        follows = before == JOINER or not needed(character) or category(character) in ("Mn", "Mc", "Me", "Sk")
        if character == " ":
            faces.append(common or OWN)  # that of a font of emoji is wide
        elif follows and faces:
            faces.append(faces[-1])
        else:
            faces.append(common if common is not None and character in letters else own)
    for face, group in groupby(zip(text, faces), key=lambda pair: pair[1]):
        yield "".join(character for character, _ in group), face


def _length(text: str, face: Face, size: int) -> float:
    return load_face(face, size).getlength(text) * (1 if face.bitmap is None else size / face.bitmap)


def _paste(picture: Image.Image, text: str, font: ImageFont.FreeTypeFont, scale: float, at: tuple[int, int]) -> None:
    """Draw with a font of bitmaps (colour emoji), scaled; `at` is (x, base line)."""
    x1, y1, x2, y2 = (round(v) for v in font.getbbox(text, anchor="ls"))
    drawn = Image.new("RGBA", (max(x2 - x1, 1), max(y2 - y1, 1)))
    ImageDraw.Draw(drawn).text((-x1, -y1), text, font=font, anchor="ls", embedded_color=True)
    drawn = drawn.resize((max(round(drawn.width * scale), 1), max(round(drawn.height * scale), 1)))
    picture.paste(drawn, (at[0] + round(x1 * scale), at[1] + round(y1 * scale)), drawn)


def _readable(text: str, number: int, known: frozenset[str]) -> str:
    """The name, or the nearest to it of which all characters can be drawn."""
    missing = needed(_ordered(text)) - known
    if not missing:
        return text
    if all(category(c).startswith(("S", "M")) for c in missing):
        left = "".join(c for c in text if c in known or c == " ").strip()
    else:
        left = "".join(c for c in normalize("NFKD", text) if not category(c).startswith("M"))
    legible = any(c.isalnum() for c in left) and needed(_ordered(left)) <= known
    return left if legible else f"#{number}"


def _remedy(lost: dict[str, str], known: frozenset[str]) -> str:
    """Which names are drawn as what, the scripts that are missing, and what to install."""
    scripts = sorted({_script(c) for text in lost for c in needed(_ordered(text)) - known})
    shown = [f"{given} as {drawn}" for given, drawn in list(lost.items())[:EXAMPLES]]
    more = f" and {len(lost) - EXAMPLES} more" if len(lost) > EXAMPLES else ""
    packages = " ".join(sorted({PACKAGES.get(script, OTHER_SCRIPTS) for script in scripts}))
    return (
        f"no font has all characters of {len(lost)} class names ({', '.join(scripts)}): pictures show "
        f"{', '.join(shown)}{more}. Install fonts (Debian and Ubuntu: apt install {packages}), or put a .ttf or .otf file "
        f"that has them into {FOLDERS[0]}"
    )


def _script(character: str) -> str:
    if category(character) in ("So", "Sk"):
        return "symbols"
    return name(character, "unknown").split()[0].removesuffix("-")
