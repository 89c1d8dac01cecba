"""The native library under AddressSanitizer and UndefinedBehaviorSanitizer.

Built into a temporary folder together with a C++ driver, since neither Python nor torch is built
with them; every instruction set of this machine makes random ragged calls.
"""

from __future__ import annotations

import ast
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fastssl.kernels import native as compiled

pytestmark = pytest.mark.sanitize

ROOT = Path(__file__).parent.parent.parent
DRIVER = Path(__file__).with_name("sanitize_driver.cpp")
FLAGS = [
    "-std=c++17", "-O1", "-g", "-pthread", "-fno-omit-frame-pointer", "-ffp-contract=fast",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
]  # fmt: skip
CALLS = 150


def instruction_set_flags() -> dict[str, list[str]]:
    """What setup.py compiles the kernels with; importing it would build the package."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return {}
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "X86_SETS":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py has no X86_SETS")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """The program, with every instruction set in it."""
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: nothing to sanitize")
    folder = tmp_path_factory.mktemp("sanitized")
    sets = instruction_set_flags()
    have = [f"-DFASTSSL_HAVE_{name.upper()}" for name in sets]
    jobs = {}
    for source in [*(ROOT / "csrc").glob("*.cpp"), DRIVER]:
        if "FASTSSL_ISA" in source.read_text(encoding="utf-8"):  # as setup.py tells them apart
            for name, flags in (sets | {"baseline": []}).items():
                jobs[f"{source.stem}-{name}"] = [*flags, f"-DFASTSSL_ISA={name}", str(source)]
        else:
            jobs[source.stem] = [*have, f"-I{ROOT / 'csrc'}", str(source)]

    def build(*arguments: str) -> None:
        done = subprocess.run([compiler, *FLAGS, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        objects = {name: str(folder / f"{name}.o") for name in jobs}
        list(pool.map(lambda name: build(*jobs[name], "-c", "-o", objects[name]), jobs))
    program = folder / "driver"
    build(*objects.values(), "-o", str(program))
    return program


def run(driver: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [str(driver), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_random_ragged_calls_touch_nothing_that_is_not_theirs(driver):
    done = run(driver, str(CALLS))
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    assert done.stderr == ""
    expected = compiled.instruction_sets() or ["baseline"]
    lines = [f"{name}: {CALLS} calls" for name in expected]
    assert set(lines) <= set(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short-output", "AddressSanitizer: heap-buffer-overflow"),
        ("scalar-gradient", "AddressSanitizer: heap-buffer-overflow"),
        ("overflow", "runtime error: signed integer overflow"),
    ],
)
def test_the_alarm_goes_off(driver, name, words):
    done = run(driver, "canary", name)
    assert done.returncode != 0
    assert words in done.stderr
