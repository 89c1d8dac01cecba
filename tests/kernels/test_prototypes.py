"""``prototype_cross_entropy``: the whole matrix in chunks, its gradients in the forward."""

# shapes: N rows, C outputs, D features
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastssl.kernels.soft_targets import prototypes
from fastssl.kernels.soft_targets.prototypes import prototype_cross_entropy


def leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [x.detach().to(dtype or x.dtype).requires_grad_() for x in tensors]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 30])
def test_prototypes_equal_the_whole_matrix(monkeypatch, reduction, chunk_bytes):
    monkeypatch.setattr(prototypes, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(prototypes, "PRODUCT_COLUMNS", 7)
    z, w = leaves(*torch.randn(70, 12).double().split([70 - 23, 23]))
    targets = torch.rand(47, 23, dtype=torch.float64)
    loss = prototype_cross_entropy(z, w, targets, temperature=0.3, reduction=reduction)
    truth = -(targets * (z @ w.T / 0.3).log_softmax(1)).sum(1)
    truth = truth if reduction == "none" else getattr(truth, reduction)()
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
    weight = torch.rand_like(loss)
    found = torch.autograd.grad((loss * weight).sum(), [z, w])
    expected = torch.autograd.grad((truth * weight).sum(), [z, w])
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_prototypes_may_be_differentiated_again(reduction):
    z, w = leaves(torch.randn(6, 5), torch.randn(9, 5))
    loss = prototype_cross_entropy(z, w, torch.rand(6, 9), reduction=reduction)
    weight = torch.full_like(loss, 2.0)
    first = torch.autograd.grad(loss, [z, w], weight, retain_graph=True)
    kept = [x.clone() for x in first]
    for x in first:
        x.zero_()
    for _ in range(2):
        again = torch.autograd.grad(loss, [z, w], weight, retain_graph=True)
        torch.testing.assert_close(list(again), kept, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_prototypes_gradcheck_and_gradgradcheck(reduction):
    z, w = leaves(torch.randn(4, 3).double(), torch.randn(5, 3).double())
    targets = torch.rand(4, 5, dtype=torch.float64)

    def loss(z, w):
        return prototype_cross_entropy(z, w, targets, temperature=0.7, reduction=reduction)

    assert torch.autograd.gradcheck(loss, (z, w))
    assert torch.autograd.gradgradcheck(loss, (z, w))


def test_prototypes_at_low_precision_and_with_one_side_frozen():
    targets = torch.rand(6, 9).softmax(1)
    z, w = leaves(torch.randn(6, 5).bfloat16(), torch.randn(9, 5).bfloat16())
    exact = leaves(z, w, dtype=torch.float64)
    truth = prototype_cross_entropy(*exact, targets.double())
    loss = prototype_cross_entropy(z, w, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), truth, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(loss, [z, w])
    for got, want in zip(found, torch.autograd.grad(truth, exact), strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.double(), want, rtol=1e-2, atol=1e-4)
    frozen = prototype_cross_entropy(z, w.detach(), targets)
    assert torch.equal(torch.autograd.grad(frozen, z)[0], found[0])
    assert not prototype_cross_entropy(z.detach(), w.detach(), targets).requires_grad


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"w": torch.randn(9, 4)}, "w must be of width 5"),
        ({"targets": torch.rand(6, 8)}, "targets must be of shape"),
        ({"targets": torch.rand(6, 9, requires_grad=True)}, "targets must be without"),
        ({"temperature": 0.0}, "temperature must be"),
        ({"reduction": "avg"}, "reduction must be one of"),
        ({"z": torch.randn(5)}, "z must be 2-D"),
    ],
)
def test_a_bad_prototype_call_is_refused_by_name(changed, named):
    call = {"z": torch.randn(6, 5), "w": torch.randn(9, 5), "targets": torch.rand(6, 9)} | changed
    with pytest.raises(ValueError, match=f"^soft_targets: {named}"):
        prototype_cross_entropy(call.pop("z"), call.pop("w"), call.pop("targets"), **call)
