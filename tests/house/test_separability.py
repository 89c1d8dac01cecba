"""Linear dichotomies are counted exactly: against Cover's number and against linear programmes."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.claims.separability import cover, dichotomies, separable


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 7, 9])
def test_the_count_is_covers_and_each_labelling_is_told_right(dim):
    draw = np.random.default_rng(dim)
    x_Cd = draw.standard_normal((8, dim))
    linear = dichotomies(x_Cd)
    assert linear.sum() == cover(8, dim)
    for number in draw.integers(0, 2**8, 40):
        label_C = number >> np.arange(8) & 1
        assert linear[number] == separable(x_Cd, label_C)


def test_covers_number_is_half_of_all_at_seven_and_all_at_fifteen():
    assert cover(16, 7) == 2**15 and cover(16, 15) == cover(16, 40) == 2**16


def test_points_on_a_line_of_the_plane_are_refused():
    with pytest.raises(ValueError, match="general position"):
        dichotomies(np.array([[0.0, 0], [1, 1], [2, 2], [0, 1]]))
