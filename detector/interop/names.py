"""Names and layouts of another framework's tensors: tables of two patterns a row, and the code that applies them.

In a pattern # stands for a number, {} for the last word and {...} for the whole rest; both patterns of a row have them in the
same order.
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
    """Our names for one of their names (`back`: the other way); an unknown name has none."""
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
    state: Mapping[str, Tensor], like: Mapping[str, Tensor], rows: Sequence[Row], message: str, *,
    layout: Callable[[str, Tensor, Tensor], Tensor] | None = None, ignorable: Sequence[str] = (),
) -> dict[str, Tensor]:  # fmt: skip
    """A state dict under our names.

    Raises CheckpointError that lists the tensors that are missing, unknown, given under two names, of another shape, or of
    integers where the model has floating-point weights.

    Args:
        state: their state dict.
        like: the state dict of the model to be filled.
        rows: the names in both frameworks.
        message: beginning of an error message.
        layout: function of our name, their tensor and the tensor in `like`; converts the layout.
        ignorable: regular expressions of their keys that may be left over.
    """
    out, unknown, twice = {}, [], []
    for key, tensor in state.items():
        name = next((name for name in rename(key, rows) if name in like), None)
        if name in out:
            twice.append(key)
        elif name:
            out[name] = tensor if layout is None else layout(name, tensor, like[name])
        elif not any(re.fullmatch(pattern, key) for pattern in (rf".*{COUNTER}", *ignorable)):
            unknown.append(key)
    missing = [k for k in like if k not in out and not k.endswith(COUNTER)]
    wrong = [f"{k} {tuple(out[k].shape)} for {tuple(like[k].shape)}" for k in out if out[k].shape != like[k].shape]
    integers = [k for k in out if like[k].is_floating_point() and not out[k].is_floating_point()]
    _raise_for(message, {"not part of this model": unknown, "missing": missing, "given under two names": twice,
                         "of another shape": wrong, "integers instead of weights": integers})  # fmt: skip
    return out


def _raise_for(message: str, mismatches: Mapping[str, Sequence[str]]) -> None:
    """Raise CheckpointError with the names of all mismatches, if there are any."""
    listed = [f"{kind}: {first_few(keys)}" for kind, keys in mismatches.items() if keys]
    if listed:
        raise CheckpointError(f"{message}; {'; '.join(listed)}")


def first_few(keys: Sequence[object], most: int = 4) -> str:
    """The first keys of a file for a message of one line; unprintable characters are replaced and long keys are cut."""
    names = ("".join(c if c.isprintable() else "?" for c in str(key)) or "''" for key in keys[:most])
    listed = ", ".join(name if len(name) <= 120 else f"{name[:120]}…" for name in names)
    return listed + (f" and {len(keys) - most} more" if len(keys) > most else "")


def from_conv1d(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """Their 1x1 convolutions over points (out, in, 1) are linear layers (out, in) here."""
    return tensor[..., 0] if tensor.shape[2:] == (1,) and like.ndim == 2 else tensor


def to_conv1d(name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> Tensor:
    """The reverse of `from_conv1d`."""
    return tensor[..., None] if ".point_head." in name and tensor.ndim == 2 else tensor


@dataclass(frozen=True)
class Framework:
    """Names and layouts of a framework, in both directions."""

    name: str
    """For messages."""
    marker: str
    """Regular expression of the beginning of names that only detectors of this framework have."""
    rows: Sequence[Row]
    """Names of the parts that do not depend on the model."""
    variants: Sequence[Mapping[str, Sequence[Row]]] = ()
    """Groups of parts that exclude each other: a model has the first of a group with that prefix among our names."""
    ignorable: Sequence[str] = ()
    """Regular expressions of their keys that may be left over."""
    import_layout: Callable[[str, Tensor, Tensor], Tensor] | None = None
    """Converts a tensor's layout to ours; arguments: our name, their tensor, the tensor of our model."""
    export_layout: Callable[[str, Tensor, Mapping[str, Tensor]], Tensor] | None = None
    """Converts a tensor's layout to theirs; arguments: our name, our tensor, our state dict."""
    export_parts: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    """Our state dict with the parts that their model has, where it has more of them."""

    def rows_of(self, names: Collection[str]) -> list[Row]:
        """The rows of a model with these names of ours."""
        rows = list(self.rows)
        for group in self.variants:
            prefix = next((prefix for prefix in group if any(name.startswith(prefix) for name in names)), None)
            rows += group[prefix] if prefix is not None else []
        return rows

    @property
    def all_rows(self) -> list[Row]:
        """The rows of all models."""
        return [*self.rows, *(row for group in self.variants for rows in group.values() for row in rows)]

    def import_state(self, state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Their state dict under our names, for a model whose state dict is `like` (which may be on the meta device).

        Raises CheckpointError that lists every tensor that does not fit.
        """
        message = f"not a {self.name} checkpoint of this model"
        rows = self.rows_of(like)
        out = translate(state, like, rows, message, layout=self.import_layout, ignorable=self.ignorable)
        counters = {k: torch.zeros(t.shape, dtype=t.dtype) for k, t in like.items() if k not in out}
        return out | counters

    def export_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our state dict under their names. Raises CheckpointError that lists the tensors without a name there."""
        state = self.export_parts(state)
        rows, out, unnamed = self.rows_of(state), {}, []
        for name, tensor in state.items():
            theirs = rename(name, rows, back=True)
            if theirs:
                out[theirs[0]] = tensor if self.export_layout is None else self.export_layout(name, tensor, state)
            else:
                unnamed.append(name)
        _raise_for(f"{self.name} does not have this model", {"no name there": unnamed})
        return out
