"""The queue write against MoCo's reference code: clone the queue for the loss, write by index.

The floor is memory traffic: each key is read once and each row written once. The clone is in the
peers because their loss saves the queue for its backward; ours saves nothing of it.
"""

# shapes: N keys of a batch, K rows of the ring, D features
from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F

from benchmarks.clock import Timing, as_record, race
from benchmarks.machine import describe, facts
from benchmarks.targets import Verdict, at_least, conclude, keep
from fastssl.kernels.enqueue import reference
from fastssl.kernels.enqueue.op import enqueue
from fastssl.kernels.enqueue.spec import BENCH_SHAPES, floor_bytes, sample

QUICK_SHAPES = ((64, 512, 32),)
ROW_DTYPES = {"ours fp32": torch.float32, "ours bf16": torch.bfloat16}
OVER_CLONE = 5.0


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads, device=options.device)
    print(describe(machine))
    shapes = QUICK_SHAPES if options.quick else BENCH_SHAPES
    if not gate_is_green(shapes, options.device):
        return 1
    rows: dict[str, dict[str, Timing]] = {}
    for shape in shapes:
        title = "N={} K={} D={}".format(*shape)
        rows[title] = timings = _race(contestants(shape, options.device), options)
        print(f"\n{title}")
        for name, timing in timings.items():
            print(f"  {name:<24} {timing}{_traffic(name, timing, shape)}", flush=True)
    verdicts = [] if options.quick or options.device != "cpu" else judge(rows)
    record = {
        "machine": machine,
        "rows": {t: {who: as_record(x) for who, x in row.items()} for t, row in rows.items()},
    }
    keep(options.json, record, verdicts)
    return conclude(verdicts) if verdicts else 0


def contestants(shape: tuple[int, int, int], device: str) -> dict[str, Callable[[], object]]:
    """One write of a batch each, into a ring of its own."""
    N, K, D = shape
    keys_ND = sample(N, D, torch.float32).to(device)
    start_KD = F.normalize(torch.randn(K, D)).to(device)

    def ours(dtype: torch.dtype) -> Callable[[], object]:
        rows_KD, at = start_KD.to(dtype, copy=True), torch.zeros((), dtype=torch.int64).to(device)
        return lambda: enqueue(rows_KD, at, keys_ND)

    calls = {name: ours(dtype) for name, dtype in ROW_DTYPES.items()}
    by_rows_KD, by_columns_DK = start_KD.clone(), start_KD.T.contiguous()
    pointers = torch.zeros(2, dtype=torch.int64)

    def clone_and_index() -> object:
        saved, at = by_rows_KD.clone(), int(pointers[0])
        places_N = (at + torch.arange(N, device=device)) % K
        by_rows_KD[places_N] = F.normalize(keys_ND, dim=1)
        pointers[0] = (at + N) % K
        return saved

    def moco() -> object:
        saved, at = by_columns_DK.clone(), int(pointers[1])
        by_columns_DK[:, at : at + N] = F.normalize(keys_ND, dim=1).T
        pointers[1] = (at + N) % K
        return saved

    return calls | {"clone + index (K, D)": clone_and_index, "moco (D, K)": moco}


def gate_is_green(shapes: tuple[tuple[int, int, int], ...], device: str) -> bool:
    """Two writes that wrap around, compared with float64."""
    mistakes = []
    for N, K, D in shapes:
        for name, dtype in ROW_DTYPES.items():
            rows_KD = F.normalize(torch.randn(K, D)).to(device, dtype)
            truth_KD, at = rows_KD.double(), torch.tensor(K - N // 2, device=device)
            truth_at = at.clone()
            for seed in range(2):
                keys_ND = sample(N, D, torch.float32, seed=seed).to(device)
                enqueue(rows_KD, at, keys_ND)
                reference.enqueue(truth_KD, truth_at, keys_ND.double())
            error = (rows_KD - truth_KD).abs().max().item()
            if not error <= torch.finfo(dtype).eps or at != truth_at:
                mistakes.append(f"{name} N={N} K={K}: error {error:.2g}, pointer {at.item()}")
    for mistake in mistakes:
        print(f"wrong     {mistake}")
    print("gate      red: nothing is timed" if mistakes else "gate      green", flush=True)
    return not mistakes


def judge(rows: dict[str, dict[str, Timing]]) -> list[Verdict]:
    """The headline shape over the faster of the two references."""
    timings = next(iter(rows.values()))
    peers = {name: t.median for name, t in timings.items() if name not in ROW_DTYPES}
    fastest = min(peers, key=peers.__getitem__)
    return [
        at_least(f"{name}: over {fastest}", peers[fastest] / timings[name].median, OVER_CLONE, "x")
        for name in ROW_DTYPES
    ]


def _traffic(name: str, timing: Timing, shape: tuple[int, int, int]) -> str:
    if name not in ROW_DTYPES:
        return ""
    moved = floor_bytes(shape[0], shape[2], 4, ROW_DTYPES[name].itemsize)
    return f"  {moved / timing.median / 1e9:.1f} GB/s of keys and rows"


def _race(steps: dict[str, Callable], options: argparse.Namespace) -> dict[str, Timing]:
    sync = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    if options.quick:
        return race(steps, rounds=3, slice_s=0.0, warmup_s=0.0, sync=sync)
    return race(steps, sync=sync)
