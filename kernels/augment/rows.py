"""A stage of ``augment`` on the samples that run it."""

# shapes: M views of samples
from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def on_rows(runs_M: Tensor, stage: Callable[..., Tensor], x_M: Tensor, *columns_M: Tensor):
    """``stage(x, *columns)`` of the rows where ``runs_M`` holds; the others as they are."""
    rows_K = runs_M.nonzero()[:, 0]
    if len(rows_K) == 0:
        return x_M
    done_K = stage(x_M[rows_K], *(column[rows_K] for column in columns_M))
    return x_M.index_copy(0, rows_K, done_K)
