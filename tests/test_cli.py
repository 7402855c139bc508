"""The command `detector`: its list, its version, and one door for commands, scripts and the module."""

from __future__ import annotations

import importlib
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import detector
from detector.cli.arguments import COMMANDS
from detector.cli.main import main
from detector.config.keys import REQUIRED, key_table

ROOT = Path(__file__).parents[1]
OTHER_SCRIPTS = {"measure_loading", "check_types"}  # for those who work on the project
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def module_of(command: str) -> str:
    return command.replace("-", "_")


def test_help_lists_every_command_with_its_sentence(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for command, sentence in COMMANDS.items():
        assert [line.split() for line in lines].count([command, *sentence.split()]) == 1


def test_every_file_of_the_room_that_has_a_main_is_a_command():
    files = {path.stem for path in (ROOT / "detector/cli").glob("*.py") if "\ndef main(" in path.read_text()}
    assert files - {"main"} == {module_of(command) for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_one_signature_its_help_and_debug(command: str, capsys: pytest.CaptureFixture):
    entry = importlib.import_module(f"detector.cli.{module_of(command)}").main
    assert str(inspect.signature(entry)) == "(argv: 'list[str] | None' = None) -> 'int'"
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"usage: detector {command}" in shown and COMMANDS[command] in shown and "--debug" in shown


def test_scripts_are_a_few_lines_over_commands():
    scripts = {path.stem: path.read_text() for path in (ROOT / "scripts").glob("*.py")}
    assert scripts.keys() - OTHER_SCRIPTS == {module_of(command) for command in COMMANDS if command != "config"}
    for name, text in scripts.items():
        if name not in OTHER_SCRIPTS:
            assert f"from detector.cli.{name} import main\n" in text and text.count("\n") < 10


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["train"], ["evaluate"], ["convert-annotations"]])
def test_a_wrong_command_line_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert capsys.readouterr().err.startswith("usage: detector")


def test_of_several_processes_the_first_reports_a_wrong_command_line(monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    assert capsys.readouterr().err == ""


def test_the_module_is_the_command_and_help_imports_nothing_heavy():
    found = subprocess.run(
        [sys.executable, "-m", "detector", "--version"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert (found.returncode, found.stdout) == (0, f"detector {detector.__version__}\n")
    code = """
import sys
from detector.cli.main import main
try:
    main(["--help"])
except SystemExit:
    assert not {"torch", "numpy", "yaml", "PIL"} & sys.modules.keys()
from detector.cli import train
assert "torch" not in sys.modules  # so that a signal is answered at once
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=ENVIRONMENT)


def test_a_reader_that_stops_is_no_error():
    command = f"{sys.executable} -m detector config --keys | head -n 1; echo ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert found.stderr == "" and found.stdout.split("\n")[0] == "model" and found.stdout.split("\n")[1] in ("0", "141")


# --- detector config


def printed(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    assert main(["config", *arguments]) == 0
    return capsys.readouterr().out


def lines_of(text: str, section: str) -> dict[str, list[str]]:
    """Key -> value and origin, of the lines below the name of a section."""
    block = text.partition(f"{section}\n")[2].partition("\n\n")[0]
    return {line.split()[0]: line.split(maxsplit=1)[1].rsplit("  ", 1) for line in block.splitlines()}


def test_config_prints_values_defaults_and_origins(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("model: {neck: {type: nas_fpn, width: 8}, rpn: {nms_iou: 0.6}}\ntrain: {lr: 1}\n")
    Path("own.yaml").write_text("_base_: [base.yaml]\nmodel: {neck: fpn}\ntrain: {milestones: [3]}\n")
    text = printed(capsys, "own.yaml", "train.lr=0.5", "model.roi_head.selection.max_detections=7")
    found = {name: [part.strip() for part in parts] for name, parts in lines_of(text, "model.neck").items()}
    assert found["type"] == ["fpn", "own.yaml"]
    assert found["width"] == ["8", "base.yaml"]  # both necks have it
    assert [part.strip() for part in lines_of(text, "model.rpn")["selection.nms_iou"]] == ["0.6", "base.yaml"]
    head = lines_of(text, "model.roi_head")
    assert [part.strip() for part in head["selection.max_detections"]] == ["7", "command line"]
    recipe = {name: [part.strip() for part in parts] for name, parts in lines_of(text, "train").items()}
    assert recipe["lr"] == ["0.5", "command line"] and recipe["milestones"] == ["[3]", "own.yaml"]
    assert recipe["clip_norm"] == ["null", "default"] and "data" not in text.splitlines()
    assert all(len(line) <= 100 for line in text.splitlines())


def test_config_explains_keys(capsys: pytest.CaptureFixture):
    text = printed(capsys, "--keys", "model.rpn.matching")
    assert (
        "  matching.pos_iou: a number in 0.001..1; default 0.7\n      IoU from which a candidate is positive.\n" in text
    )
    assert "nms_iou" not in text and all(len(line) <= 100 for line in printed(capsys, "--keys").splitlines())
    ours = printed(capsys, str(ROOT / "configs/panet_full_r50_1x_coco.yaml"), "--keys", "model.neck")
    assert "{type: panet}" in ours and "{type: bifpn}" not in ours
    assert "default null; group by configs/panet_full_r50_1x_coco.yaml" in " ".join(ours.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keys", "model.rpm"], "did you mean 'model.rpn'?"),
        (["none.yaml"], "none.yaml: no such configuration file"),
        ([str(ROOT / "configs/shapes/fpn.yaml"), "train.lr=-1"], "train.lr: expected a number in 0..1e+09, got -1"),
    ],
)
def test_config_refuses_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture):
    assert main(["config", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_every_key_is_documented():
    keys = [(section.title, key) for section in key_table() for key in section.keys]
    assert [f"{title} {key.name}" for title, key in keys if not key.sentence] == []
    assert {key.name for _, key in keys if key.default is REQUIRED} >= {"root", "train.images"}


def test_the_document_of_keys_is_current(capsys: pytest.CaptureFixture):
    assert (ROOT / "docs/keys.md").read_text() == printed(capsys, "--markdown"), "run `make keys`"
