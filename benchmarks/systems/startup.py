"""How long one waits before anything happens: imports, --help, --dry-run, in fresh processes."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.clock import Timing, as_record, summarise
from benchmarks.machine import describe, facts
from benchmarks.targets import at_most, conclude, keep

IMPORT = """
import time
import torch
start = time.perf_counter()
import fastssl.losses
print(time.perf_counter() - start)
"""
TRAIN = ("-m", "fastssl.train")
LOSSES_S, HELP_S, DRY_RUN_S = 0.3, 0.5, 6.0


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    machine = facts(threads=options.threads)
    print(describe(machine))
    repeats = 2 if options.quick else 7
    dry_run = (*TRAIN, "--method", "simclr", "--dry-run")
    timings = {
        "import fastssl.losses, over torch": repeated(import_seconds, repeats),
        "fastssl.train --help": repeated(lambda: wall_seconds(*TRAIN, "--help"), repeats),
        "fastssl.train --dry-run": repeated(lambda: wall_seconds(*dry_run), repeats),
    }
    for name, timing in timings.items():
        print(f"{name:<36} {timing}")
    limits = zip(timings.items(), (LOSSES_S, HELP_S, DRY_RUN_S), strict=True)
    verdicts = [at_most(name, timing.median, limit, " s") for (name, timing), limit in limits]
    verdicts = [] if options.quick else verdicts
    rows = {name: as_record(timing) for name, timing in timings.items()}
    keep(options.json, {"machine": machine, "rows": rows}, verdicts)
    return conclude(verdicts) if verdicts else 0


def repeated(measure: Callable[[], float], repeats: int) -> Timing:
    """One call to fill the file cache, then `repeats` that count."""
    measure()
    return summarise([measure() for _ in range(repeats)])


def import_seconds() -> float:
    """Seconds that the losses' import takes once torch is there."""
    return float(_python("-c", IMPORT).splitlines()[-1])


def wall_seconds(*arguments: str) -> float:
    """Seconds from starting the interpreter to its end."""
    start = time.perf_counter()
    _python(*arguments)
    return time.perf_counter() - start


def _python(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
