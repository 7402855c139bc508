"""The command `detector`: its list, its version, one door for commands, scripts and the module, and how commands end."""

import argparse
import errno
import importlib
import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.training import script

import detector
from detector.cli.arguments import COMMANDS
from detector.cli.ending import ending
from detector.cli.main import main
from detector.distributed import SharedError
from detector.errors import ConfigError, Interrupted

ROOT = Path(__file__).parents[1]
WITHOUT_SCRIPT = {"browse", "config", "explain", "export", "merge", "report", "split"}
OTHER_SCRIPTS = {
    "measure_loading",
    "measure_pasting",
    "overfit_masks",
    "check_types",
    "benchmark_gpu",
    "measure_samples",
    "count_operators",
    "measure_batches",
    "measure_tiles",
}  # for those who work on the project
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def module_of(command: str) -> str:
    return command.replace("-", "_")


def test_every_command_is_a_file_has_a_script_and_is_listed_with_its_sentence(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for command, sentence in COMMANDS.items():
        assert [line.split() for line in lines].count([command, *sentence.split()]) == 1
    files = {path.stem for path in (ROOT / "detector/cli").glob("*.py") if "\ndef main(" in path.read_text()}
    assert files - {"main"} == {module_of(command) for command in COMMANDS}
    scripts = {path.stem: path.read_text() for path in (ROOT / "scripts").glob("*.py")}
    assert scripts.keys() - OTHER_SCRIPTS == {module_of(command) for command in COMMANDS.keys() - WITHOUT_SCRIPT}
    for name, text in scripts.items():
        if name not in OTHER_SCRIPTS:
            assert f"from detector.cli.{name} import main\n" in text and text.count("\n") < 10


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_one_signature_its_help_and_debug(command: str, capsys: pytest.CaptureFixture):
    entry = importlib.import_module(f"detector.cli.{module_of(command)}").main
    assert str(inspect.signature(entry)) == "(argv: 'list[str] | None' = None) -> 'int'"
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"usage: detector {command}" in shown and COMMANDS[command] in shown and "--debug" in shown


def test_a_wrong_command_line_ends_with_2_and_of_several_processes_the_first_reports_it(capsys, monkeypatch):
    for arguments in [[], ["no-such-command"], ["train"], ["evaluate"], ["convert-annotations"]]:
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert capsys.readouterr().err.startswith("usage: detector")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="2"):
        main(["train"])
    assert capsys.readouterr().err == ""


def test_the_module_is_the_command_and_its_help_imports_nothing_heavy():
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


@pytest.mark.slow
def test_a_reader_may_stop():
    command = f"{sys.executable} -m detector config --keys | head -n 1; echo ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT)
    assert found.stderr == "" and found.stdout.split("\n")[0] == "model" and found.stdout.split("\n")[1] in ("0", "141")


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


def test_config_explains_keys_writes_the_current_document_of_them_and_refuses_in_one_line(capsys):
    text = printed(capsys, "--keys", "model.rpn.matching")
    assert (
        "  matching.pos_iou: a number in 0.001..1; default 0.7\n      IoU from which a candidate is positive.\n" in text
    )
    assert "nms_iou" not in text and all(len(line) <= 100 for line in printed(capsys, "--keys").splitlines())
    ours = printed(capsys, str(ROOT / "configs/panet_full_r50_1x_coco.yaml"), "--keys", "model.neck")
    assert "{type: panet}" in ours and "{type: bifpn}" not in ours
    assert "default null; group by configs/panet_full_r50_1x_coco.yaml" in " ".join(ours.split())
    assert (ROOT / "docs/keys.md").read_text() == printed(capsys, "--markdown"), "run `make keys`"
    for arguments, words in [
        (["--keys", "model.rpm"], "did you mean 'model.rpn'?"),
        (["none.yaml"], "none.yaml: no such configuration file"),
        ([str(ROOT / "configs/shapes/fpn.yaml"), "train.lr=-1"], "train.lr: expected a number in 0..1e+09, got -1"),
    ]:
        assert main(["config", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


class Diverged(ConfigError):
    """An error of the work itself, as a loss that is not finite."""

    exit_status = 1


def end_of(error: BaseException | None, **args: bool) -> int:
    """The exit status of a command that raises `error`."""
    with ending(argparse.Namespace(**args), advice="the same command continues") as end:
        if error is not None:
            raise error
    return end.status


def test_an_expected_end_is_a_status_and_a_line_and_a_fault_of_the_program_keeps_its_traceback(capsys):
    for error, status, line in [
        (None, 0, ""),
        (ConfigError("a.yaml: model: no\nsuch"), 2, "error: a.yaml: model: no\\nsuch\n"),
        (Diverged("the loss is NaN"), 1, "stopped: the loss is NaN\n"),
        (Interrupted("the time limit", 124), 124, "stopped by the time limit; the same command continues\n"),
        (Interrupted("SIGTERM", 143), 143, "stopped by SIGTERM; the same command continues\n"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT; the same command continues\n"),
        (OSError(errno.EACCES, "denied", "x"), 2, "error: x: denied; correct the path or its permissions\n"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 2, "error: another process died "),
    ]:  # fmt: skip
        assert end_of(error) == status
        printed = capsys.readouterr()
        assert printed.err.startswith(line) and printed.err.count("\n") == bool(line) and printed.out == ""
    for error in [ValueError("a fault"), OSError("no file"), RuntimeError("shapes"), SystemExit(3)]:
        with pytest.raises(type(error)):
            end_of(error)


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_traceback_of_an_expected_error(how: str, monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setenv("DETECTOR_DEBUG", "1" if how == "environment" else "0")
    assert end_of(ConfigError("no such key"), debug=how == "option") == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback") and lines[-1] == "error: no such key"


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_processes_the_first_reports(rank: str, monkeypatch, capsys: pytest.CaptureFixture):
    shared = ConfigError("known to all")
    shared.__cause__ = SharedError()
    monkeypatch.setenv("RANK", rank)
    assert (end_of(shared), end_of(KeyboardInterrupt())) == (2, 130)
    assert capsys.readouterr().err.count("\n") == (2 if rank == "0" else 0)
    assert end_of(ConfigError("of this process alone")) == 2
    assert capsys.readouterr().err == "error: of this process alone\n"


def test_signals_end_a_command_but_not_under_nohup_and_their_handlers_are_restored(monkeypatch: pytest.MonkeyPatch):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    for number in (signal.SIGTERM, signal.SIGHUP):
        with ending(argparse.Namespace()) as end:
            signal.raise_signal(number)
        assert end.status == 128 + number
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")  # torchrun ends its processes itself
    with ending(argparse.Namespace()):
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending(argparse.Namespace()) as end:
            signal.raise_signal(signal.SIGHUP)
        assert end.status == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_name_too_long_is_said_as_is_a_circle_of_links(tmp_path, monkeypatch, capsys):
    for arguments in [["voc", "n" * 300, "--output", "o.json"], ["voc", ".", "--output", "n" * 300]]:
        monkeypatch.chdir(tmp_path)
        assert script("convert_annotations").main(arguments) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"error: {'n' * 300}: ") and os.strerror(errno.ENAMETOOLONG) in message
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(SystemExit, match="2"):
        script("check_data").main(["c.yaml", "--json", str(tmp_path / "circle"), "--picture", str(tmp_path / "circle")])
    assert "name the same file" in capsys.readouterr().err
