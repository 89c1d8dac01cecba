"""Small runs of the real commands, in this process unless a test needs another one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FAST = ["--max-steps", "6", "--batch-size", "16", "--save-every", "3", "--log-every", "1"]


@pytest.fixture(scope="session")
def small_readouts():
    """Readouts on few images, so that scoring does not take longer than training."""
    from fastssl.recipes import assemble

    patch = pytest.MonkeyPatch()
    limits = {"train_limit": 300, "test_limit": 100}
    patch.setattr(assemble, "LIVE", limits)
    patch.setattr(assemble, "FINAL", limits)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield limits
    torch.set_num_threads(threads)
    patch.undo()


@pytest.fixture(scope="session")
def train(small_readouts):
    """``train(*flags)`` -> exit status, of a tiny Spirograph run unless the flags say otherwise."""
    from fastssl.train import main

    return lambda *flags: main([*FAST, *map(str, flags)])


@pytest.fixture(scope="session")
def finished_run(train, tmp_path_factory) -> Path:
    """A finished Spirograph run. Tests only read it, or copy it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train("--out", out) == 0
    return out


@pytest.fixture
def command(tmp_path):
    """``command("train", *flags)`` -> the finished process, run in an empty folder."""

    def run(name, *flags, **options):
        return subprocess.run(
            [sys.executable, *options.pop("python", []), "-m", f"fastssl.{name}", *map(str, flags)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run
