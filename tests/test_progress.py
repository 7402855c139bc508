"""Progress: a bar on a terminal, whole lines in a log."""

import io
import sys

import pytest

from detector import progress
from detector.progress import Progress


class Screen(io.StringIO):
    """A terminal that keeps what is written."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_whole_lines_a_terminal_a_bar_and_a_hidden_bar_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    with Progress(total=4, unit="img", desc="evaluate") as bar:
        bar.update(2)
        bar.write("skipped: a.png", file=log)
        monkeypatch.setattr(progress, "SECONDS_PER_LINE", -1)
        bar.set_postfix_str("loss 1.5", refresh=True)
        monkeypatch.setattr(progress, "SECONDS_PER_LINE", 30)
        bar.update(2)
    skipped, halfway, end = log.getvalue().splitlines()
    assert "\r" not in log.getvalue() and skipped == "skipped: a.png"
    assert halfway.startswith("evaluate: 2/4 img [") and halfway.endswith("loss 1.5]")
    assert end.startswith("evaluate: 4/4 img [")
    monkeypatch.setattr(sys, "stderr", screen := Screen())
    with Progress(total=2, unit="img", shown=False) as bar:
        bar.update(2)
    assert screen.getvalue() == ""
    with Progress(total=2, unit="img") as bar:
        bar.update(2)
    assert "\r" in screen.getvalue() and "100%" in screen.getvalue()
