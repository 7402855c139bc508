"""`detector benchmark CONFIG|EXPORT [--engines] [--device D] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from detector.cli.arguments import CONFIG_HELP, OVERRIDES_HELP, CommandParser
from detector.cli.ending import ending
from detector.comparison.candidates import TIMED, Setup, Stopwatch, make_input, torchvision_twin
from detector.comparison.roads import ROADS, road
from detector.device import describe_device, has_bfloat16, pick_device
from detector.errors import ConfigError, DataError, DetectorError
from detector.export.engines import BY_SUFFIX, open_engine
from detector.files import begins, check_folder, make_folder, write_text
from detector.structures import Detections

OWN = (b'{\n  "infer": {',)  # the first bytes of a file of --json


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The arguments; `setup` is what they say to measure."""
    parser = CommandParser(
        "benchmark", epilog="detector://compat/torchvision_fasterrcnn_resnet50_fpn.yaml gives equal boxes"
    )
    add = parser.add_argument
    add(
        "config",
        metavar="CONFIG",
        help=f"{CONFIG_HELP}; or a file of `detector export`, whose inference alone is measured",
    )
    add("overrides", metavar="key=value", nargs="*", help=OVERRIDES_HELP)
    add("--device", default="auto")
    add("--engines", action="store_true", help="inference compiled, in ONNX Runtime and in OpenVINO, too; on the CPU")
    add("--trust", action="store_true", help="read a .pt2 file, which may run code")
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="of the image (default 800 1216, or that of the exported file)",
    )
    add("--pairs", type=int, default=7, help="how often everything is measured (default 7)")
    add("--json", type=Path, metavar="FILE", help="write the figures there too")
    add("--peak-of", nargs=2, metavar=("CANDIDATE", "WORK"), help=argparse.SUPPRESS)  # a child process: see peak_memory
    args = parser.parse_intermixed_args(argv)
    if args.pairs < 1 or (args.size and min(args.size) < 32):
        parser.error("--pairs must be at least 1 and --size at least 32 32")
    args.file = Path(args.config).suffix in BY_SUFFIX
    if args.file and (args.overrides or args.engines or args.device not in ("auto", "cpu")):
        parser.error(
            f"{args.config}: an exported file is measured as it is, on the CPU, without key=value and --engines"
        )
    return args


def measure(args: argparse.Namespace, names: list[str], *, training: bool) -> dict[str, list]:
    """Seconds of every candidate, `pairs` times by turns after one warm-up round: {candidate: [part -> s, ...]}."""
    candidates = {name: road(args.setup, name, training=training) for name in names}
    rounds: dict[str, list] = {name: [] for name in candidates}
    found = {}
    with make_input(args.setup.size) as sample:
        for turn in range(args.pairs + 1):
            for name, candidate in candidates.items():
                watch = Stopwatch(candidate.device)
                if training:
                    watch("model", candidate.train_step, sample)
                else:
                    found[name] = candidate.infer(sample, watch)
                if turn:  # the first round warms up
                    rounds[name].append({**watch.seconds, "cpu": watch.cpu})
    for name in [name for name in found if name not in ("float32", "bfloat16")] if "float32" in found else []:
        print(f"float32 and {name}: {difference(found['float32'], found[name])}")
    return rounds


def difference(ours: Detections, theirs: Detections) -> str:
    """The largest difference between each of our detections and the nearest of torchvision's, in words."""
    if len(ours) != len(theirs) or not len(ours):
        return f"{len(ours)} against {len(theirs)} found"
    gap = (ours.boxes[:, None] - theirs.boxes).abs().amax(dim=-1) + (ours.scores[:, None] - theirs.scores).abs() * 1e3
    nearest = theirs[gap.argmin(dim=1)]
    pixels = (ours.boxes - nearest.boxes).abs().max().item()
    score = (ours.scores - nearest.scores).abs().max().item()
    said = f"{len(ours)} found by both, largest difference {pixels:.4f} px and {score:.1e} in score"
    if ours.masks is None or nearest.masks is None:
        return said
    one, other = ours.masks.paste().flatten(1), nearest.masks.paste().flatten(1)
    iou = (one & other).sum(dim=1) / (one | other).sum(dim=1).clamp(min=1)
    return f"{said}, lowest IoU of their masks, pasted in one way, {iou[one.any(dim=1)].min():.4f}"


def peak_memory(args: argparse.Namespace, candidate: str, work: str) -> float:
    """MiB at the peak of a child process that does this work alone."""
    command = [sys.executable, "-m", "detector", "benchmark", args.config, *args.overrides, "--device", args.device, "--size",
               *map(str, args.setup.size), *["--trust"] * args.trust, "--peak-of", candidate, work]  # fmt: skip
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        last = (child.stderr.strip() or "nothing said").splitlines()[-1]
        raise DetectorError(f"the memory of {candidate} could not be measured (status {child.returncode}: {last})")
    return float(child.stdout.split()[-1])


