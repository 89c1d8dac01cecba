"""``python -m benchmarks.systems NAME [--threads 2] [--json FILE] [--quick]``: see SYSTEMS.

Ends with one line per target, where there are targets, and exits 1 if any is short.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

SYSTEMS = ("startup", "loader", "step", "methods", "audio", "few_shot", "mtslvr_passes")


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark; the exit code is 0 only if every target was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.systems", description=__doc__)
    parser.add_argument("system", choices=SYSTEMS, help="what to measure")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--json", type=Path, default=None, help="keep the record in this file")
    parser.add_argument("--quick", action="store_true", help="a smoke run: no targets are judged")
    options = parser.parse_args(arguments)
    return importlib.import_module(f"benchmarks.systems.{options.system}").run(options)


if __name__ == "__main__":
    sys.exit(main())
