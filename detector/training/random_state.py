"""The state of every generator of random numbers that a training, or a part of the user's own, may draw from."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from detector.data.sampler import mix


def seed(*numbers: int) -> None:
    """Begin all of them anew, as a function of these numbers."""
    torch.manual_seed(numbers[0] if len(numbers) == 1 else mix(*numbers))
    random.seed(mix(*numbers))
    np.random.seed(mix(*numbers) % 2**32)


def random_state() -> dict[str, Any]:
    """Of Python, NumPy, torch and the GPUs, in what a checkpoint may hold."""
    _, keys, *place = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [torch.from_numpy(keys.astype(np.int64)), *map(float, place)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on from a `random_state`; that of a GPU is left out on a machine with others."""
    keys, position, has_gauss, gauss = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), int(position), int(has_gauss), gauss))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])
