"""W ranks with a part of the batch each do what one process does with the whole batch, to 1e-12.

That one process computes the paper's loss is shown by tests/losses/test_equations.py.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from fastssl.losses import spec
from tests.distributed.models import (
    CASES,
    OUT,
    PAPERS,
    Model,
    batches,
    largest_tensors,
    train,
    train_as_rank,
)

STEPS, SAMPLES = 10, 24
# Ten float64 steps sum 24 rows in another order: some 1e-15 each, amplified by training.
RELATIVE = 1e-12


@cache
def whole(name):
    """What one process does."""
    return train(Model(name), batches(STEPS, SAMPLES))


def assert_same(found, expected, what):
    error = (found - expected).double().norm() / expected.double().norm().clamp_min(1e-30)
    assert error <= RELATIVE, f"{what}: relative error {error:.1e}"


def assert_one_batch(ranks, expected, loss):
    average = torch.stack([rank["losses"] for rank in ranks]).mean(0)
    assert_same(average, expected["losses"], f"{loss}: losses")
    for kind in ("gradients", "weights"):
        for rank in ranks:
            assert rank[kind].keys() == expected[kind].keys()
            for name, tensor in expected[kind].items():
                assert_same(rank[kind][name], tensor, f"{loss}: {kind} {name}")


@pytest.fixture(
    params=["one", "two", pytest.param("four", marks=pytest.mark.slow)], scope="session"
)
def ranks(request):
    """The world and what its ranks did with equal parts, all losses in one call."""
    world = request.getfixturevalue(request.param)
    counts = [SAMPLES // world.size] * world.size
    return world.run(train_as_rank, list(CASES), counts, STEPS, "gather")


@pytest.fixture(
    params=["one", "two", pytest.param("four", marks=pytest.mark.slow)], scope="session"
)
def ring_of_ranks(request):
    """The same with rows passed round; parts of different sizes where there are several."""
    world = request.getfixturevalue(request.param)
    counts = {1: [24], 2: [15, 9], 4: [7, 3, 9, 5]}[world.size]
    return world.run(train_as_rank, list(CASES), counts, STEPS, "ring")


@pytest.fixture(scope="session")
def uneven_ranks(two):
    return two.run(train_as_rank, list(CASES), [15, 9], STEPS, "gather")


@pytest.mark.parametrize("name", CASES)
def test_ranks_train_like_one_process_on_the_whole_batch(ranks, name):
    assert_one_batch([rank[name] for rank in ranks], whole(name), name)


@pytest.mark.parametrize("name", CASES)
def test_parts_of_unequal_size_are_weighted_exactly(uneven_ranks, name):
    assert_one_batch([rank[name] for rank in uneven_ranks], whole(name), name)


@pytest.mark.parametrize("name", CASES)
def test_a_ring_of_ranks_trains_like_one_process_on_the_whole_batch(ring_of_ranks, name):
    assert_one_batch([rank[name] for rank in ring_of_ranks], whole(name), name)


def test_a_ring_never_holds_the_rows_of_all_ranks(four):
    """A gather does: whole batches of 4 ranks are in its largest tensors."""
    names, rows = [name for name in CASES if name != "MoCo"], 48
    counts = [rows] * four.size
    for name, numbers in four.run(largest_tensors, names, counts, "ring")[0].items():
        assert numbers <= 2 * rows * OUT, f"{name}: {numbers}"
    gathered = four.run(largest_tensors, ["NTXent"], counts, "gather")[0]["NTXent"]
    assert gathered == 2 * rows * OUT * four.size


@pytest.mark.parametrize("name", CASES)
def test_training_moves_every_weight(name):
    before, after = Model(name).state_dict(), whole(name)["weights"]
    for weight in before:
        assert not torch.equal(before[weight], after[weight]), weight


def test_every_loss_of_the_promise_is_here():
    assert set(PAPERS) <= set(CASES)


@pytest.mark.parametrize("case", spec.CASES, ids=lambda case: case.name)
def test_every_loss_that_the_page_of_features_gives_a_group_is_here(case):
    name = case.loss.lower().replace("_", "").removesuffix("loss")
    assert "group" not in dict(case.without)
    assert any(name.startswith(known.lower().split("-")[0]) for known in CASES)
