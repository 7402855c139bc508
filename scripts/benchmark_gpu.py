"""The speed of one GPU: R50-FPN by every road and number format, torchvision's beside it. One table, and JSON after each row.

What cannot run is a row, too, with its reason. On a CPU it runs with a small image, to try the script itself:
`python scripts/benchmark_gpu.py --device cpu --size 64 96 --batches 1 2 --rounds 1`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch.profiler import ProfilerActivity, profile

from detector.cli.arguments import CommandParser
from detector.cli.ending import ending
from detector.comparison.candidates import BenchmarkInput, Setup, make_input, sgd_step, torchvision_twin
from detector.device import describe_device, has_bfloat16, pick_device
from detector.errors import DataError
from detector.export.engines import quiet
from detector.export.graph import DetectionGraph
from detector.inference.predictor import fold_norms
from detector.recipe import Recipe
from detector.training.step import TrainStep

CONFIG = "detector://compat/torchvision_fasterrcnn_resnet50_fpn.yaml"
FORMATS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OWN = ("eager", "compiled", "graph")
Work = Callable[[], Any]


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments."""
    parser = CommandParser(prog="benchmark_gpu.py", description=__doc__)
    add = parser.add_argument
    add("--device", default="cuda")
    add("--size", type=int, nargs=2, default=(800, 1216), metavar=("H", "W"))
    add("--batches", type=int, nargs="+", default=(1, 8), help="images at once in inference (default 1 8)")
    add("--train", type=int, nargs="+", default=(8, 16), help="images of a training step (default 8 16)")
    add("--rounds", type=int, default=7, help="measurements of each row, whose median counts (default 7)")
    add("--seconds", type=float, default=420, help="after which rows are skipped (default 420)")
    add("--json", type=Path, default=Path("gpu.json"), metavar="FILE")
    return parser.parse_args(argv)


def cases(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[str, str, str, int]]:
    """(work, road, format, images), the goals first: inference at batch 1 and training in bfloat16."""
    gpu = device.type == "cuda"
    formats = [*["bfloat16"] * has_bfloat16(device), "float32", *["tf32", "float16"] * gpu]
    for batch, name in itertools.product(args.batches, formats):
        for road in OWN if gpu else OWN[:2]:
            yield "infer", road, name, batch
        yield "infer", "torchvision", name, batch
    for batch, name in itertools.product(args.train, [name for name in formats if name != "float16"]):
        yield "train", "eager", name, batch
        yield "train", "torchvision", name, batch


def infer(setup: Setup, road: str, name: str, batch: int, device: torch.device, sample: BenchmarkInput) -> Work:
    """One inference from pixels on the device to rows of detections on the device."""
    own = setup.build()[1]
    images = sample.image.expand(batch, -1, -1, -1).contiguous().to(device)
    if road == "torchvision":
        twin = torchvision_twin(own, setup.size)
        assert twin is not None
        twin.to(device).eval()
        pixels = list(images.float() / 255)

        def theirs() -> Any:
            with torch.autocast(device.type, FORMATS[name], enabled=FORMATS[name] != torch.float32):
                return twin(pixels)

        return theirs
    model = fold_norms(own).requires_grad_(False).eval().to(device=device, dtype=FORMATS[name])
    inputs = images, torch.tensor([setup.size] * batch, device=device)
    graph: Any = DetectionGraph(model, portable=False).eval().to(device)
    if road == "compiled":
        graph = torch.compile(graph, fullgraph=True)
    with quiet():
        graph(*inputs)  # anchors are made, kernels chosen
    return recorded(graph, inputs) if road == "graph" else lambda: graph(*inputs)


def recorded(graph: Work, inputs: tuple[torch.Tensor, ...]) -> Work:
    """The graph as one launch, a CUDA graph."""
    beside = torch.cuda.Stream()
    with torch.cuda.stream(beside):
        for _ in range(3):
            graph(*inputs)
    beside.synchronize()
    whole = torch.cuda.CUDAGraph()
    with torch.cuda.graph(whole):
        graph(*inputs)
    return whole.replay


