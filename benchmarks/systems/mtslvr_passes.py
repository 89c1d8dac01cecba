"""A training step of MT-SLVR as it runs here, beside the same step with its authors' passes.

The authors run the encoder once per view, and once more per task wherever a task has something of
its own: 2 passes of N images without adapters, 4 with split, bn, series or parallel. Here the
shared part runs once on both views together, what is a task's own once per task. ResNet-18, the
log-mel of Tones, eager on both sides, the same weights. Gate: in eval mode both give the same
features, and the passes are as many as is said. A ratio is one of minima, which the neighbours of a
shared machine disturb least.
"""

# shapes: N batch, M views of all samples, C channels, H bands, W frames, D task's output
from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.clock import as_record, race
from benchmarks.machine import describe, facts
from benchmarks.targets import keep
from fastssl.data.sources import open_source
from fastssl.engine.guard import Guard
from fastssl.engine.optim import build_optimizer
from fastssl.engine.step import TrainStep, place, place_batch
from fastssl.nn.adapters import AdapterNet
from fastssl.recipes.catalogue import default_run
from fastssl.recipes.encoders import build_method
from fastssl.recipes.run import Run

CPU = torch.device("cpu")
BATCH = 32
AUTHORS = {"none": 2, "split": 4, "bn": 4, "parallel": 4}  # passes of N images in a step
OURS = {"none": (2, 2), "split": (2, 2), "bn": (2, 4), "parallel": (2, 4)}
"""Passes of N images through the shared stem, and through the last stage."""


class AuthorsPasses(nn.Module):
    """An encoder of MT-SLVR whose tasks are served by passes of their own, view by view."""

    def __init__(self, net: nn.Module, passes: int) -> None:
        super().__init__()
        self.net, self.num_tasks = net, passes // 2

    def tasks(self, x_MCHW: Tensor) -> list[Tensor]:
        """(M, D) of each task."""
        views = x_MCHW.chunk(2)
        found = [
            torch.cat([one_task(self.net, view_NCHW, task) for view_NCHW in views])
            for task in range(self.num_tasks)
        ]
        return found if len(found) > 1 else found * 2


def one_task(net: Any, x_NCHW: Tensor, task: int) -> Tensor:
    """(N, D): a whole pass for one task."""
    if not isinstance(net, AdapterNet):
        return net.outputs[task](net.net(x_NCHW))
    x_NCHW = net.stem(x_NCHW)
    for block in net.shared:
        x_NCHW = block(x_NCHW, 0)
    for block in net.blocks:
        x_NCHW = block(x_NCHW, task)
    return net.outputs[task](torch.relu(net.ends[task](x_NCHW)).mean(dim=(2, 3)))


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads)
    print(describe(machine))
    batch = 4 if options.quick else BATCH
    if not gate_is_green():
        return 1
    rows = {}
    for adapter, passes in AUTHORS.items():
        steps = {who: step_of(adapter, who, batch) for who in ("ours", "authors")}
        rounds = 1 if options.quick else 7
        timings = race(steps, rounds=rounds, slice_s=0.0, warmup_s=0.0, budget_s=60)
        ratio = timings["authors"].best / timings["ours"].best
        stem, last = OURS[adapter]
        rows[adapter] = {
            **{who: as_record(timing) for who, timing in timings.items()},
            "ratio": ratio,
            "passes": {"authors": passes, "ours_stem": stem, "ours_last_stage": last},
        }
        for who, timing in timings.items():
            print(f"{adapter:<9} {who:<8} {timing}")
        print(f"{adapter:<9} authors' {passes} passes of N images, ours {stem} of the shared part "
              f"and {last} of the last stage: {ratio:.2f}x the time", flush=True)  # fmt: skip
    keep(options.json, {"machine": machine, "batch_size": batch, "rows": rows}, [])
    return 0


def settings(adapter: str) -> Run:
    """The recipe for Tones with a ResNet-18."""
    run = default_run("mtslvr", "tones")
    train = replace(run.train, backbone="resnet18")
    return Run(train=train, method=replace(run.method, adapter=adapter))


def method_of(adapter: str, who: str) -> nn.Module:
    """The method; of the authors with the passes of theirs. The weights are the same."""
    method = build_method(settings(adapter))
    if who == "authors":
        method.backbone = AuthorsPasses(method.backbone, AUTHORS[adapter])  # type: ignore[arg-type]
    return method


def step_of(adapter: str, who: str, batch_size: int) -> Callable[[], object]:
    """Front end, forward, backward, guard and update on a batch that is there already."""
    train = replace(settings(adapter).train, batch_size=batch_size)
    method = method_of(adapter, who)
    batch = place_batch(open_source("tones").rehearsal(batch_size), CPU)
    place(method, CPU)
    optimizer = build_optimizer(method, train)
    step = TrainStep(method, optimizer, Guard(method, CPU), device=CPU, precision="fp32", total=100)
    return lambda: step([batch], step=99, lr=1e-4)


def gate_is_green() -> bool:
    """Whether both sides compute the same, in as many passes as is said; says what is wrong."""
    mistakes = []
    x_MCHW = torch.randn(4, 1, 128, 32, generator=torch.Generator().manual_seed(0))
    for adapter, passes in AUTHORS.items():
        found = {who: method_of(adapter, who).eval() for who in ("ours", "authors")}
        outputs, seen = {}, {}
        for who, method in found.items():
            with torch.no_grad():
                outputs[who], seen[who] = counted(method.backbone, x_MCHW)
        for ours_MD, theirs_MD in zip(outputs["ours"], outputs["authors"], strict=True):
            error = (ours_MD - theirs_MD).abs().max() / theirs_MD.abs().max()
            if not error < 1e-5:
                mistakes.append(f"{adapter}: features differ by {error:.2g} of the largest")
        if seen != {"ours": OURS[adapter], "authors": (passes, passes)}:
            mistakes.append(f"{adapter}: passes through stem and last stage {seen}")
    for mistake in mistakes:
        print(f"wrong     {mistake}")
    print("gate      red: nothing is timed" if mistakes else "gate      green", flush=True)
    return not mistakes


def counted(backbone: Any, x_MCHW: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
    """The tasks' outputs; how often N = M / 2 images went through the first and last 3x3 or 7x7."""
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.kernel_size > (1, 1)]
    rows = [0, 0]
    for place_of, conv in enumerate((convs[0], convs[-1])):

        def hook(_: nn.Module, given: tuple[Tensor], __: Tensor, at: int = place_of) -> None:
            rows[at] += len(given[0])

        conv.register_forward_hook(hook)
    outputs = backbone.tasks(x_MCHW)
    half = len(x_MCHW) // 2
    return outputs, (rows[0] // half, rows[1] // half)
