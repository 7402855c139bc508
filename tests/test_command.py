"""A folder of another's: the system's no is one line that names it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tiny_training import draw_set, script, write_config


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
