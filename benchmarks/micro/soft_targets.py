"""Soft-target cross entropy, forward and backward, against the log-softmax that users write.

Two cases: prototypes (logits z W^T from features, targets given: SwAV), whose floor is 6 N C D
flops, and logits of student and teacher with the batch marginal (DISSL), bound by memory traffic.
"""

# shapes: N rows, C outputs, D features
from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.clock import Timing, as_record, race
from benchmarks.machine import Peak, describe, facts, fma_peak
from benchmarks.memory import extra_peak_bytes
from benchmarks.targets import Verdict, at_least, at_most, conclude, keep
from fastssl.kernels.soft_targets.op import soft_targets
from fastssl.kernels.soft_targets.prototypes import prototype_cross_entropy
from fastssl.kernels.soft_targets.spec import BENCH_SHAPES, prototype_flops

TAU, STUDENT_TAU, TEACHER_TAU, MAXIMALITY = 0.1, 1.0, 0.5, 2.3
QUICK_SHAPES = ((32, 512, 32),)
OVER_EAGER, OF_EAGER_MEMORY = 1.5, 0.5
TOLERANCE = 4e-6  # of the largest entry: thirty roundings of float32
Step = Callable[[], tuple[Tensor, ...]]


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads, device=options.device)
    print(describe(machine))
    shapes = QUICK_SHAPES if options.quick else BENCH_SHAPES
    if not gate_is_green(shapes, options.device):
        return 1
    peak = None
    if options.device == "cpu":
        peak = fma_peak(threads=options.threads, seconds=0.1 if options.quick else 1.0)
        print(f"fp32 peak {peak.gflops:.1f} GFLOP/s on {options.threads} threads ({peak.how})")
    rows: dict[str, dict[str, Timing]] = {}
    for shape in shapes:
        for name, case in CASES.items():
            title = f"{name} N={shape[0]} C={shape[1]} D={shape[2]}"
            rows[title] = timings = _race(case(shape, torch.float32, options.device), options)
            print(f"\n{title}")
            for who, timing in timings.items():
                print(f"  {who:<16} {timing}{_share(name, who, timing, shape, peak)}", flush=True)
    memory = measure_memory(shapes[0], options)
    verdicts = [] if options.quick or options.device != "cpu" else judge(rows, memory)
    record = {
        "machine": machine,
        "rows": {t: {who: as_record(x) for who, x in row.items()} for t, row in rows.items()},
        "extra_bytes": memory,
    }
    keep(options.json, record, verdicts)
    return conclude(verdicts) if verdicts else 0


