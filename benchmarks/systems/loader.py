"""Training views per second from a folder of JPEGs: ours beside torchvision's usual way.

Both decode, crop, flip, jitter and normalise two views of each image at the same size with the same
number of workers, one after another: in turns, each would start with what it prefetched meanwhile.
The folder is made here: smooth colour fields with noise, 400 x 300, quality 90. Times are per view.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.clock import as_record, summarise
from benchmarks.machine import describe, facts
from benchmarks.targets import keep
from fastssl.data.sources import open_source

SIZE, WORKERS = 96, 2


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads)
    print(describe(machine))
    count, batch_size, rounds = (64, 16, 3) if options.quick else (1024, 128, 7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder, count)
        loaders = {
            "fastssl (DALI)": ours(folder, batch_size, "dali"),
            "fastssl (torchvision)": ours(folder, batch_size, "torchvision"),
            "torchvision DataLoader": torchvisions(folder, batch_size),
        }
        rows = {}
        for title, batches in loaders.items():
            timing = summarise([seconds_per_view(batches, batch_size) for _ in range(rounds)])
            rows[title] = as_record(timing)
            print(f"{title:<24} {timing}  {1 / timing.median:,.0f} views/s", flush=True)
    keep(options.json, {"machine": machine, "batch_size": batch_size, "rows": rows}, [])
    return 0


def make_folder(folder: Path, count: int) -> None:
    """`count` JPEGs in two classes; the same bytes every time."""
    draw = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((400, 300), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(pixels + draw.integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
        place = folder / f"class{number % 2}"
        place.mkdir(exist_ok=True)
        Image.fromarray(noisy).save(place / f"{number:05}.jpg", quality=90)


def seconds_per_view(batches: Iterator, batch_size: int, *, at_least_s: float = 3.0) -> float:
    """Seconds per view over enough batches to last `at_least_s`."""
    start, views = time.perf_counter(), 0
    while views == 0 or time.perf_counter() - start < at_least_s:
        next(batches)
        views += 2 * batch_size
    return (time.perf_counter() - start) / views


def ours(folder: Path, batch_size: int, backend: str) -> Iterator:
    """Endless batches of the folder source."""
    source = open_source(str(folder), image_size=SIZE, workers=WORKERS, backend=backend)
    cpu = torch.device("cpu")
    return warmed(source.batches(batch_size=batch_size, seed=0, start_step=0, device=cpu))


def torchvisions(folder: Path, batch_size: int) -> Iterator:
    """ImageFolder, v2 transforms and a DataLoader with worker processes, as in the tutorials."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    view = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(0.08, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], p=0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    dataset = ImageFolder(str(folder), transform=TwoViews(view))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size, shuffle=True, num_workers=WORKERS, drop_last=True
    )
    return warmed(itertools.chain.from_iterable(itertools.repeat(loader)))


class TwoViews:
    """Two draws of one transform."""

    def __init__(self, view: Callable) -> None:
        self.view = view

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        return self.view(image), self.view(image)


def warmed(batches: Iterator) -> Iterator:
    """The same batches after two of them: workers have started, pipelines are built."""
    for _ in range(2):
        next(batches)
    return batches
