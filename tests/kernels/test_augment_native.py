"""What the compiled ``augment`` alone promises: instruction sets, threads, bounds, its backward."""

# shapes: V views, N samples, S side of a view, H x W an image; P values
from __future__ import annotations

import math
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.augment import native, reference, spec
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import CODES, STAGES, VALUES, Table

pytestmark = pytest.mark.skipif(
    compiled.library() is None, reason="the compiled library was not built: no C++ compiler"
)
ISAS = compiled.instruction_sets()
SAMPLES = {sample.name: sample for sample in spec.samples()}
READ = [name for name in SAMPLES if name.startswith(("crop", "one", "padded", "ragged", "hwc"))]
SMOOTH = ("hflip", "vflip", "jitter", "gray", "blur", "solarize", "erase")
GRADIENT_ERROR = 2e-4
"""Of a gradient by a value, to the largest by that value in the batch: a float32 sum over up to
3 S^2 = 1083 pixels whose terms cancel, hue's most of all."""


@pytest.fixture(params=ISAS)
def isa(request):
    compiled.select_isa(request.param)
    yield request.param
    compiled.select_isa(ISAS[0])


def arguments(sample: spec.Sample, dtype: torch.dtype):
    """Images as the operator takes them, sizes, and the table in float32."""
    images, sizes_N2 = sample.call(dtype)
    table = sample.table()
    listed = [images] if isinstance(images, Tensor) else images
    return listed, sizes_N2, table.values_VNP, table.codes_VNC


