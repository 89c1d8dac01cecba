"""What a call of ``contrast`` may look like; every refusal names the argument."""

# shapes: N queries, K keys, D features
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.kernels.contrast.reference import KEEPS
from fastssl.kernels.scalars import is_finite, is_real

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Pairs:
    """Which (query, key) pairs count.

    labels: int64 (N,) and (K,); with ``keep`` "same" or "different" a pair counts by them.
    rows: int64 (N,) and (K,); a pair with equal row ids is a row with itself and never counts.
    """

    keep: str = "all"
    labels: tuple[Tensor, Tensor] | None = None
    rows: tuple[Tensor, Tensor] | None = None


def bad(argument: str, expected: str, received: object) -> ValueError:
    """The refusal of ``argument``."""
    return ValueError(f"contrast: {argument} must be {expected}; received {received}")


def scale_tensor(scale: float | Tensor, queries: Tensor) -> Tensor:
    """``scale`` as a 0-d tensor on the device of the queries. ValueError where it is no number."""
    if isinstance(scale, Tensor):
        if scale.numel() != 1 or not scale.dtype.is_floating_point:
            raise bad("scale", "one floating number", f"{scale.dtype} {tuple(scale.shape)}")
        if scale.device != queries.device:
            raise bad("scale", "on the device of the queries", scale.device)
        return scale.reshape(())
    if not is_real(scale):
        raise bad("scale", "a float or a one-element tensor", type(scale).__name__)
    if not is_finite(scale):
        raise bad("scale", "finite", scale)
    return torch.full((), float(scale), dtype=torch.float64, device=queries.device)


def check(queries: Tensor, keys: Tensor, pairs: Pairs, bound: float) -> None:
    """ValueError for operands or a rule that do not fit each other."""
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
    if not bound > 0:
        raise bad("bound", "positive", bound)
    if pairs.keep not in KEEPS:
        raise bad("pairs.keep", f"one of {KEEPS}", repr(pairs.keep))
    if pairs.keep != "all" and pairs.labels is None:
        raise bad("pairs.labels", f"given for keep={pairs.keep!r}", None)
    for name in ("labels", "rows"):
        check_ids(f"pairs.{name}", getattr(pairs, name), (queries, keys))


def check_ids(name: str, ids: tuple[Tensor, Tensor] | None, sides: Sequence[Tensor]) -> None:
    """ValueError unless each side has one int64 id per row, on its device."""
    for position, (id_n, side) in enumerate(zip(ids or (), sides, strict=False)):
        if id_n.dtype != torch.int64 or id_n.shape != side.shape[:1]:
            received = f"{id_n.dtype} {tuple(id_n.shape)}"
            raise bad(f"{name}[{position}]", f"int64 of shape ({side.shape[0]},)", received)
        if id_n.device != side.device:
            raise bad(f"{name}[{position}]", f"on {side.device}", id_n.device)
