"""A SimCLR step on Spirograph as the engine runs it, eager and compiled; and its source alone.

Views per second; no targets. The compiled step is the one of ``fastssl.train --compile``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from benchmarks.clock import as_record, race
from benchmarks.machine import describe, facts
from benchmarks.targets import keep
from fastssl.data.spirograph import SpirographSource
from fastssl.engine.config import TrainConfig
from fastssl.engine.guard import Guard
from fastssl.engine.optim import build_optimizer
from fastssl.engine.step import TrainStep, place, place_batch
from fastssl.methods.configs import SimCLRConfig
from fastssl.methods.simclr import SimCLR
from fastssl.nn.convnet import ConvNet

CPU = torch.device("cpu")


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads)
    print(describe(machine))
    batch_size = 32 if options.quick else 256
    contestants = {"source alone": source_step(batch_size), "eager": train_step(batch_size)}
    if not options.quick:
        contestants["compiled"] = train_step(batch_size, prepare=compiled)
    timings = race(contestants, rounds=3 if options.quick else 9, slice_s=1.0, budget_s=90)
    for name, timing in timings.items():
        print(f"{name:<14} {timing}  {2 * batch_size / timing.median:,.0f} views/s")
    rows = {name: as_record(timing) for name, timing in timings.items()}
    keep(options.json, {"machine": machine, "batch_size": batch_size, "rows": rows}, [])
    return 0


def compiled(method: SimCLR) -> None:
    """As the engine does it: in place, keys unchanged."""
    method.compile(fullgraph=True, dynamic=False)


def source_step(batch_size: int) -> Callable[[], object]:
    """Make the next batch in the calling thread."""
    source = SpirographSource()
    position = iter(range(10**9))
    order = torch.arange(source.num_samples).numpy()

    def step() -> object:
        begin = next(position) * batch_size % (source.num_samples - batch_size)
        return source.batch(order[begin : begin + batch_size], seed=0, epoch=0)

    return step


def train_step(
    batch_size: int, *, prepare: Callable[[SimCLR], None] = lambda method: None
) -> Callable[[], object]:
    """Forward, backward, guard and update on one batch that is there already."""
    torch.manual_seed(0)
    method = SimCLR(ConvNet(), SimCLRConfig())
    place(method, CPU)
    prepare(method)
    optimizer = build_optimizer(method, TrainConfig(batch_size=batch_size))
    step = TrainStep(method, optimizer, Guard(method, CPU), device=CPU, precision="fp32", total=100)
    source = SpirographSource()
    batch = source.batch(torch.arange(batch_size).numpy(), seed=0, epoch=0)
    views = [place_batch(batch, CPU)]
    return lambda: step(views, step=0, lr=1e-4)
