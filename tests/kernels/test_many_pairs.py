"""More than 2^31 pairs: neither an index nor a count of them fits 32 bits.

All rows are one of eight, so that the truth is a weighted sum of 64 terms in float64.
"""

# shapes: N rows, D width, P distinct rows
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastssl.kernels.contrast.op import contrast
from fastssl.kernels.ntxent.op import ntxent
from fastssl.kernels.sigmoid_pairs.op import sigmoid_pairs

pytestmark = pytest.mark.slow
P, N, D = 8, 46_344, 8
SCALE = 5.0


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def distinct_rows(seed):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(P, D, generator=g, dtype=torch.float64), dim=1)


def group_N():
    """Which of the eight each row is; the groups differ in size."""
    return (torch.arange(N) ** 2 + torch.arange(N) // 5) % P


def sums_PD(grad_ND, group):
    return torch.zeros(P, D, dtype=torch.float64).index_add_(0, group, grad_ND.double().cpu())


def assert_near(found, exact):
    least = 1e-5 * float(exact.abs().max())
    torch.testing.assert_close(found.double().cpu(), exact, rtol=1e-5, atol=least)


def test_contrast(device):
    q_PD, k_PD = (distinct_rows(seed).requires_grad_() for seed in (0, 1))
    group = group_N()
    count_P = torch.bincount(group, minlength=P).double()
    assert int(count_P.sum()) ** 2 > 2**31
    lse_P = (SCALE * q_PD @ k_PD.T + count_P.log()).logsumexp(1)
    exact = (count_P * lse_P).sum() / N
    exact.backward()

    q_ND, k_ND = (x[group].detach().float().to(device).requires_grad_() for x in (q_PD, k_PD))
    found = contrast(q_ND, k_ND, SCALE).rows.mean()
    found.backward()
    assert_near(found, exact.detach())
    assert_near(sums_PD(q_ND.grad, group), q_PD.grad)
    assert_near(sums_PD(k_ND.grad, group), k_PD.grad)


def test_ntxent(device):
    z_PD = distinct_rows(2).requires_grad_()
    group = group_N()[: N // 2]
    both = torch.cat([group, group])
    count_P = torch.bincount(both, minlength=P).double()
    logits_PP = F.normalize(z_PD, dim=1) @ F.normalize(z_PD, dim=1).T * SCALE
    others_P = (count_P.log() + logits_PP).logsumexp(1)
    self_P = logits_PP.diagonal()  # of a row with itself, and with its positive
    terms_P = others_P + torch.log1p(-(self_P - others_P).exp()) - self_P
    exact = (count_P * terms_P).sum() / N
    exact.backward()

    views = [z_PD[group].detach().float().to(device).requires_grad_() for _ in range(2)]
    found = ntxent(views, 1 / SCALE)
    found.backward()
    assert_near(found, exact.detach())
    assert_near(sums_PD(torch.cat([v.grad for v in views]), both), z_PD.grad)


def test_sigmoid_pairs(device):
    q_PD, k_PD = (distinct_rows(seed).requires_grad_() for seed in (3, 4))
    group = group_N()
    count_P = torch.bincount(group, minlength=P).double()
    logits_PP = SCALE * q_PD @ k_PD.T - 10.0
    pairs_PP = count_P[:, None] * count_P
    exact = (-(pairs_PP * F.logsigmoid(-logits_PP)).sum()) / N
    exact.backward()

    q_ND, k_ND = (x[group].detach().float().to(device).requires_grad_() for x in (q_PD, k_PD))
    found = sigmoid_pairs(q_ND, k_ND, SCALE, -10.0, diagonal=None).mean()
    found.backward()
    assert_near(found, exact.detach())
    assert_near(sums_PD(q_ND.grad, group), q_PD.grad)
    assert_near(sums_PD(k_ND.grad, group), k_PD.grad)
