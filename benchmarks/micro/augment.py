"""SimCLR's views on the CPU against torchvision, kornia and DALI; gradients of the parameters.

The floor reads each source pixel and writes each value of a view once, at the bandwidth of a copy
measured in the same run. The cost of each stage is that of the crop with it less the crop alone.
"""

# shapes: N samples, S side of a view
from __future__ import annotations

import argparse
import dataclasses
import time

import torch

from benchmarks.clock import Timing, as_record, race
from benchmarks.machine import describe, facts
from benchmarks.memory import extra_peak_bytes
from benchmarks.micro.augment_cases import (
    PEERS,
    Shape,
    Step,
    backward_steps,
    gate,
    installed,
    policy_steps,
    stage_steps,
)
from benchmarks.targets import Verdict, at_least, conclude, keep
from fastssl.kernels.augment.spec import floor_bytes

SMALL = Shape(samples=256, side=32, size=32, window=3)
LARGE = Shape(samples=32, side=256, size=224, window=23)
QUICK = Shape(samples=8, side=24, size=16, window=3)
TARGETS = {SMALL: (45_000.0, 4.0), LARGE: (1_000.0, 6.0)}  # views per second, over fastest peer
BACKWARD_GAIN = 6.0

Row = dict[str, Timing]


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    if options.device != "cpu":
        print("augment: the peers of this benchmark run on the CPU; see the datasheet for CUDA")
        return 2
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads, device="cpu")
    print(describe(machine))
    mistakes = gate(QUICK)
    if mistakes:
        print("gate      RED, nothing was timed:", *mistakes, sep="\n  ")
        return 1
    print("gate      green")
    bandwidth = copy_bandwidth(quick=options.quick)
    print(f"copy      {bandwidth / 1e9:.1f} GB/s, read and written")
    for name in PEERS:
        if not installed(name):
            print(f"absent    {name} is not installed: it is not raced and its target is short")
    rows: dict[str, Row] = {}
    memory: dict[str, float] = {}
    shapes = (QUICK,) if options.quick else (SMALL, LARGE)
    for shape in shapes:
        measure(shape, rows, memory, bandwidth, options)
    backward = "backward through crop and jitter"
    rows[backward] = timed(backward, backward_steps(shapes[0]), shapes[0], options)
    verdicts = [] if options.quick else judge(rows, backward)
    record = {
        "machine": machine,
        "copy_bytes_per_s": bandwidth,
        "rows": {t: {who: as_record(x) for who, x in row.items()} for t, row in rows.items()},
        "bytes_per_view": memory,
    }
    keep(options.json, record, verdicts)
    return conclude(verdicts) if verdicts else 0


def title(shape: Shape) -> str:
    """Names the row of a shape."""
    return f"{shape.size} px from {shape.side} px, batch {shape.samples}"


def measure(
    shape: Shape,
    rows: dict[str, Row],
    memory: dict[str, float],
    bandwidth: float,
    options: argparse.Namespace,
) -> None:
    """SimCLR against its peers, the floor, memory, and the cost of each stage."""
    name = title(shape)
    rows[name] = row = timed(f"SimCLR, {name}", policy_steps(shape), shape, options)
    moved = floor_bytes(1, shape.samples, shape.size, pixels=shape.side**2, itemsize=1)
    share = moved / bandwidth / row["ours, table given"].median
    print(f"  floor {1e3 * moved / bandwidth:.3f} ms (one read, one write): {share:.3f} of it")
    extra = extra_peak_bytes(
        "benchmarks.micro.augment_cases:memory_step", **dataclasses.asdict(shape)
    )
    memory[name] = extra / shape.samples
    view_bytes = 12 * shape.size**2
    print(f"  memory per view {memory[name] / 1e3:.1f} kB, {view_bytes / 1e3:.1f} of them the view")
    stages = timed(f"stages, {name}", stage_steps(shape), shape, options)
    rows[f"stages, {name}"] = stages
    for stage, timing in stages.items():
        cost = timing.best - (stages["crop"].best if stage != "crop" else 0.0)
        print(f"    {stage:<10} {1e6 * cost / shape.samples:8.2f} us per view")


def timed(name: str, steps: dict[str, Step], shape: Shape, options: argparse.Namespace) -> Row:
    """Races the steps and prints the row."""
    if options.quick:
        row = race(steps, rounds=3, slice_s=0.0, warmup_s=0.0)
    else:
        row = race(steps, rounds=7)
    print(f"\n{name}")
    for who, timing in row.items():
        rate = shape.samples / timing.median
        print(f"  {who:<18} {timing}  {rate:10,.0f} views/s", flush=True)
    return row


def judge(rows: dict[str, Row], backward: str) -> list[Verdict]:
    """Targets of issue 4. A peer that is not installed leaves its line short."""
    verdicts = []
    for shape, (rate, gain) in TARGETS.items():
        name, row = title(shape), rows[title(shape)]
        ours = row["ours"].median
        verdicts.append(at_least(f"{name}: views/s", shape.samples / ours, rate))
        peers = {who: row[who].median for who in PEERS if who in row}
        if peers:
            fastest = min(peers, key=peers.__getitem__)
            over = peers[fastest] / ours
            verdicts.append(at_least(f"{name}: over {fastest}", over, gain, "x"))
        verdicts += [
            at_least(f"{name}: over {who}", float("nan"), gain, "x")
            for who in PEERS
            if who not in peers
        ]
    row = rows[backward]
    kornia = row["kornia"].median if "kornia" in row else float("nan")
    gain = kornia / row["ours"].median
    verdicts.append(at_least(f"{backward}: over kornia", gain, BACKWARD_GAIN, "x"))
    return verdicts


def copy_bandwidth(*, quick: bool) -> float:
    """Bytes per second, read and written, of torch's copy of a tensor beyond every cache."""
    source = torch.ones(1 << (20 if quick else 26))
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.numel() * source.element_size() / best
