"""What tests and benchmarks share about ``augment``: samples, tolerances, counts."""

# shapes: V views, N samples, S side of a view; P values, C codes
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import (
    CODES,
    IDENTITY,
    JITTER_ORDERS,
    STAGE_BIT,
    STAGES,
    VALUES,
    Table,
)

DTYPES = (torch.uint8, torch.float32, torch.float64)
JUMPS = ("affine", "hue", "solarize", "posterize", "equalize", "erase")
"""Not continuous (nearest affine): rounding before them may move a few pixels a whole level."""
JUMPED = 0.005  # largest share of pixels that rounding may move over a jump
ERROR_RATIO = 2.0
"""Largest error, as a multiple of the reference's own in float32, both against float64."""
ROUNDING = 32 * torch.finfo(torch.float32).eps
"""Added to it: a dozen float32 operations on values up to 1 (before the division by std)."""

NORMALISE: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FLOPS_PER_TAP = 2
"""Of the resize: taps of one output are ceil(2 half width max(ratio, 1)) along each axis."""


def still(sizes: list[tuple[int, int]], *, views: int = 1, dtype: torch.dtype = torch.float32):
    """The table that changes nothing: whole images, no stage."""
    values_VNP = torch.zeros(views, len(sizes), len(VALUES), dtype=dtype)
    table = Table(values_VNP, torch.zeros(views, len(sizes), len(CODES), dtype=torch.int32))
    for name, value in IDENTITY.items():
        table.value(name).fill_(value)
    height, width = torch.tensor(sizes).T
    table.value("height").copy_(height)
    table.value("width").copy_(width)
    table.code("posterize_bits").fill_(8)
    return table


RANGES = {
    "angle": (-50.0, 50.0), "translate_x": (-3.0, 3.0), "translate_y": (-3.0, 3.0),
    "scale": (0.7, 1.4), "shear_x": (-15.0, 15.0), "shear_y": (-15.0, 15.0),
    "brightness": (0.3, 1.7), "contrast": (0.3, 1.7), "saturation": (0.3, 1.7), "hue": (-0.5, 0.5),
    "sigma": (0.1, 2.0), "solarize": (0.1, 0.9), "erase_left": (-2.0, 8.0),
    "erase_top": (-2.0, 8.0), "erase_width": (1.0, 9.0), "erase_height": (1.0, 9.0),
    "erase_red": (0.0, 1.0), "erase_green": (0.0, 1.0), "erase_blue": (0.0, 1.0),
}  # fmt: skip


