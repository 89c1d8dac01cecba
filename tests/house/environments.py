"""Virtual environments that hold torch and what torch itself requires, and nothing else.

torch is gigabytes, so it is not installed again: every top-level file of the distributions in the
closure of its own requirements is linked from the running environment. What is not in that closure
(tyro, torchvision, DALI, ...) is not on the new environment's path at all.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
import venv
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement

BUILD_TOOLS = ("setuptools", "wheel")


def closure(*names):
    """Distributions that `names` require, transitively, with the extras they ask for."""
    waiting, found = [Requirement(name) for name in names], {}
    while waiting:
        wanted = waiting.pop()
        try:
            distribution = importlib.metadata.distribution(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            continue
        known = found.setdefault(wanted.name.lower(), (distribution, set()))[1]
        new = {"", *wanted.extras} - known
        known |= new
        for line in distribution.requires or []:
            needed = Requirement(line)
            if any(not needed.marker or needed.marker.evaluate({"extra": e}) for e in new):
                waiting.append(needed)
    return [distribution for distribution, _ in found.values()]


@cache
def shared_folders():
    """Top-level folders to which several distributions contribute, such as `nvidia`."""
    owners = importlib.metadata.packages_distributions()
    return {name for name, distributions in owners.items() if len(set(distributions)) > 1}


def link(distribution, site):
    """Make one distribution of the running environment importable from `site`."""
    here, shared = Path(distribution.locate_file("")), shared_folders()
    entries = set()
    for file in distribution.files or []:
        parts = file.parts
        if parts[0] == ".." or parts[-1].endswith(".pth"):
            continue
        entries.add(Path(*parts[: 2 if parts[0] in shared else 1]))
    for entry in entries:
        target = site / entry
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            target.symlink_to(here / entry)


def bare_environment(folder, *distributions):
    """The Python of a new environment with the closure of `distributions`."""
    venv.create(folder, with_pip=False, symlinks=True)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=paths))
    for distribution in closure(*distributions):
        link(distribution, site)
    return folder / "bin" / "python"


def pip(python, *arguments, **options):
    """Run this environment's pip on another environment."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", *arguments]
    command.append("--disable-pip-version-check")
    return subprocess.run(command, capture_output=True, text=True, **options)


def python_says(python, script, **options):
    """Standard output of a script that must end well, run away from the source tree."""
    command = [str(python), "-I", "-c", script]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout
