"""Whether shapes may depend on what was found.

On a CPU a look at a tensor costs nothing, and padding costs time: rows that hold nothing are left out. A GPU would make the
host wait for each look, and a compiled or exported graph cannot have such shapes: rows stay, and a mask says what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class _Rule:
    fixed = portable = False


@contextmanager
def fixed_shapes(*, portable: bool = False) -> Iterator[None]:
    """Fixed shapes on a CPU, too, while the context is open.

    `portable` (for an export): with operators that other engines have. They know regions of unknown number, if these only fill
    rows of a known one.
    """
    before = _Rule.fixed, _Rule.portable
    _Rule.fixed, _Rule.portable = True, portable
    try:
        yield
    finally:
        _Rule.fixed, _Rule.portable = before


def may_look(device: torch.device) -> bool:
    """Whether a shape may depend on data."""
    return device.type == "cpu" and not _Rule.fixed and not torch.compiler.is_compiling()


def known(count: Tensor) -> int | Tensor:
    """A number of rows (), which the host knows where it may look."""
    return int(count) if may_look(count.device) else count


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """The values (n,) with the type and the device of another tensor: filled in there, as a copy would wait for the device."""
    return torch.stack([like.new_full((), value) for value in values])


def is_portable() -> bool:
    """Whether only operators may be used that other engines have."""
    return _Rule.portable
