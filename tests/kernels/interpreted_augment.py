"""Runs the Triton kernels of augment in the interpreter; prints one JSON line per case.

Its own process (``python -m tests.kernels.interpreted_augment``): TRITON_INTERPRET must be set
before the kernels are decorated. A case is a sample, or a planted bug that must be caught.
"""

# shapes: V views, N samples, S side of a view, H x W an image
from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Iterator
from itertools import product
from unittest.mock import patch

from tests.kernels import interpreted  # first: it turns the interpreter on and mends its bf16

import torch  # isort: skip
import triton  # isort: skip
import triton.language as tl  # isort: skip

from fastssl.kernels.augment import kernel, kernel_colour, kernel_tone  # isort: skip
from fastssl.kernels.augment import launch, reference, spec  # isort: skip
from fastssl.kernels.augment.settings import Settings  # isort: skip
from fastssl.kernels.augment.table import STAGES, VALUES  # isort: skip
from tests.kernels.guard_bands import Guard  # isort: skip

assert interpreted.DTYPES  # the interpreter is on
MIXED = ((7, 9), (12, 5), (5, 16))
LAST = torch.channels_last
POINTWISE = ("hflip", "vflip", "gray", "solarize", "posterize", "erase")
SAMPLES = [
    spec.Sample("crop", MIXED, 5, (), "ragged", views=1),
    spec.Sample("enlarged", ((5, 6),) * 2, 17, ("hflip",), views=1),
    spec.Sample("one pixel", ((1, 1),), 1, views=1),
    *(spec.Sample(stage, ((9, 7),) * 2, 6, (stage,), views=1) for stage in STAGES),
    spec.Sample("jitter orders", ((6, 6),) * 3, 5, ("jitter",), views=4),
    spec.Sample("blocks", ((12, 14),), 17, ("jitter", "blur"), "hwc", views=1),
    spec.Sample("pointwise", MIXED, 8, POINTWISE, "padded", 0.6, views=8),
    spec.Sample("padded", MIXED, 8, STAGES, "padded", 0.5),
    spec.Sample("hwc", MIXED, 16, STAGES, "hwc", 0.6, 1, Settings(memory_format=LAST)),
    spec.Sample("ragged bicubic", MIXED, 7, ("vflip", "jitter"), "ragged", 0.7, 1,
                Settings(interpolation="bicubic", **spec.NORMALISE)),
    spec.Sample("yiq", MIXED, 7, ("jitter", "gray"), "ragged", 0.8, 1,
                Settings(hue="yiq")),
    spec.Sample("bilinear affine", MIXED, 9, ("hflip", "affine"), "ragged", 1.0, 1,
                Settings(affine_interpolation="bilinear")),
    spec.Sample("wide blur", MIXED, 9, ("blur", "equalize"), "ragged", 0.7, 1,
                Settings(blur_window=15)),
    spec.Sample("no blur", ((9, 7),) * 2, 6, ("blur",), settings=Settings(blur_window=1)),
    spec.Sample("bfloat16", MIXED, 9, ("jitter", "blur", "erase"), "padded", 0.7, 1,
                Settings(dtype=torch.bfloat16, **spec.NORMALISE)),
]  # fmt: skip
DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
SKIPPED = {*STAGES, "jitter orders", "yiq", "no blur"} - {"solarize", "posterize"}
"""Of uint8 images, which differ in how they are read."""
JUMPED = 0.01  # of views this small: rounding may move a pixel or two


def guarded(image: torch.Tensor) -> torch.Tensor:
    """The same image, planes and rows apart, NaN (uint8: a wrong level) all round it."""
    room = [side + 2 for side in image.shape]
    rubbish = 77 if image.dtype == torch.uint8 else math.nan
    whole = torch.full(room, rubbish, dtype=image.dtype)
    inner = whole[tuple(slice(1, -1) for _ in room)]
    return inner.copy_(image)


def check(sample: spec.Sample, dtype: torch.dtype, guard: Guard) -> str:
    """What is wrong: an error beyond twice the reference's own in float32, or a band."""
    launch.allocate = guard.output
    batch, sizes_N2 = sample.call(dtype)
    images = [batch] if isinstance(batch, torch.Tensor) else list(batch)
    if sample.form != "hwc":
        images = [guarded(image) for image in images]
    table = sample.table()
    rest = (sizes_N2, table.values_VNP, table.codes_VNC, sample.size, sample.settings)
    truth = reference.render(images, *rest, dtype=torch.float64)
    own = reference.forward(images, *rest).double() - truth
    found = launch.forward(images, *rest)
    if guard.violations():
        return f"{guard.violations()} guard elements overwritten"
    if found.shape != truth.shape or found.dtype != sample.settings.dtype:
        return f"{found.dtype} {tuple(found.shape)}"
    if sample.settings.memory_format == LAST and not found.movedim(2, -1).is_contiguous():
        return "not channels last"
    error = (found.double() - truth).abs()
    std = min(sample.settings.std or (1.0,))
    limit = 2 * spec.ROUNDING / std + spec.ERROR_RATIO * own.abs().quantile(0.99)
    limit = limit + torch.finfo(found.dtype).eps / 2 * truth.abs()
    off = (~(error <= limit)).double().mean().item()
    if off <= (JUMPED if sample.jumps else 0.0):
        return ""
    return f"{off:.2%} off, at most {error.max():.2g}, limit {limit.max():.2g}"


