"""``python -m benchmarks.micro OP [--threads 2] [--json FILE] [--quick] [--device cuda]``.

Values are compared with float64 first; a wrong value is reported and nothing is timed. The command
ends with one line per target and exits 1 if any is short.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

OPS = ("augment", "contrast", "enqueue", "ntxent", "sigmoid_pairs", "soft_targets")


def main(arguments: list[str] | None = None) -> int:
    """Run one operator's benchmark; the exit code is 0 only if every target was met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.micro", description=__doc__)
    parser.add_argument("op", choices=OPS, help="operator to measure")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default 2)")
    parser.add_argument("--json", type=Path, default=None, help="keep the record in this file")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--quick", action="store_true", help="small shapes, eager peers, no targets: a smoke run"
    )
    options = parser.parse_args(arguments)
    return importlib.import_module(f"benchmarks.micro.{options.op}").run(options)


if __name__ == "__main__":
    sys.exit(main())
