"""NT-Xent in Triton, backward; grids and scratch memory are in launch.py.

    W_ij = g_i P_ij + g_j P_ji,   dz = (W z - positives) / tau,   dh = (dz - z (z . dz)) / |h|

S and W are recomputed tile by tile; the positives are subtracted in fp32, outside W.
"""

# shapes: V views, N samples, M = V * N rows, P = M padded to blocks, D features, K = D padded
from __future__ import annotations

import triton
import triton.language as tl

from fastssl.kernels.ntxent.kernel import EPS, LN2, LOG2E, NEVER, _cosine, _dot, _jit, _temperature

HEADROOM = tl.constexpr(13.0)  # W is kept times 2^13: fp16 neither overflows nor flushes 1/M


@_jit
def ntxent_state_kernel(scale_ptr, tau_ptr, lse_ptr, g_ptr, g_max_ptr, state_ptr, M: tl.int64,
                        P: tl.int64, g_stride: tl.int64, ROWS: tl.constexpr):  # fmt: skip
    """What the backward pass reads of each row, (3, P), 0 for padding: log-denominator in log2
    units, gradient in units of the largest, and that gradient over the shifted denominator."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    _, shift, bounded = _temperature(tau_ptr)
    g_max = tl.load(g_max_ptr)
    real = row < M
    lse = tl.load(lse_ptr + row, mask=real, other=0.0) * LOG2E
    g = tl.load(g_ptr + row * g_stride, mask=real, other=0.0)
    g = tl.where(g_max == 0.0, 0.0, g / tl.where(g_max == 0.0, 1.0, g_max))
    stored = row < P
    tl.store(state_ptr + row, lse, mask=stored)
    tl.store(state_ptr + P + row, g, mask=stored)
    share = tl.where(bounded, g * tl.exp2(shift - lse), g)
    tl.store(state_ptr + 2 * P + row, share, mask=stored)


@triton.jit
def _weights(s_IJ, scale_ptr, state_ptr, temperature, i, j, gap, M, N, P,
             BI: tl.constexpr, BJ: tl.constexpr):  # fmt: skip
    """2^13 c_j (g_i P_ij + g_j P_ji) of one tile, 0 for padding, the row itself and positives.

    gap = (first row - first column) mod N: rows of one sample lie a multiple of N apart."""
    per_logit, shift, bounded = temperature
    rows = i * BI + tl.arange(0, BI)
    cols = j * BJ + tl.arange(0, BJ)
    a_I = tl.load(scale_ptr + rows) * per_logit
    c_J = tl.load(scale_ptr + cols)
    u_I = tl.load(state_ptr + 2 * P + rows)
    u_J = tl.load(state_ptr + 2 * P + cols) * c_J
    x_IJ = (s_IJ * a_I[:, None]) * c_J[None, :] + (HEADROOM - shift)
    if bounded:
        w_IJ = tl.exp2(x_IJ) * (u_I[:, None] * c_J[None, :] + u_J[None, :])
    else:
        bias_J = tl.where(cols < M, 0.0, NEVER)
        lse_I = tl.load(state_ptr + rows)
        lse_J = tl.load(state_ptr + cols) - bias_J
        w_IJ = tl.exp2(x_IJ - lse_J[None, :]) * u_J[None, :]
        w_IJ += tl.exp2(x_IJ - lse_I[:, None] + bias_J[None, :]) * (u_I[:, None] * c_J[None, :])
    if (gap < BJ) | (gap > N - BI):
        n_I = rows.to(tl.int32) % N.to(tl.int32)
        n_J = cols.to(tl.int32) % N.to(tl.int32)
        w_IJ = tl.where(n_I[:, None] == n_J[None, :], 0.0, w_IJ)
    return w_IJ


@_jit
def ntxent_backward_kernel(y_ptr, scale_ptr, tau_ptr, state_ptr, out_ptr, M: tl.int64,
                           N: tl.int64, P: tl.int64, num_i: tl.int64, num_j: tl.int64,
                           per_split: tl.int64, BI: tl.constexpr, BJ: tl.constexpr,
                           BK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Row block i, one split of the columns: out (splits, P, K) = sum_j W_ij y_j, W recomputed."""
    i = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, BK)
    tile = tl.arange(0, BI)[:, None] * BK + k[None, :]
    a_IK = tl.load(y_ptr + i * (BI * BK) + tile)
    temperature = _temperature(tau_ptr)
    begin = split * per_split
    gap = (i * BI - begin * BJ + N * (P // N + 1)) % N
    acc_IK = tl.zeros([BI, BK], dtype=tl.float32)
    for j in range(begin, tl.minimum(begin + per_split, num_j)):
        b_JK = tl.load(y_ptr + j * (BJ * BK) + (tl.arange(0, BJ)[:, None] * BK + k[None, :]))
        s_IJ = tl.dot(a_IK, tl.trans(b_JK), input_precision=PRECISION)
        w_IJ = _weights(s_IJ, scale_ptr, state_ptr, temperature, i, j, gap, M, N, P, BI, BJ)
        acc_IK = tl.dot(w_IJ.to(b_JK.dtype), b_JK, acc_IK, input_precision=PRECISION)
        gap = tl.where(gap >= BJ, gap - BJ, gap - BJ + N)  # negative only if N < BJ: still near
    tl.store(out_ptr + (split * num_i + i) * (BI * BK) + tile, acc_IK)


@_jit
def ntxent_weights_kernel(y_ptr, scale_ptr, tau_ptr, state_ptr, w_ptr, M: tl.int64, N: tl.int64,
                          P: tl.int64, num_k: tl.int64, first_block: tl.int64,
                          num_j: tl.int64, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
                          PRECISION: tl.constexpr):  # fmt: skip
    """Rows of W for a chunk of row blocks, w (chunk rows, num_j * BJ); W y is left to a GEMM."""
    i = first_block + tl.program_id(0)
    j = tl.program_id(1).to(tl.int64)
    rows = tl.arange(0, BI)
    cols = tl.arange(0, BJ)
    s_IJ = _dot(y_ptr, rows, i, j, num_k, BI, BJ, BK, False, PRECISION)
    gap = (i * BI - j * BJ + N * (P // N + 1)) % N
    w_IJ = _weights(s_IJ, scale_ptr, state_ptr, _temperature(tau_ptr), i, j, gap, M, N, P, BI, BJ)
    out_ptrs = w_ptr + tl.program_id(0).to(tl.int64) * BI * (num_j * BJ) + j * BJ
    out_ptrs += rows[:, None] * (num_j * BJ) + cols[None, :]
    tl.store(out_ptrs, w_IJ.to(w_ptr.dtype.element_ty))


@_jit
def ntxent_project_kernel(y_ptr, scale_ptr, rnorm_ptr, tau_ptr, state_ptr, g_max_ptr, acc_ptr,
                          dh_ptr, dtau_ptr, M: tl.int64, N: tl.int64, D: tl.int64, P: tl.int64,
                          num_k: tl.int64, padded: tl.int64, splits: tl.int64,
                          reduction_scale: tl.float32, ROWS: tl.constexpr,
                          BK: tl.constexpr):  # fmt: skip
    """Merge the splits, subtract the positives in fp32, project: dh (M, D) in the input dtype, and
    the block's part of dtau = -(1/2tau) sum_i z_i . dz_i (L depends on z z^T / tau only)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = row < M
    K = num_k * BK
    per_logit, _, _ = _temperature(tau_ptr)
    g_max = tl.load(g_max_ptr)
    c_R = tl.load(scale_ptr + row)
    lse_R = tl.load(state_ptr + row)
    g_R = tl.load(state_ptr + P + row)
    # dz is kept in units of gmax * reduction / tau until it is stored
    unit = g_max * reduction_scale * (per_logit * LN2)
    z_dot_dz = tl.zeros([ROWS], dtype=tl.float32)
    for k0 in range(0, K, BK):
        at = row[:, None] * K + (k0 + tl.arange(0, BK))[None, :]
        dz = tl.zeros([ROWS, BK], dtype=tl.float32)
        for split in range(splits):
            dz += tl.load(acc_ptr + split * padded * K + at)
        dz *= 0.0001220703125  # 2^-13
        tl.store(acc_ptr + at, dz)
        z_dot_dz += tl.sum(dz * (tl.load(y_ptr + at).to(tl.float32) * c_R[:, None]), 1)
    tl.debug_barrier()  # slot 0 is read back below, perhaps by another thread
    views = (M // N).to(tl.float32)
    for offset in range(N, M, N):
        other = (row + offset) % M
        c_O = tl.load(scale_ptr + other)
        lse_O = tl.load(state_ptr + other)
        g_O = tl.load(state_ptr + P + other)
        s_R = _cosine(y_ptr, scale_ptr, row, other, real, num_k, BK)
        x_R = s_R * per_logit
        pull = g_R * tl.exp2(x_R - lse_R) + g_O * tl.exp2(x_R - lse_O) - (g_R + g_O) / (views - 1.0)
        z_dot_dz += pull * s_R
        for k0 in range(0, K, BK):
            k = k0 + tl.arange(0, BK)
            at = row[:, None] * K + k[None, :]
            z_O = tl.load(y_ptr + other[:, None] * K + k[None, :]).to(tl.float32) * c_O[:, None]
            tl.store(acc_ptr + at, tl.load(acc_ptr + at) + pull[:, None] * z_O)
        tl.debug_barrier()
    rnorm = tl.load(rnorm_ptr + row, mask=real, other=0.0)
    clamped = rnorm >= 1.0 / EPS  # a row shorter than eps is not projected
    along = tl.where(clamped, 0.0, z_dot_dz)
    # in fp16 such a row saturates, any other overflows, so that a loss scaler sees it
    largest = 65504.0 if dh_ptr.dtype.element_ty == tl.float16 else float("inf")
    limit = tl.where(clamped, largest, float("inf"))[:, None]
    for k0 in range(0, K, BK):
        k = k0 + tl.arange(0, BK)
        at = row[:, None] * K + k[None, :]
        z = tl.load(y_ptr + at).to(tl.float32) * c_R[:, None]
        dh = (tl.load(acc_ptr + at) - z * along[:, None]) * unit * rnorm[:, None]
        dh = tl.where(dh > limit, limit, tl.where(dh < -limit, -limit, dh))  # nan stays nan
        inside = real[:, None] & (k < D)[None, :]
        tl.store(
            dh_ptr + row[:, None] * D + k[None, :], dh.to(dh_ptr.dtype.element_ty), mask=inside
        )
    dtau = tl.sum(tl.where(real, z_dot_dz, 0.0), 0) * unit * (per_logit * LN2) * -0.5
    tl.store(dtau_ptr + tl.program_id(0), dtau)
