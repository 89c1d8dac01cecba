"""Peak resident memory of one step, in a process of its own.

The step is named ``module:function``; called with the JSON arguments it prepares its inputs and
returns the function to measure, which has then run once at a small size (libraries loaded, threads
started). The figure is the peak of resident memory during the measured call less what was resident
just before it: inputs are not in it, everything the call makes or returns is.
"""

from __future__ import annotations

import gc
import importlib
import json
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def extra_peak_bytes(step: str, **arguments: object) -> int:
    """Bytes of resident memory that the step adds at its peak."""
    command = [sys.executable, "-m", "benchmarks.memory", step, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"memory measurement of {step} failed:\n{done.stderr}")
    return int(done.stdout.splitlines()[-1])


def _measure(step: str, arguments: dict[str, object]) -> int:
    module, function = step.split(":")
    prepared = getattr(importlib.import_module(module), function)(**arguments)
    gc.collect()
    before = _reset_peak()
    kept = prepared()  # held until the peak is read
    after = _peak()
    del kept
    return after - before


def _reset_peak() -> int:
    """Resident bytes now. The kernel's high-water mark starts again from here where it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _peak()  # the old peak: then the figure is only what goes beyond it
    return _status("VmRSS")


def _peak() -> int:
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(_measure(sys.argv[1], json.loads(sys.argv[2])))
