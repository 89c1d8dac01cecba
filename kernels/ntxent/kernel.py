"""NT-Xent in Triton, forward; grids and scratch memory are in launch.py.

Rows are stored as y = h * 2^-e (exact) with a scale c = 2^e / max(|h|, eps), so z = c * y and
s_ij = c_i c_j (y_i . y_j) has exact products in every dtype. Logits are in units of log 2.
Tiles on and above the diagonal only: one exp feeds a row sum and a column sum. Every partial
result has its own slot and is merged in a fixed order: no atomics.
"""

# shapes: V views, N samples, M = V * N rows, P = M padded to blocks, D features, K = D padded
from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
EPS = tl.constexpr(1e-12)
NEVER = tl.constexpr(-1.0e30)  # exponent of a pair that does not count; finite, so no inf - inf


def _jit(function):
    """Compile once per config: no size, stride or user pointer is specialised on."""
    sizes = [name for name, kind in function.__annotations__.items() if kind == "tl.int64"]
    return triton.jit(
        function, do_not_specialize=sizes, do_not_specialize_on_alignment=["h0_ptr", "h1_ptr"]
    )


@triton.jit
def _temperature(tau_ptr):
    """log2(e)/tau, the shift that bounds every logit (0 if inexact), and which of the two holds."""
    inverse = 1.0 / tl.load(tau_ptr)
    per_logit = inverse * LOG2E
    bounded = 2.0 * tl.abs(inverse) <= 80.0
    shift = tl.where(bounded, tl.abs(per_logit), 0.0)
    return per_logit, shift, bounded


