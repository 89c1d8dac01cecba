"""What counts as a real number, in the words of Python that a compiler can trace."""

from __future__ import annotations

import math

import numpy as np

REAL = (int, float, np.floating, np.integer)


def is_real(value: object) -> bool:
    """A Python or numpy number; no bool."""
    return isinstance(value, REAL) and not isinstance(value, bool)


def is_finite(value: float) -> bool:
    """``math.isfinite``, which cannot be traced where the value is symbolic; nan fails."""
    return -math.inf < value < math.inf
