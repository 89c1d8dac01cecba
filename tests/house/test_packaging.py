"""Wheel, sdist and editable install, with and without a compiler, beside nothing but torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.house.environments import BUILD_TOOLS, bare_environment, pip, python_says
from tests.house.tree import ROOT, project_files

LIBRARY = (".so", ".dylib")
STRANGERS = ("tyro", "rich", "torchvision", "torchaudio", "nvidia.dali", "safetensors", "yaml")
SOURCES = ("csrc", "fastssl", "kernels", "setup.py", "pyproject.toml", "README.md", "LICENSE")
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
RUN_A_LOSS = """
import warnings
warnings.simplefilter("always")
import torch
from fastssl.losses import NTXentLoss
views = [torch.randn(8, 4, requires_grad=True) for _ in range(2)]
with warnings.catch_warnings(record=True) as said:
    for _ in range(2):
        loss = NTXentLoss(0.5)(*views)
        loss.backward()
assert all(torch.isfinite(view.grad).all() for view in views)
print(len([s for s in said if s.category is RuntimeWarning]), "warnings")
"""


def copy_of_the_tree(folder):
    """What a fresh clone holds."""
    for path in project_files():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target)
    return folder


def build(tree, out, **environment):
    """A wheel without build isolation, so without the network."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(tree)]
    command += ["--no-build-isolation", "--wheel-dir", str(out)]
    environment = {**os.environ, **environment}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return next(Path(out).glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    tree = copy_of_the_tree(tmp_path_factory.mktemp("tree"))
    return build(tree, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel_without_compiler(tmp_path_factory):
    tree = copy_of_the_tree(tmp_path_factory.mktemp("tree"))
    return build(tree, tmp_path_factory.mktemp("dist"), **NO_COMPILER)


@pytest.fixture
def environment(tmp_path):
    return bare_environment(tmp_path / "bare", "torch", "numpy", *BUILD_TOOLS)


def names_in(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def test_a_wheel_holds_the_packages_on_disk_and_the_library(wheel):
    expected = set()
    for path in project_files():
        if path.parts[0] == "fastssl" and path.suffix in (".py", ".typed"):
            expected.add(str(path))
        if path.parts[0] == "kernels" and path.suffix in (".py", ".typed"):
            expected.add(f"fastssl/{path}")
    found = {name for name in names_in(wheel) if ".dist-info/" not in name}
    libraries = {name for name in found if name.endswith(LIBRARY)}
    assert found - libraries == expected
    assert libraries, "the compiled library is missing from the wheel"
    assert all(name.startswith("fastssl/kernels/") for name in libraries)


def test_an_sdist_holds_the_sources_and_builds_the_same_wheel(wheel, tmp_path):
    tree = copy_of_the_tree(tmp_path / "tree")
    script = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
    command = [sys.executable, "-c", script]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    with tarfile.open(next((tree / "dist").glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "sdist", filter="data")
    unpacked = next((tmp_path / "sdist").iterdir())
    needed = [path for path in project_files() if path.parts[0] in SOURCES]
    assert [str(path) for path in needed if not (unpacked / path).is_file()] == []
    (tmp_path / "dist").mkdir()
    rebuilt = build(unpacked, tmp_path / "dist", **NO_COMPILER)
    assert names_in(rebuilt) == {name for name in names_in(wheel) if not name.endswith(LIBRARY)}


def test_a_loss_runs_beside_torch_alone(wheel, environment):
    installed = pip(environment, "install", "--no-deps", "--no-index", str(wheel))
    assert installed.returncode == 0, installed.stderr
    for name in STRANGERS:
        found = f"import importlib.util as u; p = {name!r}.split('.')[0]; "
        found += f"print(bool(u.find_spec(p)) and bool(u.find_spec({name!r})))"
        assert python_says(environment, found) == "False\n", f"{name} is visible: not a bare core"
    assert python_says(environment, RUN_A_LOSS) == "0 warnings\n"


def test_a_command_without_its_extra_names_it(wheel, environment):
    pip(environment, "install", "--no-deps", "--no-index", str(wheel), check=True)
    command = [str(environment), "-I", "-m", "fastssl.train", "--method", "simclr"]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.returncode != 0
    assert "fastssl[train]" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_compiler_the_reference_answers_and_says_so_once(
    wheel_without_compiler, environment
):
    assert [n for n in names_in(wheel_without_compiler) if n.endswith(LIBRARY)] == []
    wheel = str(wheel_without_compiler)
    installed = pip(environment, "install", "--no-deps", "--no-index", wheel)
    assert installed.returncode == 0, installed.stderr
    assert python_says(environment, RUN_A_LOSS) == "1 warnings\n"


def test_an_editable_install_finds_kernels_and_what_is_added_later(environment, tmp_path):
    tree = copy_of_the_tree(tmp_path / "tree")
    options = ["--no-deps", "--no-index", "--no-build-isolation"]
    no_compiler = {**os.environ, **NO_COMPILER}  # compiling is the wheel's story
    installed = pip(environment, "install", *options, "--editable", str(tree), env=no_compiler)
    assert installed.returncode == 0, installed.stderr + installed.stdout
    later = tree / "kernels" / "later"
    later.mkdir()
    (later / "__init__.py").write_text("ANSWER = 42\n")
    where = "import fastssl.kernels as k; print(k.__file__); "
    where += "from fastssl.kernels.later import ANSWER; print(ANSWER)"
    assert python_says(environment, where) == f"{tree}/kernels/__init__.py\n42\n"
    assert python_says(environment, RUN_A_LOSS) == "1 warnings\n"


def test_isolated_builds_need_no_torch(tmp_path):
    """Build isolation gives setuptools alone; it comes from the registry."""
    tree = copy_of_the_tree(tmp_path / "tree")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(tree)]
    environment = {**os.environ, **NO_COMPILER}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("no package registry can be reached, and build isolation fetches setuptools")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("*.whl"))
