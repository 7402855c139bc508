"""The device: its selection by name and by process, and its peak memory."""

from __future__ import annotations

import logging
import math
import os
import platform
import re
import sys
import time
from pathlib import Path

import torch

from detector.distributed import is_launched
from detector.errors import ConfigError, DetectorError

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]


BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")  # of x86 and ARM processors, as Linux names them

log = logging.getLogger("detector")


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


def pick_precision(name: str, device: torch.device) -> str:
    """The number format called `name`; "auto" is bfloat16 where the device has instructions for it, else float32.

    bfloat16 without them is logged as a warning, with how much slower a small product is.
    """
    if name == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    if name == "bfloat16" and not has_bfloat16(device):
        ratio = _product_seconds("bfloat16", device) / _product_seconds("float32", device)
        log.warning(
            "bfloat16: this %s has no instructions for it; a product takes %.1f times as long as in float32; choose auto "
            "or float32",
            "processor" if device.type == "cpu" else device.type, ratio,
        )  # fmt: skip
    return name


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by instructions of its own; False where that is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and not set(_processor().split()).isdisjoint(BFLOAT16_FLAGS)


def describe_device(device: torch.device) -> str:
    """The name of a GPU; of a processor its name, threads and instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    known = re.search(r"^model name\s*: (.*)$", _processor(), re.MULTILINE)
    name = known.group(1) if known else platform.machine()
    bfloat16 = "with" if has_bfloat16(device) else "without"
    level = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {torch.get_num_threads()} threads, {level}, {bfloat16} bfloat16 instructions"


def _processor() -> str:
    """What Linux says of the processors; "" elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _product_seconds(precision: str, device: torch.device) -> float:
    """The least time of a product of two small matrices."""
    a, b = torch.ones(2, 384, 384, device=device, dtype=getattr(torch, precision))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        times.append(time.perf_counter() - start)
    return min(times)


def memory_mib(device: torch.device) -> float:
    """Peak memory of the GPU allocator, or of this process, in MiB; NaN if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if resource is None:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
