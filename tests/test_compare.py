"""`detector compare`: a table that repeats what training and evaluation measured, however often it was interrupted."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
import torch
import yaml
from helpers.training import CLASSES, ROOT, rows, write_config
from PIL import Image
from torch import nn

import detector
from detector.chart import AXES, ChartPoint, draw_chart, place_names, ticks
from detector.checkpoint import save_checkpoint
from detector.cli import compare as command
from detector.cli import evaluate as evaluate_command
from detector.cli import train as train_command
from detector.comparison import execution
from detector.comparison.table import BOXES, COLUMNS, RECALLS, SHAPES, make_row, read_run, to_csv, to_markdown
from detector.config.config import build_detector, load_config
from detector.data.settings import build_dataset
from detector.errors import DataError
from detector.evaluation.cost import count_flops, milliseconds
from detector.modeling import convolution

METRICS = {  # all different, so that no two columns can be taken for each other
    "bbox": {name: 0.3 + i / 100 for i, name in enumerate(BOXES)},
    "proposals": {name: 0.5 + i / 100 for i, name in enumerate(RECALLS)},
}
COSTS = {"parameters": 1_500_000, "flops": 2_345_000_000, "ms": 12.34}


@pytest.fixture
def configs(tmp_path: Path, data: Path) -> list[str]:
    """Two systems, an epoch of three steps each."""
    paths = [write_config(tmp_path / f"{name}.yaml", data, epochs=1) for name in ("fpn", "panet")]
    edit(paths[1], "model", neck={"type": "panet", "width": 32})
    return [str(path) for path in paths]


def edit(path: Path, section: str, **values) -> None:
    config = yaml.safe_load(Path(path).read_text())
    config[section] |= values
    Path(path).write_text(yaml.safe_dump(config))


def change(config: str, name: str, **model) -> Path:
    """A copy of a configuration under another name, with other sections of the model."""
    copy = Path(shutil.copy(config, Path(config).with_name(f"{name}.yaml")))
    edit(copy, "model", **model)
    return copy


def made_training(arguments: list[str]) -> int:
    """The files of `detector train CONFIG key=value ... --output DIR`, with the weights of the beginning."""
    config, *overrides = arguments[: arguments.index("--output")]
    folder = Path(arguments[arguments.index("--output") + 1])
    made = load_config(config, overrides).with_num_classes(len(CLASSES))
    torch.manual_seed(made.train.seed)
    names, ids = zip(*sorted(CLASSES.items(), key=lambda item: item[1]))
    model = build_detector(made, pretrained=False)
    save_checkpoint(folder / "best.pth", model=model, config=made.raw, class_names=list(names), category_ids=list(ids))
    shutil.copy(folder / "best.pth", folder / "last.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(made.raw))
    (folder / "metrics.csv").write_text("step,memory_mib\n1,10\n")
    return 0


def made_evaluation(arguments: list[str]) -> int:
    """The files of `detector evaluate ... --output DIR`, with known numbers."""
    folder = Path(arguments[arguments.index("--output") + 1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "detections.json").write_text("[]")
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return 0


class Compare:
    """`detector compare`, its children called in this process; `stop_at` call: a signal; trainings of `fails` diverge."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, train=made_training, evaluate=made_evaluation):
        self.commands, self.stop_at, self.fails, self.train, self.evaluate = [], None, "", train, evaluate
        monkeypatch.setattr(execution, "call", self.call)

    def __call__(self, *arguments: object) -> int:
        self.commands = []
        return command.main([*map(str, arguments), "--trust"])

    def call(self, child: list[str], output: IO[str]) -> int:
        assert child[1:3] == ["-m", "detector"]
        self.commands.append(" ".join(child[3:]))
        if self.fails and self.fails in child[4]:
            print("stopped: the loss is NaN", file=output)
            return 1
        status = self.train(child[4:]) if child[3] == "train" else self.evaluate(child[4:])
        if len(self.commands) == self.stop_at:
            raise KeyboardInterrupt
        return status


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Compare:
    return Compare(monkeypatch)


def read_table(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "table.csv", newline="") as file:
        return {row["system"]: row for row in csv.DictReader(file)}