def train(setup: Setup, road: str, name: str, batch: int, device: torch.device, sample: BenchmarkInput) -> Work:
    """One training step; this project's is the one of `detector train`."""
    own, images = setup.build()[1], [sample.image.to(device)] * batch
    target = {key: value.to(device) for key, value in sample.target().items() if key in ("boxes", "labels")}
    precision = "bfloat16" if name == "bfloat16" else "float32"
    if road == "eager":
        step = TrainStep(own.train(), Recipe(lr=1e-5, precision=precision), device)
        return lambda: step(1e-5, images, [target] * batch)
    twin = torchvision_twin(own, setup.size)
    assert twin is not None
    twin.to(device).train()
    optimizer = torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=1e-5, momentum=0.9)
    pixels = [image.float() / 255 for image in images]
    classes = [target | {"labels": target["labels"] + 1}] * batch

    def theirs() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            losses = twin(pixels, classes)
        sgd_step(optimizer, losses)

    return theirs


def measure(work: Work, rounds: int, device: torch.device) -> dict[str, float]:
    """Median seconds, MiB at the peak, kernels or operators launched, and the share of time in which the host waits."""
    gpu = device.type == "cuda"
    wait = torch.cuda.synchronize if gpu else lambda: None
    for _ in range(2 if gpu else 1):
        work()
    wait()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - began)
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu]) as seen:
        began = time.perf_counter()
        work()
        wait()
        whole = time.perf_counter() - began
    events: Any = seen.key_averages()
    waits = sum(e.self_cpu_time_total for e in events if "Synchronize" in e.key or e.key == "cudaMemcpyAsync") / 1e6
    launched = sum(e.count for e in events if ("Launch" in e.key if gpu else e.key.startswith("aten::")))
    peak = {"peak_mib": torch.cuda.max_memory_allocated() / 2**20} if gpu else {}
    return {"seconds": statistics.median(seconds), "launches": launched, "waits": min(1.0, waits / whole), **peak}


def row(case: tuple[str, str, str, int], args: argparse.Namespace, device: torch.device, sample: Any) -> dict[str, Any]:
    """The figures of one case, or why there are none."""
    work, road, name, batch = case
    setup = Setup(CONFIG, ["model.num_classes=80"], args.device, tuple(args.size))
    tf32 = name == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        with torch.set_grad_enabled(work == "train"):
            make = train if work == "train" else infer
            return measure(make(setup, road, name, batch, device, sample), args.rounds, device)
    except Exception as error:  # the others still count
        return {
            "skipped": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[
                :200
            ]
        }
    finally:
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def line(case: tuple[str, str, str, int], figures: dict[str, Any]) -> str:
    """One line of the table."""
    work, road, name, batch = case
    head = f"{work:6}{road:13}{name:10}{batch:5}"
    if "skipped" in figures:
        return f"{head}  {figures['skipped']}"
    numbers = f"{1e3 * figures['seconds']:10.2f}{batch / figures['seconds']:9.1f}"
    ratio = f"{figures['ratio']:8.2f}" if "ratio" in figures else f"{'':8}"
    peak = f"{figures['peak_mib']:9.0f}" if "peak_mib" in figures else f"{'':9}"
    return f"{head}{numbers}{ratio}{figures['launches']:9}{100 * figures['waits']:7.0f} %{peak}"


def run(args: argparse.Namespace) -> None:
    """Measure every case, write the figures after each, print the table."""
    device, began = pick_device(args.device), time.perf_counter()
    if args.json.exists():
        raise DataError(f"{args.json}: exists; name another file")
    about = f"{describe_device(device)}, torch {torch.__version__}, torchvision {torchvision.__version__}"
    print(f"R50-FPN at {args.size[0]} x {args.size[1]}, {about}")
    done: dict[tuple[str, str, str, int], dict[str, Any]] = {}
    with make_input(tuple(args.size)) as sample:
        for case in cases(args, device):
            late = time.perf_counter() - began > args.seconds
            done[case] = {"skipped": "no time left"} if late else row(case, args, device, sample)
            for other, figures in done.items():
                theirs = done.get((other[0], "torchvision", *other[2:]), {})
                if "seconds" in theirs and "seconds" in figures:
                    figures["ratio"] = theirs["seconds"] / figures["seconds"]
            print(line(case, done[case]), flush=True)
            rows = [dict(zip(("work", "road", "format", "images"), key)) | found for key, found in done.items()]
            args.json.write_text(json.dumps({"about": about, "size": args.size, "rows": rows}, indent=2) + "\n")
    heads = (
        f"{'':6}{'':13}{'':10}{'batch':>5}{'ms':>10}{'img/s':>9}{'x tv':>8}{'launches':>9}{'waits':>9}{'peak MiB':>9}"
    )
    print("", heads, *(line(case, figures) for case, figures in done.items()), sep="\n")


def main(argv: list[str] | None = None) -> int:
    """Measure; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        run(args)
    return end.status


if __name__ == "__main__":
    raise SystemExit(main())
