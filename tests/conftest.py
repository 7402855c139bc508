"""How all tests run."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.training import before_steps, draw_set, train, write_config
from hypothesis import settings

from detector.training.step import TrainStep

# The same examples on every run, and no clock: a busy machine must not fail a test.
settings.register_profile("tests", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` the tests of a file share a process, and of test_golden.py those of a model, which they build."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        model = parameters.get("name", "") if item.path.name == "test_golden.py" else ""
        item.add_marker(pytest.mark.xdist_group(f"{item.path.name} {model}"))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test draws the same numbers whether it runs alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn set; who changes it has a fixture of the same name in place of this one."""
    return draw_set(tmp_path_factory.mktemp("data"))


@pytest.fixture
def config(tmp_path: Path, data: Path) -> Path:
    """A training of two epochs on it."""
    return write_config(tmp_path / "tiny.yaml", data)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The folder of that training, which nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(write_config(folder / "tiny.yaml", data), folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, by playwright; tests of pages skip where one of them is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="a browser needs the package playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no chromium on this machine")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Arrange for signals within the step of that number; 0: before the first; None: no more of them."""
    connect = TrainStep.connect

    def arrange(at: int | None, *signals: signal.Signals) -> None:
        def raise_signals(number: int) -> None:
            if number == at:
                for kind in signals or (signal.SIGINT,):
                    signal.raise_signal(kind)

        def signalled_connect(self: TrainStep) -> None:
            raise_signals(0)
            connect(self)

        before_steps(monkeypatch, raise_signals)
        monkeypatch.setattr(TrainStep, "connect", signalled_connect)

    return arrange