def test_the_table_repeats_what_two_trainings_measured(configs: list[str], tmp_path: Path, monkeypatch):
    """The only test here, but for the slow one, that trains."""
    out = tmp_path / "out"
    compare = Compare(monkeypatch, train_command.main, evaluate_command.main)
    assert compare(configs[0], "--seeds", 0, 1, "--output", out) == 0
    row = read_table(out)["fpn"]
    runs = [json.loads((out / f"fpn_seed{seed}/score/metrics.json").read_text()) for seed in (0, 1)]
    for part, columns in (("bbox", BOXES), ("proposals", RECALLS)):
        for column in columns:
            a, b = (run[part][column] for run in runs)
            if a < 0:  # COCO: no object of this size
                assert row[column] == row[f"{column}_spread"] == ""
                continue
            assert float(row[column]) == pytest.approx((a + b) / 2, abs=1e-6)
            assert float(row[f"{column}_spread"]) == pytest.approx(abs(a - b) / 2, abs=1e-6)
    model = detector.load(out / "fpn_seed0/best.pth", trust=True).model
    assert float(row["parameters"]) >= sum(p.numel() for p in model.parameters())  # norms are folded in there
    assert float(row["flops"]) > 0 and float(row["ms"]) > 0 and float(row["memory_mib"]) > 0
    assert "| fpn | 2 |" in (out / "table.md").read_text()
    assert Image.open(out / "ap_latency.png").size == (1200, 800)
    seeds = [yaml.safe_load((out / f"fpn_seed{seed}/config.yaml").read_text())["train"]["seed"] for seed in (0, 1)]
    assert seeds == [0, 1]
    for split in ("train", "val"):  # a second system, whose proposals are those of the first
        given = [str(out / "fpn_seed0/best.pth"), "--split", split, "--proposals", str(tmp_path / f"{split}.pth")]
        assert evaluate_command.main([*given, "--trust"]) == 0
    fast = change(configs[0], "fast", rpn={"type": "precomputed"})
    for split in ("train", "val"):
        own = yaml.safe_load(fast.read_text())["data"][split]
        edit(fast, "data", **{split: own | {"proposals": str(tmp_path / f"{split}.pth")}})
    assert compare(configs[0], fast, "--output", out) == 0
    table = read_table(out)
    assert table["fast"]["AR1000"] == table["fpn"]["AR1000"] and float(table["fast"]["ms"]) > 0
    assert float(table["fast"]["flops"]) < float(table["fpn"]["flops"])


@pytest.mark.parametrize("stop_at", [1, 2])
def test_interrupted_it_continues_with_what_is_missing(compare, configs, tmp_path, capsys, stop_at: int):
    out = tmp_path / "out"
    compare.stop_at = stop_at  # after a training, after its evaluation
    assert compare(*configs, "--output", out) == 130
    assert capsys.readouterr().err.endswith("stopped by SIGINT; the same command continues\n")
    compare.stop_at = None
    assert compare(*configs, "--output", out) == 0
    expected = ["train fpn --resume", "evaluate fpn", "train panet", "evaluate panet"]
    assert [brief(child) for child in compare.commands] == expected[0 if stop_at == 1 else 2 :]
    table = read_table(out)
    assert list(table) == ["fpn", "panet"] and float(table["panet"]["parameters"]) > float(table["fpn"]["parameters"])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*/*")}
    assert compare(*configs, "--output", out) == 0 and compare.commands == []  # only the table is made anew
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*/*")} == before
    (out / "fpn_seed0/best.pth").write_bytes(b"half of a checkpoint")
    capsys.readouterr()
    assert compare(*configs, "--output", out) == 1 and compare.commands == [] and list(read_table(out)) == ["panet"]
    printed = capsys.readouterr()
    assert f"fpn seed 0: {out / 'fpn_seed0/best.pth'}: damaged" in printed.out
    assert printed.err.splitlines()[-1] == "failed: fpn seed 0"


def brief(child: str) -> str:
    """train CONFIG ... --output DIR/fpn_seed0 [--resume] -> "train fpn --resume"."""
    name = "panet" if "panet_seed0" in child else "fpn"
    return f"{child.split()[0]} {name}" + (" --resume" if child.endswith("--resume") else "")


