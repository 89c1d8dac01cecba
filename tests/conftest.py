"""For every room: poisoned memory under the kernels' tests, and an account of what did not run."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

# the gate draws the same examples every time; HYPOTHESIS_PROFILE=search draws fresh ones
hypothesis.settings.register_profile("gate", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))

ROOT = Path(__file__).parent.parent
POISONED_ROOMS = tuple(ROOT / "tests" / room for room in ("compat", "kernels", "losses"))
OPTIONAL_MARKS = ("gpu", "slow", "wrong", "sanitize")
_left_out: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that our kernels ask for uninitialised is NaN, so that reading it shows."""
    if not any(room in request.path.parents for room in POISONED_ROOMS):
        return
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The allocator, filling what fastssl.kernels receives from it with NaN (integers: -7)."""

    def wrapper(*args: object, **kwargs: object) -> torch.Tensor:
        memory = allocate(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.startswith("fastssl.kernels") and type(memory) is torch.Tensor:
            if memory.is_floating_point():
                memory.fill_(torch.nan)
            elif memory.dtype in (torch.int32, torch.int64):
                memory.fill_(-7)
        return memory

    return wrapper


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count by the mark that kept a test from running."""
    for item in items:
        _left_out.update([m for m in OPTIONAL_MARKS if item.get_closest_marker(m)][:1])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what this run did not prove, and how to run it."""
    for mark, count in sorted(_left_out.items()):
        terminalreporter.write_line(f"not run: {count} tests marked {mark}: pytest -m {mark}")
