"""The suite catches every planted bug of mutants.py; without a bug the same tests are green.

Each mutant lives in a copy of the package in its installed layout, with the tests beside it, and a
fresh pytest runs the named tests there. Caught means exit code 1: tests ran, and one failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.house.tree import ROOT
from tests.wrong.mutant import Mutant
from tests.wrong.mutants import MUTANTS, SAMPLE

FAILED = 1
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """A copy with the compiled library (True) and one without (False)."""
    return {library: copied(tmp_path_factory.mktemp("copy"), library) for library in (True, False)}


def copied(folder, library):
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastssl", folder / "fastssl", ignore=caches)
    shutil.copytree(ROOT / "kernels", folder / "fastssl" / "kernels", ignore=caches)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=caches)
    shutil.copytree(ROOT / "benchmarks", folder / "benchmarks", ignore=caches)
    shutil.copytree(ROOT / "docs", folder / "docs")  # a page that is missing would catch any bug
    shutil.copy2(ROOT / "pyproject.toml", folder)
    if not library:
        for compiled in (folder / "fastssl" / "kernels").glob("*.so"):
            compiled.unlink()
    return folder


def run_tests(folder, tests):
    """Exit code and output of pytest on the package in `folder`; any mark may run but `gpu`."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not gpu and not slow", *tests]
    command += ["-p", "no:cacheprovider", "--no-header"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"  # a source changed back within a second is stale
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def planted(mutant, folder):
    """Change the file in `folder`; returns its path and its text before."""
    inside = mutant.file.removeprefix("kernels/")
    path = folder / (mutant.file if inside == mutant.file else f"fastssl/kernels/{inside}")
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace(mutant.old, mutant.new), encoding="utf-8")
    return path, before


def hunt(mutant, copies):
    folder = copies[mutant.library]
    path, before = planted(mutant, folder)
    try:
        code, output = run_tests(folder, mutant.tests)
    finally:
        path.write_text(before, encoding="utf-8")
    assert code == FAILED, f"{mutant.name} survives, or could not be tested:\n{output[-3000:]}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_fits_the_code_it_was_written_for(mutant: Mutant):
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1
    assert mutant.new != mutant.old
    compile(text.replace(mutant.old, mutant.new), mutant.file, "exec")


def test_names_are_unique():
    assert len(BY_NAME) == len(MUTANTS)
    assert set(SAMPLE) <= set(BY_NAME)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_planted_bugs_is_caught(name, copies):
    hunt(BY_NAME[name], copies)


@pytest.mark.wrong
@pytest.mark.parametrize("library", [True, False], ids=["library", "reference"])
def test_without_a_planted_bug_the_same_tests_are_green(library, copies):
    tests = {test for mutant in MUTANTS if mutant.library == library for test in mutant.tests}
    code, output = run_tests(copies[library], sorted(tests))
    assert code == 0, output[-3000:]


@pytest.mark.wrong
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_caught(mutant, copies):
    hunt(mutant, copies)
