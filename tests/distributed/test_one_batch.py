"""W ranks with a part of the batch each do what one process does with the whole batch, to 1e-12."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.compositions import MODELS, batches, train, train_as_rank

STEPS, SAMPLES = 10, 24
NOTHING_GOES_ROUND = {"MoCo", "Marginal"}
CASES = [(name, "gather") for name in MODELS]
CASES += [(name, "ring") for name in MODELS if name not in NOTHING_GOES_ROUND]
# Ten float64 steps sum 24 rows in another order: some 1e-15 each, amplified by training.
RELATIVE = 1e-12


def whole(name):
    """What one process does, by the textbook's formula."""
    return train(MODELS[name](), batches(STEPS, SAMPLES))


def assert_same(found, expected, what):
    error = (found - expected).norm() / expected.norm()
    assert error <= RELATIVE, f"{what}: relative error {error:.1e}"


def assert_one_batch(ranks, expected):
    average = torch.stack([rank["losses"] for rank in ranks]).mean(0)
    assert_same(average, expected["losses"], "losses")
    for kind in ("gradients", "weights"):
        for rank in ranks:
            assert rank[kind].keys() == expected[kind].keys()
            for name, tensor in expected[kind].items():
                assert_same(rank[kind][name], tensor, f"{kind} {name}")


@pytest.mark.parametrize(("name", "exchange"), CASES)
def test_ranks_train_like_one_process_on_the_whole_batch(world, name, exchange):
    counts = [SAMPLES // world.size] * world.size
    ranks = world.run(train_as_rank, name, exchange, counts, STEPS)
    assert_one_batch(ranks, whole(name))


@pytest.mark.parametrize(("name", "exchange"), CASES)
def test_parts_of_unequal_size_are_weighted_exactly(two, name, exchange):
    ranks = two.run(train_as_rank, name, exchange, [15, 9], STEPS)
    assert_one_batch(ranks, whole(name))
