"""Rooms import in one direction: the contracts of pyproject.toml, on the installed layout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.house.tree import ROOT

LINT_IMPORTS = Path(sys.executable).parent / "lint-imports"


def lint_imports(site):
    """Exit code and output of import-linter on the package in `site`."""
    command = [str(LINT_IMPORTS), "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_every_door_is_one_way(installed_layout):
    code, output = lint_imports(installed_layout)
    assert code == 0, output


def test_an_import_against_a_door_is_seen(installed_layout, tmp_path):
    shutil.copytree(installed_layout / "fastssl", tmp_path / "fastssl")
    doors = {"kernels": "fastssl.losses", "methods": "fastssl.engine.config"}
    doors |= {"compat": "fastssl.nn", "losses": "fastssl.compat", "engine": "fastssl.compat"}
    for room, wrong in doors.items():
        module = tmp_path / "fastssl" / room / "wrong_door.py"
        module.write_text(f"import {wrong}\n")
        code, output = lint_imports(tmp_path)
        module.unlink()
        assert code != 0
        assert f"fastssl.{room}.wrong_door" in output
