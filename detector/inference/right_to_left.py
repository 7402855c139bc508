"""Right-to-left text for a Pillow without libraqm: letters joined and in the order in which they stand, left to right."""

from __future__ import annotations

import re
from functools import cache
from itertools import groupby
from unicodedata import bidirectional, category, decomposition

FORMS = re.compile(r"<(initial|medial|final|isolated)> (\w{4}(?: \w{4})?)")  # decomposition of an Arabic shape
LAM_ALEF = re.compile("\u0644[\u0622\u0623\u0625\u0627]")  # always written as one shape
MIRRORED = str.maketrans("()[]{}<>", ")(][}{><")


def reads_right_to_left(text: str) -> bool:
    """Whether the first letter of the text is of a script from right to left."""
    return next((side == "R" for side in map(_side, text) if side), False)


def in_visual_order(text: str) -> str:
    """The text as its characters stand from left to right, Arabic letters as their joined shapes.

    Scripts of both directions may be mixed; of Unicode's algorithm (UAX 9) embeddings and explicit controls are left out.
    """
    if not any(_side(c) == "R" for c in text):
        return text
    base = "R" if reads_right_to_left(text) else "L"
    sides = _settled([_side(c) for c in text], base)
    parts = []
    for side, characters in groupby(zip(join_arabic(text), sides), key=lambda pair: pair[1]):
        part = "".join(c for c, _ in characters)
        parts.append(_reversed(part).translate(MIRRORED) if side == "R" else part)
    return "".join(reversed(parts) if base == "R" else parts)


def join_arabic(text: str) -> list[str]:
    """The shape of each character beside its neighbours, empty for an alef that is in the shape of the lam before it."""
    shapes = list(text)
    letters = [i for i, c in enumerate(text) if category(c) != "Mn"]
    ligatures: list[int] = []
    before = False  # whether the letter before reaches out to the next
    for at, i in enumerate(letters):
        forms = _forms().get(text[i], {})
        after = at + 1 < len(letters) and "final" in _forms().get(text[letters[at + 1]], {})
        joins = before and "final" in forms
        reaches = after and "initial" in forms
        place = "medial" if joins and reaches else "final" if joins else "initial" if reaches else "isolated"
        shapes[i] = forms.get(place, text[i])
        if reaches and LAM_ALEF.fullmatch(pair := text[i] + text[letters[at + 1]]):
            shapes[i] = _forms()[pair]["final" if joins else "isolated"]
            ligatures.append(letters[at + 1])
        before = reaches
    for i in ligatures:
        shapes[i] = ""
    return shapes


@cache
def _forms() -> dict[str, dict[str, str]]:
    """Arabic letter or ligature -> shape by position, from Unicode's presentation forms."""
    forms: dict[str, dict[str, str]] = {}
    for code in (*range(0xFB50, 0xFE00), *range(0xFE70, 0xFEFD)):
        found = FORMS.fullmatch(decomposition(chr(code)))
        if found:
            letters = "".join(chr(int(letter, 16)) for letter in found[2].split())
            forms.setdefault(letters, {})[found[1]] = chr(code)
    return forms


def _side(character: str) -> str:
    """R or L; "" for what takes the direction of its neighbours. Digits run from left to right."""
    kind = bidirectional(character)
    return "R" if kind in ("R", "AL") else "L" if kind in ("L", "EN", "AN") else ""


def _settled(sides: list[str], base: str) -> list[str]:
    """The sides with those of neutral characters: that of both neighbours if they agree, else the base."""
    settled, start = list(sides), 0
    for side, group in groupby(sides):
        end = start + len(list(group))
        if not side:
            around = {sides[start - 1] if start else base, sides[end] if end < len(sides) else base}
            settled[start:end] = [around.pop() if len(around) == 1 else base] * (end - start)
        start = end
    return settled


def _reversed(part: str) -> str:
    """Back to front, each mark after its letter as before."""
    clusters: list[str] = []
    for character in part:
        if clusters and category(character).startswith("M"):
            clusters[-1] += character
        else:
            clusters.append(character)
    return "".join(reversed(clusters))
