"""Keyed randomness: pure, well spread, independent between streams."""

from __future__ import annotations

import numpy as np

from fastssl.augment import keyed


def draw(**changes):
    arguments = {"seed": 3, "epoch": 5, "index_N": np.arange(4000), "stream": "a", **changes}
    return keyed.uniform(4, **arguments)


def test_a_draw_depends_on_its_key_and_on_nothing_else():
    first = draw()
    np.random.seed(0)
    shuffled = np.random.permutation(4000)
    assert np.array_equal(draw(index_N=shuffled), first[shuffled])
    for change in ({"seed": 4}, {"epoch": 6}, {"stream": "b"}, {"index_N": np.arange(1, 4001)}):
        assert np.mean(draw(**change) == first) < 1e-3


def test_draws_are_uniform_and_uncorrelated():
    unit = draw()
    assert unit.min() >= 0 and unit.max() < 1
    assert abs(unit.mean() - 0.5) < 0.01
    assert abs(unit.var() - 1 / 12) < 0.003
    neighbours = np.concatenate([unit, draw(epoch=6), draw(seed=4), draw(stream="b")], axis=1)
    correlation = np.corrcoef(neighbours.T) - np.eye(16)
    assert np.abs(correlation).max() < 0.07
    assert abs(np.corrcoef(unit[:-1, 0], unit[1:, 0])[0, 1]) < 0.06


def test_normals_signs_and_coins_have_their_moments():
    key = {"seed": 1, "index_N": np.arange(20000), "stream": "m"}
    normal = keyed.normal(1, **key)
    assert abs(normal.mean()) < 0.03 and abs(normal.std() - 1) < 0.03
    signs = keyed.rademacher(1, **key)
    assert set(np.unique(signs)) == {-1.0, 1.0} and abs(signs.mean()) < 0.03
    assert abs(keyed.bernoulli(0.3, 1, **key).mean() - 0.3) < 0.02


def test_a_permutation_is_one_and_differs_between_epochs_and_seeds():
    orders = [keyed.permutation(999, seed=s, epoch=e) for s in (0, 1) for e in (0, 1)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(999))
    assert len({order.tobytes() for order in orders}) == 4
