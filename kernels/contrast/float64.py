"""Log-denominators of float64 CUDA tensors: plain-torch row chunks, never an N x K matrix.

Tensor cores and Triton's dot have nothing to offer in float64; this is for gradient checks.
"""

# shapes: N queries, K keys, D features, C queries of a chunk
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fastssl.kernels.contrast import reference
from fastssl.kernels.contrast.reference import Ids


def forward(
    q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, columns: bool, *, chunk_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """rows (N,), cols (K,) or empty, top (N,)."""
    rows, tops = [], []
    cols_K = k_KD.new_full((len(k_KD) if columns else 0,), -torch.inf, dtype=torch.float64)
    for chunk, ids_C in _chunks(q_ND, k_KD, ids, chunk_bytes):
        x_CK = reference.logits(q_ND[chunk], k_KD, scale, ids_C)
        rows.append(x_CK.logsumexp(1))
        tops.append(x_CK.amax(1))
        if columns:
            cols_K = torch.logaddexp(cols_K, x_CK.logsumexp(0))
    return torch.cat(rows), cols_K, torch.cat(tops)


def backward(
    g_rows_N: Tensor,
    g_cols_K: Tensor,
    q_ND: Tensor,
    k_KD: Tensor,
    scale: Tensor,
    ids: Ids,
    rows_N: Tensor,
    cols_K: Tensor,
    wants: tuple[bool, bool],
    *,
    chunk_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q (N, D), k (K, D) and scale, as the reference takes them of each chunk."""
    parts = []
    dk_KD = torch.zeros_like(k_KD, dtype=torch.float64)
    dscale = torch.zeros_like(scale, dtype=torch.float64)
    for chunk, ids_C in _chunks(q_ND, k_KD, ids, chunk_bytes):
        dq_CD, dk_part_KD, dscale_part = reference.backward(
            g_rows_N[chunk], g_cols_K, q_ND[chunk].double(), k_KD.double(), scale, ids_C,
            rows_N[chunk], cols_K, rows_N, torch.inf, (True, True),
        )  # fmt: skip
        parts.append(dq_CD)
        dk_KD += dk_part_KD
        dscale += dscale_part
    dq_ND = torch.cat(parts).to(q_ND.dtype) if wants[0] else q_ND.new_empty(0)
    return dq_ND, dk_KD.to(k_KD.dtype) if wants[1] else k_KD.new_empty(0), dscale


def forward_mean(
    q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, *, chunk_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """rows (N,), top (N,) and the softmax-weighted mean of the keys (N, D)."""
    parts = [
        reference.forward_mean(q_ND[chunk], k_KD, scale, ids_C, torch.inf)
        for chunk, ids_C in _chunks(q_ND, k_KD, ids, chunk_bytes)
    ]
    rows_N, top_N, mean_ND = (torch.cat(part) for part in zip(*parts, strict=True))
    return rows_N, top_N, mean_ND


def _chunks(q_ND: Tensor, k_KD: Tensor, ids: Ids, chunk_bytes: int) -> Iterator[tuple[slice, Ids]]:
    per_chunk = max(1, chunk_bytes // (8 * len(k_KD)))
    for begin in range(0, len(q_ND), per_chunk):
        chunk = slice(begin, begin + per_chunk)
        label, row = (x if x is None else x[chunk] for x in (ids.q_label_N, ids.q_row_N))
        yield chunk, replace(ids, q_label_N=label, q_row_N=row)
