"""Verdicts: one line per target, and the exit code that goes with them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Verdict:
    """A figure against its target."""

    name: str
    figure: float
    relation: str
    target: float
    unit: str
    ok: bool

    def __str__(self) -> str:
        figure = f"{self.figure:.4g}{self.unit}"
        target = f"{self.relation} {self.target:g}{self.unit}"
        return f"{self.name:<46} {figure:>12}   {target:<14} {'ok' if self.ok else 'short'}"


def at_least(name: str, figure: float, target: float, unit: str = "") -> Verdict:
    """More is better. NaN is short."""
    return Verdict(name, figure, ">=", target, unit, figure >= target)


def at_most(name: str, figure: float, target: float, unit: str = "") -> Verdict:
    """Less is better. NaN is short."""
    return Verdict(name, figure, "<=", target, unit, figure <= target)


def conclude(verdicts: Sequence[Verdict]) -> int:
    """Print a line per target; the exit code is 1 if any is short, else 0."""
    print("\ntargets")
    for verdict in verdicts:
        print(verdict)
    short = sum(not verdict.ok for verdict in verdicts)
    print(f"{len(verdicts) - short} of {len(verdicts)} targets met")
    return 1 if short else 0


def keep(path: Path | None, record: dict[str, object], verdicts: Sequence[Verdict]) -> None:
    """Write the record with its verdicts as JSON, if a path was given."""
    if path is None:
        return
    record = {**record, "targets": [dataclasses.asdict(verdict) for verdict in verdicts]}
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"record kept in {path}")
