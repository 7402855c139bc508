"""Train and evaluate configurations under one recipe, and put their numbers beside each other: a table and a picture.

python scripts/compare.py configs/shapes/{c5,fpn,panet}.yaml --seeds 0 1 --output runs/compare

Stopped, it goes on with what is missing when it is called again. A run that fails is named and does not stop the rest.
"""

from __future__ import annotations

import argparse
import io
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
from detector.comparison.chart import Point, draw_chart
from detector.comparison.cost import count_flops, count_parameters, milliseconds
from detector.comparison.table import SCORE, Row, make_row, read_run, to_csv, to_markdown
from detector.config import apply_overrides, read_config
from detector.data.dataset import build_dataset
from detector.errors import ConfigError, DetectorError
from detector.files import check_folder, check_own, make_folder, write_bytes, write_text
from detector.training.run import changes, with_num_classes

SCRIPTS = Path(__file__).parent
FREE = ("data.workers", "train.device", "train.save_seconds")  # may differ between the parts of an interrupted run
OWN = ("train.seed", *(f"data.{split}.proposals" for split in ("train", "val", "test")))  # may differ between the runs
OF_A_TRAINING = ("last.pth", "best.pth", "metrics.csv", "train.log", SCORE)


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
        return (self.folder / SCORE / "metrics.json").exists()


class Finished(NamedTuple):
    """A run with its numbers, those of `read_run`."""

    run: Run
    numbers: dict[str, float]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        usage="%(prog)s CONFIG [CONFIG ...] --output DIR [--seeds K ...] [--trust] [key=value ...]",
    )
    add = parser.add_argument
    add("given", nargs="*", metavar="CONFIG or key=value", help="YAML files, and changes to all of them")
    add("--seeds", nargs="+", default=["0"], metavar="K", help="train each configuration so often (default: 0)")
    add(
        "--output", type=Path, required=True, metavar="DIR", help="table.md, table.csv, ap_latency.png, <name>_seed<k>/"
    )
    add("--trust", action="store_true", help="allow the configurations to name code of your own")
    args = parser.parse_intermixed_args(argv)
    seeds = [text for text in args.seeds if re.fullmatch(r"-?\d+", text)]
    given = args.given + [text for text in args.seeds if text not in seeds]  # argparse takes all that follows --seeds
    if not seeds:
        parser.error(f"--seeds: {args.seeds[0]} is no whole number")
    args.seeds = [int(text) for text in seeds]
    args.configs = [Path(text) for text in given if "=" not in text]
    args.overrides = [text for text in given if "=" in text]
    return args


def plan(args: argparse.Namespace) -> list[Run]:
    """All runs, the first seed of every configuration first. Raises DetectorError for what cannot be compared."""
    names = [path.stem for path in args.configs]
    for kind, given in (("configuration", names), ("--seeds", args.seeds)):
        twice = [item for i, item in enumerate(given) if item in given[:i]]
        if twice:
            raise ConfigError(f"{kind}: {twice[0]} is given twice; its runs would share a folder")
    if not names:
        raise ConfigError("no configuration given; name YAML files, for instance of configs/shapes/")
    if "seed" in (apply_overrides({}, args.overrides).get("train") or {}):
        raise ConfigError("train.seed: is set for every run by a comparison; give --seeds instead")
    runs = []
    for seed in args.seeds:
        for path, name in zip(args.configs, names):
            config = detector.load_config(path, [*args.overrides, f"train.seed={seed}"])
            runs.append(Run(path, seed, config, args.output / f"{name}_seed{seed}"))
    check_one_recipe(runs)
    check_folder(args.output)
    check_own(args.output, "table.csv", "table.md", "ap_latency.png")
    for run in runs:
        check_run(run)
    return runs


def check_one_recipe(runs: list[Run]) -> None:
    """Raise ConfigError if more than the models, and the files of proposals that some of them take, differ."""
    first = runs[0]
    for run in runs:
        for section in ("data", "train"):
            found = changes(first.config.get(section, {}), run.config.get(section, {}), section)
            found = [change for change in found if change[0] not in OWN]
            if found:
                key, before, now = found[0]
                raise ConfigError(
                    f"{run.path}: {key} is {now}, in {first.path} it is {before}; compare under one recipe"
                )


def check_run(run: Run) -> None:
    """Raise DetectorError if the folder of a run holds anything but an earlier part of it, or cannot be written."""
    check_folder(run.folder / SCORE)
    saved = run.folder / "config.yaml"
    if saved.exists():
        check_same_settings(run, read_config(saved))
    else:
        foreign = [path for name in OF_A_TRAINING if (path := run.folder / name).exists()]
        if foreign:
            raise ConfigError(f"{foreign[0]}: of a training without its config.yaml; choose another --output")
    check_own(run.folder, "output.txt")
    if run.done:
        read_run(run.folder)
    else:
        check_own(run.folder / SCORE, "metrics.json", "detections.json")


