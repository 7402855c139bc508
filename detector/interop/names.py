"""How another framework names and lays out its tensors, as rows of two patterns, and the one piece of code that applies them.

In a pattern # stands for a number, {} for the last word and {...} for all that follows; both patterns of a row have them in
the same order.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.errors import CheckpointError

Row = tuple[str, str]  # theirs, ours
WILDCARD = re.compile(r"#|\{\}|\{\.\.\.\}")
COUNTER = "num_batches_tracked"  # of a batch norm; nothing reads it


def rename(key: str, rows: Sequence[Row], *, back: bool = False) -> list[str]:
    """Our names for a name of theirs (`back`: the other way), none if it is unknown."""
    names = []
    for theirs, ours in rows:
        source, target = (ours, theirs) if back else (theirs, ours)
        found = _pattern(source).fullmatch(key)
        if found:
            for part in found.groups():
                target = WILDCARD.sub(part, target, count=1)
            names.append(target)
    return names


@functools.cache
def _pattern(text: str) -> re.Pattern[str]:
    parts = {"#": r"(\d+)", "{}": "([a-z_]+)", "{...}": "(.+)"}
    return re.compile("".join(parts.get(part) or re.escape(part) for part in re.split(f"({WILDCARD.pattern})", text)))


def translate(
    state: Mapping[str, Tensor], like: Mapping[str, Tensor], rows: Sequence[Row], what: str, *,
    change: Callable[[str, Tensor, Tensor], Tensor] | None = None, ignorable: Sequence[str] = (),
) -> dict[str, Tensor]:  # fmt: skip
    """A state dict under our names, for a model whose state dict is `like`.

    `change(name, tensor, like[name])` turns a layout. Keys that match a regular expression of `ignorable` may be left over.
    Raises CheckpointError, which begins with `what`, and lists the keys that are left over, missing, there twice, or of another
    shape, and those of whole numbers in the place of weights.
    """
    out, unknown, twice = {}, [], []
    for key, tensor in state.items():
        name = next((name for name in rename(key, rows) if name in like), None)
        if name in out:
            twice.append(key)
        elif name:
            out[name] = tensor if change is None else change(name, tensor, like[name])
        elif not any(re.fullmatch(pattern, key) for pattern in (rf".*{COUNTER}", *ignorable)):
            unknown.append(key)
    missing = [k for k in like if k not in out and not k.endswith(COUNTER)]
    wrong = [f"{k} {tuple(out[k].shape)} for {tuple(like[k].shape)}" for k in out if out[k].shape != like[k].shape]
    whole = [k for k in out if like[k].is_floating_point() and not out[k].is_floating_point()]
    _complain(what, {"without a place": unknown, "missing": missing, "there under two names": twice,
                     "of another shape": wrong, "whole numbers, not weights": whole})  # fmt: skip
    return out


def _complain(what: str, troubles: Mapping[str, Sequence[str]]) -> None:
    listed = [f"{kind}: {some(keys)}" for kind, keys in troubles.items() if keys]
    if listed:
        raise CheckpointError(f"{what}; {'; '.join(listed)}")


def some(keys: Sequence[object], most: int = 4) -> str:
    """The first of them for a message of one line, whatever a file calls them."""
    names = ("".join(c if c.isprintable() else "?" for c in str(key)) or "''" for key in keys[:most])
    listed = ", ".join(name if len(name) <= 120 else f"{name[:120]}…" for name in names)
    return listed + (f" and {len(keys) - most} more" if len(keys) > most else "")


@dataclass(frozen=True)
class Framework:
    """The names and layouts of a framework, in both directions.

    `either` holds rows of parts that exclude each other: of every group a model has the first variant whose beginning of a
    name (ours) it has. `mark` is a regular expression of names that only this framework's detectors have.
    `layout_in(name, tensor, like)` and `layout_out(name, tensor, state)`, by our names, turn what lies otherwise.
    """

    name: str
    mark: str
    rows: Sequence[Row]
    either: Sequence[Mapping[str, Sequence[Row]]] = ()
    ignorable: Sequence[str] = ()
    layout_in: Callable[[str, Tensor, Tensor], Tensor] | None = None
    layout_out: Callable[[str, Tensor, Mapping[str, Tensor]], Tensor] = lambda name, tensor, state: tensor

    def rows_of(self, names: Collection[str]) -> list[Row]:
        """The rows of a model with these names of ours."""
        rows = list(self.rows)
        for variants in self.either:
            mark = next((mark for mark in variants if any(name.startswith(mark) for name in names)), None)
            rows += variants[mark] if mark is not None else []
        return rows

    @property
    def all_rows(self) -> list[Row]:
        """The rows of all models."""
        return [*self.rows, *(row for variants in self.either for rows in variants.values() for row in rows)]

    def take(self, state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their state dict under our names, for a model whose state dict is `like` (which may be on the meta device).

        Raises CheckpointError that lists every key which is left over, missing, or of another shape.
        """
        what = f"no {self.name} checkpoint of this model"
        rows = self.rows_of(like)
        out = translate(state, like, rows, what, change=self.layout_in, ignorable=self.ignorable)
        counters = {k: torch.zeros(t.shape, dtype=t.dtype) for k, t in like.items() if k not in out}
        return out | counters

    def give(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict under their names. Raises CheckpointError that lists the tensors they have no name for."""
        rows, out, unknown = self.rows_of(state), {}, []
        for name, tensor in state.items():
            theirs = rename(name, rows, back=True)
            if theirs:
                out[theirs[0]] = self.layout_out(name, tensor, state)
            else:
                unknown.append(name)
        _complain(f"not a model that {self.name} has", {"without a name there": unknown})
        return out
