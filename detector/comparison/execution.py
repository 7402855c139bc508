"""The runs of a comparison, carried out by child processes, and the numbers of the finished ones."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from detector.comparison.runs import Run
from detector.comparison.table import SCORE, SystemRow, make_row, read_run
from detector.data.settings import build_dataset
from detector.errors import DetectorError
from detector.evaluation.cost import count_flops, milliseconds
from detector.files import make_folder
from detector.inference.predictor import load_predictor


@dataclass(frozen=True)
class FinishedRun:
    """A run with its numbers, those of `read_run`."""

    run: Run
    numbers: dict[str, float]


def carry_out_all(runs: Sequence[Run], overrides: Sequence[str], *, trust: bool) -> list[FinishedRun]:
    """Do whatever is missing, and print a line each; the runs that did not fail and whose checkpoint can be read."""
    finished = []
    for i, run in enumerate(runs, start=1):
        began, was_done = cpu_seconds(), run.done
        try:
            if not was_done:
                carry_out(run, overrides, trust=trust)
            reports_proposals = load_predictor(run.folder / "best.pth", trust, device="cpu").model.reports_proposals
            finished.append(FinishedRun(run, read_run(run.folder, rpn_alone=reports_proposals)))
            duration = "done before" if was_done else f"{cpu_seconds() - began:.0f} CPU seconds"
            line = f"{scores(finished[-1].numbers)}, {duration}"
        except DetectorError as error:
            line = str(error)
        print(f"[{i}/{len(runs)}] {run.name} seed {run.seed}: {line}", flush=True)
    return finished


def carry_out(run: Run, overrides: Sequence[str], *, trust: bool) -> None:
    """Train and evaluate by `detector train` and `detector evaluate`. Raises DetectorError if one of them fails."""
    train = ["train", run.path, *overrides, f"train.seed={run.seed}", "--output", run.folder]
    train += ["--resume"] if (run.folder / "last.pth").exists() else []
    score = ["evaluate", run.folder / "best.pth", "--output", run.folder / SCORE, *(["--trust"] if trust else [])]
    log = make_folder(run.folder) / "output.txt"
    for command in (train, score):
        with open(log, "a") as output:
            print("detector compare:", *command, file=output, flush=True)
            status = call([sys.executable, "-m", "detector", *map(str, command)], output)
        if status:
            last = re.findall(r"[^\r\n]+", log.read_text(errors="replace"))[-1]
            raise DetectorError(f"{command[0]} ended with status {status}: {last.strip()} (see {log})")


def call(command: list[str], output: IO[str]) -> int:
    """Run a process to its end; its exit status. An interruption is handed on, once, so that it saves its state."""
    child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise


def cpu_seconds() -> float:
    """CPU time of all child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def scores(numbers: Mapping[str, float]) -> str:
    """The most important numbers of a run, in words."""
    masks = () if math.isnan(numbers["segm/AP"]) else ("segm/AP",)
    return ", ".join(f"{name} {100 * numbers[name]:.1f}" for name in ("AP", "APs", *masks, "AR100"))


def tabulate(finished: Sequence[FinishedRun], sizes: Mapping[str, int], *, trust: bool) -> list[SystemRow]:
    """A row for every system; `sizes` are their parameters, the other costs are those of its first run."""
    systems: dict[str, list[FinishedRun]] = {}
    for one in finished:
        systems.setdefault(one.run.name, []).append(one)
    firsts = [runs[0].run for runs in systems.values()]
    predictors = [load_predictor(run.folder / "best.pth", trust, device=run.config.train.device) for run in firsts]
    datasets = [build_dataset(run.config.needed_data(), "val") for run in firsts]
    flops = [count_flops(*both) for both in zip(predictors, datasets)]
    times = milliseconds(predictors, datasets)
    return [
        make_row(name, [one.numbers for one in runs], {"parameters": sizes[name], "flops": flop, "ms": ms})
        for (name, runs), flop, ms in zip(systems.items(), flops, times)
    ]