@contextmanager
def one_thread():
    """For the reference: of samples this small, threads that wait for each other are most of it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
@one_thread()
def truth_of(name: str, dtype: torch.dtype) -> tuple[Tensor, float]:
    """The sample's views in float64, and the reference's own largest error in float32."""
    images, sizes, values, codes = arguments(SAMPLES[name], dtype)
    rest = (codes, SAMPLES[name].size, SAMPLES[name].settings)
    truth = reference.forward(doubled(images), sizes, values.double(), *rest)
    own = reference.forward(images, sizes, values, *rest).double() - truth
    return truth, float(own.abs().max())


def doubled(listed: list[Tensor]) -> list[Tensor]:
    scale = 255 if listed[0].dtype == torch.uint8 else 1
    return [image.double() / scale for image in listed]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_every_instruction_set_renders_the_right_views(isa, dtype):
    wrong = {}
    for name, sample in SAMPLES.items():
        if sample.settings.dtype != torch.float32:
            continue  # the rounding to bfloat16 is the same everywhere
        if dtype == torch.uint8 and name not in READ:
            continue  # uint8 differs in how pixels are read alone
        images, sizes, values, codes = arguments(sample, dtype)
        rest = (codes, sample.size, sample.settings)
        truth, own = truth_of(name, dtype)
        found = native.forward(images, sizes, values, *rest).double()
        off = (found - truth).abs() > spec.ERROR_RATIO * own + 5 * spec.ROUNDING
        if off.double().mean() > (spec.JUMPED if sample.jumps else 0):
            wrong[name] = float((found - truth).abs().max())
    assert wrong == {}


CASES = {
    "hsv": Settings(blur_window=5, **spec.NORMALISE),
    "yiq bicubic": Settings(interpolation="bicubic", hue="yiq", memory_format=torch.channels_last),
    "affine": Settings(affine_interpolation="bilinear"),
}


@cache
@one_thread()
def differentiated(name: str):
    """The arguments of a backward, and its answer in float64."""
    stages = ("affine", "jitter") if name == "affine" else SMOOTH
    sizes = [(17, 23), (40, 12), (33, 33), (90, 70)] * 3
    images = [0.1 + 0.8 * spec.picture(size, k, torch.float32) for k, size in enumerate(sizes)]
    table = spec.drawn(sizes, stages=stages, share=0.7, seed=5, dtype=torch.float32)
    # away from black and white, where the slope jumps
    for factor in ("brightness", "contrast", "saturation"):
        table.value(factor).copy_(0.8 + 0.1 * table.value(factor))
    grad = torch.randn(2, len(sizes), 3, 19, 19, generator=torch.Generator().manual_seed(1))
    call = (table.codes_VNC, 19, CASES[name], True)
    doubles = [image.double() for image in images]
    values = table.values_VNP.double()
    truth = reference.backward(grad.double(), doubles, None, values, *call)
    return (grad, images, None, table.values_VNP, *call), truth


@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_differentiates_each_value_and_pixel(isa, name):
    call, (true_images, true_values) = differentiated(name)
    by_images, by_values = native.backward(*call)
    scale_P = true_values.abs().amax((0, 1)) + 1e-6
    error_P = ((by_values.double() - true_values).abs() / scale_P).amax((0, 1))
    wrong = {
        VALUES[k]: float(error_P[k]) for k in range(len(VALUES)) if error_P[k] > GRADIENT_ERROR
    }
    assert wrong == {}
    for found, truth in zip(by_images, true_images, strict=True):
        assert found.is_contiguous()
        assert (found.double() - truth).abs().max() <= 1e-4 * truth.abs().max()


def test_uint8_and_float_images_have_the_same_gradients_by_the_values():
    sizes = [(20, 31)] * 4
    levels = torch.stack([spec.picture(size, k, torch.uint8) for k, size in enumerate(sizes)])
    table = spec.drawn(sizes, stages=("jitter", "gray"), seed=2, share=0.5, dtype=torch.float32)
    grad = torch.randn(2, 4, 3, 12, 12)
    call = (None, table.values_VNP, table.codes_VNC, 12, Settings(), False)
    none, whole = native.backward(grad, [levels], *call)
    _, scaled = native.backward(grad, [levels.float() / 255], *call)
    assert none == [] and torch.equal(whole, scaled) and (whole != 0).any()


def test_a_constant_stage_stops_every_gradient_but_that_of_the_colour_above_it():
    sizes = [(9, 9)] * 2
    images = torch.rand(2, 3, 9, 9)
    for stage in ("posterize", "equalize"):
        table = spec.drawn(sizes, stages=("jitter", stage, "erase"), dtype=torch.float32)
        call = (table.values_VNP, table.codes_VNC, 9, Settings(), True)
        (by_images,), by_values = native.backward(torch.ones(2, 2, 3, 9, 9), [images], None, *call)
        colour = slice(VALUES.index("erase_red"), VALUES.index("erase_blue") + 1)
        assert (by_images == 0).all() and (by_values[..., : colour.start] == 0).all()
        assert (by_values[..., colour] > 0).any()


@pytest.mark.parametrize("wanted", [True, False], ids=["with images", "values alone"])
def test_thread_counts_give_equal_bits(wanted):
    sizes = [(17, 23), (40, 12), (33, 33)] * 5
    images = [spec.picture(size, k, torch.float32) for k, size in enumerate(sizes)]
    table = spec.drawn(sizes, views=3, stages=SMOOTH, share=0.5, dtype=torch.float32)
    grad = torch.randn(3, len(sizes), 3, 40, 40)
    inputs = (images, None, table.values_VNP, table.codes_VNC, 40, Settings())
    before, answers = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            by_images, by_values = native.backward(grad, *inputs, wanted)
            answers.append([native.forward(*inputs), by_values, *by_images])
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], answer, strict=True))


@pytest.mark.parametrize("layout", ["planes", "interleaved", "columns"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_what_lies_round_an_image_is_never_seen(layout, interpolation):
    """Images cut out of a batch of NaN: every row, column and channel has NaN beside it."""
    order = {"planes": (0, 1, 2), "interleaved": (1, 2, 0), "columns": (0, 2, 1)}[layout]
    sizes = [(17, 23), (40, 12), (5, 64), (1, 1)]
    inside = []
    for seed, size in enumerate(sizes):
        image = spec.picture(size, seed, torch.float32).permute(order)
        room = [side + (2 if side != 3 else 0) for side in image.shape]
        whole = torch.full(room, math.nan)
        hole = whole[tuple(slice(1, 1 + s) if s != 3 else slice(None) for s in image.shape)]
        inside.append(hole.copy_(image).permute([order.index(k) for k in range(3)]))
    settings = Settings(interpolation=interpolation)
    for size in (3, 16, 41):
        table = spec.drawn(sizes, stages=STAGES, share=0.4, dtype=torch.float32)
        call = (None, table.values_VNP, table.codes_VNC, size, settings)
        views = native.forward(inside, *call)
        assert views.isfinite().all()
        assert torch.equal(views, native.forward([x.contiguous() for x in inside], *call))
        by_images, by_values = native.backward(torch.ones_like(views), inside, *call, True)
        assert all(x.isfinite().all() for x in (*by_images, by_values))


HOSTILE = (math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30, 0.0, -5.0)


@pytest.mark.parametrize("settings", [Settings(blur_window=9), Settings(interpolation="bicubic")])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_numbers_that_the_operator_refuses_cannot_lead_out_of_the_memory(settings, dtype):
    """Handed over past the checks; under the sanitizer driver the same is watched byte by byte."""
    sizes = [(7, 9), (12, 3)]
    images = [spec.picture(size, k, dtype) for k, size in enumerate(sizes)]
    sound = spec.drawn(sizes, stages=STAGES, seed=4, dtype=torch.float32)
    expected = native.forward(images, None, sound.values_VNP, sound.codes_VNC, 6, settings)
    grad = torch.ones(2, 2, 3, 6, 6)
    for column in range(len(VALUES)):
        for value in HOSTILE:
            values_VNP = sound.values_VNP.clone()
            values_VNP[0, 0, column] = value
            call = (images, None, values_VNP, sound.codes_VNC, 6, settings)
            views = native.forward(*call)
            assert torch.equal(views[1], expected[1])
            assert torch.equal(views[0, 1], expected[0, 1])
            native.backward(grad, *call, dtype == torch.float32)
    for column in range(len(CODES)):
        for code in (-1, 2**31 - 1, -(2**31), 24, 40):
            codes_VNC = sound.codes_VNC.clone()
            codes_VNC[0, 0, column] = code
            call = (images, None, sound.values_VNP, codes_VNC, 6, settings)
            assert torch.equal(native.forward(*call)[1], expected[1])
            native.backward(grad, *call, dtype == torch.float32)


def test_boxes_far_outside_still_give_pixels_of_the_image():
    images = spec.picture((7, 9), 0, torch.float32)[None]
    table = spec.still([(7, 9)])
    for left, width in ((1e9, 4.0), (-1e9, 4.0), (0.0, 1e12), (8.9999, 1e-9), (math.nan, 3.0)):
        values_VNP = table.values_VNP.clone()
        values_VNP[..., VALUES.index("left")] = left
        values_VNP[..., VALUES.index("width")] = width
        views = native.forward([images], None, values_VNP, table.codes_VNC, 5, Settings())
        assert images.min() <= views.min() and views.max() <= images.max() + 1e-6


def test_views_come_from_the_pool_and_return_to_it():
    images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    table = spec.still([(32, 32)] * 64)
    before = compiled.pool_usage()[1]
    views = native.forward([images], None, table.values_VNP, table.codes_VNC, 40, Settings())
    assert compiled.pool_usage()[1] > before
    del views
    assert compiled.pool_usage()[1] == before


def test_the_columns_of_the_table_are_those_of_the_library():
    """csrc/augment.h numbers them by position: a new column must be told there."""
    assert (
        len(VALUES) == 23
        and len(CODES) == 3
        and Table.__dataclass_fields__.keys()
        == {
            "values_VNP",
            "codes_VNC",
        }
    )
