"""Where numbers go: metrics.jsonl always, the sinks of trackers.py on request.

A line is ``{"step": 10, "loss": ..., ..., "wall": {...}}``. Only what lies under ``wall`` depends
on time; everything else is the same in a run that was killed and resumed.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Protocol

from fastssl.engine.faults import fault
from fastssl.engine.files import write_bytes


class Sink(Protocol):
    """Anything that takes the numbers of a step."""

    def write(self, step: int, values: dict) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class JsonLines:
    """metrics.jsonl: one JSON object per line, appended with one system call each.

    Args:
        path: the file; lines of steps after ``keep_through``, and a line cut short, are removed.
        keep_through: step of the checkpoint that the run continues from (0: a new run).
    """

    def __init__(self, path: Path, *, keep_through: int) -> None:
        _truncate(path, keep_through)
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, step: int, values: dict) -> None:
        """Append a line. Raises OSError (disk full) after taking a half-written line back."""
        line = (json.dumps({"step": step, **_plain(values)}, allow_nan=False) + "\n").encode()
        size = os.fstat(self._handle).st_size
        try:
            fault("metrics.before_line")
            if os.write(self._handle, line) != len(line):
                raise OSError("metrics.jsonl: the line did not fit on the disk")
        except OSError:
            os.ftruncate(self._handle, size)
            raise

    def flush(self) -> None:
        """Make the lines survive a power cut."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def last_values(path: Path) -> tuple[dict[str, float], dict[str, float]]:
    """The newest training numbers and the newest readout in metrics.jsonl; empty where none."""
    metrics: dict[str, float] = {}
    readout: dict[str, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        readout = values.get("readout", readout)
        if "loss" in values:
            metrics = {k: v for k, v in values.items() if k not in ("step", "wall")}
    return metrics, readout


def _truncate(path: Path, keep_through: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            continue
        if line.endswith(b"\n") and step <= keep_through:
            kept.append(line)
    write_bytes(path, b"".join(kept))


def _plain(values: dict) -> dict:
    """JSON has no NaN: numbers that are not finite become null."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return _plain(value)
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: plain(value) for key, value in values.items()}
