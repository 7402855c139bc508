"""scripts/measure_loading.py on a small file of its own making."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.training import script


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
def test_a_small_file_is_made_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    measuring = script("measure_loading")
    monkeypatch.setitem(sys.modules, "measure_loading_script", measuring)  # where a worker may look for it
    for name, value in {"IMAGES": 300, "BOXES": 900, "CLASSES": 5, "WORKERS": (0, 1)}.items():
        monkeypatch.setattr(measuring, name, value)
    measuring.write_annotations(tmp_path / "a.json")
    assert measuring.main([str(tmp_path / "a.json")]) == 0
    out = capsys.readouterr().out
    assert "300 images, 900 objects of 5 classes" in out and "0 boxes clipped" in out
    rows = {
        line.split()[0]: [float(x) for x in line.split()[1:]] for line in out.splitlines()[3:] if line[-1:].isdigit()
    }
    assert list(rows) == ["before", "loaded", "added", "0", "1"]
    assert rows["1"][1] < rows["0"][1] / 2  # a worker shares most of what its parent has
    assert measuring.main([str(tmp_path / "none.json")]) == 2
    assert "none.json: cannot read the annotations" in capsys.readouterr().err
