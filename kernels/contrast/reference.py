"""Log-denominators in plain torch: the equation, any float dtype, any device.

    x_ij   = scale * q_i . k_j
    rows_i = log sum_{j kept with i} exp(x_ij)          over the keys of a query
    cols_j = log sum_{i kept with j} exp(x_ij)          over the queries of a key
    top_i  = max_{j kept with i} x_ij
    mean_i = sum_{j kept with i} exp(x_ij - rows_i) k_j     which is d rows_i / d (scale q_i)

A pair is kept by its labels ("all", "same", "different") and unless both rows are one and the same
(equal row ids). Without a kept pair a log-denominator is -inf and has no gradient.
"""

# shapes: N queries, K keys, D features
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.kernels.precision import own_precision

KEEPS = ("all", "same", "different")


@dataclass(frozen=True)
class Ids:
    """int64 ids of queries (N,) and keys (K,); None where the rule does not ask for them."""

    q_label_N: Tensor | None = None
    k_label_K: Tensor | None = None
    q_row_N: Tensor | None = None
    k_row_K: Tensor | None = None
    keep: str = "all"


def accumulate_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """float64 as soon as one operand is, else float32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def dropped(ids: Ids) -> Tensor | None:
    """(N, K) bool of the pairs that do not count, or None where all count."""
    found: Tensor | None = None
    if ids.keep != "all":
        assert ids.q_label_N is not None and ids.k_label_K is not None
        same_NK = ids.q_label_N[:, None] == ids.k_label_K[None, :]
        found = ~same_NK if ids.keep == "same" else same_NK
    if ids.q_row_N is not None and ids.k_row_K is not None:
        self_NK = ids.q_row_N[:, None] == ids.k_row_K[None, :]
        found = self_NK if found is None else found | self_NK
    return found


def logits(q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids) -> Tensor:
    """(N, K) x_ij, -inf where the pair does not count; differentiable."""
    dtype = accumulate_dtype(q_ND.dtype, k_KD.dtype)
    with own_precision(q_ND):
        x_NK = (q_ND.to(dtype) @ k_KD.to(dtype).T) * scale.to(dtype)
    drop_NK = dropped(ids)
    return x_NK if drop_NK is None else x_NK.masked_fill(drop_NK, -torch.inf)


def denominators(
    q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, columns: bool
) -> tuple[Tensor, Tensor]:
    """rows (N,) and cols (K,) (empty unless ``columns``), differentiable to any order."""
    x_NK = logits(q_ND, k_KD, scale, ids)
    rows_N = logsumexp(x_NK, 1)
    return rows_N, logsumexp(x_NK, 0) if columns else rows_N.new_empty(0)


def forward(
    q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, columns: bool, bound: float, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """rows (N,), cols (K,) or empty, top (N,), and nothing kept for the backward."""
    x_NK = logits(q_ND, k_KD, scale, ids)
    rows_N = x_NK.logsumexp(dim=1)
    cols_K = x_NK.logsumexp(dim=0) if columns else x_NK.new_empty(0)
    return rows_N, cols_K, x_NK.amax(dim=1), x_NK.new_empty(0)


def kept_numel(num_queries: int, num_keys: int, embedding: int, dtype: torch.dtype) -> int:
    """Elements that ``forward`` keeps for ``backward``: none."""
    return 0


def backward(
    g_rows_N: Tensor,
    g_cols_K: Tensor,
    q_ND: Tensor,
    k_KD: Tensor,
    scale: Tensor,
    ids: Ids,
    rows_N: Tensor,
    cols_K: Tensor,
    kept: Tensor,
    bound: float,
    wants: tuple[bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (N, D) and k (K, D) where ``wants`` asks for them (else empty) and of scale.

    With W_ij = g_i exp(x_ij - rows_i) + h_j exp(x_ij - cols_j):  dq = scale W k,  dk = scale W^T q,
    dscale = sum_ij W_ij q_i . k_j. Without ``cols_K`` the second term is left out.
    """
    dtype = rows_N.dtype
    x_NK = logits(q_ND, k_KD, scale, ids)
    w_NK = g_rows_N.to(dtype)[:, None] * _softmax(x_NK, rows_N[:, None])
    if cols_K.numel():
        w_NK = w_NK + g_cols_K.to(dtype)[None, :] * _softmax(x_NK, cols_K[None, :])
    q, k, tau = q_ND.to(dtype), k_KD.to(dtype), scale.to(dtype)
    with own_precision(q_ND):
        pulled_ND = w_NK @ k
        dk_KD = (w_NK.T @ q * tau).to(k_KD.dtype) if wants[1] else k_KD.new_empty(0)
    dscale = (pulled_ND * q).sum()
    dq_ND = (pulled_ND * tau).to(q_ND.dtype) if wants[0] else q_ND.new_empty(0)
    return dq_ND, dk_KD, dscale


def forward_mean(
    q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, bound: float
) -> tuple[Tensor, Tensor, Tensor]:
    """rows (N,), top (N,) and the softmax-weighted mean of the keys, (N, D)."""
    x_NK = logits(q_ND, k_KD, scale, ids)
    rows_N = x_NK.logsumexp(dim=1)
    with own_precision(q_ND):
        mean_ND = _softmax(x_NK, rows_N[:, None]) @ k_KD.to(rows_N.dtype)
    return rows_N, x_NK.amax(dim=1), mean_ND


def _softmax(x_NK: Tensor, lse: Tensor) -> Tensor:
    """exp(x - lse), zero where nothing counts."""
    return torch.where(lse == -torch.inf, 0.0, (x_NK - lse).exp())


def logsumexp(x_NK: Tensor, dim: int) -> Tensor:
    """torch.logsumexp whose gradient is zero instead of NaN where every logit is -inf."""
    none = (x_NK == -torch.inf).all(dim=dim, keepdim=True)
    return x_NK.masked_fill(none, 0.0).logsumexp(dim=dim).masked_fill(none.squeeze(dim), -torch.inf)
