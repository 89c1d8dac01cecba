"""Every backend of ``augment`` on the CPU against the reference in float64.

The compiled one is judged as soon as it says that it supports a call; the reference itself in
float32 sets the yardstick and must be near float64 too.
"""

# shapes: V views, N samples, S side of a view; P values
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.augment import native, reference, spec
from fastssl.kernels.augment.checks import as_list
from fastssl.kernels.augment.op import augment
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import STAGES, VALUES, Table

SAMPLES = list(spec.samples())
NEAR = 3e-5  # the reference in float32 at its worst: cubic weights and the hue's division
GRADIENT = 5e-3  # of a column's largest gradient: what a pixel at a clamp or threshold may weigh
DTYPES = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
EACH = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)


def backends(images: list[Tensor], chosen: Settings) -> dict:
    """Name and module of whoever can answer."""
    found = {"reference": reference}
    if compiled.library() is not None and native.supports(images, chosen):
        found["compiled"] = native
    return found


def mistakes(sample: spec.Sample, dtype: torch.dtype) -> list[str]:
    """What is wrong with the views of each backend."""
    batch, sizes_N2 = sample.call(dtype)
    images, table = as_list(batch), sample.table()
    arguments = (images, sizes_N2, table.values_VNP, table.codes_VNC, sample.size, sample.settings)
    truth = reference.render(*arguments, dtype=torch.float64)
    own = reference.forward(*arguments).double() - truth
    wrong = []
    for name, backend in backends(images, sample.settings).items():
        found = backend.forward(*arguments)
        assert found.shape == truth.shape and found.dtype == sample.settings.dtype
        error = (found.double() - truth).abs()
        std = min(sample.settings.std or (1.0,))
        limit = spec.ROUNDING / std + spec.ERROR_RATIO * own.abs().quantile(0.99)
        if name == "reference":
            limit = torch.full((), NEAR / std)
        half_place = torch.finfo(found.dtype).eps / 2 * truth.abs()
        off = (error > limit + half_place).double().mean().item()
        if not off <= (spec.JUMPED if sample.jumps or off < 1e-3 else 0.0):
            wrong.append(f"{name}: {off:.2%} off, at most {error.max():.2g}, limit {limit:.2g}")
    return wrong


@DTYPES
@EACH
def test_views_are_those_of_float64(sample, dtype):
    assert mistakes(sample, dtype) == []


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5),
    size=st.integers(2, 40),
    stages=st.sets(st.sampled_from(STAGES)),
    form=st.sampled_from(["padded", "ragged", "hwc"]),
    dtype=st.sampled_from([torch.uint8, torch.float32]),
    hue=st.sampled_from(["hsv", "yiq"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    affine=st.sampled_from(["nearest", "bilinear"]),
    window=st.sampled_from([1, 3]),
    name=st.text("ab", max_size=9),  # its length seeds the table
)
def test_any_sizes_boxes_and_stages(
    sizes, size, stages, form, dtype, hue, interpolation, affine, window, name
):
    chosen = Settings(
        hue=hue, interpolation=interpolation, affine_interpolation=affine, blur_window=window
    )
    ordered = tuple(stage for stage in STAGES if stage in stages)
    sample = spec.Sample(name, tuple(sizes), size, ordered, form, 0.6, 2, chosen)
    assert mistakes(sample, dtype) == []


def gradients(backend, grad, arguments, want_images: bool) -> dict[str, Tensor]:
    """Of the images, flat, and of the values, in float64."""
    found, values = backend.backward(grad, *arguments, want_images)
    named = {"values": values.double()}
    if want_images:
        named["images"] = torch.cat([x.flatten() for x in found]).double()
    return named


def gradient_mistakes(sample: spec.Sample, dtype: torch.dtype) -> list[str]:
    """What is wrong with the gradients of each backend; floats lie on no kink."""
    batch, sizes_N2 = sample.call(dtype)
    images, table = as_list(batch), sample.table()
    want_images = dtype != torch.uint8
    if want_images:
        generator = torch.Generator().manual_seed(0)
        images = [0.1 + 0.8 * x + 1e-3 * torch.rand(x.shape, generator=generator) for x in images]
    arguments = (images, sizes_N2, table.values_VNP, table.codes_VNC, sample.size, sample.settings)
    shape = (sample.views, len(sample.sizes), 3, sample.size, sample.size)
    generator = torch.Generator().manual_seed(1)
    grad = torch.rand(shape, generator=generator).to(sample.settings.dtype) + 0.5
    precise = [x.double() / 255 if x.dtype == torch.uint8 else x.double() for x in images]
    doubles = (precise, sizes_N2, table.values_VNP.double(), *arguments[3:])
    truth = gradients(reference, grad.double(), doubles, want_images)
    wrong = []
    for name, backend in {"reference": reference, "compiled": native}.items():
        if backend is native and not (
            compiled.library() is not None
            and native.supports_backward(images, table.codes_VNC, sample.settings)
        ):
            continue
        found = gradients(backend, grad, arguments, want_images)
        for part, exact in truth.items():
            scale = exact.abs()
            scale = scale.amax((0, 1)) if part == "values" else scale.max()
            error = (found[part] - exact).abs()
            off = error > GRADIENT * scale + 1e-5 * (1 + exact.abs().max())
            if off.double().mean() > (spec.JUMPED if part == "images" else 0):
                columns = off.nonzero()[:, -1].tolist() if part == "values" else []
                names = sorted({VALUES[column] for column in columns})
                wrong.append(f"{name}: {part} {names} off by {error.max():.2g}")
    return wrong


SMOOTH = [s for s in SAMPLES if "posterize" not in s.stages and "equalize" not in s.stages]


@DTYPES
@pytest.mark.parametrize("sample", SMOOTH, ids=lambda sample: sample.name)
def test_gradients_are_those_of_float64(sample, dtype):
    assert gradient_mistakes(sample, dtype) == []


def test_threads_and_order_of_samples_do_not_change_a_bit():
    sample = next(s for s in SAMPLES if s.name == "simclr")
    batch, _ = sample.call(torch.uint8)
    table = sample.table()
    views = augment(batch, table, size=sample.size)
    back = torch.arange(len(batch) - 1, -1, -1)
    turned = Table(table.values_VNP[:, back], table.codes_VNC[:, back])
    found = augment(batch[back], turned, size=sample.size)
    torch.testing.assert_close(found[:, back], views, rtol=0, atol=0)


@pytest.mark.skipif(compiled.library() is None, reason="the compiled library is not built")
@pytest.mark.parametrize("isa", compiled.instruction_sets())
def test_every_instruction_set_answers_alike(isa):
    compiled.select_isa(isa)
    try:
        for name in ("simclr", "padded 45", "hwc 8", "bicubic", "bilinear affine", "bfloat16"):
            sample = next(sample for sample in SAMPLES if sample.name == name)
            assert mistakes(sample, torch.uint8) == []
    finally:
        compiled.select_isa(compiled.instruction_sets()[0])
