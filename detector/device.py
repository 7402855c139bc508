"""Which device a name stands for, and which one a process of torchrun takes."""

from __future__ import annotations

import os

import torch

from detector.distributed import is_launched
from detector.errors import ConfigError, DetectorError


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is the first GPU if there is one. Raises ConfigError if it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); choose cpu, cuda or cuda:N") from error


def own_device(device: torch.device) -> torch.device:
    """Of the GPUs of a machine, the one of this process, from now on its default.

    Raises DetectorError if there are fewer of them than processes.
    """
    if device.type != "cuda" or not is_launched():
        return device
    index = int(os.environ["LOCAL_RANK"])
    if index >= torch.cuda.device_count():
        raise DetectorError(
            f"process {index + 1} of this machine has no GPU of its own: start torchrun with --nproc-per-node "
            f"{torch.cuda.device_count()}, or choose the device cpu"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
