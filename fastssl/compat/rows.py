"""What the replacements share: unit rows, integer ids, the peer's result dtype, the ranks."""

# shapes: N rows, D features
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as torch_dist

from fastssl.losses.arguments import DTYPES, bad
from fastssl.losses.denominators import unit_rows
from fastssl.losses.distributed import gather_rows

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


__all__ = [
    "all_ranks", "as_ids", "as_ids_over", "as_peers_return_it", "check_number", "check_rows",
    "excess", "row_dots", "unit_rows", "widened",
]  # fmt: skip


def widened(x: Tensor) -> Tensor:
    """16-bit floats as float32, everything else as it is: what the losses compute in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_rows(name: str, **rows: Tensor) -> None:
    """Tensors (N, D) of floats, not empty, all of one shape; dtypes may differ, as in autocast.

    Raises:
        ValueError: naming the loss, the argument, what was expected and what came.
    """
    first_name, first = next(iter(rows.items()))
    for argument, h_ND in rows.items():
        if not isinstance(h_ND, Tensor):
            raise bad(name, argument, "a tensor of shape (N, D)", type(h_ND).__name__)
        if h_ND.dim() != 2 or h_ND.numel() == 0:
            expected = "2-D, (N, D), and not empty"
            raise bad(name, argument, expected, f"shape {tuple(h_ND.shape)}")
        if h_ND.dtype not in DTYPES:
            raise bad(name, argument, "float16, bfloat16, float32 or float64", h_ND.dtype)
        if h_ND.shape != first.shape:
            expected = f"of the shape {tuple(first.shape)} of {first_name}"
            raise bad(name, argument, expected, tuple(h_ND.shape))


def check_number(name: str, argument: str, value: float | Tensor) -> None:
    """A number, or a tensor that holds one."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise bad(name, argument, "one number", f"shape {tuple(value.shape)}")
    elif not isinstance(value, (int, float, np.number)):
        raise bad(name, argument, "a number or a tensor of one", repr(value))


def row_dots(a_ND: Tensor, b_ND: Tensor) -> Tensor:
    """(N,) a_i . b_i, in float32 at least."""
    return (widened(a_ND) * widened(b_ND)).sum(dim=-1)


def excess(negative: Tensor, positive: Tensor) -> Tensor:
    """log(exp(positive) + exp(negative)) - positive, without cancellation; -inf is allowed."""
    return -F.logsigmoid(positive - negative)


def as_ids(labels_N: Tensor) -> Tensor:
    """int64 labels with the same equalities as labels of any dtype."""
    if labels_N.dtype.is_floating_point or labels_N.dtype.is_complex:
        return labels_N.unique(return_inverse=True)[1]
    return labels_N.to(torch.int64)


def as_ids_over(group: Group, labels_N: Tensor) -> Tensor:
    """The local part of ``as_ids`` of the labels of all ranks."""
    if not labels_N.dtype.is_floating_point:
        return labels_N.to(torch.int64)
    return torch.searchsorted(gather_rows(labels_N, group=group).unique(), labels_N)


def as_peers_return_it(loss: Tensor, embeddings: Tensor) -> Tensor:
    """The loss in the dtype of the embeddings, or in float32 at least under autocast."""
    if torch.is_autocast_enabled(embeddings.device.type):
        return loss.to(torch.promote_types(embeddings.dtype, torch.float32))
    return loss.to(embeddings.dtype)


def all_ranks() -> torch_dist.ProcessGroup | None:
    """The default group where torch.distributed runs more than one process; else None."""
    if not torch_dist.is_available() or not torch_dist.is_initialized():
        return None
    return torch_dist.group.WORLD if torch_dist.get_world_size() > 1 else None
