"""A SimCLR training step with its loader: ours as ``fastssl.train --compile`` runs it, beside
lightly's published example (SimCLRTransform, LightlyDataset, DataLoader, SimCLRProjectionHead,
NTXentLoss, one pass per view).

ResNet-18 with the small stem, 256 images of 32 px from one array, two views of each, SGD with
momentum, the same threads; the example's loader at its best number of workers. Gate: one loss for
the same weights and views. bf16 is `--precision bf16`; lightly's gets the same autocast around its
model, which its example does not have. Memory: what the second step of a process adds at its peak.
"""

# shapes: N images, C channels, S side
from __future__ import annotations

import argparse
import copy
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.clock import Timing, as_record, summarise, timed
from benchmarks.machine import describe, facts, fma_peak
from benchmarks.memory import extra_peak_bytes
from benchmarks.targets import at_least, conclude, keep
from fastssl.data.sources import open_source
from fastssl.engine.compiling import compile_method
from fastssl.engine.config import Precision, TrainConfig, scaled_lr
from fastssl.engine.console import Console
from fastssl.engine.device import autocast
from fastssl.engine.guard import Guard
from fastssl.engine.optim import build_optimizer
from fastssl.engine.step import TrainStep, place, place_batch
from fastssl.methods.configs import SimCLRConfig
from fastssl.methods.simclr import SimCLR
from fastssl.nn.backbones import build_backbone

CPU = torch.device("cpu")
SIZE, IMAGES, BATCH = 32, 4096, 256
SETTINGS = SimCLRConfig(temperature=0.5, projector_dims=(512, 128))
WORKERS = (0, 2)  # of the example's DataLoader
Step = Callable[[], object]


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads)
    print(describe(machine))
    batch = 16 if options.quick else BATCH
    gate(batch)
    print("gate passed: the same loss for the same weights and views")
    with tempfile.TemporaryDirectory() as name:
        steps = contestants(Path(name), batch, quick=options.quick)
        rounds = 1 if options.quick else 3
        timings = taken_in_turns(steps, rounds)
    for title, timing in timings.items():
        print(f"{title:<26} {timing}  {2 * batch / timing.median:,.0f} views/s", flush=True)
    floor = floor_seconds(options.threads, batch)
    print(f"floor: forward and backward convolutions at the fp32 FMA peak {floor:.2f} s")
    memory = {} if options.quick else peaks(options.threads)
    for title, extra in memory.items():
        print(f"{title:<26} {extra / 2**20:,.0f} MiB added by a step at its peak")
    rows = {title: as_record(timing) for title, timing in timings.items()}
    found = {"machine": machine, "batch_size": batch, "rows": rows}
    verdicts = judged(timings)
    keep(options.json, {**found, "extra_peak_bytes": memory, "floor_s": floor}, verdicts)
    return 0 if options.quick else conclude(verdicts)


def taken_in_turns(steps: dict[str, Step], rounds: int) -> dict[str, Timing]:
    """Seconds of each step: one to warm up or compile, then a step of each in every round."""
    for step in steps.values():
        step()
    seconds = [[timed(step) for step in steps.values()] for _ in range(rounds)]
    return dict(zip(steps, map(summarise, map(list, zip(*seconds, strict=True))), strict=True))


def judged(timings: dict[str, Timing]) -> list:
    """Like against like in either precision; and bf16 against the example as it is published."""
    best = min(t.median for title, t in timings.items() if title.startswith("lightly, "))
    by = {title: timing.median for title, timing in timings.items()}
    verdicts = [at_least("fp32, over lightly's example", best / by["fastssl"], 1.5, "x")]
    if "fastssl bf16" in by:
        ratio, alike = best / by["fastssl bf16"], by["lightly bf16"] / by["fastssl bf16"]
        verdicts += [
            at_least("bf16, over lightly's example (fp32)", ratio, 1.5, "x"),
            at_least("bf16, over lightly's example in bf16", alike, 1.0, "x"),
        ]
    return verdicts


def contestants(folder: Path, batch: int, *, quick: bool) -> dict[str, Step]:
    """Steps that fetch their batch and train on it."""
    file = make_array(folder)
    steps = {"fastssl": ours(file, batch, compiling=not quick)}
    steps |= {
        f"lightly, {count} workers": lightlys(file, batch, workers=count) for count in WORKERS
    }
    if not quick:
        steps["fastssl bf16"] = ours(file, batch, precision="bf16")
        steps["lightly bf16"] = lightlys(file, batch, workers=2, precision="bf16")
    return steps