def prototypes(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> dict[str, Step]:
    """Gradients of features and prototypes, ours and eager."""
    N, C, D = shape
    generator = torch.Generator().manual_seed(0)
    z_ND, w_CD, t_NC = (torch.randn(*s, generator=generator) for s in ((N, D), (C, D), (N, C)))
    z_ND, w_CD = (F.normalize(x).to(device, dtype).requires_grad_() for x in (z_ND, w_CD))
    t_NC = (3 * t_NC).softmax(1).to(device, dtype)

    def ours() -> tuple[Tensor, ...]:
        loss = prototype_cross_entropy(z_ND, w_CD, t_NC, temperature=TAU)
        return loss, *torch.autograd.grad(loss, [z_ND, w_CD])

    def eager() -> tuple[Tensor, ...]:
        loss = -(t_NC * (z_ND @ w_CD.T / TAU).log_softmax(1)).sum(1).mean()
        return loss, *torch.autograd.grad(loss, [z_ND, w_CD])

    return {"ours": ours, "eager": eager}


def logits(shape: tuple[int, int, int], dtype: torch.dtype, device: str) -> dict[str, Step]:
    """Gradients of student and teacher of DISSL's terms for one pair of crops, ours and eager."""
    generator = torch.Generator().manual_seed(0)
    a_NC, b_NC = torch.randn(2, *shape[:2], generator=generator).to(device, dtype).unbind(0)
    a_NC, b_NC = a_NC.requires_grad_(), b_NC.requires_grad_()

    def both(loss_N: Tensor, marginal_C: Tensor) -> tuple[Tensor, ...]:
        loss = loss_N.mean() + MAXIMALITY * (marginal_C * marginal_C.log()).sum()
        return loss, *torch.autograd.grad(loss, [a_NC, b_NC])

    def ours() -> tuple[Tensor, ...]:
        found = soft_targets(
            a_NC, b_NC, student_temperature=STUDENT_TAU, teacher_temperature=TEACHER_TAU,
            marginal=True,
        )  # fmt: skip
        return both(found.loss, found.marginal)

    def eager() -> tuple[Tensor, ...]:
        q_NC = (b_NC / TEACHER_TAU).softmax(1)
        return both(-(q_NC * (a_NC / STUDENT_TAU).log_softmax(1)).sum(1), q_NC.mean(0))

    return {"ours": ours, "eager": eager}


CASES = {"prototypes": prototypes, "logits": logits}


def gate_is_green(shapes: tuple[tuple[int, int, int], ...], device: str) -> bool:
    """Compare values and gradients with float64, and say what is wrong."""
    mistakes = []
    for shape in shapes:
        for name, case in CASES.items():
            found = case(shape, torch.float32, device)["ours"]()
            truth = case(shape, torch.float64, device)["eager"]()
            for what, got, want in zip(("loss", "first", "second"), found, truth, strict=True):
                error = ((got - want).abs().max() / want.abs().max()).item()
                if not error <= TOLERANCE:
                    mistakes.append(f"{name} {shape} {what}: relative error {error:.2g}")
    for mistake in mistakes:
        print(f"wrong     {mistake}")
    print("gate      red: nothing is timed" if mistakes else "gate      green", flush=True)
    return not mistakes


def measure_memory(
    shape: tuple[int, int, int], options: argparse.Namespace
) -> dict[str, dict[str, int]]:
    """Peak of forward and backward beyond the inputs; gradients are in it."""
    if options.device != "cpu":
        return {}
    found = {}
    for name in CASES:
        arguments = {"case": name, "shape": shape, "threads": options.threads}
        found[name] = {
            who: extra_peak_bytes("benchmarks.micro.soft_targets:memory_step", who=who, **arguments)
            for who in ("ours", "eager")
        }
        ours, eager = (found[name][who] / 1e6 for who in ("ours", "eager"))
        print(f"\nmemory {name} N={shape[0]} C={shape[1]}: {ours:.1f} MB, eager {eager:.1f} MB")
    return found


def memory_step(*, case: str, who: str, shape: list[int], threads: int) -> Step:
    """What benchmarks.memory measures, in its own process."""
    torch.set_num_threads(threads)
    CASES[case]((16, 256, 16), torch.float32, "cpu")[who]()
    N, C, D = shape
    return CASES[case]((N, C, D), torch.float32, "cpu")[who]


def judge(rows: dict[str, dict[str, Timing]], memory: dict[str, dict[str, int]]) -> list[Verdict]:
    """The headline shape over eager, in time and in memory."""
    verdicts = []
    for name in CASES:
        row = next(timings for title, timings in rows.items() if title.startswith(name))
        gain = row["eager"].median / row["ours"].median
        verdicts.append(at_least(f"{name}: over eager", gain, OVER_EAGER, "x"))
        share = memory[name]["ours"] / memory[name]["eager"]
        verdicts.append(at_most(f"{name}: memory over eager's", share, OF_EAGER_MEMORY, "x"))
    return verdicts


def _share(
    name: str, who: str, timing: Timing, shape: tuple[int, int, int], peak: Peak | None
) -> str:
    if name != "prototypes" or who != "ours" or peak is None:
        return ""
    floor = prototype_flops(*shape) / (peak.gflops * 1e9)
    return f"  {floor / timing.median:.2f} of the 6 N C D floor"


def _race(steps: dict[str, Step], options: argparse.Namespace) -> dict[str, Timing]:
    sync = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    if options.quick:
        return race(steps, rounds=3, slice_s=0.0, warmup_s=0.0, sync=sync)
    return race(steps, sync=sync)
