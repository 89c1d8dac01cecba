"""float16 gradients under a loss scaler: it looks for infinities, so they must come through."""

from __future__ import annotations

import pytest
import torch

from fastssl.losses import spec

LARGEST = torch.finfo(torch.float16).max
SCALE = 2.0**16


def gradients(case, embeddings):
    leaves = [h.requires_grad_() for h in embeddings]
    loss = case.call(leaves, 1.0 if case.knob == "scale" else 0.1, "sum")
    return torch.autograd.grad(loss * SCALE, leaves)


@pytest.mark.parametrize("case", spec.CASES, ids=lambda case: case.name)
def test_an_overflow_reaches_the_loss_scaler(case):
    small = [h * 1e-2 for h in case.embeddings(torch.float64)]
    halves = gradients(case, [h.half() for h in small])
    exact = gradients(case, [h.half().double() for h in small])
    over = [size.abs() > 1.1 * LARGEST for size in exact]
    assert any(mask.any() for mask in over)
    for found, mask, size in zip(halves, over, exact, strict=True):
        assert found[mask].isinf().all()
        assert found[size.abs() < 0.9 * LARGEST].isfinite().all()


@pytest.mark.parametrize("case", spec.CASES, ids=lambda case: case.name)
def test_the_gradient_of_a_zero_row_saturates(case):
    halves = [h.half() for h in case.embeddings(torch.float64)]
    halves[0][0] = 0
    (found, *_) = gradients(case, halves)
    assert found[0].isfinite().all() and found[0].abs().max() == LARGEST
