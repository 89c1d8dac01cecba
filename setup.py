"""Packages, and the compiled CPU library; the static facts are in pyproject.toml.

The library (csrc/) links neither Python nor torch, so building it needs a C++17 compiler alone and
the wheel fits every Python 3. One source is compiled once per instruction set and the best is
chosen at load. Where the build fails the package installs without it and runs slower.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FLAGS = [
    "-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno",
]  # fmt: skip
LINK_FLAGS = ["-shared", "-static-libgcc", "-static-libstdc++", "-pthread"]
# A source that names this macro is compiled once per instruction set; what each set needs.
PER_SET = "FASTSSL_ISA"
X86_SETS = {
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
}


class BuildError(Exception):
    """No compiler, or it refused."""


def find_compiler() -> list[str]:
    """$CXX if set, else the first C++ compiler on the path."""
    if os.environ.get("CXX"):
        return shlex.split(os.environ["CXX"])
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C++ compiler found (looked for $CXX, g++, clang++, c++)")


def run(command: list[str]) -> None:
    """Runs a compiler; BuildError with what it printed where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        raise BuildError(f"{shlex.join(command)}\n{done.stderr[-2000:]}")


class BuildNative(build_ext):
    """Compiles csrc/ into fastssl/kernels/_native.so without any help of distutils."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(Path(self.get_ext_fullpath(ext.name)))
        except BuildError as error:
            self.warn(
                f"the compiled CPU library was not built: {error}\n"
                "fastssl installs without it and answers through plain torch, slower. "
                "Install a C++17 compiler (apt-get install g++) and reinstall to get it."
            )

    def _build(self, target: Path) -> None:
        compiler = find_compiler()
        objects = Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        sets = X86_SETS if platform.machine() in ("x86_64", "AMD64") else {}
        have = [f"-DFASTSSL_HAVE_{name.upper()}" for name in sets]
        jobs = {}
        for source in sorted(Path("csrc").glob("*.cpp")):
            if PER_SET not in source.read_text(encoding="utf-8"):
                jobs[f"{source.stem}.o"] = [*have, str(source)]
                continue
            for name, flags in {**sets, "baseline": []}.items():
                jobs[f"{source.stem}.{name}.o"] = [*flags, f"-D{PER_SET}={name}", str(source)]

        def compile_one(name: str) -> str:
            out = str(objects / name)
            run([*compiler, *FLAGS, *jobs[name], "-c", "-o", out])
            return out

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            compiled = list(pool.map(compile_one, jobs))
        part = target.with_name(
            target.name + ".part"
        )  # a running process may have the old one open
        run([*compiler, *LINK_FLAGS, *compiled, "-o", str(part)])
        part.replace(target)


class PlatformWheel(bdist_wheel):
    """py3-none-<platform>: bound to the processor, not to a Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    package_dir={"fastssl": "fastssl", "fastssl.kernels": "kernels"},
    packages=["fastssl", "fastssl.kernels"]
    + [f"fastssl.{name}" for name in find_packages("fastssl")]
    + [f"fastssl.kernels.{name}" for name in find_packages("kernels")],
    package_data={"fastssl": ["py.typed"], "fastssl.kernels": ["py.typed"]},
    ext_modules=[Extension("fastssl.kernels._native", ["csrc/dispatch.cpp"], optional=True)]
    if sys.platform != "win32"
    else [],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
