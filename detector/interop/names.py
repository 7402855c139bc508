"""The names of another framework's tensors and ours, as rows of two patterns, and the one piece of code that applies them.

In a pattern # stands for a number and {} for what follows; both patterns of a row have them in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from detector.errors import CheckpointError

Row = tuple[str, str]  # theirs, ours


def rename(key: str, rows: Sequence[Row], *, back: bool = False) -> list[str]:
    """Our names for a name of theirs (`back`: the other way), none if it is unknown."""
    names = []
    for theirs, ours in rows:
        source, target = (ours, theirs) if back else (theirs, ours)
        found = re.fullmatch(re.escape(source).replace(r"\#", r"(\d+)").replace(r"\{\}", "(.+)"), key)
        if found:
            for part in found.groups():
                target = re.sub(r"#|\{\}", part, target, count=1)
            names.append(target)
    return names


def translate(
    state: Mapping[str, Tensor], like: Mapping[str, Tensor], rows: Sequence[Row], what: str, *,
    back: bool = False, change: Callable[[str, Tensor, Tensor], Tensor] | None = None, ignorable: Sequence[str] = (),
) -> dict[str, Tensor]:  # fmt: skip
    """A state dict under the other names, for a model whose state dict is `like`.

    `change(name, tensor, like[name])` turns a layout. Keys that match a regular expression of `ignorable` may be left over.
    Raises CheckpointError, which begins with `what`, and lists every key that is left over, missing, or of another shape.
    """
    out, unknown = {}, []
    for key, tensor in state.items():
        names = [name for name in rename(key, rows, back=back) if name in like]
        if names:
            out[names[0]] = tensor if change is None else change(names[0], tensor, like[names[0]])
        elif not any(re.fullmatch(pattern, key) for pattern in (r".*num_batches_tracked", *ignorable)):
            unknown.append(key)
    _check(out, like, unknown, what)
    return out


def _check(out: Mapping[str, Tensor], like: Mapping[str, Tensor], unknown: list[str], what: str) -> None:
    missing = [k for k in like if k not in out and not k.endswith("num_batches_tracked")]
    wrong = [f"{k} {tuple(out[k].shape)} for {tuple(like[k].shape)}" for k in out if out[k].shape != like[k].shape]
    troubles = {"without a place": unknown, "missing": missing, "of another shape": wrong}
    if any(troubles.values()):
        listed = [
            f"{kind}: {', '.join(keys[:6])}{' …' if len(keys) > 6 else ''}" for kind, keys in troubles.items() if keys
        ]
        raise CheckpointError(f"{what}; {'; '.join(listed)}")
