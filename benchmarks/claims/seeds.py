"""A claim's figures, each seed in a process of its own; a seed that is done is kept."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.claims.kept import refuse_differences
from benchmarks.machine import commit
from fastssl.engine.files import write_json

Length = Literal["full", "quick"]
Kept = dict[str, Any]
"""{"claim": ..., "length": ..., "seed": 0, "commit": ..., "minutes": ..., "figures": {...}}"""


def claim_module(name: str) -> Any:
    """``benchmarks.claims.NAME``: TITLE, PAPER, one_seed(seed, length=, folder=), rows(figures)."""
    return importlib.import_module(f"benchmarks.claims.{name.replace('-', '_')}")


def measure_here(name: str, seed: int, *, length: Length, folder: Path, threads: int) -> Kept:
    """Measure one seed in this process and keep the figures in ``folder``."""
    made_by = _made_by(name, length)
    torch.set_num_threads(threads)
    begun = time.monotonic()
    figures = claim_module(name).one_seed(seed, length=length, folder=folder / f"seed{seed}")
    minutes = round((time.monotonic() - begun) / 60, 1)
    kept = {"seed": seed, **made_by, "minutes": minutes, "figures": figures}
    write_json(_file(folder, seed), kept)
    return kept


def measure_all(
    name: str, seeds: Sequence[int], *, length: Length, folder: Path, jobs: int, threads: int
) -> list[Kept]:
    """All seeds, ``jobs`` at a time.

    RuntimeError names the seed that failed and its log, or a kept one of another claim, length or
    commit.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def one(seed: int) -> Kept:
        file = _file(folder, seed)
        if file.is_file():
            kept = _read(file, name, length)
            print(f"seed {seed}: kept from an earlier run ({file})")
            return kept
        log = folder / f"seed{seed}.log"
        command = [sys.executable, "-m", "benchmarks.claims", name, "--only-seed", str(seed)]
        command += ["--work", str(folder), "--length", length, "--threads", str(threads)]
        with open(log, "a", encoding="utf-8") as output:
            done = subprocess.run(command, stdout=output, stderr=output, check=False)
        if done.returncode or not file.is_file():
            raise RuntimeError(f"seed {seed} failed with status {done.returncode}; see {log}")
        kept = _read(file, name, length)
        print(f"seed {seed}: {kept['minutes']} minutes")
        return kept

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, seeds))


def by_name(kept: Sequence[Kept]) -> dict[str, list[float]]:
    """{figure: one value per seed}."""
    names = kept[0]["figures"]
    return {name: [seed["figures"][name] for seed in kept] for name in names}


def _made_by(name: str, length: Length) -> dict[str, str]:
    return {"claim": name, "length": length, "commit": commit()}


def _read(file: Path, name: str, length: Length) -> Kept:
    """The figures in ``file``. RuntimeError where they are not those of this claim and code."""
    kept = json.loads(file.read_text())
    made_by = _made_by(name, length)
    refuse_differences(str(file), {k: kept[k] for k in made_by if k in kept}, made_by)
    return kept


def _file(folder: Path, seed: int) -> Path:
    return folder / f"seed{seed}.json"
