"""Records of claims in benchmarks/results/claims/, and docs/claims.md made from them alone."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims.rows import Row
from benchmarks.claims.seeds import Kept, Length, claim_module

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "benchmarks" / "results" / "claims"
PAGE = ROOT / "docs" / "claims.md"
HEAD = """\
# Claims

What the papers claim, tried at the scale of two CPU cores. Every figure is a mean over the seeds
and its standard error; "holds" is judged by the rule in the column beside it.
`python -m benchmarks.claims NAME` repeats a table (`--quick`: the same directions, fewer steps).
This page is written by `python -m benchmarks.claims table` from the records in
`benchmarks/results/claims/`.
"""


def make_record(
    name: str,
    *,
    length: Length,
    machine: dict[str, object],
    minutes: float,
    kept: Sequence[Kept],
    rows: Sequence[Row],
) -> dict[str, Any]:
    """Everything that the page needs, and every seed's figures."""
    claim = claim_module(name)
    command = shlex.join(["python", "-m", "benchmarks.claims", *sys.argv[1:]])
    return {
        "claim": name,
        "title": claim.TITLE,
        "paper": claim.PAPER,
        "notes": claim.NOTES,
        "length": length,
        "command": command,
        "minutes": round(minutes, 1),
        "machine": machine,
        "rows": [dataclasses.asdict(row) for row in rows],
        "seeds": list(kept),
    }


def keep(record: dict[str, Any]) -> None:
    """Write the record and the page anew."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    file = RECORDS / f"{record['claim']}-{record['length']}.json"
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    write_page()
    print(f"record kept in {file.relative_to(ROOT)}, page written: {PAGE.relative_to(ROOT)}")


def write_page() -> None:
    """docs/claims.md from the records."""
    PAGE.write_text(page(records()), encoding="utf-8")


def page(records: Sequence[dict[str, Any]]) -> str:
    """The page as text."""
    return "\n".join([HEAD, *(_section(record) for record in records)])


def records() -> list[dict[str, Any]]:
    """All records, by file name."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(RECORDS.glob("*.json"))]


def _section(record: dict[str, Any]) -> str:
    machine, rows = record["machine"], record["rows"]
    held = sum(row["holds"] for row in rows)
    minutes = sum(seed["minutes"] for seed in record["seeds"])
    lines = [
        f"## {record['title']} ({record['length']})",
        "",
        f"{record['paper']}. {held} of {len(rows)} lines hold. `{record['command']}`: "
        f"{len(record['seeds'])} seeds, {minutes:.0f} minutes of seeds; {machine['cpu']}, "
        f"{machine['cores']} cores, torch {machine['versions']['torch']}, "
        f"commit {record['seeds'][-1]['commit']}.",
        "",
        "| to show | paper | here | rule | |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        verdict = "holds" if row["holds"] else "**does not hold**"
        cells = (row["what"], row["paper"], row["figure"], row["wanted"], verdict)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, *(["", record["notes"]] if record["notes"] else []), ""])
