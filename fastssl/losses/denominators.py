"""The one door between the losses and the fused kernels: log-denominators of unit rows.

Every loss of this package is log-denominators (here, O(N K D) work, no N x K matrix) minus
positives (plain torch, O(N D)). Whatever changes where keys come from changes here alone.
"""

# shapes: N queries, K keys, D embedding
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.kernels.contrast.checks import Pairs
from fastssl.kernels.contrast.op import ALL_PAIRS, Denominators, contrast, contrast_mean
from fastssl.kernels.ntxent.op import ntxent
from fastssl.losses.distributed import denominators_over_ranks, symmetric_over_ranks

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group

EPS = 1e-12  # of torch.nn.functional.normalize
UNIT = 1.0
ROUNDED_UNIT = 1.02
"""Bound on q.k where rows were rounded to 16 bits after their normalisation."""


def denominators(
    queries_ND: Tensor,
    keys_KD: Tensor,
    scale: float | Tensor,
    *,
    pairs: Pairs = ALL_PAIRS,
    columns: bool = False,
    bound: float = UNIT,
    group: Group | None = None,
) -> Denominators:
    """``contrast``, or ``contrast_mean`` where the keys need no gradient: one pass, nothing saved.

    Never in the precision of an autocast region: logits need float32 at least. With a group the
    keys are those of all ranks (labels mean the same on each); where the keys are the queries, no
    row is a key of itself.
    """
    with torch.autocast(queries_ND.device.type, enabled=False):
        if group is not None:
            return _over_ranks(queries_ND, keys_KD, scale, pairs, columns, bound, group)
        if columns or keys_KD.requires_grad:
            return contrast(queries_ND, keys_KD, scale, pairs=pairs, columns=columns, bound=bound)
        return contrast_mean(queries_ND, keys_KD, scale, pairs=pairs, bound=bound)


def among_themselves(
    z_MD: Tensor, scale: float | Tensor, group: Group | None = None
) -> Denominators:
    """Unit rows against the others. The products are symmetric: an even number takes half of them.

    The symmetric operator gives a loss per row, to which its positive is added back; the largest
    logit, which it does not know, is NaN.
    """
    num_rows = z_MD.shape[0]
    if group is not None or num_rows % 2:
        row_M = torch.arange(num_rows, device=z_MD.device)
        return denominators(z_MD, z_MD, scale, pairs=Pairs(rows=(row_M, row_M)), group=group)
    half = num_rows // 2
    temperature = scale.reciprocal() if isinstance(scale, Tensor) else 1.0 / scale
    loss_M = ntxent((z_MD[:half], z_MD[half:]), temperature, reduction="none")
    rows_M = loss_M + (z_MD * z_MD.roll(half, 0)).sum(1) * scale
    return Denominators(rows_M, rows_M.new_empty(0), torch.full_like(rows_M, torch.nan))


def _over_ranks(
    queries_ND: Tensor,
    keys_KD: Tensor,
    scale: float | Tensor,
    pairs: Pairs,
    columns: bool,
    bound: float,
    group: Group,
) -> Denominators:
    if queries_ND is not keys_KD:
        assert pairs.rows is None, "row ids are of one process"
        return denominators_over_ranks(
            queries_ND, keys_KD, scale, group=group, pairs=pairs, columns=columns, bound=bound
        )
    assert not columns and (pairs.rows is not None or pairs.keep == "different")
    labels = None if pairs.labels is None else pairs.labels[0]
    return symmetric_over_ranks(
        queries_ND, scale, group=group, keep=pairs.keep, labels=labels, bound=bound
    )


def unit_rows(h_ND: Tensor) -> Tensor:
    """L2-normalised rows in float32, or float64 for float64; norms do not overflow at 1e30."""
    wide_ND = _Widened.apply(h_ND) if h_ND.dtype == torch.float16 else h_ND
    dtype = torch.float64 if h_ND.dtype == torch.float64 else torch.float32
    wide_ND = wide_ND.to(dtype)
    norm_N1 = torch.linalg.vector_norm(wide_ND, dim=1, keepdim=True, dtype=torch.float64)
    return wide_ND / norm_N1.clamp_min(EPS).to(dtype)


class _Widened(torch.autograd.Function):
    """float16 to float32, and the gradient back: inf where it overflows, as a loss scaler expects.

    A zero row alone saturates: its gradient is divided by EPS, which no scale would let float16
    hold. (No other float16 row has a norm below EPS.)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(h_ND: Tensor) -> Tensor:
        return h_ND.float()

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def jvp(ctx, tangent_ND: Tensor) -> Tensor:
        return tangent_ND.float()

    @staticmethod
    def backward(ctx, grad_ND: Tensor) -> Tensor:
        (h_ND,) = ctx.saved_tensors
        limit = torch.finfo(torch.float16).max
        zero_N1 = (h_ND == 0).all(1, keepdim=True)
        return torch.where(zero_N1, grad_ND.clamp(-limit, limit), grad_ND).half()
