"""The promises of ``augment`` on CUDA, where the Triton kernels answer (``pytest -m gpu``)."""

# shapes: V views, N samples, S side of a view
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastssl.kernels.augment import reference, spec
from fastssl.kernels.augment.op import augment
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import STAGES, Table

DEVICE = torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SAMPLES = {sample.name: sample for sample in spec.samples()}


def on_device(sample: spec.Sample, dtype: torch.dtype):
    """Images in the sample's form with their strides, sizes and table."""
    images, sizes_N2 = sample.call(dtype)
    moved = images.to(DEVICE) if isinstance(images, Tensor) else [x.to(DEVICE) for x in images]
    sizes_N2 = None if sizes_N2 is None else sizes_N2.to(DEVICE)
    return moved, sizes_N2, sample.table().to(DEVICE)


def batch_of(count: int, side: int, stages: tuple[str, ...]) -> tuple[Tensor, Table]:
    images = torch.stack([spec.picture((side, side), k, torch.uint8) for k in range(4)])
    table = spec.drawn([(side, side)] * count, stages=stages, share=0.5, dtype=torch.float32)
    return images.repeat(count // 4, 1, 1, 1).to(DEVICE), table.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("name", SAMPLES)
def test_views_are_those_of_float64(name, dtype):
    sample = SAMPLES[name]
    images, sizes_N2, table = on_device(sample, dtype)
    found = augment(images, table, size=sample.size, sizes_N2=sizes_N2, settings=sample.settings)
    listed = [images] if isinstance(images, Tensor) else images
    rest = (table.values_VNP, table.codes_VNC, sample.size, sample.settings)
    truth = reference.render(listed, sizes_N2, *rest, dtype=torch.float64)
    own = (reference.forward(listed, sizes_N2, *rest).double() - truth).abs()
    std = min(sample.settings.std or (1.0,))
    limit = 2 * spec.ROUNDING / std + spec.ERROR_RATIO * own.quantile(0.99)
    limit = limit + torch.finfo(found.dtype).eps / 2 * truth.abs()
    off = (~((found.double() - truth).abs() <= limit)).double().mean().item()
    assert off <= (spec.JUMPED if sample.jumps else 0.0)
    assert found.dtype == sample.settings.dtype and found.is_cuda


def test_neither_order_nor_repeats_change_a_bit():
    images, table = batch_of(64, 96, STAGES)
    first = augment(images, table, size=80)
    back = torch.arange(63, -1, -1, device=DEVICE)
    turned = Table(table.values_VNP[:, back], table.codes_VNC[:, back])
    assert torch.equal(augment(images, table, size=80), first)
    assert torch.equal(augment(images[back], turned, size=80)[:, back], first)


@pytest.mark.parametrize("form", ["dense", "ragged"])
def test_no_view_waits_for_the_device(form):
    images, table = batch_of(8, 64, STAGES)
    given = images if form == "dense" else list(images)
    augment(given, table, size=48)  # compiled by now
    torch.cuda.set_sync_debug_mode("error")
    try:
        augment(given, table, size=48)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_cuda_graph_replays_with_other_images_and_parameters():
    images, table = batch_of(8, 64, STAGES)
    augment(images, table, size=48)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        views = augment(images, table, size=48)
    images.copy_(images.flip(0))
    table.value("brightness").mul_(0.5)
    graph.replay()
    replayed = views.clone()
    assert torch.equal(replayed, augment(images, table, size=48))


def test_gradients_are_the_references():
    sample = SAMPLES["simclr"]
    images, _, table = on_device(sample, torch.float32)
    values_VNP = table.values_VNP.requires_grad_()
    images.requires_grad_()
    views = augment(images, Table(values_VNP, table.codes_VNC), size=sample.size)
    found = torch.autograd.grad(views.square().sum(), (images, values_VNP))
    given = (values_VNP, table.codes_VNC, sample.size, sample.settings)
    plain = reference.render([images], None, *given)
    expected = torch.autograd.grad(plain.square().sum(), (images, values_VNP))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_views_beyond_two_to_the_31_elements_are_right():
    count, size = 2752, 512  # 3 * 512^2 * 2752 = 2.16e9 elements
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB of free memory")
    images, table = batch_of(4, 64, ("jitter",))
    table = Table(
        table.values_VNP[:1].repeat(1, count // 4, 1), table.codes_VNC[:1].repeat(1, count // 4, 1)
    )
    settings = Settings(dtype=torch.bfloat16, blur_window=1)
    views = augment(images.repeat(count // 4, 1, 1, 1), table, size=size, settings=settings)
    assert torch.equal(views[:, -4:], views[:, :4])
