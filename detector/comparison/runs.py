"""The runs of a comparison: planned, and checked before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.comparison.table import SCORE, read_run
from detector.config.config import Config, load_config
from detector.config.inherit import Reader
from detector.config.match_data import with_num_classes
from detector.data.settings import build_dataset
from detector.errors import ConfigError
from detector.evaluation.cost import count_parameters
from detector.files import check_folder, check_own
from detector.protocols import DataSet
from detector.training.run import changes

MAY_CHANGE = ("data.workers", "train.device", "train.save_seconds")  # between the parts of an interrupted run
MAY_DIFFER = ("train.seed", *(f"data.{split}.proposals" for split in ("train", "val", "test")))  # between the runs
TRAINING_FILES = ("last.pth", "best.pth", "metrics.csv", "train.log", SCORE)


@dataclass(frozen=True)
class Run:
    """One training with one seed, and its folder."""

    path: Path
    seed: int
    config: Config
    folder: Path

    @property
    def name(self) -> str:
        """The system: the name of the configuration file."""
        return self.path.stem

    @property
    def done(self) -> bool:
        """Whether it is trained and evaluated."""
        return (self.folder / SCORE / "metrics.json").exists()


def plan(paths: Sequence[Path], seeds: Sequence[int], overrides: Sequence[str], output: Path) -> list[Run]:
    """All runs, the first seed of every configuration first. Raises DetectorError for what cannot be compared."""
    names = [path.stem for path in paths]
    for kind, given in (("configuration", names), ("--seeds", seeds)):
        twice = [item for i, item in enumerate(given) if item in given[:i]]
        if twice:
            raise ConfigError(f"{kind}: {twice[0]} is given twice; its runs would share a folder")
    if not names:
        raise ConfigError("no configuration given; name YAML files, for instance of configs/shapes/")
    if "seed" in (Reader().override({}, overrides).get("train") or {}):
        raise ConfigError("train.seed: is set for every run by a comparison; give --seeds instead")
    runs = []
    for seed in seeds:
        for path, name in zip(paths, names):
            config = load_config(path, [*overrides, f"train.seed={seed}"])
            runs.append(Run(path, seed, config, output / f"{name}_seed{seed}"))
    check_one_recipe(runs)
    check_folder(output)
    check_own(output, "table.csv", "table.md", "ap_latency.png")
    for run in runs:
        check_run_folder(run)
    return runs


def check_one_recipe(runs: Sequence[Run]) -> None:
    """Raise ConfigError if more than the models, and the proposal files that some of them read, differ."""
    first = runs[0]
    for run in runs:
        for section in ("data", "train"):
            found = changes(first.config.raw.get(section, {}), run.config.raw.get(section, {}), section)
            for key, before, now in found:
                if key not in MAY_DIFFER:
                    raise ConfigError(
                        f"{run.path}: {key} is {now}, in {first.path} it is {before}; compare under one recipe"
                    )


def check_run_folder(run: Run) -> None:
    """Raise DetectorError if the folder of a run holds anything but an earlier part of it, or cannot be written."""
    check_folder(run.folder / SCORE)
    saved = run.folder / "config.yaml"
    if saved.exists():
        check_same_settings(run, load_config(saved))
    else:
        foreign = [path for name in TRAINING_FILES if (path := run.folder / name).exists()]
        if foreign:
            raise ConfigError(f"{foreign[0]}: of a training without its config.yaml; choose another --output")
    check_own(run.folder, "output.txt")
    if run.done:
        read_run(run.folder)
    else:
        check_own(run.folder / SCORE, "metrics.json", "detections.json")


def check_same_settings(run: Run, before: Config) -> None:
    """Raise ConfigError if a run began with other settings."""
    counted = run.config.model.num_classes is None and before.model.num_classes
    now = run.config.with_num_classes(counted) if counted else run.config  # counted when the training began
    for key, old, new in changes(before.raw, now.raw):
        if key not in MAY_CHANGE:
            raise ConfigError(
                f"{run.folder}: was made with {key} = {old}, now it is {new}; remove the folder, or choose another --output"
            )


def check_systems(runs: Sequence[Run]) -> dict[str, int]:
    """Parameters of every system. Raises DetectorError where data or model cannot be built, before anything is trained."""
    train_sets: dict[tuple[str, frozenset[str]], DataSet] = {}
    sizes = {}
    for run in runs:
        data, fields = run.config.needed_data(), run.config.model.target_fields
        key = repr(run.config.raw["data"]), fields
        if key not in train_sets:
            train_sets[key] = build_dataset(data, "train", fields=fields)
            build_dataset(data, "val", class_names=train_sets[key].class_names, fields=fields)
        sizes[run.name] = count_parameters(with_num_classes(run.config, train_sets[key]))
    return sizes
