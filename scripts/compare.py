"""Train and evaluate configurations under one recipe, and put their numbers beside each other: a table and a picture.

python scripts/compare.py configs/shapes/{c5,fpn,panet}.yaml --seeds 0 1 --output runs/compare

Stopped, it goes on with what is missing when it is called again. A run that fails is named and does not stop the rest.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import detector
from detector.config import read_config
from detector.data.build import build_dataset
from detector.errors import ConfigError, DetectorError
from detector.evaluation.chart import Point, draw_chart
from detector.evaluation.comparison import Row, make_row, read_run, to_csv, to_markdown
from detector.evaluation.cost import count_flops, count_parameters, milliseconds
from detector.evaluation.run import make_folder, write_text
from detector.training.run import changes

SCRIPTS = Path(__file__).parent
FREE = ("data.workers", "train.device", "train.save_seconds")  # may differ between the parts of an interrupted run


class Run(NamedTuple):
    """One training with one seed, and its folder."""

    path: Path
    seed: int
    config: Mapping[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def done(self) -> bool:
        return (self.folder / "metrics.json").exists()


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        usage="%(prog)s CONFIG [CONFIG ...] --output DIR [--seeds K ...] [--trust] [key=value ...]",
    )
    add = parser.add_argument
    add("given", nargs="+", metavar="CONFIG or key=value", help="YAML files, and changes to all of them")
    add("--seeds", type=int, nargs="+", default=[0], metavar="K", help="train each configuration so often (default: 0)")
    add(
        "--output", type=Path, required=True, metavar="DIR", help="table.md, table.csv, ap_latency.png, <name>_seed<k>/"
    )
    add("--trust", action="store_true", help="allow the configurations to name code of your own")
    args = parser.parse_intermixed_args(argv)
    args.configs = [Path(text) for text in args.given if "=" not in text]
    args.overrides = [text for text in args.given if "=" in text]
    return args


def plan(args: argparse.Namespace) -> list[Run]:
    """All runs, the first seed of every configuration first. Raises ConfigError for what cannot be compared."""
    names = [path.stem for path in args.configs]
    for kind, given in (("configuration", names), ("--seeds", args.seeds)):
        twice = [item for i, item in enumerate(given) if item in given[:i]]
        if twice:
            raise ConfigError(f"{kind}: {twice[0]} is given twice; its runs would share a folder")
    if not names:
        raise ConfigError("no configuration given; name YAML files, for instance of configs/shapes/")
    runs = []
    for seed in args.seeds:
        for path, name in zip(args.configs, names):
            config = detector.load_config(path, [*args.overrides, f"train.seed={seed}"])
            runs.append(Run(path, seed, config, args.output / f"{name}_seed{seed}"))
    check_one_recipe(runs)
    for run in runs:
        check_folder(run)
        if run.done:
            read_run(run.folder)
    return runs


def check_one_recipe(runs: list[Run]) -> None:
    """Raise ConfigError if more than the models differ."""
    first = runs[0]
    for run in runs:
        for section in ("data", "train"):
            found = changes(first.config.get(section, {}), run.config.get(section, {}), section)
            found = [change for change in found if change[0] != "train.seed"]
            if found:
                key, before, now = found[0]
                raise ConfigError(
                    f"{run.path}: {key} is {now}, in {first.path} it is {before}; compare under one recipe"
                )


def check_folder(run: Run) -> None:
    """Raise ConfigError if the folder of a run holds anything but an earlier part of it."""
    saved = run.folder / "config.yaml"
    if not saved.exists():
        if run.done:
            raise ConfigError(f"{run.folder}: holds metrics.json and no config.yaml; choose another --output")
        return
    before = read_config(saved)
    if isinstance(before.get("model"), dict) and "num_classes" not in run.config.get("model", {}):
        before["model"].pop("num_classes", None)  # counted when the training began
    for key, old, new in changes(before, run.config):
        if key not in FREE:
            raise ConfigError(
                f"{run.folder}: was made with {key} = {old}, now it is {new}; remove the folder, or choose another --output"
            )


def carry_out(run: Run, args: argparse.Namespace) -> str | None:
    """Train and evaluate by the scripts for that, each a process of its own; why it failed, or None."""
    train = ["train.py", run.path, *args.overrides, f"train.seed={run.seed}", "--output", run.folder]
    train += ["--resume"] if (run.folder / "last.pth").exists() else []
    score = ["evaluate.py", run.folder / "best.pth", *(["--trust"] if args.trust else [])]
    log = make_folder(run.folder) / "output.txt"
    for command in (train, score):
        with open(log, "a") as output:
            status = call([sys.executable, str(SCRIPTS / command[0]), *map(str, command[1:])], output)
        if status:
            lines = re.findall(r"[^\r\n]+", log.read_text(errors="replace")) or ["nothing printed"]
            return f"{command[0]} left with status {status}: {lines[-1].strip()} (see {log})"
    return None


def call(command: list[str], output: IO[str]) -> int:
    """Run a process to its end. A signal that stops us is handed on, once, so that it saves what it has."""
    child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise


def cpu_seconds() -> float:
    """Of all child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def carry_out_all(runs: list[Run], args: argparse.Namespace) -> list[Run]:
    """Whatever is missing, a line each; returns the runs that failed."""
    failed = []
    for i, run in enumerate(runs, start=1):
        began, there = cpu_seconds(), run.done
        reason = None if there else carry_out(run, args)
        if reason:
            failed.append(run)
        how = "there already" if there else f"{cpu_seconds() - began:.0f} CPU seconds"
        print(f"[{i}/{len(runs)}] {run.name} seed {run.seed}: {reason or f'{scores(run)}, {how}'}", flush=True)
    return failed


