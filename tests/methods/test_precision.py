"""Losses of bfloat16 and float16 runs: the arithmetic on embeddings is float32's, to the bit."""

# shapes: N batch, D embedding
from __future__ import annotations

import pytest
import torch

from fastssl.methods.barlow import CrossCorrelationLoss
from fastssl.methods.vicreg import VICRegLoss
from fastssl.nn.cosine import row_cosine

NARROW = [torch.bfloat16, torch.float16]


def aligned(n=256, d=512):
    """Embeddings as late in training: deviation 1, views that nearly agree."""
    g = torch.Generator().manual_seed(0)
    z_ND = torch.randn(n, d, generator=g)
    return z_ND, z_ND + 0.03 * torch.randn(n, d, generator=g)


def loss_and_gradient(loss, z0_ND, z1_ND, narrow=None):
    z0_ND = z0_ND.clone().requires_grad_()
    with torch.autocast("cpu", dtype=narrow or torch.bfloat16, enabled=narrow is not None):
        value = loss(z0_ND, z1_ND)
    return value.detach(), *torch.autograd.grad(value.sum(), z0_ND)


@pytest.mark.parametrize("narrow", NARROW)
@pytest.mark.parametrize(
    "loss",
    [
        lambda *z: CrossCorrelationLoss(0.005)(*z)[0],
        lambda *z: VICRegLoss(25.0, 25.0, 1.0)(*z)[0],
        row_cosine,
    ],
    ids=["barlow", "vicreg", "cosine"],
)
@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_autocast_changes_neither_value_nor_gradient(loss, narrow, scale):
    z = [scale * z_ND for z_ND in aligned()]
    wide, under = loss_and_gradient(loss, *z), loss_and_gradient(loss, *z, narrow)
    torch.testing.assert_close(under, wide, rtol=0, atol=0)
    assert all(torch.isfinite(part).all() for part in under)


@pytest.mark.parametrize("narrow", NARROW)
def test_cosines_of_narrow_rows_are_float32s(narrow):
    x, y = (z_ND.to(narrow) for z_ND in aligned())
    exact = row_cosine(x.double(), y.double())
    assert row_cosine(x, y).dtype is torch.float32
    assert (row_cosine(x, y) - exact).abs().max() < 1e-6
