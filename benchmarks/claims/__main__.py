"""``python -m benchmarks.claims NAME [--quick]``: does the paper's claim show here?

Trains and measures three seeds or more, prints a line per claim, keeps the record in
benchmarks/results/claims/ and writes docs/claims.md anew; exits 1 if a line does not hold.
``table`` in place of a name only writes the page from the records.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.claims import report
from benchmarks.claims.seeds import by_name, claim_module, measure_all, measure_here
from benchmarks.machine import describe, facts

CLAIMS = (
    *("invclr", "amortised", "issl", "stochastic", "baselines"),
    *("mtslvr", "amortised-audio", "spoken-words"),
)
SEEDS = (0, 1, 2)


def main(arguments: list[str] | None = None) -> int:
    """The exit code is 0 only if every line of the claim holds."""
    options = _parser().parse_args(arguments)
    if options.claim == "table":
        report.write_page()
        return 0
    folder = options.work or Path("runs") / "claims" / f"{options.claim}-{options.length}"
    if options.only_seed is not None:
        where = {"length": options.length, "folder": folder, "threads": options.threads}
        measure_here(options.claim, options.only_seed, **where)
        return 0
    return _claim(options, folder)


def _claim(options: argparse.Namespace, folder: Path) -> int:
    machine = facts(threads=options.jobs * options.threads)
    claim = claim_module(options.claim)
    print(f"{claim.TITLE}\n{describe(machine)}", flush=True)
    begun = time.monotonic()
    kept = measure_all(
        options.claim,
        options.seeds,
        length=options.length,
        folder=folder,
        jobs=options.jobs,
        threads=options.threads,
    )
    figures = by_name(kept)
    rows = claim.rows(figures)
    print(*rows, sep="\n")
    record = report.make_record(
        options.claim,
        length=options.length,
        machine=machine,
        minutes=(time.monotonic() - begun) / 60,
        kept=kept,
        rows=rows,
    )
    report.keep(record)
    return 0 if all(row.holds for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("claim", choices=(*CLAIMS, "table"), help="what to show")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--length", choices=("full", "quick"), default="full")
    length.add_argument(
        "--quick", dest="length", action="store_const", const="quick", help="fewer steps"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default 0 1 2")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time (default 2)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, per seed (default 1)")
    parser.add_argument("--work", type=Path, default=None, help="default runs/claims/NAME-LENGTH")
    parser.add_argument("--only-seed", type=int, default=None, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
