"""NT-Xent, forward and backward, against lightly's class, plain cross-entropy and the FMA peak.

The physical floor is 3 M^2 D flops: half of the similarities (they are symmetric), then one full
product for the gradient. Peers run in this process, interleaved with ours, on the same inputs.
"""

# shapes: N samples, M = 2N rows, D embedding
from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.clock import Timing, as_record, race
from benchmarks.machine import Peak, describe, facts, fma_peak
from benchmarks.memory import extra_peak_bytes
from benchmarks.micro.ntxent_gate import TEMPERATURE, gate, inputs
from benchmarks.peers import Loss, compiled, ntxent_peers
from benchmarks.targets import Verdict, at_least, at_most, conclude, keep
from fastssl.kernels.ntxent.op import ntxent
from fastssl.kernels.ntxent.spec import (
    BENCH_EMBEDDINGS,
    BENCH_SHAPES,
    embedding_bytes,
    floor_flops,
)
from fastssl.losses import NTXentLoss


@dataclass(frozen=True)
class Wanted:
    """Targets of one headline row."""

    over_fastest: float
    of_floor: float
    over_lightly: float | None = None


WANTED = {
    512: Wanted(over_fastest=2.5, of_floor=0.40),
    2048: Wanted(over_fastest=3.5, of_floor=0.65),
    8192: Wanted(over_fastest=5.5, of_floor=0.78, over_lightly=17.0),
}
QUICK_SHAPES = ((128, 32), (256, 64))
PEERS_UP_TO = 8192  # rows: beyond, a peer asks for more than 10 GB
ROWS_OF_SECOND_TABLE = 2048
FORWARD_US, BOTH_US = 60.0, 150.0


@dataclass
class Report:
    """Everything measured, in the order it was."""

    peak: Peak | None = None
    rows: dict[str, dict[str, Timing]] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)

    def note(self, title: str, timings: dict[str, Timing], shape: tuple[int, int]) -> None:
        """Keep and print one row."""
        self.rows[title] = timings
        print(f"\n{title}")
        for name, timing in timings.items():
            share = f"  {self.of_floor(timing, shape):.2f} of the floor" if name == "ours" else ""
            print(f"  {name:<16} {timing}{share}", flush=True)

    def of_floor(self, timing: Timing, shape: tuple[int, int]) -> float:
        """Floor time over measured time; NaN where no peak was measured."""
        if self.peak is None:
            return float("nan")
        return floor_flops(*shape) / (self.peak.gflops * 1e9) / timing.median


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads, device=options.device)
    print(describe(machine))
    shapes = QUICK_SHAPES if options.quick else BENCH_SHAPES
    if not gate_is_green(shapes, options.device):
        return 1
    report = Report()
    if options.device == "cpu":
        report.peak = fma_peak(threads=options.threads, seconds=0.1 if options.quick else 1.0)
        print(f"fp32 peak {report.peak.gflops:.1f} GFLOP/s on {options.threads} threads")
        print(f"          ({report.peak.how})")
    headline(report, shapes, options)
    second_table(report, options)
    overhead(report, options)
    memory(report, options)
    verdicts = [] if options.quick or options.device == "cuda" else judge(report)
    keep(options.json, as_json(machine, report), verdicts)
    if not verdicts:
        print("\nno targets: they are set for full runs on the CPU")
    return conclude(verdicts) if verdicts else 0


def gate_is_green(shapes: tuple[tuple[int, int], ...], device: str) -> bool:
    """Compare every shape with float64 and with the peers, and say what is wrong."""
    mistakes = []
    for shape in shapes:
        peers = ntxent_peers(TEMPERATURE) if shape[0] <= PEERS_UP_TO else {}
        mistakes += [f"{shape}: {mistake}" for mistake in gate(_ours, peers, shape, device=device)]
    for embedding in BENCH_EMBEDDINGS:
        shape = (shapes[0][0], embedding)
        for dtype in (torch.float32, torch.bfloat16):
            found = gate(_ours, {}, shape, dtype=dtype, device=device)
            mistakes += [f"{shape} {dtype}: {mistake}" for mistake in found]
    for mistake in mistakes:
        print(f"wrong     {mistake}")
    print("gate      red: nothing is timed" if mistakes else "gate      green", flush=True)
    return not mistakes


def _ours(z0_ND: Tensor, z1_ND: Tensor, temperature: Tensor) -> Tensor:
    return ntxent([z0_ND, z1_ND], temperature)


def headline(
    report: Report, shapes: tuple[tuple[int, int], ...], options: argparse.Namespace
) -> None:
    """fp32, every peer that fits."""
    for shape in shapes:
        losses: dict[str, Loss] = {"ours": NTXentLoss(TEMPERATURE)}
        if shape[0] <= PEERS_UP_TO:
            torch.compiler.reset()
            eager = ntxent_peers(TEMPERATURE)
            losses |= eager if options.quick else eager | compiled(eager)
        steps = _steps(losses, inputs(*shape, device=options.device))
        report.note(_title(shape), _race(steps, options), shape)


