"""The notebook runs from its first cell to its last, and prints what reads well."""

import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples" / "train_and_look.ipynb"


@pytest.mark.slow
def test_the_notebook_trains_and_shows_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install 'detector[test]'")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'detector[test]'")
    paths = [str(NOTEBOOK.parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "\r" not in text and max(map(len, text.splitlines())) < 120
    losses = [
        float(line.split()[3]) for line in text.splitlines() if line[:5].strip().isdigit() and len(line.split()) == 5
    ]
    assert len(losses) == 4 and losses[-1] < losses[0]
    ap50 = float(text.split("AP50 ")[1].split()[0])
    assert ap50 > 0.2
