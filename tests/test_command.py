"""How commands end: the exit status, and one line on stderr that names what is wrong."""

import argparse
import errno
import os
import signal
from pathlib import Path

import pytest
from helpers.training import draw_set, script, write_config

from detector.cli.ending import ending
from detector.distributed import SharedError
from detector.errors import ConfigError, Interrupted


class Diverged(ConfigError):
    """An error of the work itself, as a loss that is not finite."""

    exit_status = 1


def end_of(error: BaseException | None, **args: bool) -> int:
    """The exit status of a command that raises `error`."""
    with ending(argparse.Namespace(**args), advice="the same command continues") as end:
        if error is not None:
            raise error
    return end.status


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (None, 0, ""),
        (ConfigError("a.yaml: model: no\nsuch"), 2, "error: a.yaml: model: no\\nsuch\n"),
        (Diverged("the loss is NaN"), 1, "stopped: the loss is NaN\n"),
        (Interrupted("the time limit", 124), 124, "stopped by the time limit; the same command continues\n"),
        (Interrupted("SIGTERM", 143), 143, "stopped by SIGTERM; the same command continues\n"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT; the same command continues\n"),
        (OSError(errno.EACCES, "denied", "x"), 2, "error: x: denied; correct the path or its permissions\n"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 2, "error: another process died "),
    ],
    ids=str,
)  # fmt: skip
def test_an_expected_end_is_a_status_and_a_line(error, status: int, line: str, capsys: pytest.CaptureFixture):
    assert end_of(error) == status
    printed = capsys.readouterr()
    assert printed.err.startswith(line) and printed.err.count("\n") == bool(line) and printed.out == ""


@pytest.mark.parametrize("error", [ValueError("a fault"), OSError("no file"), RuntimeError("shapes"), SystemExit(3)])
def test_a_fault_of_the_program_keeps_its_traceback(error: BaseException):
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


def test_signals_end_a_command_and_their_handlers_are_restored(monkeypatch: pytest.MonkeyPatch):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    for number in (signal.SIGTERM, signal.SIGHUP):
        with ending(argparse.Namespace()) as end:
            signal.raise_signal(number)
        assert end.status == 128 + number
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")  # torchrun ends its processes itself
    with ending(argparse.Namespace()):
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


def test_nohup_keeps_a_command_alive():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending(argparse.Namespace()) as end:
            signal.raise_signal(signal.SIGHUP)
        assert end.status == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["train", "check_data"])
def test_a_closed_folder_is_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    closed, is_dir = draw_set(tmp_path / "data") / "images", Path.is_dir

    def refuse(path: Path) -> bool:  # root may look into any folder
        if path == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return is_dir(path)

    config = write_config(tmp_path / "tiny.yaml", tmp_path / "data")
    monkeypatch.setattr(Path, "is_dir", refuse)
    arguments = ["--output", str(tmp_path / "run")] if name == "train" else []
    assert script(name).main([str(config), *arguments]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {closed}: Permission denied; ") and message.count("\n") == 1


@pytest.mark.parametrize("arguments", [["voc", "n" * 300, "--output", "o.json"], ["voc", ".", "--output", "n" * 300]])
def test_a_name_too_long_is_said(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert script("convert_annotations").main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {'n' * 300}: ") and os.strerror(errno.ENAMETOOLONG) in message


def test_two_outputs_that_are_one_circle_of_links(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(SystemExit, match="2"):
        script("check_data").main(["c.yaml", "--json", str(tmp_path / "circle"), "--picture", str(tmp_path / "circle")])
    assert "name the same file" in capsys.readouterr().err