def second_table(report: Report, options: argparse.Namespace) -> None:
    """bf16 input and other widths, beside plain cross-entropy. Recorded, without targets."""
    rows = QUICK_SHAPES[0][0] if options.quick else ROWS_OF_SECOND_TABLE
    cases = [(rows, width, torch.float32) for width in BENCH_EMBEDDINGS if width != 128]
    bf16 = [(rows, 128)] if options.quick else [s for s in BENCH_SHAPES if s[0] <= PEERS_UP_TO]
    cases += [(*shape, torch.bfloat16) for shape in bf16]
    for num_rows, width, dtype in cases:
        views = inputs(num_rows, width, dtype, options.device)
        losses: dict[str, Loss] = {"ours": NTXentLoss(TEMPERATURE)}
        if num_rows <= ROWS_OF_SECOND_TABLE:  # beyond, bf16 in plain torch takes 10 s a call
            losses["naive"] = ntxent_peers(TEMPERATURE)["naive"]
        shape = (num_rows, width)
        report.note(_title(shape, dtype), _race(_steps(losses, views), options), shape)


def overhead(report: Report, options: argparse.Namespace) -> None:
    """A call so small that only the way in and out counts; inputs ask for gradients."""
    shape = (64, 128)
    views = inputs(*shape, device=options.device)
    loss = NTXentLoss(TEMPERATURE)
    steps = {"forward": lambda: loss(*views), "ours": _steps({"ours": loss}, views)["ours"]}
    report.note("call at M=64 D=128", _race(steps, options), shape)


def memory(report: Report, options: argparse.Namespace) -> None:
    """Peak of forward and backward beyond the embeddings, which are there already."""
    if options.device != "cpu":
        return
    for num_rows in (1024,) if options.quick else (8192, 32768):
        report.memory[num_rows] = extra_peak_bytes(
            "benchmarks.micro.ntxent:memory_step", num_rows=num_rows, threads=options.threads
        )
        extra, resident = report.memory[num_rows] / 1e6, embedding_bytes(num_rows, 128) / 1e6
        print(
            f"\nmemory at M={num_rows} D=128: {extra:.1f} MB at the peak of forward and backward,"
        )
        print(f"  gradients in it, the embeddings ({resident:.1f} MB) not", flush=True)


def memory_step(*, num_rows: int, threads: int) -> Callable[[], object]:
    """What benchmarks.memory measures, in its own process."""
    torch.set_num_threads(threads)
    loss = {"ours": NTXentLoss(TEMPERATURE)}
    _steps(loss, inputs(512, 128))["ours"]()
    return _steps(loss, inputs(num_rows, 128))["ours"]


def judge(report: Report) -> list[Verdict]:
    """Every target of the headline rows, the memory and the call overhead."""
    verdicts = []
    for num_rows, wanted in WANTED.items():
        row = report.rows[_title((num_rows, 128))]
        ours = row["ours"].median
        gain = {name: timing.median / ours for name, timing in row.items() if name != "ours"}
        at = f"M={num_rows}:"
        fastest = min(gain, key=gain.__getitem__)
        verdicts.append(at_least(f"{at} over {fastest}", gain[fastest], wanted.over_fastest, "x"))
        if wanted.over_lightly is not None:
            verdicts.append(
                at_least(f"{at} over lightly", gain["lightly"], wanted.over_lightly, "x")
            )
        floor = report.of_floor(row["ours"], (num_rows, 128))
        verdicts.append(at_least(f"{at} of the 3 M^2 D floor", floor, wanted.of_floor))
    allowed = 96 + 8 * embedding_bytes(32768, 128) / 1e6
    verdicts.append(at_most("M=32768: extra memory", report.memory[32768] / 1e6, allowed, " MB"))
    large, middle = (report.rows[_title((rows, 128))]["ours"].median for rows in (32768, 8192))
    verdicts.append(at_most("M=32768: time over that of M=8192", large / middle, 22.0, "x"))
    call = report.rows["call at M=64 D=128"]
    verdicts.append(at_most("M=64: forward", 1e6 * call["forward"].median, FORWARD_US, " us"))
    verdicts.append(at_most("M=64: forward+backward", 1e6 * call["ours"].median, BOTH_US, " us"))
    return verdicts


def as_json(machine: dict[str, object], report: Report) -> dict[str, object]:
    """The record: facts, peak, seconds per call of every row, bytes."""
    return {
        "machine": machine,
        "peak_gflops": report.peak and report.peak.gflops,
        "peak_how": report.peak and report.peak.how,
        "rows": {
            title: {name: as_record(timing) for name, timing in row.items()}
            for title, row in report.rows.items()
        },
        "extra_bytes": report.memory,
    }


def _steps(losses: dict[str, Loss], views: tuple[Tensor, Tensor]) -> dict[str, Callable]:
    """Forward and backward of each loss."""

    def step(loss: Loss) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(*views), views)

    return {name: step(loss) for name, loss in losses.items()}


def _race(steps: dict[str, Callable], options: argparse.Namespace) -> dict[str, Timing]:
    sync = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    if options.quick:
        return race(steps, rounds=3, slice_s=0.0, warmup_s=0.0, sync=sync)
    return race(steps, sync=sync)


def _title(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> str:
    return f"M={shape[0]} D={shape[1]} {str(dtype).removeprefix('torch.')}"
