"""Training views per second from a folder of JPEGs, end to end: ours beside the usual ways.

All decode, crop, flip, jitter, blur and normalise two 224 px views of each image after SimCLR, with
the same number of workers. Contestants take turns; what one prefetched meanwhile is taken first and
not timed. The folder is made here: 500 x 375, quality 90, noise of every scale as in photographs.
Gates: shapes, value range, and the same boxes give the same pixels in all three libraries.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.clock import as_record, summarise
from benchmarks.machine import describe, facts
from benchmarks.systems import loader_dali
from benchmarks.targets import at_least, conclude, keep
from fastssl.augment.presets import preset
from fastssl.augment.sampling import sample
from fastssl.data.dali_decoder import DaliDecoder
from fastssl.data.headers import check
from fastssl.data.sources import open_source
from fastssl.data.store import Encoded
from fastssl.kernels.augment.op import augment

SIZE, WORKERS = 224, 2
STALE = 4  # batches that may have been made in others' turns
FLOOR = "decoding alone (floor)"
OURS, DALI, DATALOADER = "fastssl (DALI)", "all DALI", "torchvision DataLoader"


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads)
    print(describe(machine))
    count, batch_size, rounds = (32, 8, 2) if options.quick else (512, 64, 7)
    at_least_s = 0.0 if options.quick else 2.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder, count)
        gate_boxes(sorted(folder.glob("*/*.jpg"))[:8])
        loaders = contestants(folder, batch_size)
        for title, batches in loaders.items():
            if title != FLOOR:
                gate_views(title, next(batches), batch_size)
        print("gates passed: shapes, value range, the same pixels for the same boxes")
        taken: dict[str, list[float]] = {title: [] for title in loaders}
        for _ in range(rounds):
            for title, batches in loaders.items():
                taken[title].append(seconds_per_view(batches, batch_size, at_least_s))
    rows = {}
    for title, seconds in taken.items():
        timing = summarise(seconds)
        rows[title] = as_record(timing)
        print(f"{title:<28} {timing}  {1 / timing.median:,.0f} views/s", flush=True)
    median = {title: float(np.median(seconds)) for title, seconds in taken.items()}
    verdicts = [
        at_least("over a torchvision DataLoader", median[DATALOADER] / median[OURS], 3.0, "x"),
        at_least("over an all-DALI pipeline", median[DALI] / median[OURS], 1.3, "x"),
    ]
    keep(options.json, {"machine": machine, "batch_size": batch_size, "rows": rows}, verdicts)
    return 0 if options.quick else conclude(verdicts)


def make_folder(folder: Path, count: int) -> None:
    """`count` JPEGs in two classes; the same bytes every time."""
    draw = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class{number % 2}"
        place.mkdir(exist_ok=True)
        photograph(draw).save(place / f"{number:05}.jpg", quality=90)


def photograph(draw: np.random.Generator, width: int = 500, height: int = 375) -> Image.Image:
    """Noise of every scale, each octave weaker than the one before: some 40 kB as JPEG."""
    pixels = np.full((height, width, 3), 128.0)
    for octave in range(2, 9):
        side = 2**octave
        coarse = draw.integers(0, 256, (max(2, 3 * side // 4), side, 3), dtype=np.uint8)
        fine = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels += 0.8 * (np.asarray(fine, dtype=float) - 128) / 1.6 ** (octave - 2)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def gate_boxes(paths: list[Path]) -> None:
    """The crops of one table, by `augment`, torchvision and DALI, to two levels of 256."""
    from torchvision.transforms.v2 import functional as tv

    policy = preset("simclr", image_size=SIZE).without_normalisation()
    contents = [path.read_bytes() for path in paths]
    images = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in paths]
    sizes_N2 = np.array([image.shape[1:] for image in images])
    index_N = np.arange(len(images))
    drawn = sample(policy, seed=0, epoch=0, step=0, index_N=index_N, sizes_N2=sizes_N2)
    (table,) = drawn.tables
    table.codes_VNC.zero_()  # the crop alone
    ours = 255 * augment(images, table, size=SIZE, settings=policy.groups[0].settings)[0]
    box_N4 = table.values_VNP[0, :, :4].numpy()
    by_dali = torch.from_numpy(loader_dali.crops(contents, box_N4, size=SIZE)).permute(0, 3, 1, 2)
    for row, (image, (left, top, width, height)) in enumerate(zip(images, box_N4, strict=True)):
        box = [int(value) for value in (top, left, height, width)]
        by_torchvision = tv.resized_crop(image, *box, [SIZE, SIZE], antialias=True)
        for peer in (by_torchvision, by_dali[row]):
            apart = (ours[row] - peer).abs()
            assert apart.mean() < 1 and apart.max() < 6, f"box {row}: {apart.max():.1f} levels"


def gate_views(title: str, views: tuple[torch.Tensor, ...], batch_size: int) -> None:
    """Two views of one shape, normalised: within the range of 0..1 under ImageNet's statistics."""
    assert len(views) == 2, title
    for x_N3SS in views:
        assert tuple(x_N3SS.shape) == (batch_size, 3, SIZE, SIZE), (title, x_N3SS.shape)
        assert x_N3SS.dtype == torch.float32, (title, x_N3SS.dtype)
        assert -2.2 < float(x_N3SS.min()) < 0.5 < float(x_N3SS.max()) < 2.7, title
        assert 0.3 < float(x_N3SS.std()) < 1.5, (title, float(x_N3SS.std()))