def make_array(folder: Path) -> Path:
    """4,096 coloured images of 32 px with noise of every scale; the same bytes every time."""
    file = folder / "images.npy"
    draw = np.random.default_rng(0)
    pixels = np.full((IMAGES, SIZE, SIZE, 3), 128.0)
    for side in (4, 8, 16, 32):
        coarse = draw.normal(0, 30, (IMAGES, side, side, 3))
        pixels += coarse.repeat(SIZE // side, 1).repeat(SIZE // side, 2)
    np.save(file, pixels.clip(0, 255).astype(np.uint8))
    return file


def ours(file: Path, batch: int, *, precision: Precision = "fp32", compiling: bool = True) -> Step:
    """The engine's step on the engine's loader."""
    config = TrainConfig(
        data=str(file), augment="simclr", image_size=SIZE, batch_size=batch, optimizer="sgd",
        lr=0.06, precision=precision,
    )  # fmt: skip
    torch.manual_seed(0)
    method = SimCLR(build_backbone("resnet18", SIZE), SETTINGS)
    place(method, CPU)
    optimizer = build_optimizer(method, config)
    if compiling:
        compile_method(method, Console(), whole=True)
    train = TrainStep(
        method, optimizer, Guard(method, CPU), device=CPU, precision=precision, total=100
    )
    source = open_source(config.data, image_size=SIZE, augment=config.augment)
    batches = source.batches(batch_size=batch, seed=0, start_step=0, device=CPU)
    return lambda: train([place_batch(next(batches), CPU)], step=0, lr=scaled_lr(config))


def lightlys(file: Path, batch: int, *, workers: int, precision: Precision = "fp32") -> Step:
    """Its example's loop: a pass per view, loss, backward, update."""
    from lightly.loss import NTXentLoss

    torch.manual_seed(0)
    model = Example()
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=1e-6)
    loader = lightly_batches(file, batch, workers)

    def step() -> torch.Tensor:
        (x0, x1), *_ = next(loader)
        with autocast(precision, CPU):
            loss = criterion(model(x0), model(x1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


class Example(nn.Module):
    """Backbone and head of lightly's example, with the stem for small images."""

    def __init__(self) -> None:
        super().__init__()
        from lightly.models.modules.heads import SimCLRProjectionHead

        self.backbone = build_backbone("resnet18", SIZE)
        self.projection_head = SimCLRProjectionHead(512, 512, 128)

    def forward(self, x_NCSS: torch.Tensor) -> torch.Tensor:
        return self.projection_head(self.backbone(x_NCSS))


class Images(torch.utils.data.Dataset):
    """PIL images and labels from an array, as torchvision's CIFAR-10 hands them out."""

    def __init__(self, file: Path) -> None:
        self.data = np.load(file)
        self.transform: Callable | None = None  # LightlyDataset sets it

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[object, int]:
        image = Image.fromarray(self.data[index])
        return (image if self.transform is None else self.transform(image)), 0


def lightly_batches(file: Path, batch: int, workers: int) -> Iterator:
    """Endless epochs of its loader."""
    from lightly.data import LightlyDataset
    from lightly.transforms import SimCLRTransform

    # the "simclr" preset at 32 px: half the jitter, no blur (Chen et al. 2020, B.9)
    views = SimCLRTransform(input_size=SIZE, cj_strength=0.5, gaussian_blur=0.0)
    dataset = LightlyDataset.from_torch_dataset(Images(file), views)
    loader = torch.utils.data.DataLoader(
        dataset, batch, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    return itertools.chain.from_iterable(itertools.repeat(loader))


def gate(batch: int) -> None:
    """Our loss is lightly's for its backbone, its head less the last norm, and the same views."""
    from lightly.loss import NTXentLoss

    torch.manual_seed(0)
    example = Example()
    method = SimCLR(copy.deepcopy(example.backbone), SETTINGS)
    head = example.projection_head.layers[:4]
    method.projector.load_state_dict(head.state_dict())
    place(method, CPU)
    method.requires_grad_(False), example.requires_grad_(False)
    x0, x1 = torch.rand(2, batch, 3, SIZE, SIZE)
    z0, z1 = head(example.backbone(torch.cat([x0, x1]))).chunk(2)
    theirs = NTXentLoss()(z0, z1)
    loss, _ = method((x0, x1))
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=0)


def peaks(threads: int) -> dict[str, int]:
    """Bytes that a step adds, each in a process of its own."""
    wanted = {
        "fastssl": {"who": "ours", "precision": "fp32"},
        "lightly, 0 workers": {"who": "lightlys", "precision": "fp32"},
        "fastssl bf16": {"who": "ours", "precision": "bf16"},
        "lightly bf16": {"who": "lightlys", "precision": "bf16"},
    }
    step = "benchmarks.systems.step:second_step"
    return {
        title: extra_peak_bytes(step, threads=threads, batch=BATCH, compiling=True, **case)
        for title, case in wanted.items()
    }


def second_step(
    *, who: str, precision: Precision, threads: int, batch: int = 16, compiling: bool = False
) -> Step:
    """A step that was taken once, so that nothing is compiled or allocated for good in it."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        file = make_array(Path(name))
        if who == "ours":
            step = ours(file, batch, precision=precision, compiling=compiling)
        else:
            step = lightlys(file, batch, workers=0, precision=precision)
        step()
    return step


def floor_seconds(threads: int, batch: int) -> float:
    """Two views' convolutions and products, forward and backward, at the FMA peak."""
    from torch.utils.flop_counter import FlopCounterMode

    model = Example()
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(8, 3, SIZE, SIZE)).sum().backward()
    flops = counter.get_total_flops() * 2 * batch / 8
    return flops / (1e9 * fma_peak(threads=threads).gflops)