@triton.jit
def _dot(y_ptr, a_IK, i, j, num_k, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
         RESIDENT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """y_I . y_J of one tile; the row operand a_IK is loaded once when it holds the whole depth."""
    k = tl.arange(0, BK)
    if RESIDENT:
        b_JK = tl.load(y_ptr + j * (BJ * BK) + (tl.arange(0, BJ)[:, None] * BK + k[None, :]))
        s_IJ = tl.dot(a_IK, tl.trans(b_JK), input_precision=PRECISION)
    else:
        depth = num_k * BK
        a_ptrs = y_ptr + i * BI * depth + (tl.arange(0, BI)[:, None] * depth + k[None, :])
        b_ptrs = y_ptr + j * BJ * depth + (tl.arange(0, BJ)[:, None] * depth + k[None, :])
        s_IJ = tl.zeros([BI, BJ], dtype=tl.float32)
        for _ in range(num_k):
            b_KJ = tl.trans(tl.load(b_ptrs))
            s_IJ = tl.dot(tl.load(a_ptrs), b_KJ, s_IJ, input_precision=PRECISION)
            a_ptrs += BK
            b_ptrs += BK
    return s_IJ


@_jit
def ntxent_prepare_kernel(h0_ptr, h1_ptr, y_ptr, scale_ptr, rnorm_ptr,
                          N: tl.int64, D: tl.int64, padding: tl.int64, num_k: tl.int64,
                          first_view: tl.int64, h0_n: tl.int64, h0_d: tl.int64, h1_n: tl.int64,
                          h1_d: tl.int64, ROWS: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """Two views to rows y (P, K), scales c (P,) and rnorm 1/max(|h|, eps) (M,); padding is zero."""
    which = tl.program_id(1)
    n = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if which == 0:
        row_ptrs = h0_ptr + n * h0_n
        step = h0_d
    else:
        row_ptrs = h1_ptr + n * h1_n
        step = h1_d
    real = n < N
    # only the last view of all carries padding rows; `padding` is 0 for every earlier launch
    stored = n < tl.where(which == tl.num_programs(1) - 1, N + padding, N)
    amax = tl.zeros([ROWS], dtype=tl.float32)
    for k0 in range(0, num_k * BK, BK):
        k = k0 + tl.arange(0, BK)
        inside = real[:, None] & (k < D)[None, :]
        h = tl.load(row_ptrs[:, None] + k[None, :] * step, mask=inside, other=0.0).to(tl.float32)
        amax = tl.maximum(amax, tl.max(tl.abs(h), 1))
    exponent = tl.minimum(tl.maximum(amax.to(tl.int32, bitcast=True) >> 23, 1), 253)
    down = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    up = (exponent << 23).to(tl.float32, bitcast=True)
    square = tl.zeros([ROWS], dtype=tl.float32)
    row = (first_view + which) * N + n
    for k0 in range(0, num_k * BK, BK):
        k = k0 + tl.arange(0, BK)
        inside = real[:, None] & (k < D)[None, :]
        h = tl.load(row_ptrs[:, None] + k[None, :] * step, mask=inside, other=0.0).to(tl.float32)
        y = h * down[:, None]
        square += tl.sum(y * y, 1)
        out_ptrs = y_ptr + row[:, None] * (num_k * BK) + k[None, :]
        tl.store(out_ptrs, y.to(y_ptr.dtype.element_ty), mask=stored[:, None])
    root = tl.sqrt_rn(square)
    short = root * up <= EPS  # False for nan, which must survive
    safe_root = tl.where(short, 1.0, root)
    scale = tl.where(short, up * (1.0 / EPS), tl.div_rn(1.0, safe_root))
    rnorm = tl.where(short, 1.0 / EPS, tl.div_rn(1.0, safe_root * up))
    tl.store(scale_ptr + row, tl.where(real, scale, 0.0), mask=stored)
    tl.store(rnorm_ptr + row, rnorm, mask=real)


@triton.jit
def _exponents(s_IJ, a_I, scale_ptr, i, j, M, bias, BI: tl.constexpr, BJ: tl.constexpr):
    """Logits of a tile in log2 units plus bias; padding columns and the row itself never count."""
    cols = j * BJ + tl.arange(0, BJ)
    x_IJ = (s_IJ * a_I[:, None]) * tl.load(scale_ptr + cols)[None, :] + bias
    if (j * BJ < (i + 1) * BI) | ((j + 1) * BJ > M):
        rows = i * BI + tl.arange(0, BI)
        counted = (rows[:, None] != cols[None, :]) & (cols < M)[None, :]
        x_IJ = tl.where(counted, x_IJ, NEVER)
    return x_IJ


@_jit
def ntxent_forward_kernel(y_ptr, scale_ptr, tau_ptr, sums_ptr, maxes_ptr, M: tl.int64,
                          num_k: tl.int64, num_blocks: tl.int64, first_block: tl.int64,
                          strip: tl.int64, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
                          RESIDENT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Row block i against the strip of column blocks j >= i: slot 1+strip takes the row sums, slot
    1+strips+i the column sums. Slots are (slots, P); maxes serve only where logits are unbounded.
    """
    i = first_block + tl.program_id(0)
    c = tl.program_id(1).to(tl.int64)
    begin = tl.maximum(c * strip, i) * (BI // BJ)
    end = tl.minimum(c * strip + strip, num_blocks) * (BI // BJ)
    if begin >= end:
        return
    P = num_blocks * BI
    k = tl.arange(0, BK)
    rows = tl.arange(0, BI)
    cols = tl.arange(0, BJ)
    a_IK = tl.load(y_ptr + i * BI * (num_k * BK) + (rows[:, None] * (num_k * BK) + k[None, :]))
    per_logit, shift, bounded = _temperature(tau_ptr)
    a_I = tl.load(scale_ptr + i * BI + rows) * per_logit
    row_slot = (1 + c) * P + i * BI
    col_slot = (1 + tl.num_programs(1) + tl.program_id(0)).to(tl.int64) * P
    l_I = tl.zeros([BI], dtype=tl.float32)
    if bounded:
        for j in range(begin, end):
            s_IJ = _dot(y_ptr, a_IK, i, j, num_k, BI, BJ, BK, RESIDENT, PRECISION)
            e_IJ = tl.exp2(_exponents(s_IJ, a_I, scale_ptr, i, j, M, -shift, BI, BJ))
            l_I += tl.sum(e_IJ, 1)
            tl.store(sums_ptr + col_slot + j * BJ + cols, tl.sum(e_IJ, 0))
    else:
        m_I = tl.full([BI], NEVER, dtype=tl.float32)
        for j in range(begin, end):
            s_IJ = _dot(y_ptr, a_IK, i, j, num_k, BI, BJ, BK, RESIDENT, PRECISION)
            x_IJ = _exponents(s_IJ, a_I, scale_ptr, i, j, M, 0.0, BI, BJ)
            m_new = tl.maximum(m_I, tl.max(x_IJ, 1))
            l_I = l_I * tl.exp2(m_I - m_new) + tl.sum(tl.exp2(x_IJ - m_new[:, None]), 1)
            m_I = m_new
            m_J = tl.max(x_IJ, 0)
            tl.store(maxes_ptr + col_slot + j * BJ + cols, m_J)
            l_J = tl.sum(tl.exp2(x_IJ - m_J[None, :]), 0)
            tl.store(sums_ptr + col_slot + j * BJ + cols, l_J)
        tl.store(maxes_ptr + row_slot + rows, m_I)
    tl.store(sums_ptr + row_slot + rows, l_I)


@triton.jit
def _cosine(y_ptr, scale_ptr, row, other, real, num_k, BK: tl.constexpr):
    """s of each row with one other row, in fp32."""
    dot = tl.zeros(row.shape, dtype=tl.float32)
    for k0 in range(0, num_k * BK, BK):
        k = k0 + tl.arange(0, BK)
        a = tl.load(y_ptr + row[:, None] * (num_k * BK) + k[None, :], mask=real[:, None], other=0.0)
        b = tl.load(
            y_ptr + other[:, None] * (num_k * BK) + k[None, :], mask=real[:, None], other=0.0
        )
        dot += tl.sum(a.to(tl.float32) * b.to(tl.float32), 1)
    c_row = tl.load(scale_ptr + row, mask=real, other=0.0)
    return dot * c_row * tl.load(scale_ptr + other, mask=real, other=0.0)


@_jit
def ntxent_merge_kernel(y_ptr, scale_ptr, tau_ptr, sums_ptr, maxes_ptr, loss_ptr, lse_ptr,
                        M: tl.int64, N: tl.int64, num_k: tl.int64, num_blocks: tl.int64,
                        first_block: tl.int64, end_block: tl.int64, strip: tl.int64,
                        strips: tl.int64, BLOCK: tl.constexpr, ROWS: tl.constexpr,
                        SLOTS: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """Merge this band's slots into slot 0; after the last band, the loss and lse of each row."""
    P = num_blocks * BLOCK
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(0).to(tl.int64) * ROWS // BLOCK
    per_logit, shift, bounded = _temperature(tau_ptr)
    l_R = tl.zeros([ROWS], dtype=tl.float32)
    m_R = tl.full([ROWS], NEVER, dtype=tl.float32)
    in_band = (block >= first_block) & (block < end_block)
    for slot0 in range(0, 1 + strips + end_block - first_block, SLOTS):
        slot = slot0 + tl.arange(0, SLOTS).to(tl.int64)
        above = first_block + slot - 1 - strips  # the row block whose column sums the slot holds
        carried = (slot == 0) & (first_block > 0)
        own = (slot >= 1) & (slot <= strips) & ((slot - 1) >= block // strip) & in_band
        used = carried | own | ((slot > strips) & (above < tl.minimum(block, end_block)))
        at = slot[:, None] * P + row[None, :]
        l_SR = tl.load(sums_ptr + at, mask=used[:, None], other=0.0)
        m_SR = tl.where(used, 0.0, NEVER)[:, None] + tl.zeros([SLOTS, ROWS], dtype=tl.float32)
        m_SR = tl.load(maxes_ptr + at, mask=used[:, None] & (bounded == 0), other=m_SR)
        m_new = tl.maximum(m_R, tl.max(m_SR, 0))
        l_R = l_R * tl.exp2(m_R - m_new) + tl.sum(l_SR * tl.exp2(m_SR - m_new[None, :]), 0)
        m_R = m_new
    if end_block < num_blocks:
        tl.store(sums_ptr + row, l_R)
        tl.store(maxes_ptr + row, m_R)
        return
    real = row < M
    positive = tl.zeros([ROWS], dtype=tl.float32)
    for offset in range(N, M, N):
        positive += _cosine(y_ptr, scale_ptr, row, (row + offset) % M, real, num_k, BK)
    views = (M // N).to(tl.float32)
    excess = m_R + shift - positive * per_logit / (views - 1.0)
    tl.store(loss_ptr + row, (excess + tl.log2(l_R)) * LN2, mask=real)
    tl.store(lse_ptr + row, (m_R + shift + tl.log2(l_R)) * LN2, mask=real)
