"""SigLIP over ranks: gathered or round the ring, who needs a gradient, open_clip's own numbers."""

from __future__ import annotations

import re

import pytest
import torch

from fastssl.kernels.sigmoid_pairs import reference
from tests.distributed import siglip_calls

CLOSE = {"rtol": 1e-12, "atol": 1e-13}


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def inputs(num_rows, width=5):
    q, k = drawn(num_rows, width), drawn(num_rows, width, seed=1)
    scale, bias = torch.tensor([1.7, -0.6], dtype=torch.float64)
    return {"q": q, "k": k, "scale": scale, "bias": bias}


def assert_one_batch(ranks, given, g, learnt):
    """Rows in rank order; gradients of rows at home, those of numbers as shares."""
    leaves = {k: x.clone().requires_grad_(k in learnt.split()) for k, x in given.items()}
    rows = reference.rows(reference.Problem(*leaves.values(), 0))
    expected = torch.autograd.grad((rows * g).sum(), [leaves[name] for name in learnt.split()])
    torch.testing.assert_close(torch.cat([rank[0] for rank in ranks]), rows.detach(), **CLOSE)
    for name, gradient in zip(learnt.split(), expected, strict=True):
        parts = [rank[1][name] for rank in ranks]
        found = torch.cat(parts) if gradient.dim() else sum(parts)
        torch.testing.assert_close(found, gradient, **CLOSE)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
@pytest.mark.parametrize("learnt", ["q", "k", "scale", "bias", "q k scale bias"])
def test_two_ranks_with_any_input_learnt(two, exchange, learnt):
    given, g = inputs(9), drawn(9, seed=2)
    ranks = two.run(siglip_calls.weighted, exchange, given, g, [5, 4], learnt)
    assert_one_batch(ranks, given, g, learnt)


@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_one_and_four_ranks_of_unequal_parts(one, four, exchange):
    given, g = inputs(11), drawn(11, seed=2)
    for world, counts in ((one, [11]), (four, [4, 1, 3, 3])):
        ranks = world.run(siglip_calls.weighted, exchange, given, g, counts, "q k scale bias")
        assert_one_batch(ranks, given, g, "q k scale bias")


@pytest.mark.parametrize("dist_impl", ["bidir", "shift", "reduce", "gather"])
def test_open_clips_loss_and_gradients_over_two_ranks(two, dist_impl):
    pytest.importorskip("open_clip", reason="open_clip is not installed: nothing to compare with")
    for mine, theirs in two.run(siglip_calls.pair, dist_impl, *inputs(8).values()):
        torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("sizes", r"as many keys as queries; \(4, 4\), \(2, 2\)"),
        ("no group", "group: expected a process group.*received 'world'"),
        ("bias", "sigmoid_pairs: bias must be a float"),
        ("twice", "once_differentiable"),
        ("rank", r"SigLipLoss: rank, world_size must be .* received \(5, 2\)"),
    ],
)
def test_a_wrong_call_is_refused_on_every_rank(two, call, message):
    for said in two.run(siglip_calls.refusal, call):
        assert re.search(message, said), said