def print_peak(args: argparse.Namespace) -> None:
    """The work of the child process of `peak_memory`."""
    candidate, work = args.peak_of
    worker = road(args.setup, candidate, training=work == "train")
    with make_input(args.setup.size) as sample:
        for _ in range(2):
            if work == "train":
                worker.train_step(sample)
            else:
                worker.infer(sample, Stopwatch(worker.device))
    if worker.device.type == "cuda":
        print(torch.cuda.max_memory_allocated(worker.device) / 2**20)
    else:
        print(resident_peak())


def resident_peak() -> float:
    """MiB. getrusage would count the parent, whose memory a forked child shares until it starts another program."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes


def summary(rounds: dict[str, list]) -> dict[str, dict[str, float]]:
    """Medians by candidate; `ratio` and `cpu_ratio`, where torchvision took part, are torchvision's over it, pair by pair."""
    totals = {name: [sum(r[part] for part in TIMED) for r in runs] for name, runs in rounds.items()}
    cpu = {name: [r["cpu"] for r in runs] for name, runs in rounds.items()}
    out = {}
    for name, runs in rounds.items():
        out[name] = {stage: statistics.median(r[stage] for r in runs) for stage in (*TIMED, "cpu")}
        out[name]["total"] = statistics.median(totals[name])
        if "torchvision" in rounds:
            for key, each in (("ratio", totals), ("cpu_ratio", cpu)):
                out[name][key] = statistics.median(t / o for t, o in zip(each["torchvision"], each[name]))
    return out


def print_table(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print one table; "x torchvision" is of the total time, "x CPU" of the seconds of all processors."""
    beside, width = "torchvision" in rows, max(map(len, rows)) + 1
    heads = "".join(f"{stage:>9}" for stage in TIMED) + f"{'total s':>9}{'img/s':>8}{'CPU s':>8}"
    print(f"\n{title}\n{'':{width}}{heads}{'x torchvision  x CPU' if beside else '':>{22 * beside}}{'peak MiB':>10}")
    for name, row in rows.items():
        stages = "".join(f"{row[s]:9.3f}" if row[s] else f"{'':9}" for s in TIMED)
        ratio = f"{row['ratio']:15.2f}{row['cpu_ratio']:7.2f}" if beside else ""
        peak = f"{row['peak_mib']:10.0f}" if "peak_mib" in row else ""
        print(f"{name:{width}}{stages}{row['total']:9.3f}{1 / row['total']:8.2f}{row['cpu']:8.2f}{ratio}{peak}")


def candidates(args: argparse.Namespace, device: torch.device) -> dict[str, list[str]]:
    """What to measure, by kind of work."""
    if args.file:
        return {"infer": [args.config]}
    twin = torchvision_twin(args.setup.build()[1], args.setup.size)
    names = ["float32", *["bfloat16"] * has_bfloat16(device), *["torchvision"] * (twin is not None)]
    if not has_bfloat16(device):
        print(
            "bfloat16 is left out: this device has no instructions for it, and takes many times as long as in float32"
        )
    if twin is None:
        print("torchvision has no such model, so this one is measured alone")
    engines = [name for name in ROADS if twin is not None or "torchvision" not in name] if args.engines else []
    return {"infer": [*engines, *(name for name in names if name not in engines)], "train": names}


def benchmark(args: argparse.Namespace) -> None:
    """Measure all candidates, print a table for each kind of work, write the figures."""
    if args.json:
        check_folder(args.json.parent, "name another file")
        if args.json.exists() and not begins(args.json, OWN):
            raise DataError(f"{args.json}: not of an earlier run, and would be written over; name another file")
    device = torch.device("cpu") if args.file else pick_device(args.device)
    if args.engines and device.type != "cpu":
        raise ConfigError("--engines measures the CPU; add --device cpu")
    size = args.setup.size
    print(f"{args.config} at {size[0]} x {size[1]}, batch 1, {describe_device(device)}, torch {torch.__version__}")
    titles = {"infer": "inference", "train": "training step (forward, backward, SGD)"}
    figures = {}
    for work, names in candidates(args, device).items():
        figures[work] = summary(measure(args, names, training=work == "train"))
        for candidate, row in figures[work].items():
            if args.file or candidate in ("float32", "bfloat16", "torchvision"):  # a child would count the export, too
                row["peak_mib"] = peak_memory(args, candidate, work)
        print_table(f"{titles[work]}, medians of {args.pairs}, seconds", figures[work])
    if args.json:
        make_folder(args.json.parent, "name another file")
        write_text(args.json, json.dumps(figures, indent=2) + "\n")


def make_setup(args: argparse.Namespace) -> Setup:
    """What the arguments say to measure."""
    # opened first, whatever the size: the check of --trust is here
    own = open_engine(Path(args.config), trust=args.trust).card.size if args.file else (800, 1216)
    return Setup(args.config, args.overrides, args.device, tuple(args.size or own))


def main(argv: list[str] | None = None) -> int:
    """Benchmark a configuration; the exit status."""
    args = parse(argv)
    with ending(args) as end:
        args.setup = make_setup(args)
        if args.peak_of:
            print_peak(args)
        else:
            benchmark(args)
    return end.status
