"""What a training step of every method costs, relative to a SimCLR step on the same images.

The recipes' own settings on a batch of 128 that is there already: Spirograph with the small conv
net, compiled; and the methods for sounds on Tones, log-mel included. Methods take turns. A ratio
is one of minima, which the neighbours of a shared machine disturb least.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.clock import as_record, race
from benchmarks.machine import describe, facts
from benchmarks.targets import Verdict, at_most, conclude, keep
from fastssl.data.sources import open_source
from fastssl.engine.compiling import compile_method
from fastssl.engine.console import Console
from fastssl.engine.guard import Guard
from fastssl.engine.optim import build_optimizer
from fastssl.engine.step import TrainStep, place, place_batch
from fastssl.methods.configs import SupConConfig
from fastssl.recipes.catalogue import RECIPES, default_run
from fastssl.recipes.encoders import build_method
from fastssl.recipes.run import Run

CPU = torch.device("cpu")
BATCH = 128
CLASSES = 10  # of supcon's invented labels: Spirograph has none
MOST = {("spirograph", "invclr"): 1.9}


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads)
    print(describe(machine))
    rows: dict[str, dict[str, Any]] = {}
    verdicts: list[Verdict] = []
    for data in ("spirograph", "tones"):
        steps = {method: step_of(run, compiling=not options.quick) for method, run in runs(data)}
        rounds = 1 if options.quick else 9
        timings = race(steps, rounds=rounds, slice_s=0.0, warmup_s=0.0, budget_s=240)
        base = timings["simclr"].best
        rows[data] = {}
        for method, timing in timings.items():
            ratio = timing.best / base
            rows[data][method] = {**as_record(timing), "relative": ratio}
            print(f"{data:<11} {method:<11} {timing}  {ratio:.2f} of a SimCLR step", flush=True)
            if (data, method) in MOST:
                verdicts.append(at_most(f"{method} on {data}", ratio, MOST[data, method], "x"))
    keep(options.json, {"machine": machine, "batch_size": BATCH, "rows": rows}, verdicts)
    return 0 if options.quick else conclude(verdicts)


def runs(data: str) -> list[tuple[str, Run]]:
    """The recipes for ``data``, SimCLR's first; supcon's is SimCLR's with labels."""
    names = [method for method, kind in RECIPES if kind == data]
    found = [(name, default_run(name, data)) for name in names]
    if data == "spirograph":
        simclr = default_run("simclr", data)
        train = dataclasses.replace(simclr.train, method="supcon")
        found.append(("supcon", Run(train=train, method=SupConConfig(projector_dims=(128, 64)))))
    return found


def step_of(run: Run, *, compiling: bool) -> Callable[[], object]:
    """Forward, backward, guard, update and what the method does after it, on one batch."""
    train = dataclasses.replace(run.train, batch_size=BATCH)
    source = open_source(train.data, image_size=train.image_size, augment=train.augment)
    batch = place_batch(source.rehearsal(BATCH), CPU)
    if train.method == "supcon":
        class_N = torch.arange(BATCH) % CLASSES
        batch = batch._replace(table=dataclasses.replace(batch.table, class_N=class_N))
    method = build_method(run)
    place(method, CPU)
    optimizer = build_optimizer(method, train)
    if compiling:
        compile_method(method, Console(), whole=True)
    step = TrainStep(method, optimizer, Guard(method, CPU), device=CPU, precision="fp32", total=100)

    def call() -> object:
        return step([batch], step=99, lr=1e-4)

    call()  # compiled now: compile_method's settings are the process's
    return call