def drawn(
    sizes: list[tuple[int, int]],
    *,
    views: int = 2,
    seed: int = 0,
    stages: tuple[str, ...] = (),
    share: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Table:
    """Random parameters; each of ``stages`` runs on that ``share`` of the samples.

    Boxes are real numbers and some reach over the edges of their images.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float = 0.0, high: float = 1.0) -> Tensor:
        drawn = torch.rand(views, len(sizes), generator=generator, dtype=torch.float64)
        return low + (high - low) * drawn

    table = still(sizes, views=views, dtype=torch.float64)
    for begin, extent, axis in (("left", "width", 1), ("top", "height", 0)):
        length_N = torch.tensor([float(size[axis]) for size in sizes], dtype=torch.float64)
        table.value(extent).copy_(length_N * uniform(0.3, 1.0))
        table.value(begin).copy_((length_N - table.value(extent)) * uniform(-0.1, 1.1))
    for name, (low, high) in RANGES.items():
        table.value(name).copy_(uniform(low, high))
    for stage in stages:
        runs = uniform() < share
        table.code("stages").bitwise_or_(runs.int() * STAGE_BIT[stage])
    table.code("jitter_order").copy_((uniform() * len(JITTER_ORDERS)).int())
    table.code("posterize_bits").copy_(1 + (uniform() * 8).int())
    return Table(table.values_VNP.to(dtype), table.codes_VNC)


@dataclass(frozen=True)
class Sample:
    """One call: images of these sizes, as one tensor, padded or a list, and what runs on them."""

    name: str
    sizes: tuple[tuple[int, int], ...]
    size: int
    stages: tuple[str, ...] = ()
    form: str = "dense"  # or "padded", "ragged", "hwc" (channels last)
    share: float = 1.0
    views: int = 2
    settings: Settings = field(default_factory=Settings)

    def images(self, dtype: torch.dtype) -> list[Tensor]:
        """Deterministic images (3, H_n, W_n), smooth with some noise, as real ones are."""
        return [picture(size, seed, dtype) for seed, size in enumerate(self.sizes)]

    def call(self, dtype: torch.dtype) -> tuple[Tensor | list[Tensor], Tensor | None]:
        """Images in the sample's form, and sizes if padded."""
        images = self.images(dtype)
        if self.form == "ragged":
            return images, None
        if self.form == "hwc":
            return [x.permute(1, 2, 0).contiguous().permute(2, 0, 1) for x in images], None
        if self.form == "dense":
            return torch.stack(images), None
        return padded(images)

    def table(self, dtype: torch.dtype = torch.float32) -> Table:
        """Parameters, the same numbers whatever the dtype."""
        drawn_table = drawn(
            list(self.sizes),
            views=self.views,
            seed=len(self.name),
            stages=self.stages,
            share=self.share,
            dtype=torch.float32,
        )
        return Table(drawn_table.values_VNP.to(dtype), drawn_table.codes_VNC)

    @property
    def jumps(self) -> bool:
        """Whether a stage is not continuous."""
        return any(stage in JUMPS for stage in self.stages)


def picture(size: tuple[int, int], seed: int, dtype: torch.dtype) -> Tensor:
    """(3, H, W) waves and noise over the whole range."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    phase = torch.rand(3, 3, generator=generator, dtype=torch.float64) * 6
    y, x = torch.arange(height)[:, None], torch.arange(width)
    waves = [torch.sin(a + 0.11 * y * (1 + b) + 0.17 * x * (1 + c)) for a, b, c in phase.tolist()]
    noise = torch.rand(3, height, width, generator=generator, dtype=torch.float64) - 0.5
    image = (0.5 + 0.4 * torch.stack(waves) + 0.3 * noise).clamp(0, 1)
    levels = (image * 255).round()
    return levels.to(torch.uint8) if dtype == torch.uint8 else (levels / 255).to(dtype)


def padded(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One batch with rubbish outside the images, and their sizes."""
    sizes_N2 = torch.tensor([tuple(image.shape[1:]) for image in images])
    height, width = sizes_N2.amax(0).tolist()
    rubbish = 77 if images[0].dtype == torch.uint8 else math.nan
    batch = images[0].new_full((len(images), 3, height, width), rubbish)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes_N2


def samples() -> Iterator[Sample]:
    """Each stage alone, all together, every form, enlarging and reducing."""
    mixed = ((17, 23), (40, 12), (5, 64), (33, 33))
    for name, stage in (("crop", ()), *((stage, (stage,)) for stage in STAGES)):
        yield Sample(name, ((24, 19),) * 3, 13, stage)
    for size in (2, 8, 45):
        for form in ("padded", "ragged", "hwc"):
            yield Sample(f"{form} {size}", mixed, size, STAGES, form, share=0.5)
    yield Sample("one pixel", ((1, 1), (1, 1)), 1)
    yield Sample("simclr", ((32, 32),) * 6, 32, ("hflip", "jitter", "gray", "blur"), share=0.6)
    for name, settings in (
        ("bicubic", Settings(interpolation="bicubic")),
        ("yiq", Settings(hue="yiq")),
        ("bilinear affine", Settings(affine_interpolation="bilinear")),
        ("wide blur", Settings(blur_window=15)),
        ("no blur", Settings(blur_window=1)),
        ("normalised", Settings(**NORMALISE)),
        ("channels last", Settings(memory_format=torch.channels_last)),
        ("bfloat16", Settings(dtype=torch.bfloat16, **NORMALISE)),
    ):
        stages = ("vflip", "affine", "jitter", "blur")
        yield Sample(name, mixed, 16, stages, "ragged", share=0.7, settings=settings)


def floor_bytes(views: int, samples: int, size: int, *, pixels: int, itemsize: int) -> int:
    """Each pixel of a source image read once per view, each value of a view written once."""
    return 3 * views * samples * (pixels * itemsize + 4 * size * size)
