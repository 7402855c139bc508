"""Random numbers: of every generator that a training, or a part of the user's own, may draw from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def mix(*numbers: int) -> int:
    """One seed from several: unlike their sum, no two of a run's are alike."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def seed(*numbers: int) -> None:
    """Begin all generators anew, as a function of these numbers."""
    _seed_cpu(*numbers)
    torch.cuda.manual_seed_all(mix(*numbers))


def random_state() -> dict[str, Any]:
    """Of Python, NumPy, torch and the GPUs, in what a checkpoint may hold."""
    return _cpu_state() | {"cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from a `random_state`; that of the GPUs is left out on a machine with another number of them."""
    _set_cpu_state(state)
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """What is drawn inside, on the CPU, is a function of these numbers; afterwards all is as before."""
    before = _cpu_state()
    _seed_cpu(*numbers)
    try:
        yield
    finally:
        _set_cpu_state(before)


def _seed_cpu(*numbers: int) -> None:
    one = numbers[0] if len(numbers) == 1 else mix(*numbers)
    torch.default_generator.manual_seed(one)  # torch.manual_seed would begin those of the GPUs anew, too
    random.seed(one)
    np.random.seed(one % 2**32)


def _cpu_state() -> dict[str, Any]:
    _, keys, position, has_gauss, gauss = np.random.get_state()
    numpy = {"keys": torch.from_numpy(keys.astype(np.int64)), "place": [position, has_gauss, gauss]}
    return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state()}


def _set_cpu_state(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(("MT19937", state["numpy"]["keys"].numpy().astype(np.uint32), *state["numpy"]["place"]))
    torch.set_rng_state(state["torch"])
