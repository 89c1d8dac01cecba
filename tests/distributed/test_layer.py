"""The layer under ``group=``: masks, cotangents, who needs a gradient, traffic, refusals."""

from __future__ import annotations

import re

import pytest
import torch

from fastssl.kernels.contrast import reference
from fastssl.kernels.contrast.reference import Ids
from fastssl.kernels.ntxent.op import ntxent
from fastssl.losses import distributed as layer
from tests.distributed import layer_calls

EXCHANGES = ["gather", "ring"]
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ntxent_over_a_group_is_the_kernels_loss_row_for_row(two, reduction):
    counts, weight_VN = [5, 3], drawn(3, 8).abs()
    views = [drawn(8, 6, seed=s).requires_grad_() for s in range(3)]
    ranks = two.run(
        layer_calls.weighted_ntxent, [v.detach() for v in views], counts, reduction, weight_VN
    )
    loss = ntxent(views, 0.3, reduction=reduction)
    target = (loss * weight_VN.flatten()).sum() if reduction == "none" else loss
    target.backward()
    # The gradient is that of the sum of the ranks' losses; "mean" averages over two ranks.
    factor = 2.0 if reduction == "mean" else 1.0
    for v, view in enumerate(views):
        found = torch.cat([gradients[v] for _, gradients in ranks])
        torch.testing.assert_close(found, factor * view.grad, **CLOSE)
    if reduction == "none":
        rows = torch.cat([rank[0].unflatten(0, (3, -1)) for rank in ranks], dim=1)
        torch.testing.assert_close(rows.flatten(), loss.detach(), **CLOSE)
    else:
        total = sum(rank[0] for rank in ranks) / factor
        torch.testing.assert_close(total, loss.detach(), **CLOSE)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("learnt", ["q", "k", "scale", "q k", "q k scale"])
def test_two_towers_with_any_of_them_learnt(two, exchange, columns, learnt):
    learnt = learnt.split()
    counts, labels = [[5, 4], [3, 7]], (torch.arange(9) % 3, torch.arange(10) % 3)
    q, k, scale = drawn(9, 5), drawn(10, 5, seed=1), torch.tensor(1.7, dtype=torch.float64)
    g, h = drawn(9, seed=2), drawn(10, seed=3) if columns else None
    ranks = two.run(layer_calls.two_towers, exchange, q, k, scale, counts, labels, g, h, learnt)
    inputs = {"q": q, "k": k, "scale": scale}
    for name in learnt:
        inputs[name].requires_grad_()
    ids = Ids(*labels, keep="different")
    rows, cols = reference.denominators(*inputs.values(), ids, columns)
    loss = (rows * g).sum() + ((cols * h).sum() if columns else 0)
    expected = torch.autograd.grad(loss, [inputs[name] for name in learnt])
    torch.testing.assert_close(torch.cat([r[0][0] for r in ranks]), rows.detach(), **CLOSE)
    torch.testing.assert_close(torch.cat([r[0][1] for r in ranks]), cols.detach(), **CLOSE)
    for name, gradient in zip(learnt, expected, strict=True):
        parts = [gradients[name] for _, gradients in ranks]
        found = sum(parts) if name == "scale" else torch.cat(parts)
        torch.testing.assert_close(found, gradient, **CLOSE)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("keep", reference.KEEPS)
def test_rows_against_all_rows_under_every_mask(two, exchange, keep):
    labels = torch.tensor([0, 1, 1, 2, 0, 0, 1, 3, 3])  # class 2 is a single row: it keeps no pair
    z = drawn(9, 5).requires_grad_()
    scale, g = torch.tensor(1.3, dtype=torch.float64, requires_grad=True), drawn(9, seed=2)
    arguments = (exchange, keep, z.detach(), scale.detach(), [6, 3], labels, g)
    ranks = two.run(layer_calls.one_tower, *arguments)
    row = torch.arange(9)
    x = reference.logits(z, z, scale, Ids(labels, labels, row, row, keep))
    rows = reference.logsumexp(x, 1)
    kept = rows > -torch.inf
    (rows[kept] * g[kept]).sum().backward()
    for position, expected in enumerate((rows, rows[:0], x.amax(1))):
        found = torch.cat([r[0][position] for r in ranks])
        torch.testing.assert_close(found, expected.detach(), **CLOSE)
    torch.testing.assert_close(torch.cat([r[1] for r in ranks]), z.grad, **CLOSE)
    torch.testing.assert_close(sum(r[2] for r in ranks), scale.grad, **CLOSE)


def test_the_gathered_backward_moves_two_numbers_per_row(four):
    for forward, backward in four.run(layer_calls.traffic, "gather"):
        assert sum(forward) == 2 + 32 * 16 + 32  # sizes, rows, row ids
        assert sum(backward) == 2 * 32


def test_the_ring_moves_rows_and_two_numbers_and_never_a_gradient(four):
    for forward, backward in four.run(layer_calls.traffic, "ring"):
        assert sum(forward) == 2 + 3 * (32 * 16 + 32)
        assert sum(backward) == 3 * (32 * 16 + 32 + 2 * 32)


def test_a_sum_over_ranks_has_the_gradient_of_all_ranks(four):
    x_WC = drawn(4, 3)
    total = x_WC.sum(0)
    for found, gradient in four.run(layer_calls.sums, x_WC):
        torch.testing.assert_close(found, total, **CLOSE)
        torch.testing.assert_close(gradient, 2 * total * (1 + 2 + 3 + 4), **CLOSE)


def test_a_group_may_be_a_part_of_the_world(four):
    z = drawn(8, 3)
    ranks = four.run(layer_calls.in_a_backwards_pair, z)
    for members in ((0, 2), (1, 3)):
        part = torch.cat([z.chunk(4)[r] for r in members])
        logits = (2 * part @ part.T).fill_diagonal_(-torch.inf)
        found = torch.cat([ranks[r] for r in members])
        torch.testing.assert_close(found, logits.logsumexp(1), **CLOSE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("width", "rank 0: 4 x 3, rank 1: 4 x 4"),
        ("empty", "at least one row.*rank 0: 0 x 0"),
        ("no group", "group: expected a process group.*received 'world'"),
        ("twice", "once_differentiable"),
        ("labels", "pairs.labels must be given for keep='same'"),
        ("temperature", "temperature must be finite.*received 0.0"),
        ("one view", "views must be at least two.*received 1"),
        ("shapes", r"views\[1\] must be .*received \(2, 3\)"),
    ],
)
def test_a_wrong_call_is_refused_on_every_rank(two, call, message):
    for said in two.run(layer_calls.refusal, call):
        assert re.search(message, said), said


def test_a_rank_outside_the_group_is_refused(two):
    inside, outside = two.run(layer_calls.refusal, "stranger")
    assert inside == ""
    assert "group: expected" in outside


def test_a_group_without_a_world_is_refused():
    with pytest.raises(ValueError, match="without torch.distributed.init_process_group"):
        layer.symmetric_over_ranks(torch.ones(2, 2), 1.0, group=None)
