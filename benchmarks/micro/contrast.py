"""Log-denominators in use: MoCo over a queue, CLIP, SupCon; forward and backward against peers.

MoCo's floor is 4 N K D flops (products once, then the queries' gradient), CLIP's 6 N^2 D. Peers run
in this process, interleaved with ours, on the same inputs, after all of them agreed with float64.
"""

# shapes: N samples, K keys, D embedding
from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.clock import Timing, as_record, race
from benchmarks.machine import Peak, describe, facts, fma_peak
from benchmarks.memory import extra_peak_bytes
from benchmarks.micro.contrast_cases import CASES, Case
from benchmarks.targets import Verdict, at_least, at_most, conclude, keep


@dataclass
class Report:
    """Everything measured, in the order it was."""

    peak: Peak
    rows: dict[str, dict[str, Timing]] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)

    def of_floor(self, case: Case, shape: tuple[int, ...]) -> float:
        """Floor time over measured time."""
        return case.flops(*shape) / (self.peak.gflops * 1e9) / self.rows[case.name]["ours"].median


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads, device=options.device)
    print(describe(machine))
    report = Report(fma_peak(threads=options.threads, seconds=0.1 if options.quick else 1.0))
    print(f"fp32 peak {report.peak.gflops:.1f} GFLOP/s on {options.threads} threads")
    verdicts: list[Verdict] = []
    for case in CASES:
        shape = case.quick_shape if options.quick else case.shape
        steps = measure(case, shape, report, options)
        if steps is None:
            return 1
        if not options.quick and options.device == "cpu":
            verdicts += judge(case, shape, report)
    record = {
        "machine": machine,
        "peak_gflops": report.peak.gflops,
        "rows": {
            title: {name: as_record(timing) for name, timing in row.items()}
            for title, row in report.rows.items()
        },
        "extra_bytes": report.memory,
    }
    keep(options.json, record, verdicts)
    if not verdicts:
        print("\nno targets: they are set for full runs on the CPU")
    return conclude(verdicts) if verdicts else 0


def measure(
    case: Case, shape: tuple[int, ...], report: Report, options: argparse.Namespace
) -> dict[str, Callable] | None:
    """Gate, then race; None where somebody is wrong."""
    contestants = case.build(*shape, device=options.device)
    wrong = case.gate(*case.quick_shape, device=options.device)
    if wrong:
        print("gate      RED, nothing was timed:", *wrong, sep="\n  ")
        return None
    sync = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    if options.quick:
        timings = race(contestants, rounds=3, slice_s=0.0, warmup_s=0.0, sync=sync)
    else:
        timings = race(contestants, rounds=7, sync=sync)
    report.rows[case.name] = timings
    print(f"\n{case.name}  {' x '.join(map(str, shape))}")
    for name, timing in timings.items():
        share = f"  {report.of_floor(case, shape):.2f} of the floor" if name == "ours" else ""
        print(f"  {name:<22} {timing}{share}", flush=True)
    return contestants


def judge(case: Case, shape: tuple[int, ...], report: Report) -> list[Verdict]:
    """The targets of one case, its memory measured in a process of its own."""
    row = report.rows[case.name]
    ours = row["ours"].median
    verdicts = [
        at_least(f"{case.name}: over {peer}", row[peer].median / ours, gain, "x")
        for peer, gain in case.gains.items()
        if peer in row
    ]
    absent = [peer for peer in case.gains if peer not in row]
    for peer in absent:
        print(f"  {peer} is not installed: its target is short")
        verdicts.append(at_least(f"{case.name}: over {peer}", float("nan"), case.gains[peer], "x"))
    verdicts += [
        at_most(f"{case.name}: {variant} over ours", row[variant].median / ours, most, "x")
        for variant, most in case.most_time.items()
    ]
    if case.of_floor is not None:
        floor = report.of_floor(case, shape)
        verdicts.append(at_least(f"{case.name}: of the floor", floor, case.of_floor))
    if case.most_bytes is not None:
        extra = extra_peak_bytes("benchmarks.micro.contrast_cases:memory_step", name=case.name)
        report.memory[case.name] = extra
        allowed = case.most_bytes(*shape) / 1e6
        verdicts.append(at_most(f"{case.name}: extra memory", extra / 1e6, allowed, " MB"))
    return verdicts
