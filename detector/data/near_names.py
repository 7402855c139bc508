"""Names that mean the same file or image but are written otherwise: `a\\\\b.JPG` and `a/b.jpg`."""

from __future__ import annotations

import functools
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

STEPS: dict[str, Callable[[str], str]] = {  # difference -> what makes it disappear, in order
    "backslashes": lambda name: name.replace("\\", "/"),
    "escapes such as %20": unquote,
    "a leading ./ or a doubled slash": lambda name: str(PurePosixPath(name)),
    "Unicode form (NFC, NFD)": lambda name: unicodedata.normalize("NFC", name),
    "case": str.casefold,
    "suffix": lambda name: name.removesuffix(PurePosixPath(name).suffix),
    "folder": lambda name: PurePosixPath(name).name,
}
LEVELS = ((), ("suffix",), ("folder",), ("suffix", "folder"))  # the larger differences, beside all others, in order


class Twin(NamedTuple):
    """Another name that probably means the same."""

    name: str
    differences: tuple[str, ...]
    """Keys of STEPS."""


class NearNames:
    """Finds the twin of a name among known names."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self._by_form: list[dict[str, list[str]]] = []
        for level in LEVELS:
            forms: dict[str, list[str]] = defaultdict(list)
            for name in self.names:
                forms[_form(name, level)].append(name)
            self._by_form.append(forms)

    def twin(self, name: str) -> Twin | None:
        """The only name of the least difference; None without one, or with several."""
        for level, forms in zip(LEVELS, self._by_form):
            found = forms.get(_form(name, level), [])
            if found:
                return Twin(found[0], _differences(name, found[0], level)) if len(found) == 1 else None
        return None


def _form(name: str, level: tuple[str, ...], without: str | None = None) -> str:
    """The name after all small steps and those of `level`, but not the step `without`."""
    for step, change in STEPS.items():
        if step != without and (step in level or step not in LEVELS[-1]):
            name = change(name)
    return name


def _differences(a: str, b: str, level: tuple[str, ...]) -> tuple[str, ...]:
    """The steps without which the two would differ."""
    return tuple(step for step in STEPS if _form(a, level, step) != _form(b, level, step))


@functools.lru_cache(maxsize=4)  # the folders of the splits; only a missing file asks
def names_below(folder: Path) -> NearNames:
    """The files in a folder and below it, relative to it."""
    found = []
    for where, _, files in os.walk(folder):
        found += [Path(os.path.relpath(os.path.join(where, file), folder)).as_posix() for file in files]
    return NearNames(found)


def twin_on_disk(folder: Path, name: str) -> str:
    """A clause about the file that a missing one is probably, empty without one."""
    twin = names_below(folder).twin(name)
    return "" if twin is None else f"there is {twin.name!r}, which differs by {' and '.join(twin.differences)}"
