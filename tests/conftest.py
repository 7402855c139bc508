"""How all tests run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# The same examples on every run, and no clock: a busy machine must not fail a test.
settings.register_profile("tests", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test draws the same numbers whether it runs alone or after others."""
    torch.manual_seed(0)
