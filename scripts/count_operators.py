"""Count the operators of one inference and one training step, beside torchvision: about the kernels that a GPU would start.

`python scripts/count_operators.py [CONFIG] [--size H W]`
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from detector.comparison.candidates import BenchmarkInput, Setup, Stopwatch, make_candidate, make_input
from detector.modeling.shapes import fixed_shapes

WAITS = {"nonzero", "is_nonzero", "_local_scalar_dense", "masked_select", "_unique2", "unique_dim", "lift_fresh"}
TWIN = "detector://compat/torchvision_fasterrcnn_resnet50_fpn.yaml"


class OperatorCount(TorchDispatchMode):
    """Counts what is computed, and what makes the host of a GPU wait: a number read or written, a shape that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices)
        self.counts["computed"] += not func.is_view
        self.counts["waits"] += name in WAITS or by_mask
        self.counts["nms"] += name == "nms"
        return func(*args, **(kwargs or {}))


def counts(run: Callable[[], Any]) -> Counter[str]:
    """Of the second run: the first makes what is kept."""
    run()
    with OperatorCount() as mode:
        run()
    return mode.counts


def measure(setup: Setup, name: str, sample: BenchmarkInput) -> dict[str, Counter[str]]:
    """The counts of a candidate, by kind of work; ours has fixed shapes, as on a GPU."""
    watch, step = Stopwatch(torch.device("cpu")), make_candidate(setup, name, training=True)
    finder = make_candidate(setup, name)
    return {
        "inference": counts(lambda: finder.infer(sample, watch)),
        "training step": counts(lambda: step.train_step(sample)),
    }


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", default=TWIN)
    parser.add_argument("--size", type=int, nargs=2, default=(320, 480), metavar=("H", "W"))
    args = parser.parse_args()
    setup = Setup(args.config, [], "cpu", tuple(args.size))
    print(f"{'':16}{'':13}{'operators':>10}{'waits':>7}{'nms':>5}")
    with make_input(setup.size) as sample:
        for name in ("float32", "torchvision"):
            with fixed_shapes() if name == "float32" else nullcontext():
                for work, found in measure(setup, name, sample).items():
                    print(f"{work:16}{name:13}{found['computed']:10}{found['waits']:7}{found['nms']:5}")


if __name__ == "__main__":
    main()
