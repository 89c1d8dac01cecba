"""What every readout does first: refuse NaN, hold a fair fifth out, standardise at any scale."""

from __future__ import annotations

import pytest
import torch

from fastssl.evaluation.features import extract, hold_out, standardise
from fastssl.evaluation.few_shot import few_shot
from fastssl.evaluation.invariance import learn_vector
from fastssl.evaluation.knn import knn
from fastssl.evaluation.linear import linear
from fastssl.evaluation.meter import meter
from fastssl.evaluation.ridge import ridge
from fastssl.evaluation.sensitivity import mahalanobis_ratio
from fastssl.evaluation.sgd_probe import Schedule, sgd_probe


def broken(rows, *, value=float("nan"), count=60):
    """(N, 5) features of which ``rows`` rows hold ``value`` in one place."""
    x = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    x[torch.arange(rows), torch.arange(rows) % 5] = value
    return x


X, Y = broken(0), torch.arange(60) % 3
BAD, INFINITE = broken(4), broken(2, value=float("-inf"))
QUICK = Schedule(epochs=1, weight_decays=(1e-4,))
READOUTS = {
    "extract: 4 of 60 rows of the test": lambda: extract(lambda x: x, BAD.split(7), "test"),
    "knn: 4 of 60 rows of the train": lambda: list(knn(BAD, Y, X, Y)),
    "knn: 2 of 60 rows of the test": lambda: list(knn(X, Y, INFINITE, Y)),
    "linear: 4 of 60 rows of the train": lambda: list(linear(BAD, Y, X, Y)),
    "linear: 2 of 60 rows of the test": lambda: list(linear(X, Y, INFINITE, Y)),
    "ridge: 4 of 60 rows of the test": lambda: list(ridge(X, X[:, :1], BAD, X[:, :1])),
    "linear_sgd: 4 of 60 rows of the train": lambda: list(sgd_probe(BAD, Y, X, Y, schedule=QUICK)),
    "linear_sgd: 4 of 60 rows of the test": lambda: list(sgd_probe(X, Y, BAD, Y, schedule=QUICK)),
    "few_shot: 4 of 60 rows of the given": lambda: list(
        few_shot(BAD, Y, ways=2, queries=2, episodes=9)
    ),
    "meter: 4 of 120 rows of the drawn": lambda: list(meter(X, {}, torch.stack([X, BAD]))),
    "meter: 2 of 60 rows of the jitter": lambda: list(
        meter(X, {"jitter": INFINITE}, torch.stack([X, X]))
    ),
    "mahalanobis_ratio: 4 of 60 rows of the changed": lambda: mahalanobis_ratio(X, BAD),
    "learn_vector: 4 of 60 rows of the train": lambda: learn_vector(
        lambda p, b: BAD[p] * b[0], X[:, :1], num_bits=1
    ),
}


@pytest.mark.parametrize("told", READOUTS)
def test_features_that_are_not_finite_are_refused_with_their_rows_and_split(told):
    with pytest.raises(ValueError, match=f"{told} features are NaN or infinite; score an earlier"):
        READOUTS[told]()


ORDERS = {
    "sorted": torch.arange(50) // 10,
    "in turn, one in five": torch.arange(50) % 5,
    "in turn, sorted within": torch.arange(50) // 5 % 5,
    "unequal": torch.tensor([0] * 31 + [7] * 10 + [3] * 9),
}


@pytest.mark.parametrize("order", ORDERS)
def test_a_fifth_of_each_class_is_held_out_whatever_the_order(order):
    label = ORDERS[order]
    fitted, held = hold_out(label)
    assert sorted([*fitted.tolist(), *held.tolist()]) == list(range(50)) and len(held) == 10
    for name in label.unique():
        share = int((label == name).sum()) / 5
        assert abs(int((label[held] == name).sum()) - share) < 1


def test_continuous_targets_are_held_out_whatever_their_period():
    fitted, held = hold_out(torch.zeros(500, 2))
    assert len(held) == 100 and not set(held.tolist()) & set(fitted.tolist())
    for period in (2, 5, 10):
        count = torch.bincount(held % period, minlength=period)
        assert count.min() > 0.4 * 100 / period, "an order with a period is no split"


def test_the_fifth_is_the_same_everywhere_and_a_lone_image_of_a_class_is_fitted():
    assert hold_out(torch.zeros(20, 1))[1].tolist() == [10, 12, 14, 18]
    label = torch.arange(40) % 4
    assert torch.equal(hold_out(label)[1], hold_out(label.clone())[1])
    for lone in range(40):
        held = hold_out(torch.where(torch.arange(40) == lone, 9, label))[1]
        assert lone not in held.tolist() and 7 <= len(held) <= 8
    assert len(hold_out(torch.arange(10))[1]) == 2, "one image of each class: some must be held"


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1.0, 1e13])
def test_features_are_standardised_at_any_scale_beside_any_other_column(scale):
    x = X.double()
    (plain,) = standardise(x)
    mine = torch.stack([scale * x[:, 0], x[:, 1] + 1e6, 1e10 + 0 * x[:, 2]], dim=1)
    (found,) = standardise(mine)
    torch.testing.assert_close(found[:, 0], plain[:, 0])
    torch.testing.assert_close(found[:, 1], plain[:, 1], rtol=0, atol=1e-8)
    assert (found[:, 2] == 0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -7e5])
def test_constant_columns_become_zero_also_where_others_differ(value):
    x = torch.full((77, 2), value)
    for part in standardise(x, x + 1):
        assert torch.isfinite(part).all() and part.abs().max() < 1e-6