def scores(run: Run) -> str:
    found = read_run(run.folder)
    return ", ".join(f"{name} {100 * found[name]:.1f}" for name in ("AP", "APs", "AR100"))


def tabulate(runs: list[Run], args: argparse.Namespace) -> list[Row]:
    """A row for every configuration with a finished run; the costs are those of its first."""
    by_name: dict[str, list[Run]] = {}
    for run in runs:
        by_name.setdefault(run.name, []).append(run)
    firsts = [own[0] for own in by_name.values()]
    predictors = [detector.load(run.folder / "best.pth", args.trust, device=device(run)) for run in firsts]
    dataset = build_dataset(firsts[0].config, "val")
    times = milliseconds(predictors, dataset)
    rows = []
    for own, predictor, ms in zip(by_name.values(), predictors, times):
        size = count_parameters(predictor.config, trust=args.trust)
        costs = {"parameters": size, "flops": count_flops(predictor, dataset), "ms": ms}
        runs_read = [read_run(run.folder, rpn_alone=predictor.is_rpn_alone) for run in own]
        rows.append(make_row(own[0].name, runs_read, costs))
    return rows


def device(run: Run) -> str:
    return run.config.get("train", {}).get("device", "auto")


def write_table(rows: list[Row], folder: Path) -> None:
    """table.md, table.csv and ap_latency.png."""
    write_text(folder / "table.csv", to_csv(rows))
    write_text(folder / "table.md", to_markdown(rows))
    found = [(row.name, row.numbers["ms"].mean, row.numbers["AP"]) for row in rows]
    points = [Point(name, ms, 100 * ap.mean, 100 * ap.spread) for name, ms, ap in found if not math.isnan(ap.mean)]
    if points:
        draw_chart(points, "ms per image", "AP").save(folder / "ap_latency.png")


def compare(args: argparse.Namespace) -> int:
    runs = plan(args)
    for split in ("train", "val"):
        build_dataset(runs[0].config, split)  # what is wrong with the data is said once
    make_folder(args.output)
    failed = carry_out_all(runs, args)
    finished = [run for run in runs if run not in failed]
    if finished:
        rows = tabulate(finished, args)
        write_table(rows, args.output)
        print(f"\n{to_markdown(rows)}\n{args.output}: table.md, table.csv, ap_latency.png")
    if failed:
        print(f"failed: {', '.join(f'{run.name} seed {run.seed}' for run in failed)}", file=sys.stderr)
    return 1 if failed else 0


def stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    numbers = [
        getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)
    ]  # the latter not on Windows
    old_handlers = {number: signal.signal(number, stop) for number in numbers}
    try:
        return compare(args)
    except DetectorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as signalled:
        print("stopped; the same command goes on", file=sys.stderr)
        return 128 + (signalled.args or [signal.SIGINT])[0]
    finally:
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