HOSTILE = (math.nan, math.inf, -1e30, 0.0)


def hostile() -> str:
    """Numbers that a device cannot refuse: nothing outside the image is read, nothing outside the
    views written, and the other samples are not touched."""
    guard = Guard()
    launch.allocate = guard.output
    images = torch.full((4, 3, 9, 11), 1e20)[1:-1, :, 1:-1, 1:-1]
    for seed, image in enumerate(images):
        image.copy_(spec.picture((7, 9), seed, torch.float32))
    table = spec.drawn([(7, 9)] * 2, views=1, stages=("affine", "blur"), dtype=torch.float32)
    settings = Settings(blur_window=15)  # wider than the view
    expected = launch.forward([images], None, table.values_VNP, table.codes_VNC, 5, settings)
    for value, names in product(HOSTILE, (("left",), ("height",), VALUES)):
        values_VNP, codes_VNC = table.values_VNP.clone(), table.codes_VNC.clone()
        for name in names:
            values_VNP[0, 0, VALUES.index(name)] = value
        if names == VALUES:
            codes_VNC[0, 0] = torch.tensor([-1, -7 if value > 0 else 1 << 30, 40])
        sizes_N2 = torch.tensor([[9, 9], [7, 9]]) if names[0] == "height" else None
        found = launch.forward([images], sizes_N2, values_VNP, codes_VNC, 5, settings)
        if guard.violations() or not torch.equal(found[:, 1], expected[:, 1]):
            return f"{names} = {value} touches others"
        if names != VALUES and (found > 1.001).any():
            return f"{names} = {value} reads beyond the image"
    return ""


@triton.jit
def unclamped(x_B, other, factor):
    return factor * x_B + (1.0 - factor) * other


@triton.jit
def wrapped(at_B, S):
    return (at_B + S) % S


@triton.jit
def wider(start, extent, length, S, cubic):
    start, ratio, half, first, last, taps = right_axis(start, extent, length, S, cubic)
    return start, ratio, half, first - 1, last + 1, taps


@triton.jit
def constant(distance_B, shrink, cubic):
    return tl.where(tl.abs(distance_B * shrink) < 1.0, 1.0, 0.0)


@triton.jit
def another_order(index):
    order, place = right_order(index)
    return (order >> 4) | ((order & 15) << 4), (place + 2) % 4


@triton.jit
def another_level(x_B):
    return (tl.minimum(tl.maximum(x_B, 0.0), 1.0) * 255.0).to(tl.int32)


@triton.jit
def block_alone(S, tiles, B: tl.constexpr):
    m, pixel_B, row_B, column_B, inside_B = right_block(S, tiles, B)
    return m, pixel_B, row_B, column_B, inside_B & (pixel_B < B)


right_axis, right_order = kernel.axis, kernel_colour.order_of
right_block = kernel_colour.block
BUGS = (
    ("taps beyond the image", kernel, "axis", wider, "crop"),
    ("pixels that are not the image's", kernel, "axis", wider, "hostile"),
    ("another filter", kernel, "weight", constant, "crop"),
    ("flips exchanged", kernel, "HFLIP", tl.constexpr(2), "hflip"),
    ("affine not rounded", kernel, "NEAREST_EVEN", tl.constexpr(0.0), "affine"),
    ("pixels past the first block", kernel_colour, "block", block_alone, "blocks"),
    ("jitter unclamped", kernel_colour, "mixed", unclamped, "jitter"),
    ("steps in another order", kernel_colour, "order_of", another_order, "jitter orders"),
    ("blur wraps around", kernel_tone, "reflected", wrapped, "blur"),
    ("levels rounded otherwise", kernel_tone, "level_of", another_level, "equalize"),
)


def planted() -> Iterator[tuple[str, str]]:
    """What the gate says of each planted bug; an empty answer is a bug that got through."""
    samples = {sample.name: sample for sample in SAMPLES}
    short = check(samples["hwc"], torch.float32, Guard(short_by=1))
    yield "write out of bounds", short
    for name, room, attribute, wrong, sample in BUGS:
        with patch.object(room, attribute, wrong):
            if sample == "hostile":
                yield name, hostile()
                continue
            yield name, check(samples[sample], torch.float32, Guard())


def main() -> None:
    warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, on lanes that a mask leaves out
    for dtype_name, dtype in DTYPES.items():
        for sample in SAMPLES:
            if dtype == torch.uint8 and sample.name in SKIPPED:
                continue
            try:
                wrong = check(sample, dtype, Guard())
            except Exception as error:  # reported by the test that asked
                wrong = f"{type(error).__name__}: {error}"
            print(json.dumps({"case": f"{dtype_name}: {sample.name}", "wrong": wrong}), flush=True)
    print(json.dumps({"case": "hostile", "wrong": hostile()}), flush=True)
    for name, wrong in planted():
        print(json.dumps({"case": f"planted: {name}", "wrong": wrong}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
