"""The device: its selection by name and by process, and its peak memory."""

from __future__ import annotations

import math
import os
import sys

import torch

from detector.distributed import is_launched
from detector.errors import ConfigError, DetectorError

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first GPU, or the CPU. Raises ConfigError if it cannot be used."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); choose cpu, cuda or cuda:N") from error


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process, by its local rank; it becomes the default. Without torchrun, or on the CPU: `device`.

    Raises DetectorError if the machine has fewer GPUs than processes.
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


def memory_mib(device: torch.device) -> float:
    """Peak memory of the GPU allocator, or of this process, in MiB; NaN if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
