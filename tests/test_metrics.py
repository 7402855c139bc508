"""metrics.csv: its columns and rows, and what a resumed training keeps of them."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest
from helpers.training import rows

from detector.errors import DetectorError
from detector.training.metrics import SCORES, CsvWriter

LOSSES = ["rpn_objectness", "roi_box"]
COLUMNS = [
    "step", "epoch", "lr", "loss", "rpn_objectness", "roi_box", "grad_norm", "data_s", "step_s", "memory_mib", "val_loss",
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR100", "AR1000",
]  # fmt: skip


SCORED = {"val_loss": 0.25, **dict.fromkeys(SCORES, 0.75)}


def write(folder: Path, steps: range, *, scored: int | None = None, resumed: int = 0) -> None:
    """A row for each step, and one for the evaluation after the step `scored`."""
    history = [{"step": 3, "epoch": 1, **SCORED}] if resumed == 3 else []
    writer = CsvWriter(folder, step=resumed, history=history)
    for step in steps:
        writer.write(step, {"epoch": 1, "loss": step / 10, "roi_box": 0.5})
        if step == scored:
            writer.write(step, {"epoch": 1, **SCORED})
    writer.close()


def steps(folder: Path) -> list[int]:
    return [int(row["step"]) for row in rows(folder)]


def header(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()[0].split(",")


def test_a_loss_gets_its_column_when_it_is_first_met(tmp_path: Path):
    metrics = CsvWriter(tmp_path)
    assert header(tmp_path) == [name for name in COLUMNS if name not in LOSSES]
    metrics.write(1, {"loss": 1.0, "rpn_objectness": 0.25, "lr": 0.1, "roi_box": 0.75})
    assert header(tmp_path) == COLUMNS
    metrics.write(2, {"loss": 1.0, "aux": 0.125, "AP": 0.5})
    metrics.close()
    assert header(tmp_path) == COLUMNS[:6] + ["aux"] + COLUMNS[6:]
    first, second = rows(tmp_path)
    assert (first["rpn_objectness"], first["aux"], second["aux"], second["AP"]) == ("0.25", "", "0.125", "0.5")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_row_is_on_the_disk_as_soon_as_it_is_written(tmp_path: Path):
    metrics = CsvWriter(tmp_path)
    metrics.write(1, {"loss": 1 / 3, "epoch": 1, "AP": -1.0, "grad_norm": math.nan})
    (row,) = rows(tmp_path)
    assert {k: v for k, v in row.items() if v} == {
        "step": "1", "epoch": "1", "loss": "0.333333", "AP": "-1", "grad_norm": "nan"
    }  # fmt: skip
    metrics.close()


def test_resume_drops_the_rows_beyond_its_step(tmp_path: Path):
    write(tmp_path, range(1, 6), scored=3)
    kept = rows(tmp_path)[:4]
    write(tmp_path, range(4, 6), resumed=3)
    assert steps(tmp_path) == [1, 2, 3, 3, 4, 5]
    assert rows(tmp_path)[:4] == kept and kept[3]["AP"] == "0.75" and kept[3]["loss"] == ""


def test_a_new_training_starts_a_new_file_and_so_does_one_that_lost_it(tmp_path: Path):
    write(tmp_path, range(8, 10), resumed=7)
    assert steps(tmp_path) == [8, 9]
    write(tmp_path, range(1, 2))
    assert steps(tmp_path) == [1]


def test_resume_survives_a_row_that_a_crash_cut_short(tmp_path: Path):
    write(tmp_path, range(1, 4))
    path = tmp_path / "metrics.csv"
    path.write_text(path.read_text()[:-25] + "\nnonsense\n")
    write(tmp_path, range(3, 5), resumed=2)
    assert steps(tmp_path) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "damage", ["\u00b2".encode(), b"9" * 5000, b"\xe9", b'"'], ids=["²", "huge", "Latin-1", "quote"]
)
def test_resume_leaves_out_rows_that_are_none(tmp_path: Path, damage: bytes):
    write(tmp_path, range(1, 3))
    with open(tmp_path / "metrics.csv", "ab") as file:
        file.write(damage + b",1,1,1")
    CsvWriter(tmp_path, step=2).close()
    assert steps(tmp_path) == [1, 2]


def test_a_table_that_cannot_be_read_is_left_alone(tmp_path: Path):
    write(tmp_path, range(1, 3))
    (tmp_path / "metrics.csv").write_bytes(before := b"step,epoch,lr,loss\n1," + b"x" * 200_000)
    with pytest.raises(DetectorError, match=r"metrics.csv: cannot be continued .* move it away"):
        CsvWriter(tmp_path, step=2)
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_rows_wait_for_room_with_their_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    metrics = CsvWriter(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        metrics.write(1, {"loss": 0.5, "roi_box": 0.25})
        metrics.write(2, {"loss": 0.5, "roi_box": 0.125})
    metrics.write(3, {"loss": 0.5})
    metrics.close()
    assert [row["roi_box"] for row in rows(tmp_path)] == ["0.25", "0.125", ""]
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_resume_keeps_the_columns_of_old_rows_and_adds_new_ones(tmp_path: Path):
    write(tmp_path, range(1, 3))
    metrics = CsvWriter(tmp_path, step=2)
    assert metrics.added == ["roi_box"]
    metrics.write(3, {"roi_box_2": 0.25})
    metrics.close()
    assert [(row["roi_box"], row["roi_box_2"]) for row in rows(tmp_path)] == [("0.5", ""), ("0.5", ""), ("", "0.25")]
