"""torch.func transforms, forward mode and second derivatives of every operator."""

# shapes: B problems, N rows, K keys or outputs, D features
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastssl.kernels.contrast import reference as contrast_reference
from fastssl.kernels.contrast import tiles
from fastssl.kernels.contrast.op import Pairs, contrast, contrast_mean
from fastssl.kernels.enqueue.op import enqueue
from fastssl.kernels.ntxent.op import ntxent
from fastssl.kernels.soft_targets.op import given_targets, soft_targets
from fastssl.kernels.soft_targets.prototypes import prototype_cross_entropy

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")

N, K, D, B = 5, 7, 3, 4
LABELS = (torch.arange(N) % 2, torch.arange(K) % 3)
DIFFERENT = Pairs("different", LABELS, (torch.arange(N), torch.arange(K)))


def drawn(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


KEYS, OTHER, TARGETS = drawn(K, D), drawn(N, D), drawn(N, D).softmax(1)


def both(q_ND: Tensor) -> Tensor:
    found = contrast(q_ND, KEYS, 2.0, pairs=DIFFERENT, columns=True)
    return torch.cat([found.rows.square(), found.cols.nan_to_num(0.0, 0.0, 0.0)])


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "contrast": both,
    "contrast of itself": lambda x: contrast(x, x, 2.0, columns=True).cols,
    "contrast_mean": lambda x: contrast_mean(x, KEYS, 2.0).rows.square(),
    "learned scale": lambda x: contrast(OTHER, KEYS, x.square().sum()).rows,
    "ntxent": lambda x: ntxent([x, OTHER], 0.3, reduction="none"),
    "ntxent temperature": lambda x: ntxent([OTHER, x], x.square().sum(), reduction="sum"),
    "soft_targets": lambda x: soft_targets(x, 2 * x + 1, teacher_temperature=0.5).loss,
    "soft_targets marginal": lambda x: soft_targets(x, x, marginal=True).marginal.square(),
    "given_targets": lambda x: given_targets(x, TARGETS, temperature=0.3),
    "prototypes": lambda x: prototype_cross_entropy(x, KEYS[:D], TARGETS, reduction="none"),
}
all_losses = pytest.mark.parametrize("name", LOSSES)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Two rows to a tile: every problem here has several."""
    monkeypatch.setattr(tiles, "TILE_PAIRS", 2 * K)


def plain_gradient(loss: Callable, x_ND: Tensor, create_graph: bool = False) -> Tensor:
    x_ND = x_ND.detach().requires_grad_()
    return torch.autograd.grad(loss(x_ND).sum(), x_ND, create_graph=create_graph)[0]


@all_losses
def test_vmap_over_problems_is_the_loop(name):
    loss, x_BND = LOSSES[name], drawn(B, N, D)
    torch.testing.assert_close(torch.vmap(loss)(x_BND), torch.stack([loss(x) for x in x_BND]))
    gradient = torch.func.grad(lambda x: loss(x).sum())
    expected = torch.stack([plain_gradient(loss, x) for x in x_BND])
    torch.testing.assert_close(torch.vmap(gradient)(x_BND), expected)
    torch.testing.assert_close(torch.stack([gradient(x) for x in x_BND]), expected)


@all_losses
def test_forward_mode_equals_finite_differences(name):
    loss, x_ND, along_ND, step = LOSSES[name], drawn(N, D), drawn(D, N).T, 1e-6
    expected = (loss(x_ND + step * along_ND) - loss(x_ND - step * along_ND)) / (2 * step)
    _, pushed = torch.func.jvp(loss, (x_ND,), (along_ND,))
    torch.testing.assert_close(pushed, expected, rtol=1e-6, atol=1e-7)
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(x_ND, along_ND))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, pushed)


@all_losses
def test_second_derivatives_agree_in_every_mode(name):
    loss, x_ND = LOSSES[name], drawn(N, D)
    x_ND.requires_grad_()
    assert torch.autograd.gradgradcheck(loss, x_ND)
    hessian = torch.func.hessian(lambda x: loss(x).sum())(x_ND.detach())
    twice = torch.func.jacrev(torch.func.grad(lambda x: loss(x).sum()))(x_ND.detach())
    torch.testing.assert_close(hessian, twice)


def test_labels_may_be_a_problem_of_their_own():
    x_BND, label_BN = drawn(B, N, D), torch.arange(B * N).view(B, N) % 3

    def loss(x_ND, label_N):
        return contrast(x_ND, KEYS, 1.5, pairs=Pairs("different", (label_N, LABELS[1]))).rows

    expected = torch.stack([loss(x, label) for x, label in zip(x_BND, label_BN, strict=True)])
    torch.testing.assert_close(torch.vmap(loss)(x_BND, label_BN), expected)


def test_tiles_are_the_formula():
    q_ND = drawn(N, D)
    ids = contrast_reference.Ids(*LABELS, torch.arange(N), torch.arange(K), "different")
    scale = torch.tensor(1.5, dtype=torch.float64)
    found = tiles.denominators(q_ND, KEYS, scale, ids, True)
    torch.testing.assert_close(
        found[:2], contrast_reference.denominators(q_ND, KEYS, scale, ids, True)
    )
    torch.testing.assert_close(
        found[2], contrast_reference.logits(q_ND, KEYS, scale, ids).amax(dim=1)
    )


@pytest.mark.parametrize("transform", ["vmap", "grad", "forward mode"])
def test_the_queue_write_refuses_transforms_by_name(transform):
    rows_KD, pointer = torch.zeros(4, D), torch.tensor(0)

    def write(keys_ND):
        enqueue(rows_KD, pointer, keys_ND)
        return keys_ND.sum()

    keys_BND = torch.randn(2, 2, D)
    with pytest.raises(ValueError, match="^enqueue: "):
        if transform == "vmap":
            torch.vmap(write)(keys_BND)
        elif transform == "grad":
            torch.func.grad(write)(keys_BND[0])
        else:
            torch.func.jvp(write, (keys_BND[0],), (keys_BND[0],))
    assert not rows_KD.any() and pointer == 0
