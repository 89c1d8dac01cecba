"""How many two-class labellings of C points in R^d a linear probe (with a bias) can answer.

Cover 1965: points in general position have 2 sum_{i <= d} binom(C - 1, i) linear dichotomies, of
2^C; all of them from d = C - 1 on. Counted here without the formula: a hyperplane that separates
can be moved until it passes through d of the points, which are then free to fall on either side.
"""

# shapes: C points, d dimensions, K hyperplanes
from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy as np

MARGIN = 1e-7  # of a point from a plane, relative: below it general position is in doubt


def cover(points: int, dim: int) -> int:
    """Cover's number of linear dichotomies."""
    return 2 * sum(comb(points - 1, i) for i in range(min(dim, points - 1) + 1))


def dichotomies(x_Cd: np.ndarray) -> np.ndarray:
    """(2^C,) whether each labelling is linear; bit c of the position is the label of point c.

    Exact for points in general position; ValueError where a point lies too near to a hyperplane
    through d others to tell its side.
    """
    points, dim = x_Cd.shape
    lifted_CD = np.concatenate([x_Cd, np.ones((points, 1))], axis=1)
    linear = np.zeros(2**points, dtype=bool)
    on_Kd = np.array(list(combinations(range(points), min(dim, points - 1))))
    normal_KD = np.linalg.svd(lifted_CD[on_Kd])[2][:, -1]
    side_KC = normal_KD @ lifted_CD.T / np.linalg.norm(lifted_CD, axis=1)
    np.put_along_axis(side_KC, on_Kd, 0.0, axis=1)
    off_KC = np.ones_like(side_KC, dtype=bool)
    np.put_along_axis(off_KC, on_Kd, False, axis=1)
    if np.abs(side_KC[off_KC]).min() < MARGIN:
        raise ValueError("dichotomies: expected points in general position")
    fixed_K = (side_KC > 0) @ (1 << np.arange(points))
    all_K = (1 << np.arange(points)).sum()
    for bits in product((0, 1), repeat=on_Kd.shape[1]):
        labels_K = fixed_K + (np.array(bits) << on_Kd).sum(1)
        linear[labels_K] = True
        linear[all_K - labels_K] = True
    return linear


def separable(x_Cd: np.ndarray, label_C: np.ndarray) -> bool:
    """Whether a hyperplane with margin separates the labels: a linear programme, one labelling."""
    from scipy.optimize import linprog

    sign_C = np.where(label_C, 1.0, -1.0)
    lifted_CD = np.concatenate([x_Cd, np.ones((len(x_Cd), 1))], axis=1)
    free = [(None, None)] * lifted_CD.shape[1]
    wanted = {"A_ub": -sign_C[:, None] * lifted_CD, "b_ub": -np.ones(len(x_Cd)), "bounds": free}
    return bool(linprog(np.zeros(lifted_CD.shape[1]), **wanted).status == 0)
