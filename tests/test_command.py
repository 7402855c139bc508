"""What the system refuses is one line that names it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from helpers.training import draw_set, script, write_config


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
    assert f"error: {'n' * 300}: {os.strerror(errno.ENAMETOOLONG)}; " in capsys.readouterr().err


def test_two_outputs_that_are_one_circle_of_links(tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(SystemExit, match="2"):
        script("check_data").main(["c.yaml", "--json", str(tmp_path / "circle"), "--picture", str(tmp_path / "circle")])
    assert "name the same file" in capsys.readouterr().err