def seconds_per_view(batches: Iterator, batch_size: int, at_least_s: float) -> float:
    """Seconds per view over enough fresh batches to last `at_least_s`."""
    for _ in range(STALE):
        next(batches)
    start, views = time.perf_counter(), 0
    while views == 0 or time.perf_counter() - start < at_least_s:
        next(batches)
        views += 2 * batch_size
    return (time.perf_counter() - start) / views


def contestants(folder: Path, batch_size: int) -> dict[str, Iterator]:
    """Endless iterators over two views; the floor's over decoded images."""
    return {
        OURS: ours(folder, batch_size, backend="dali"),
        "fastssl (DALI, regions)": ours(folder, batch_size, backend="dali", decoded="regions"),
        "fastssl (PIL)": ours(folder, batch_size, backend="torchvision"),
        DALI: all_dali(folder, batch_size),
        DATALOADER: torchvisions(folder, batch_size),
        FLOOR: decoding_alone(folder, batch_size),
    }


def ours(folder: Path, batch_size: int, **options: str) -> Iterator:
    """Views of the folder source."""
    source = open_source(str(folder), image_size=SIZE, workers=WORKERS, **options)  # type: ignore[arg-type]
    cpu = torch.device("cpu")
    for batch in source.batches(batch_size=batch_size, seed=0, start_step=0, device=cpu):
        yield batch.views


def all_dali(folder: Path, batch_size: int) -> Iterator:
    """Everything in one DALI graph."""
    pipe = loader_dali.pipeline(str(folder), batch_size=batch_size, size=SIZE, threads=WORKERS)
    while True:
        yield tuple(torch.from_dlpack(view.as_tensor()) for view in pipe.run())


def decoding_alone(folder: Path, batch_size: int) -> Iterator:
    """Reading and decoding as ours does it, nothing else."""
    paths = [str(path) for path in sorted(folder.glob("*/*.jpg"))]
    with ThreadPoolExecutor(WORKERS) as pool:
        decoder = DaliDecoder(pool, threads=WORKERS, device_id=None)
        for begin in itertools.cycle(range(0, len(paths) - batch_size + 1, batch_size)):
            some = paths[begin : begin + batch_size]
            yield decoder.images(list(pool.map(encoded, some)))


def encoded(path: str) -> Encoded:
    """A file and its header."""
    return Encoded(path, Path(path).read_bytes(), check(path))


def torchvisions(folder: Path, batch_size: int) -> Iterator:
    """ImageFolder, v2 transforms and a DataLoader with worker processes, as in the tutorials."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    view = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(2 * (SIZE // 20) + 1, (0.1, 2.0))], p=0.5),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    dataset = ImageFolder(str(folder), transform=TwoViews(view))
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        num_workers=WORKERS,
        drop_last=True,
        persistent_workers=True,
    )
    for views, _ in itertools.chain.from_iterable(itertools.repeat(loader)):
        yield tuple(views)


class TwoViews:
    """Two draws of one transform."""

    def __init__(self, view: Callable) -> None:
        self.view = view

    def __call__(self, image: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        return self.view(image), self.view(image)