def check_same_settings(run: Run, before: dict[str, Any]) -> None:
    """Raise ConfigError if a run began with other settings."""
    if isinstance(before.get("model"), dict) and "num_classes" not in run.config.get("model", {}):
        before["model"].pop("num_classes", None)  # counted when the training began
    for key, old, new in changes(before, run.config):
        if key not in FREE:
            raise ConfigError(
                f"{run.folder}: was made with {key} = {old}, now it is {new}; remove the folder, or choose another --output"
            )


def check_systems(runs: list[Run], *, trust: bool) -> dict[str, int]:
    """Parameters of every system. Raises DetectorError where data or model cannot be built, before anything is trained."""
    train_sets, sizes = {}, {}
    for run in runs:
        data = repr(run.config.get("data"))
        if data not in train_sets:
            train_sets[data] = build_dataset(run.config, "train", trust=trust)
            build_dataset(run.config, "val", class_names=train_sets[data].class_names, trust=trust)
        try:
            sizes[run.name] = count_parameters(with_num_classes(run.config, train_sets[data]), trust=trust)
        except ConfigError as error:
            raise ConfigError(f"{run.path}: {error}") from error
    return sizes


def carry_out(run: Run, args: argparse.Namespace) -> None:
    """Train and evaluate by the scripts for that, each a process of its own. Raises DetectorError if one fails."""
    train = ["train.py", run.path, *args.overrides, f"train.seed={run.seed}", "--output", run.folder]
    train += ["--resume"] if (run.folder / "last.pth").exists() else []
    score = ["evaluate.py", run.folder / "best.pth", "--output", run.folder / SCORE]
    score += ["--trust"] if args.trust else []
    log = make_folder(run.folder) / "output.txt"
    for command in (train, score):
        with open(log, "a") as output:
            print("scripts/compare.py:", *command, file=output, flush=True)
            status = call([sys.executable, str(SCRIPTS / command[0]), *map(str, command[1:])], output)
        if status:
            last = re.findall(r"[^\r\n]+", log.read_text(errors="replace"))[-1]
            raise DetectorError(f"{command[0]} left with status {status}: {last.strip()} (see {log})")


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


def carry_out_all(runs: list[Run], args: argparse.Namespace) -> list[Finished]:
    """Whatever is missing, a line each; returns the runs that did not fail and whose checkpoint can be read."""
    finished = []
    for i, run in enumerate(runs, start=1):
        began, there = cpu_seconds(), run.done
        try:
            if not there:
                carry_out(run, args)
            rpn_alone = detector.load(run.folder / "best.pth", args.trust, device="cpu").is_rpn_alone
            finished.append(Finished(run, read_run(run.folder, rpn_alone=rpn_alone)))
            how = "there already" if there else f"{cpu_seconds() - began:.0f} CPU seconds"
            line = f"{scores(finished[-1].numbers)}, {how}"
        except DetectorError as error:
            line = str(error)
        print(f"[{i}/{len(runs)}] {run.name} seed {run.seed}: {line}", flush=True)
    return finished


def scores(numbers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * numbers[name]:.1f}" for name in ("AP", "APs", "AR100"))


def tabulate(finished: list[Finished], sizes: Mapping[str, int], *, trust: bool) -> list[Row]:
    """A row for every configuration; the other costs are those of its first run."""
    systems: dict[str, list[Finished]] = {}
    for one in finished:
        systems.setdefault(one.run.name, []).append(one)
    firsts = [own[0].run for own in systems.values()]
    predictors = [detector.load(run.folder / "best.pth", trust, device=device(run)) for run in firsts]
    datasets = [build_dataset(run.config, "val", trust=trust) for run in firsts]
    flops = [count_flops(*both) for both in zip(predictors, datasets)]
    times = milliseconds(predictors, datasets)
    return [
        make_row(name, [one.numbers for one in own], {"parameters": sizes[name], "flops": flop, "ms": ms})
        for (name, own), flop, ms in zip(systems.items(), flops, times)
    ]


def device(run: Run) -> str:
    return run.config.get("train", {}).get("device", "auto")


def write_table(rows: list[Row], folder: Path) -> None:
    """table.csv, table.md and, where a system has an AP, ap_latency.png."""
    write_text(folder / "table.csv", to_csv(rows))
    write_text(folder / "table.md", to_markdown(rows))
    found = [(row.name, row.numbers["ms"].mean, row.numbers["AP"]) for row in rows]
    points = [Point(name, ms, 100 * ap.mean, 100 * ap.spread) for name, ms, ap in found if not math.isnan(ap.mean)]
    if points:
        picture = io.BytesIO()
        draw_chart(points, "ms per image", "AP").save(picture, "PNG")
        write_bytes(folder / "ap_latency.png", picture.getvalue())
    else:
        (folder / "ap_latency.png").unlink(missing_ok=True)  # an earlier one, of other numbers


def compare(args: argparse.Namespace) -> int:
    runs = plan(args)
    sizes = check_systems(runs[: len(args.configs)], trust=args.trust)
    make_folder(args.output)
    finished = carry_out_all(runs, args)
    if finished:
        rows = tabulate(finished, sizes, trust=args.trust)
        print(f"\n{to_markdown(rows)}")  # first: a full disk does not lose it
        write_table(rows, args.output)
        print(f"written into {args.output}")
    failed = [run for run in runs if run not in [one.run for one in finished]]
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
