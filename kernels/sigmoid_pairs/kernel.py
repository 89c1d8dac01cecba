"""The sigmoid loss of all pairs in Triton; grids and scratch memory are in launch.py.

    z_ij = -y_ij (scale q_i . k_j + bias),  W_ij = -y_ij / (1 + e^-z_ij)
    rows_i = sum_j log(1 + e^z_ij)

Every partial sum has its own slot, added up in a fixed order: no atomics. W is stored times 2^13,
so that fp16 does not flush the weights of pairs that are far apart.
"""

# shapes: N queries, K keys, D features; a tile is I queries x J keys
from __future__ import annotations

import triton
import triton.language as tl

from fastssl.kernels.contrast.kernel import LOG2E, _dot

HEADROOM = tl.constexpr(8192.0)
_USERS = {"scale_ptr", "bias_ptr", "g_ptr"}


def _jit(function):
    """Compile once per config: no size and no user pointer is specialised on."""
    kinds = function.__annotations__
    sizes = [name for name, kind in kinds.items() if kind == "tl.int64"]
    users = [name for name in function.__code__.co_varnames if name in _USERS]
    return triton.jit(function, do_not_specialize=sizes, do_not_specialize_on_alignment=users)


@triton.jit
def _softplus(z):
    """log(1 + e^z) and 1 / (1 + e^-z) of any z, from one exponential.

    log(1 + e) = 2 atanh(e / (2 + e)): the polynomial keeps the precision of small e, which a
    logarithm of 1 + e loses.
    """
    e = tl.exp2(-tl.abs(z) * LOG2E)
    r = 1.0 / ((1.0 + e) * (2.0 + e))
    t = e * (1.0 + e) * r
    u = t * t
    p = 0.28178336012354090 * u + 0.27960602389001225
    p = p * u + 0.40024910319151025
    p = p * u + 0.66666314681083542
    p = p * u + 2.0000000079209268
    slope = (2.0 + e) * r
    return tl.where(z > 0.0, z, 0.0) + t * p, tl.where(z > 0.0, slope, e * slope)


@triton.jit
def _pairs(s_IJ, scale, bias, i, j, N, K, diagonal, BI: tl.constexpr, BJ: tl.constexpr):
    """Losses and W of a tile of products; padding has neither."""
    rows = i * BI + tl.arange(0, BI)
    cols = j * BJ + tl.arange(0, BJ)
    partner_IJ = rows[:, None] + diagonal == cols[None, :]
    x_IJ = s_IJ * scale + bias
    loss_IJ, w_IJ = _softplus(tl.where(partner_IJ, -x_IJ, x_IJ))
    w_IJ = tl.where(partner_IJ, -w_IJ, w_IJ)
    if ((j + 1) * BJ > K) | ((i + 1) * BI > N):
        real_IJ = (rows < N)[:, None] & (cols < K)[None, :]
        loss_IJ = tl.where(real_IJ, loss_IJ, 0.0)
        w_IJ = tl.where(real_IJ, w_IJ, 0.0)
    return loss_IJ, w_IJ


@_jit
def sigmoid_rows_kernel(q_ptr, k_ptr, scale_ptr, bias_ptr, rows_ptr, N: tl.int64, K: tl.int64,
                        num_k: tl.int64, diagonal: tl.int64, num_blocks: tl.int64, strip: tl.int64,
                        BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
                        PRECISION: tl.constexpr):  # fmt: skip
    """Query block i against one strip of key blocks: its losses, in the strip's slot."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64)
    begin = c * strip
    rows = tl.arange(0, BI)
    scale = tl.load(scale_ptr)
    bias = tl.load(bias_ptr)
    sum_I = tl.zeros([BI], dtype=tl.float32)
    for j in range(begin, tl.minimum(begin + strip, (K + BJ - 1) // BJ)):
        s_IJ = _dot(q_ptr, rows, k_ptr, i, j, N, K, num_k, BI, BJ, BK, False, PRECISION)
        loss_IJ, _ = _pairs(s_IJ, scale, bias, i, j, N, K, diagonal, BI, BJ)
        sum_I += tl.sum(loss_IJ, 1)
    tl.store(rows_ptr + (c * num_blocks + i) * BI + rows, sum_I)


@_jit
def sigmoid_weights_kernel(q_ptr, k_ptr, scale_ptr, bias_ptr, g_ptr, sums_ptr, w_ptr, N: tl.int64,
                           K: tl.int64, num_k: tl.int64, diagonal: tl.int64, first_block: tl.int64,
                           chunk_rows: tl.int64, width: tl.int64, BI: tl.constexpr,
                           BJ: tl.constexpr, BK: tl.constexpr,
                           PRECISION: tl.constexpr):  # fmt: skip
    """One tile of a chunk of query blocks: 2^13 g W into w (chunk_rows, width), and per query of
    the key block its loss, sum W q.k and sum W, (3, key blocks, chunk_rows)."""
    j = tl.program_id(0).to(tl.int64)
    i = first_block + tl.program_id(1)
    rows = tl.arange(0, BI)
    s_IJ = _dot(q_ptr, rows, k_ptr, i, j, N, K, num_k, BI, BJ, BK, False, PRECISION)
    loss_IJ, w_IJ = _pairs(s_IJ, tl.load(scale_ptr), tl.load(bias_ptr), i, j, N, K, diagonal, BI,
                           BJ)  # fmt: skip
    here = tl.program_id(1).to(tl.int64) * BI + rows
    part = tl.num_programs(0).to(tl.int64) * chunk_rows
    slot = sums_ptr + j * chunk_rows + here
    tl.store(slot, tl.sum(loss_IJ, 1))
    tl.store(slot + part, tl.sum(w_IJ * s_IJ, 1))
    tl.store(slot + 2 * part, tl.sum(w_IJ, 1))
    g_I = tl.load(g_ptr + i * BI + rows, mask=i * BI + rows < N, other=0.0) * HEADROOM
    out_ptrs = w_ptr + here[:, None] * width + (j * BJ + tl.arange(0, BJ))[None, :]
    tl.store(out_ptrs, (w_IJ * g_I[:, None]).to(w_ptr.dtype.element_ty))
