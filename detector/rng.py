"""Reproducibility: seeds and states of all random generators, deterministic kernels."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def mix(*numbers: int) -> int:
    """One seed from several numbers; unlike their sum, different numbers give different seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def seed(*numbers: int) -> None:
    """Seed all generators with these numbers."""
    _seed_cpu(*numbers)
    torch.cuda.manual_seed_all(mix(*numbers))


def make_deterministic(enabled: bool) -> None:
    """Use deterministic kernels; PyTorch warns where CUDA has none."""
    torch.use_deterministic_algorithms(enabled, warn_only=True)
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first use of cuBLAS


def random_state() -> dict[str, Any]:
    """The state of all generators, in types that a checkpoint can hold."""
    return _cpu_state() | {"cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restore a `random_state`. The GPUs' states are skipped on a machine with another number of GPUs."""
    _set_cpu_state(state)
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the CPU generators with these numbers; their state is restored on exit."""
    before = _cpu_state()
    _seed_cpu(*numbers)
    try:
        yield
    finally:
        _set_cpu_state(before)


def _seed_cpu(*numbers: int) -> None:
    one = numbers[0] if len(numbers) == 1 else mix(*numbers)
    torch.default_generator.manual_seed(one)  # torch.manual_seed would seed the GPUs, too
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