def test_a_run_that_fails_is_named_and_the_others_continue(compare, configs, tmp_path, capsys):
    compare.fails = "broken.yaml"
    assert compare(change(configs[0], "broken"), configs[0], "--output", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "[1/2] broken seed 0: train ended with status 1: stopped: the loss is NaN (see " in printed.out
    assert "failed: broken seed 0" in printed.err
    assert list(read_table(tmp_path / "out")) == ["fpn"]


def test_what_cannot_be_compared_is_one_error_before_any_training(compare, configs, data, tmp_path, capsys):
    other = write_config(tmp_path / "other.yaml", data, epochs=2)
    (tmp_path / "deeper").mkdir()
    twin = write_config(tmp_path / "deeper/fpn.yaml", data, epochs=1)
    lost = write_config(tmp_path / "lost.yaml", tmp_path / "nowhere", epochs=1)
    one_level = change(configs[0], "one_level", rpn={"anchors": {"sizes": [[8]]}})  # five levels want five lists
    classes = change(configs[0], "classes", num_classes=5)
    masks = change(configs[0], "masks", roi_head={"mask_head": {}})  # learns outlines, which the set does not have
    out = tmp_path / "out"
    for arguments, words in {
        (configs[0], other): "train.epochs is 2",
        (configs[0], twin): "fpn is given twice",
        (configs[0], "--seeds", 1, 1): "--seeds: 1 is given twice",
        (configs[0], "--seeds", -1): "train.seed",
        (tmp_path / "missing.yaml",): "no such configuration file",
        ("train.epochs=1",): "no configuration given",
        (configs[0], "train.epoch=1"): "did you mean",
        (lost,): "nowhere",
        (configs[0], one_level): "one_level.yaml: model",
        (configs[0], classes): "classes.yaml: model.num_classes: 5",
        (configs[0], masks): "masks are learnt or pasted, so every object needs an outline",
        (configs[0], "train.seed=3"): "train.seed: is set for every run",
    }.items():
        assert compare(*arguments, "--output", out) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1, error
    assert compare.commands == [] and not out.exists()


def test_a_folder_of_other_settings_is_refused(compare, configs, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "fpn_seed0").mkdir(parents=True)
    assert made_training([configs[0], "train.seed=0", "train.lr=0.005", "--output", str(out / "fpn_seed0")]) == 0
    assert compare(*configs, "--output", out) == 2
    assert "train.lr = 0.005, now it is 0.01" in capsys.readouterr().err
    assert compare(*configs, "--output", out, "train.lr=0.005") == 0  # the same run, finished


@pytest.mark.parametrize(
    "name",
    ["table.md", "table.csv", "ap_latency.png"]
    + [f"fpn_seed0/{name}" for name in ("output.txt", "last.pth", "best.pth", "metrics.csv", "score/detections.json")],
)
def test_what_no_comparison_wrote_is_refused_and_kept(compare, configs, tmp_path, capsys, name: str):
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    if name == "ap_latency.png":  # ours only with a table beside it
        Image.new("RGB", (8, 8)).save(path)
    content = path.read_bytes()
    assert compare(*configs, "--output", tmp_path / "out") == 2 and compare.commands == []
    named = capsys.readouterr().err.removeprefix("error: ").partition(":")[0]
    assert Path(named) in (path, path.parent) and named != str(tmp_path / "out") and path.read_bytes() == content
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [path]


def test_seeds_may_be_followed_by_anything(capsys):
    args = command.parse(["a.yaml", "--output", "out", "--seeds", "0", "1", "train.epochs=1", "b.yaml"])
    assert (args.seeds, args.overrides) == ([0, 1], ["train.epochs=1"])
    assert list(map(str, args.configs)) == ["a.yaml", "b.yaml"]
    with pytest.raises(SystemExit):
        command.parse(["a.yaml", "--output", "out", "--seeds", "few"])
    assert "--seeds: few is no whole number" in capsys.readouterr().err


@pytest.mark.slow
def test_a_signal_in_the_midst_of_a_training_loses_nothing(configs, tmp_path):
    """As a user sees it, in processes of their own."""
    edit(configs[0], "train", epochs=20, evaluate_every=20)
    out = tmp_path / "out"
    program = [sys.executable, str(ROOT / "scripts/compare.py"), configs[0], "--output", str(out), "--trust"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    first = subprocess.Popen(program, env=environment, stderr=subprocess.PIPE, text=True)
    metrics = out / "fpn_seed0/metrics.csv"
    while not metrics.exists() or metrics.read_text().count("\n") < 6:
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert "continues" in first.communicate(timeout=60)[1] and first.returncode == 128 + signal.SIGTERM
    done = metrics.read_text().count("\n")
    assert (out / "fpn_seed0/last.pth").exists() and done < 60
    second = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "resumed from" in (out / "fpn_seed0/train.log").read_text()
    assert [int(row["step"]) for row in rows(out / "fpn_seed0") if row["loss"]] == list(range(1, 61))
    assert list(read_table(out)) == ["fpn"]


def write_run(folder: Path, **numbers: float) -> Path:
    (folder / "score").mkdir(parents=True)
    content = {part: {k: numbers.get(k, v) for k, v in values.items()} for part, values in METRICS.items()}
    (folder / "score/metrics.json").write_text(json.dumps(content))
    (folder / "metrics.csv").write_text("step,memory_mib\n1,10\n2,30.4\n2,\n")
    return folder


def test_numbers_of_a_table_by_hand(tmp_path: Path):
    runs = [read_run(write_run(tmp_path / "a", AP=0.4, APl=-1)), read_run(write_run(tmp_path / "b", AP=0.6, APl=-1))]
    row = make_row("fpn", runs, COSTS)
    assert list(row.numbers) == list(COLUMNS)
    assert row.numbers["AP"].mean == 0.5 and row.numbers["AP"].spread == pytest.approx(0.1)
    cells = to_markdown([row]).splitlines()[2].strip("| ").split(" | ")
    assert cells[:3] == ["fpn", "2", "50.0 ± 10.0"]
    shown = [column for column in COLUMNS if column not in SHAPES]  # of boxes alone
    assert cells[2 + shown.index("APl")] == "–"
    assert cells[2 + shown.index("APs")] == "33.0 ± 0.0" and cells[2 + shown.index("AR1000s")] == "55.0 ± 0.0"
    assert cells[-4:] == ["1.50", "2.35", "12.3", "30"]
    single = to_markdown([make_row("f|pn", runs[:1], COSTS)]).splitlines()[2]
    assert single.startswith(r"| f\|pn | 1 | 40.0 |") and "±" not in single
    alone = read_run(tmp_path / "a", rpn_alone=True)
    assert all(math.isnan(alone[name]) for name in BOXES) and alone["AR100"] == 0.5
    masked = runs[0] | {"segm/AP": 0.25}
    table = to_markdown([row, make_row("mask", [masked], COSTS)]).splitlines()
    heads, *rows = [[cell.strip() for cell in table[i].strip("|").split("|")] for i in (0, 2, 3)]
    assert [cells[heads.index("segm/AP")] for cells in rows] == ["–", "25.0"] and "boundary/AP" not in heads
    shutil.copy(tmp_path / "b/score/metrics.json", tmp_path / "a")  # the user's own evaluation does not count
    assert read_run(tmp_path / "a")["AP"] == 0.4
    values = next(csv.DictReader(to_csv([row]).splitlines()))
    assert float(values["AP_spread"]) == pytest.approx(0.1) and values["APl"] == ""


def test_an_earlier_picture_goes_when_there_is_nothing_to_draw(tmp_path: Path):
    run = write_run(tmp_path / "a")
    rows = {alone: make_row("a", [read_run(run, rpn_alone=alone)], COSTS) for alone in (False, True)}
    command.write_tables([rows[False]], tmp_path)
    assert Image.open(tmp_path / "ap_latency.png").format == "PNG"
    command.write_tables([rows[True]], tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.*")) == ["table.csv", "table.md"]
    (tmp_path / "ap_latency.png").mkdir()
    with pytest.raises(DataError, match=r"ap_latency\.png: cannot be written"):
        command.write_tables([rows[False]], tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"bbox": 1}'])
def test_a_damaged_metrics_file_is_named(tmp_path: Path, content: str):
    (write_run(tmp_path / "a") / "score/metrics.json").write_text(content)
    with pytest.raises(DataError, match=r"metrics\.json: not the metrics"):
        read_run(tmp_path / "a")


@pytest.mark.parametrize("channels", [2, convolution.CHANNELS])
def test_flops_are_those_of_the_convolutions_and_products(
    channels: int, configs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Also where most convolutions take Winograd's way, which has fewer."""
    monkeypatch.setattr(convolution, "CHANNELS", channels)
    monkeypatch.setattr(convolution, "CELLS", 16)
    assert made_training([configs[0], "--output", str(tmp_path)]) == 0
    predictor = detector.load(tmp_path / "best.pth", trust=True)
    dataset = build_dataset(predictor.config.needed_data(), "val")
    counted = []  # a weight is (C_out, C_in, ...): one multiplication and addition each, an output
    for module in predictor.model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda m, _, out: counted.append(2 * out.numel() * m.weight[0].numel()))
    flops = count_flops(predictor, dataset)
    assert flops == sum(counted) > 1e6
    assert all(0 < ms < 1e4 for ms in milliseconds([predictor, predictor], [dataset, dataset]))


def test_ticks_are_round_one_point_is_a_chart_and_names_stay_in_the_plane_and_off_each_other():
    assert ticks([13.2, 47.9]) == [10, 20, 30, 40, 50]
    assert ticks([0.31, 0.33]) == pytest.approx([0.31, 0.315, 0.32, 0.325, 0.33])
    assert len(draw_chart([ChartPoint("fpn", 20.0, 50.0, 0.0)], "ms per image", "AP").getcolors(2**16)) > 3
    assert ticks([5.0])[0] <= 5 <= ticks([5.0])[-1] and len(ticks([0.0])) > 1
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(AXES[:2]) + 10.0, torch.tensor(AXES[2:]) - 10.0
    middle = low + torch.rand(20, 2, generator=generator) * (high - low)
    marks = [(x - 6, y - 6, x + 6, y + 6) for x, y in middle.tolist()]
    names = torch.tensor(place_names(marks, [(90.0, 20.0)] * 20))
    assert (names[:, :2] >= torch.tensor(AXES[:2]) - 1e-3).all() and (
        names[:, 2:] <= torch.tensor(AXES[2:]) + 1e-3
    ).all()
    a, b = names[:, None], names[None]
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(dim=-1)
    assert (overlap - overlap.diagonal().diag()).max() == 0
