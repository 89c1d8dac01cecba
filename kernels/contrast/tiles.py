"""Log-denominators as a formula in tiles, for transforms and second derivatives.

Differentiable to any order and in both modes, under vmap too.
Tiles bound what is computed at once; no bound on the memory of a whole derivative is measured.
"""

# shapes: N queries, K keys, D features, C queries of a tile, T tiles
from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastssl.kernels.contrast import reference
from fastssl.kernels.contrast.reference import Ids
from fastssl.kernels.rematerialise import rematerialised

TILE_PAIRS = 1 << 19  # 2 MiB of float32 logits, of which a derivative holds some dozens


def denominators(
    q_ND: Tensor, k_KD: Tensor, scale: Tensor, ids: Ids, columns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """rows (N,), cols (K,) (empty unless ``columns``) and top (N,), which has no gradient."""
    formula = partial(_tile, ids.keep, columns)
    rows, cols, tops = [], [], []
    num_queries, per_tile = q_ND.shape[0], max(1, TILE_PAIRS // k_KD.shape[0])
    for begin in range(0, num_queries, per_tile):
        here = slice(begin, begin + per_tile)
        label_C, row_C = (x if x is None else x[here] for x in (ids.q_label_N, ids.q_row_N))
        rows_C, cols_K, top_C = rematerialised(
            formula, q_ND[here], k_KD, scale, label_C, ids.k_label_K, row_C, ids.k_row_K
        )
        rows.append(rows_C)
        cols.append(cols_K)
        tops.append(top_C.detach())
    cols_TK = torch.stack(cols)
    return torch.cat(rows), reference.logsumexp(cols_TK, 0) if columns else cols[0], torch.cat(tops)


def _tile(keep, columns, q_CD, k_KD, scale, label_C, label_K, row_C, row_K):
    ids = Ids(label_C, label_K, row_C, row_K, keep)
    x_CK = reference.logits(q_CD, k_KD, scale, ids)
    rows_C = reference.logsumexp(x_CK, 1)
    cols_K = reference.logsumexp(x_CK, 0) if columns else rows_C.new_empty(0)
    return rows_C, cols_K, x_CK.amax(1)
