"""Gradients of the log-denominators in Triton; grids and scratch memory are in launch.py.

    W_ij = g_i exp(x_ij - rows_i) + h_j exp(x_ij - cols_j),   dq = scale W k,   dk = scale W^T q

S and W are recomputed tile by tile. Everything is symmetric in the two sides, so "own" and "other"
stand for queries and keys or, in the gradient of the keys, for keys and queries.
"""

# shapes: N own rows, K other rows, P and Q the same padded to blocks, D features
from __future__ import annotations

import triton
import triton.language as tl

from fastssl.kernels.contrast.kernel import (
    LOG2E,
    _counted,
    _dot,
    _jit,
    _own_ids,
    _rows,
    _temperature,
)
from fastssl.kernels.contrast.product import product

HEADROOM = tl.constexpr(13.0)  # W is kept times 2^13: fp16 neither overflows nor flushes 1/K
FAR = tl.constexpr(1.0e30)  # log-denominator where no pair counts: every exponential is zero
SPAN = tl.constexpr(160.0)  # of fp32's 2^-126 .. 2^127, less what a weight may lose


@_jit
def contrast_state_kernel(scale_ptr, lse_ptr, g_ptr, g_max_ptr, state_ptr, bound: tl.float32,
                          count: tl.int64, padded: tl.int64, ROWS: tl.constexpr):  # fmt: skip
    """What the backward pass reads of each row, (3, P): log-denominator in log2 units, gradient in
    units of the largest, and that gradient over the shifted denominator."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    _, shift, bounded = _temperature(scale_ptr, bound)
    g_max = tl.load(g_max_ptr)
    real = row < count
    lse = tl.load(lse_ptr + row, mask=real, other=-float("inf")) * LOG2E
    none = lse == -float("inf")
    lse = tl.where(none, FAR, lse)
    g = tl.load(g_ptr + row, mask=real, other=0.0) / tl.where(g_max == 0.0, 1.0, g_max)
    g = tl.where(none, 0.0, g)
    share = tl.where(bounded, g * tl.exp2(shift - lse), g)
    stored = row < padded
    tl.store(state_ptr + row, lse, mask=stored)
    tl.store(state_ptr + padded + row, g, mask=stored)
    tl.store(state_ptr + 2 * padded + row, share, mask=stored)


@triton.jit
def _highest(lse_R):
    """The largest log-denominator of rows for which a pair counts."""
    return tl.max(tl.where(lse_R < 1.0e29, lse_R, -FAR), 0)


@triton.jit
def _weights(s_IJ, temperature, label_I, row_I, k_label_ptr, k_row_ptr, own_ptr, other_ptr, i, j,
             N, K, P, Q, keep, apart, sides, BI: tl.constexpr, BJ: tl.constexpr):  # fmt: skip
    """2^13 W of one tile. sides: 1 own denominators, 2 the other's, 3 both.

    Bounded logits share one exponential. Unbounded ones do too, shifted to the middle of the tile's
    log-denominators, as long as these lie within SPAN: no x exceeds its own, so nothing overflows,
    and what flushes to zero has a weight below 2^-46. Else one exponential per side.
    """
    per_logit, shift, bounded = temperature
    rows = i * BI + tl.arange(0, BI)
    cols = j * BJ + tl.arange(0, BJ)
    x_IJ = _counted(s_IJ * per_logit + (HEADROOM - shift), label_I, row_I, k_label_ptr, k_row_ptr,
                    i, j, N, K, keep, apart, BI, BJ)  # fmt: skip
    if bounded:
        share_I = tl.load(own_ptr + 2 * P + rows)
        share_J = tl.load(other_ptr + 2 * Q + cols)
        w_IJ = tl.exp2(x_IJ) * (share_I[:, None] + share_J[None, :])
    else:
        lse_I, lse_J = tl.load(own_ptr + rows), tl.load(other_ptr + cols)
        g_I, g_J = tl.load(own_ptr + P + rows), tl.load(other_ptr + Q + cols)
        low = tl.minimum(tl.min(lse_I, 0), tl.min(lse_J, 0))
        high = tl.maximum(_highest(lse_I), _highest(lse_J))
        middle = (low + high) * 0.5
        if high - low <= SPAN:
            share_I, share_J = g_I * tl.exp2(middle - lse_I), g_J * tl.exp2(middle - lse_J)
            w_IJ = tl.exp2(x_IJ - middle) * (share_I[:, None] + share_J[None, :])
        else:
            w_IJ = tl.zeros([BI, BJ], dtype=tl.float32)
            if sides != 2:
                w_IJ += tl.exp2(x_IJ - lse_I[:, None]) * g_I[:, None]
            if sides != 1:
                w_IJ += tl.exp2(x_IJ - lse_J[None, :]) * g_J[None, :]
    return w_IJ


@_jit
def contrast_pull_kernel(q_ptr, k_ptr, scale_ptr, q_label_ptr, k_label_ptr, q_row_ptr, k_row_ptr,
                         own_ptr, other_ptr, acc_ptr, bound: tl.float32, N: tl.int64, K: tl.int64,
                         P: tl.int64, Q: tl.int64, keep: tl.int64, apart: tl.int64, sides: tl.int64,
                         per_split: tl.int64, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
                         PRECISION: tl.constexpr):  # fmt: skip
    """Own block i, one split of the others: acc (splits, P, BK) = 2^13 sum_j W_ij k_j."""
    i = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    begin = split * per_split
    a_IK = _rows(q_ptr, i, N, BI, BK)
    label_I, row_I = _own_ids(q_label_ptr, q_row_ptr, i, N, keep, apart, BI)
    temperature = _temperature(scale_ptr, bound)
    acc_IK = tl.zeros([BI, BK], dtype=tl.float32)
    for j in range(begin, tl.minimum(begin + per_split, (K + BJ - 1) // BJ)):
        b_JK = _rows(k_ptr, j, K, BJ, BK)
        s_IJ = tl.zeros([BI, BJ], dtype=tl.float32)
        s_IJ = product(a_IK, tl.trans(b_JK), s_IJ, PRECISION)
        w_IJ = _weights(s_IJ, temperature, label_I, row_I, k_label_ptr, k_row_ptr, own_ptr,
                        other_ptr, i, j, N, K, P, Q, keep, apart, sides, BI, BJ)  # fmt: skip
        acc_IK = tl.dot(w_IJ.to(b_JK.dtype), b_JK, acc_IK, input_precision=PRECISION)
    at = tl.arange(0, BI)[:, None] * BK + tl.arange(0, BK)[None, :]
    tl.store(acc_ptr + (split * P + i * BI) * BK + at, acc_IK)


@_jit
def contrast_weights_kernel(q_ptr, k_ptr, scale_ptr, q_label_ptr, k_label_ptr, q_row_ptr, k_row_ptr,
                            own_ptr, other_ptr, w_ptr, bound: tl.float32, N: tl.int64, K: tl.int64,
                            P: tl.int64, Q: tl.int64, num_k: tl.int64, keep: tl.int64,
                            apart: tl.int64, sides: tl.int64, first_block: tl.int64,
                            BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
                            PRECISION: tl.constexpr):  # fmt: skip
    """2^13 W for a chunk of query blocks, w (chunk rows, Q); both products are left to GEMMs."""
    j = tl.program_id(0).to(tl.int64)
    i = first_block + tl.program_id(1)
    rows = tl.arange(0, BI)
    cols = tl.arange(0, BJ)
    label_I, row_I = _own_ids(q_label_ptr, q_row_ptr, i, N, keep, apart, BI)
    s_IJ = _dot(q_ptr, rows, k_ptr, i, j, N, K, num_k, BI, BJ, BK, False, PRECISION)
    w_IJ = _weights(s_IJ, _temperature(scale_ptr, bound), label_I, row_I, k_label_ptr, k_row_ptr,
                    own_ptr, other_ptr, i, j, N, K, P, Q, keep, apart, sides, BI, BJ)  # fmt: skip
    out_ptrs = w_ptr + tl.program_id(1).to(tl.int64) * BI * Q + j * BJ
    out_ptrs += rows.to(tl.int64)[:, None] * Q + cols[None, :]
    tl.store(out_ptrs, w_IJ.to(w_ptr.dtype.element_ty))


@_jit
def contrast_finish_kernel(q_ptr, acc_ptr, scale_ptr, g_max_ptr, out_ptr, dscale_ptr, N: tl.int64,
                           D: tl.int64, padded: tl.int64, num_k: tl.int64, splits: tl.int64,
                           ROWS: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """Merge the splits in order: dq (N, D) in the dtype of ``out``, and the block's part of
    dscale = sum_i q_i . (W k)_i in fp32."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    depth = num_k * BK
    g_max = tl.load(g_max_ptr) * 0.0001220703125  # 2^-13
    scale = tl.load(scale_ptr)
    along_R = tl.zeros([ROWS], dtype=tl.float32)
    limit = 65504.0 if out_ptr.dtype.element_ty == tl.float16 else float("inf")
    for k0 in range(0, depth, BK):
        k = k0 + tl.arange(0, BK)
        at = row[:, None] * depth + k[None, :]
        real = (row < N)[:, None]
        pulled = tl.zeros([ROWS, BK], dtype=tl.float32)
        for split in range(splits):
            pulled += tl.load(acc_ptr + split * padded * depth + at, mask=real, other=0.0)
        pulled *= g_max
        q = tl.load(q_ptr + at, mask=real, other=0.0).to(tl.float32)
        along_R += tl.sum(pulled * q, 1)
        dq = pulled * scale
        dq = tl.where(dq > limit, limit, tl.where(dq < -limit, -limit, dq))  # nan stays nan
        out_ptrs = out_ptr + row[:, None] * D + k[None, :]
        tl.store(out_ptrs, dq.to(out_ptr.dtype.element_ty), mask=real & (k < D)[None, :])
    tl.store(dscale_ptr + tl.program_id(0), tl.sum(along_R, 0))
