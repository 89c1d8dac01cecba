"""What a call of ``sigmoid_pairs`` may look like; every refusal names the argument."""

# shapes: N queries, K keys, D features
from __future__ import annotations

import torch
from torch import Tensor

from fastssl.kernels.scalars import is_finite, is_real

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FARTHEST = 1 << 62


def bad(argument: str, expected: str, received: object) -> ValueError:
    """The refusal of ``argument``."""
    return ValueError(f"sigmoid_pairs: {argument} must be {expected}; received {received}")


def number(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """``value`` as a 0-d tensor on the device of ``like``. ValueError where it is no number."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.dtype.is_floating_point:
            raise bad(name, "one floating number", f"{value.dtype} {tuple(value.shape)}")
        if value.device != like.device:
            raise bad(name, "on the device of the queries", value.device)
        return value.reshape(())
    if not is_real(value):
        raise bad(name, "a float or a one-element tensor", type(value).__name__)
    if not is_finite(value):
        raise bad(name, "finite", value)
    return torch.full((), float(value), dtype=torch.float64, device=like.device)


def check(queries: Tensor, keys: Tensor, diagonal: int | None) -> None:
    """ValueError for operands or a diagonal that do not fit."""
    for name, rows in (("queries", queries), ("keys", keys)):
        if not isinstance(rows, Tensor):
            raise bad(name, "a tensor of shape (rows, D)", type(rows).__name__)
        if rows.dim() != 2:
            raise bad(name, "2-D, (rows, D)", f"shape {tuple(rows.shape)}")
        if rows.dtype not in DTYPES:
            raise bad(name, "float16, bfloat16, float32 or float64", rows.dtype)
        if rows.shape[0] < 1 or rows.shape[1] < 1:
            raise bad(name, "non-empty", f"shape {tuple(rows.shape)}")
    if queries.shape[1] != keys.shape[1]:
        raise bad("keys", f"of width {queries.shape[1]} like the queries", tuple(keys.shape))
    if queries.device != keys.device:
        raise bad("keys", f"on {queries.device} like the queries", keys.device)
    if diagonal is None or isinstance(diagonal, torch.SymInt):
        return
    if isinstance(diagonal, bool) or not isinstance(diagonal, int):
        raise bad("diagonal", "None or an int", repr(diagonal))
    if abs(diagonal) >= FARTHEST:
        raise bad("diagonal", "less than 2^62 in magnitude", diagonal)
