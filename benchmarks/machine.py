"""What the figures were measured on, and the fp32 peak they are held against."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).parent
WRITTEN = (":(top,exclude)benchmarks/results", ":(top,exclude)docs/claims.md")
PACKAGES = (
    "torch",
    "numpy",
    "triton",
    "lightly",
    "torchvision",
    "kornia",
    "nvidia-dali-cuda130",
    "fastssl",
)


@dataclass(frozen=True)
class Peak:
    """fp32 GFLOP/s of all threads together, and how it was found."""

    gflops: float
    how: str


def facts(*, threads: int, device: str = "cpu") -> dict[str, object]:
    """Machine, versions and load, for the head of every record."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": commit(),
    }


def describe(machine: dict[str, object]) -> str:
    """The facts as a few printable lines."""
    versions = machine["versions"]
    assert isinstance(versions, dict)
    return "\n".join(
        [
            f"machine   {machine['cpu']}, {machine['cores']} cores, {machine['capability']}, "
            f"{machine['threads']} threads, load {machine['load_1min']}",
            f"versions  python {machine['python']}, "
            + ", ".join(f"{name} {version}" for name, version in versions.items() if version),
            f"commit    {machine['commit']}",
        ]
    )


def fma_peak(*, threads: int, seconds: float = 0.3) -> Peak:
    """The best fp32 fused-multiply-add rate seen on `threads` cores, within about `seconds`.

    A register-only C loop, compiled here for this processor. Where there is no C compiler the
    library's matrix product stands in: a lower bound, so fractions of it flatter, and the `how` of
    the result says so.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        return Peak(_sgemm_gflops(seconds), "torch matmul, a lower bound (no C compiler found)")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "fma_peak.so"
        flags = ["-O3", "-march=native", "-ffp-contract=fast", "-funroll-loops", "-shared", "-fPIC"]
        command = [compiler, *flags, str(HERE / "fma_peak.c"), "-o", str(library)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            how = (
                f"torch matmul, a lower bound ({Path(compiler).name} failed: {built.stderr[:200]})"
            )
            return Peak(_sgemm_gflops(seconds), how)
        kernel = ctypes.CDLL(str(library)).fma_peak
        kernel.restype = ctypes.c_double
        kernel.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_float)]
        gflops = _run_on_all(kernel, threads, seconds)
    return Peak(gflops, f"register FMA loop, {Path(compiler).name} -march=native")


def _run_on_all(kernel: ctypes._NamedFuncPointer, threads: int, seconds: float) -> float:
    """Sum over the threads of each one's best rate; ctypes lets go of the interpreter lock."""
    rounds = 200_000  # about 5 ms: short enough to fit between two interruptions

    def one_thread(_: int) -> float:
        best, end = 0.0, time.perf_counter() + seconds
        sink = ctypes.c_float(0.0)
        while time.perf_counter() < end:
            start = time.perf_counter()
            flops = kernel(rounds, ctypes.byref(sink))
            best = max(best, flops / (time.perf_counter() - start))
        return best / 1e9

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(one_thread, range(threads)))


def _sgemm_gflops(seconds: float) -> float:
    a, b = torch.randn(2, 1024, 1024)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * 1024**3 / (time.perf_counter() - start))
    return best / 1e9


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "?")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def commit() -> str:
    """The commit that was checked out when this process first asked, whose code it runs.

    "+changes" is behind it where the tree differs from it, but for what the commands here write:
    a record would otherwise make the next seed one of changed code.
    """
    changed = _git(["status", "-s", "--", ":(top)", *WRITTEN])
    return _git(["rev-parse", "--short", "HEAD"]) + ("+changes" if changed else "")


def _git(arguments: Sequence[str]) -> str:
    command = ["git", "-C", str(HERE), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


if __name__ == "__main__":
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    print(describe(facts(threads=wanted)))
    print(fma_peak(threads=wanted))
