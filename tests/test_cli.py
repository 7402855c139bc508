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

ROOT = Path(__file__).parents[1]
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
    assert scripts.keys() - {"measure_loading"} == {module_of(command) for command in COMMANDS if command != "config"}
    for name, text in scripts.items():
        if name != "measure_loading":
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


def test_from_the_folder_above_a_checkout_the_package_is_found(tmp_path: Path):
    """A folder `detector` without __init__.py would be an empty namespace; a .pth file finds the package all the same."""
    (tmp_path / "detector").symlink_to(ROOT)
    site = tmp_path / "site"
    site.mkdir()
    (site / "editable.pth").write_text(f"{tmp_path / 'detector'}\n")
    code = f"import site; site.addsitedir({str(site)!r}); import detector; print(detector.__version__)"
    command = [sys.executable, "-S", "-c", code]
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONPATH"}
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert found.stdout == f"{detector.__version__}\n", found.stderr
