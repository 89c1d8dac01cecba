"""``fastssl.compat.solo`` beside plain transcriptions of solo-learn (not on PyPI)."""

# shapes: N rows, K queue entries, D features
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastssl.compat.solo import mocov2plus_loss_func, simclr_loss_func
from tests.compat.compare import assert_same, drawn, dtypes, seeds, temperatures


def simclr_formula(z_ND, ids_N, temperature):
    """-mean log(P / (P + Q)): P sums exp over equal ids without the row itself, Q over others."""
    unit_ND = z_ND / z_ND.norm(dim=1, keepdim=True)
    weight_NN = (unit_ND @ unit_ND.T / temperature).exp()
    equal_NN = ids_N[:, None] == ids_N
    themselves_NN = torch.eye(len(ids_N), dtype=torch.bool)
    positive_N = weight_NN.where(equal_NN & ~themselves_NN, 0.0).sum(1)
    negative_N = weight_NN.where(~equal_NN, 0.0).sum(1)
    return -(positive_N / (positive_N + negative_N)).log().mean()


def moco_formula(query_ND, key_ND, queue_DK, temperature):
    """Cross entropy of [q.k, q.queue] / temperature with the first as the target."""
    positive_N1 = (query_ND * key_ND).sum(1, keepdim=True)
    logits = torch.cat([positive_N1, query_ND @ queue_DK], dim=1) / temperature
    return -logits.log_softmax(dim=1)[:, 0].mean()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(2, 4), min_size=1, max_size=8),
    st.integers(1, 24),
    temperatures,
    dtypes,
    seeds,
)
def test_simclr_with_any_number_of_crops(crops, width, temperature, dtype, seed):
    ids_N = torch.arange(len(crops)).repeat_interleave(torch.tensor(crops))
    ids_N = ids_N[torch.randperm(len(ids_N), generator=torch.Generator().manual_seed(seed))]
    assert_same(
        lambda z: simclr_loss_func(z, ids_N, temperature),
        lambda z: simclr_formula(z, ids_N, temperature),
        drawn(seed, (len(ids_N), width)),
        dtype,
        1 / temperature,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 60),
    st.integers(1, 24),
    temperatures,
    st.booleans(),
    dtypes,
    seeds,
)
def test_moco_of_inputs_as_they_are(num_rows, num_keys, width, tau, queue_learns, dtype, seed):
    query, key, queue = drawn(seed, (num_rows, width), (num_rows, width), (width, num_keys))
    inputs = [query, key, queue] if queue_learns else [query, key]
    fixed = [] if queue_learns else [queue]
    pair = [
        lambda *given, loss=loss: loss(*given, *[x.to(given[0].dtype) for x in fixed], tau)
        for loss in (mocov2plus_loss_func, moco_formula)
    ]
    largest = (query.norm(dim=1).max() * max(queue.norm(dim=0).max(), key.norm(dim=1).max())).item()
    assert_same(*pair, inputs, dtype, largest / tau)


def test_logits_of_hundreds_do_not_overflow():
    query, key, queue = drawn(0, (32, 128), (32, 128), (128, 500))
    assert (query @ queue / 0.1).abs().max() > 300
    pair = [
        lambda q, k, loss=loss: loss(q, k, queue.to(q.dtype), 0.1)
        for loss in (mocov2plus_loss_func, moco_formula)
    ]
    assert_same(*pair, [query, key], torch.float32, 600.0)
    ids_N = torch.arange(16).repeat(2)
    cold = simclr_loss_func(query.float(), ids_N, temperature=0.005)
    torch.testing.assert_close(
        cold.double(), simclr_formula(query, ids_N, 0.005), rtol=1e-4, atol=1e-4
    )
    assert not torch.isfinite(simclr_formula(query[:2].float().abs() + 9, ids_N[:2] * 0, 0.005))


def test_the_queue_may_be_written_before_the_backward():
    query, key, queue = drawn(0, (4, 5), (4, 5), (5, 9))
    query.requires_grad_()
    (expected,) = torch.autograd.grad(moco_formula(query, key, queue, 0.2), query)
    loss = mocov2plus_loss_func(query, key, queue, 0.2)
    queue.zero_()
    torch.testing.assert_close(torch.autograd.grad(loss, query)[0], expected)


def test_a_row_without_a_positive_makes_the_loss_infinite_as_in_the_original():
    (z,) = drawn(0, (4, 3))
    ids = torch.tensor([0, 0, 1, 2])
    assert simclr_loss_func(z, ids) == simclr_formula(z, ids, 0.1) == torch.inf
    loss = simclr_loss_func(z.requires_grad_(), ids)
    assert torch.isfinite(torch.autograd.grad(loss, z)[0]).all()


def test_twenty_steps_of_descent_lower_both_losses():
    query, key, queue = (x.float() for x in drawn(0, (32, 128), (32, 128), (128, 1500)))
    ids = torch.arange(32).repeat(2)
    losses = {
        "simclr": lambda q, k: simclr_loss_func(torch.cat([q, k]), ids),
        "moco": lambda q, k: mocov2plus_loss_func(q, k, queue),
    }
    for loss in losses.values():
        views = [query.clone().requires_grad_(), key.clone().requires_grad_()]
        first = loss(*views).item()
        for _ in range(20):
            for view, grad in zip(views, torch.autograd.grad(loss(*views), views), strict=True):
                view.data.sub_(0.5 * grad)
        assert loss(*views) < first


def test_bad_calls_are_refused():
    query, key, queue = drawn(0, (4, 5), (4, 5), (5, 9))
    ids = torch.arange(4)
    with pytest.raises(ValueError, match=r"simclr_loss_func: indexes .* received \(3,\)"):
        simclr_loss_func(query, ids[:3])
    with pytest.raises(ValueError, match=r"queue must be of shape \(D, K\) .* received \(9, 5\)"):
        mocov2plus_loss_func(query, key, queue.T)
    with pytest.raises(ValueError, match=r"key must be .* received \(3, 5\)"):
        mocov2plus_loss_func(query, key[:3], queue)
    with pytest.raises(ValueError, match="simclr_loss_func: indexes .* received list"):
        simclr_loss_func(query, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="simclr_loss_func: z must be .* received torch.int64"):
        simclr_loss_func(query.long(), ids)
    with pytest.raises(ValueError, match="mocov2plus_loss_func: queue .* received NoneType"):
        mocov2plus_loss_func(query, key, None)
    with pytest.raises(ValueError, match="mocov2plus_loss_func: queue .* received torch.int64"):
        mocov2plus_loss_func(query, key, queue.long())
    with pytest.raises(ValueError, match="mocov2plus_loss_func: query .* received ndarray"):
        mocov2plus_loss_func(query.numpy(), key, queue)
    for loss in (
        lambda: simclr_loss_func(query, ids, 0),
        lambda: mocov2plus_loss_func(query, key, queue, 0),
    ):
        with pytest.raises(ValueError, match="temperature must be non-zero"):
            loss()


def test_an_empty_queue_leaves_the_positives_alone():
    query, key, queue = drawn(0, (4, 5), (4, 5), (5, 0))
    query.requires_grad_()
    loss = mocov2plus_loss_func(query, key, queue)
    assert loss == moco_formula(query, key, queue, 0.1) == 0
    assert (torch.autograd.grad(loss, query)[0] == 0).all()
