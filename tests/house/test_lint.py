"""ruff and mypy are clean."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.house.tree import ROOT


def run(*command, cwd=ROOT, **environment):
    """Exit code and output of ``python -m command``."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_ruff_finds_nothing():
    code, output = run("ruff", "check", "--output-format", "concise", ".")
    assert code == 0, output


def test_every_file_is_formatted():
    code, output = run("ruff", "format", "--check", "--quiet", ".")
    assert code == 0, output


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_types_hold(installed_layout, tmp_path):
    configuration, cache = str(ROOT / "pyproject.toml"), str(tmp_path / "mypy")
    arguments = ["--config-file", configuration, "--cache-dir", cache, "-p", "fastssl"]
    code, output = run("mypy", *arguments, cwd=tmp_path, MYPYPATH=str(installed_layout))
    assert code == 0, output
