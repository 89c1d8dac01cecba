"""Log-denominators in Triton; grids and scratch memory are in launch.py.

Logits are in units of log 2. A program holds one block of queries and streams its strip of keys;
one exp feeds the row sum and, where columns are asked for, the column sum, so that both directions
cost one product. Every partial result has its own slot and is merged in a fixed order: no atomics.
"""

# shapes: N queries, K keys, D features; a tile is I queries x J keys; a slot is R rows wide
from __future__ import annotations

import triton
import triton.language as tl

from fastssl.kernels.contrast.product import product

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
NEVER = tl.constexpr(-1.0e30)  # logit of a pair that does not count; finite, so no inf - inf
NOTHING = tl.constexpr(-1.0e29)  # a maximum below it belongs to a row without pairs
LIFT = tl.constexpr(64.0)
SPAN = tl.constexpr(150.0)  # 126 + LIFT, less what a sum may lose
_USERS = {"scale_ptr", "q_label_ptr", "k_label_ptr", "q_row_ptr", "k_row_ptr", "lse_ptr", "g_ptr"}


def _jit(function):
    """Compile once per config: no size, flag or user pointer is specialised on."""
    kinds = function.__annotations__
    sizes = [name for name, kind in kinds.items() if kind in ("tl.int64", "tl.float32")]
    users = [name for name in function.__code__.co_varnames if name in _USERS]
    return triton.jit(function, do_not_specialize=sizes, do_not_specialize_on_alignment=users)


@triton.jit
def _temperature(scale_ptr, bound):
    """scale * log2(e), the shift that bounds every logit (0 if inexact), and which of both holds.

    Decided on the device: a learned scale is never waited for.
    """
    scale = tl.load(scale_ptr)
    reach = tl.abs(scale) * bound
    bounded = 2.0 * reach <= 80.0
    return scale * LOG2E, tl.where(bounded, reach * LOG2E, 0.0), bounded


@triton.jit
def _rows(ptr, block, count, B: tl.constexpr, BK: tl.constexpr):
    """Block of B whole rows, zero past the last."""
    row = tl.arange(0, B)
    at = row[:, None] * BK + tl.arange(0, BK)[None, :]
    return tl.load(ptr + block * (B * BK) + at, mask=(row < count - block * B)[:, None], other=0.0)


@triton.jit
def _dot(q_ptr, a_IK, k_ptr, i, j, N, K, num_k, BI: tl.constexpr, BJ: tl.constexpr,
         BK: tl.constexpr, RESIDENT: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """q . k of one tile; the query operand a_IK is loaded once when it holds the whole depth."""
    if RESIDENT:
        b_JK = _rows(k_ptr, j, K, BJ, BK)
        s_IJ = tl.zeros([BI, BJ], dtype=tl.float32)
        s_IJ = product(a_IK, tl.trans(b_JK), s_IJ, PRECISION)
    else:
        k = tl.arange(0, BK)
        depth = num_k * BK
        rows = tl.arange(0, BI)
        cols = tl.arange(0, BJ)
        a_ptrs = q_ptr + i * BI * depth + (rows[:, None] * depth + k[None, :])
        b_ptrs = k_ptr + j * BJ * depth + (cols[:, None] * depth + k[None, :])
        real_I = (rows < N - i * BI)[:, None]
        real_J = (cols < K - j * BJ)[:, None]
        s_IJ = tl.zeros([BI, BJ], dtype=tl.float32)
        for _ in range(num_k):
            b_KJ = tl.trans(tl.load(b_ptrs, mask=real_J, other=0.0))
            a = tl.load(a_ptrs, mask=real_I, other=0.0)
            s_IJ = product(a, b_KJ, s_IJ, PRECISION)
            a_ptrs += BK
            b_ptrs += BK
    return s_IJ


@triton.jit
def _own_ids(q_label_ptr, q_row_ptr, i, N, keep, apart, BI: tl.constexpr):
    """Labels and row ids of a query block; read only where a rule asks for them."""
    rows = i * BI + tl.arange(0, BI)
    label_I = tl.load(q_label_ptr + rows, mask=(rows < N) & (keep != 0), other=0)
    row_I = tl.load(q_row_ptr + rows, mask=(rows < N) & (apart != 0), other=0)
    return label_I, row_I


@triton.jit
def _counted(x_IJ, label_I, row_I, k_label_ptr, k_row_ptr, i, j, N, K, keep, apart,
             BI: tl.constexpr, BJ: tl.constexpr):  # fmt: skip
    """Logits with NEVER for padding and for every pair that the rules leave out.

    keep: 0 all pairs, 1 equal labels, 2 different labels. apart: 1 drops equal row ids.
    """
    cols = j * BJ + tl.arange(0, BJ)
    if ((j + 1) * BJ > K) | ((i + 1) * BI > N):
        rows = i * BI + tl.arange(0, BI)
        x_IJ = tl.where((rows < N)[:, None] & (cols < K)[None, :], x_IJ, NEVER)
    if keep != 0:
        label_J = tl.load(k_label_ptr + cols, mask=cols < K, other=0)
        x_IJ = tl.where((label_I[:, None] == label_J[None, :]) == (keep == 1), x_IJ, NEVER)
    if apart != 0:
        row_J = tl.load(k_row_ptr + cols, mask=cols < K, other=0)
        x_IJ = tl.where(row_I[:, None] == row_J[None, :], NEVER, x_IJ)
    return x_IJ


@triton.jit
def _both_sums(x_IJ, t_I, t_J, m_I):
    """sum_j exp2(x_ij - m_i) and sum_i exp2(x_ij - t_j), t being the tile's own maxima.

    One exponential gives both, shifted to 2^LIFT below the tile's largest, as long as no row or
    column maximum lies more than SPAN under it: what flushes to zero is then below 2^-34 of its
    sum. A logit that far down (similarities of one tile from 1 to -0.04 at CLIP's limit of 100)
    costs its tile a second one.
    """
    top = tl.max(t_I, 0)
    low = tl.minimum(_lowest(t_I, top), _lowest(t_J, top))
    shift = top - LIFT
    one = top - low <= SPAN
    from_I = tl.where(one, shift, m_I)
    e_IJ = tl.exp2(x_IJ - from_I[:, None])
    # without pairs there is no maximum to return to
    e_I = tl.where(t_I < NOTHING, 0.0, tl.sum(e_IJ, 1) * tl.exp2(from_I - m_I))
    if one == 0:
        e_IJ = tl.exp2(x_IJ - t_J[None, :])
    back_J = tl.where(one, tl.exp2(shift - t_J), 1.0)
    l_J = tl.where(t_J < NOTHING, 0.0, tl.sum(e_IJ, 0) * back_J)
    return e_I, l_J


@triton.jit
def _lowest(t_R, top):
    """The smallest of the maxima that belong to a pair."""
    return tl.min(tl.where(t_R < NOTHING, top, t_R), 0)


@_jit
def contrast_forward_kernel(q_ptr, k_ptr, scale_ptr, q_label_ptr, k_label_ptr, q_row_ptr, k_row_ptr,
                            sums_ptr, maxes_ptr, col_sums_ptr, col_maxes_ptr, bound: tl.float32,
                            N: tl.int64, K: tl.int64, num_k: tl.int64, keep: tl.int64,
                            apart: tl.int64, first_block: tl.int64, num_blocks: tl.int64,
                            strip: tl.int64, BI: tl.constexpr, BJ: tl.constexpr, BK: tl.constexpr,
                            RESIDENT: tl.constexpr, COLUMNS: tl.constexpr,
                            PRECISION: tl.constexpr):  # fmt: skip
    """Query block i against one strip of key blocks: row sums and maxima in the strip's slot,
    column sums (and maxima, where logits are unbounded) in slot 1 + block of this launch."""
    i = first_block + tl.program_id(0)
    c = tl.program_id(1).to(tl.int64)
    num_j = (K + BJ - 1) // BJ
    begin = c * strip
    end = tl.minimum(begin + strip, num_j)
    rows = tl.arange(0, BI)
    cols = tl.arange(0, BJ)
    a_IK = _rows(q_ptr, i, N, BI, BK) if RESIDENT else tl.zeros([BI, BK], dtype=tl.float32)
    label_I, row_I = _own_ids(q_label_ptr, q_row_ptr, i, N, keep, apart, BI)
    per_logit, shift, bounded = _temperature(scale_ptr, bound)
    slot = (c * num_blocks + i) * BI
    col_slot = (1 + tl.program_id(0)).to(tl.int64) * (num_j * BJ)
    l_I = tl.zeros([BI], dtype=tl.float32)
    m_I = tl.full([BI], NEVER, dtype=tl.float32)
    if bounded:
        for j in range(begin, end):
            s_IJ = _dot(q_ptr, a_IK, k_ptr, i, j, N, K, num_k, BI, BJ, BK, RESIDENT, PRECISION)
            x_IJ = _counted(s_IJ * per_logit - shift, label_I, row_I, k_label_ptr, k_row_ptr, i, j,
                            N, K, keep, apart, BI, BJ)  # fmt: skip
            m_I = tl.maximum(m_I, tl.max(x_IJ, 1))
            e_IJ = tl.exp2(x_IJ)
            l_I += tl.sum(e_IJ, 1)
            if COLUMNS:
                tl.store(col_sums_ptr + col_slot + j * BJ + cols, tl.sum(e_IJ, 0))
        m_I += shift
    else:
        for j in range(begin, end):
            s_IJ = _dot(q_ptr, a_IK, k_ptr, i, j, N, K, num_k, BI, BJ, BK, RESIDENT, PRECISION)
            x_IJ = _counted(s_IJ * per_logit, label_I, row_I, k_label_ptr, k_row_ptr, i, j,
                            N, K, keep, apart, BI, BJ)  # fmt: skip
            t_I = tl.max(x_IJ, 1)
            m_new = tl.maximum(m_I, t_I)
            if COLUMNS:
                t_J = tl.max(x_IJ, 0)
                e_I, l_J = _both_sums(x_IJ, t_I, t_J, m_new)
                l_I = l_I * tl.exp2(m_I - m_new) + e_I
                tl.store(col_maxes_ptr + col_slot + j * BJ + cols, t_J)
                tl.store(col_sums_ptr + col_slot + j * BJ + cols, l_J)
            else:
                l_I = l_I * tl.exp2(m_I - m_new) + tl.sum(tl.exp2(x_IJ - m_new[:, None]), 1)
            m_I = m_new
    tl.store(sums_ptr + slot + rows, l_I)
    tl.store(maxes_ptr + slot + rows, m_I)


@_jit
def contrast_merge_kernel(sums_ptr, maxes_ptr, scale_ptr, out_ptr, top_ptr, bound: tl.float32,
                          count: tl.int64, width: tl.int64, first: tl.int64, last: tl.int64,
                          final: tl.int64, tops: tl.int64, ROWS: tl.constexpr,
                          SLOTS: tl.constexpr):  # fmt: skip
    """Slots first..last-1 of a (slots, width) scratch into slot 0, or into log-denominators and,
    with ``tops``, maxima once ``final``. Bounded sums without tops have no maxima at all."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    _, shift, bounded = _temperature(scale_ptr, bound)
    l_R = tl.zeros([ROWS], dtype=tl.float32)
    m_R = tl.full([ROWS], NEVER, dtype=tl.float32)
    for slot0 in range(first, last, SLOTS):
        slot = slot0 + tl.arange(0, SLOTS)
        at = slot[:, None] * width + row[None, :]
        inside = (slot < last)[:, None] & (row < width)[None, :]
        known = inside & ((tops != 0) | (bounded == 0))
        l_SR = tl.load(sums_ptr + at, mask=inside, other=0.0)
        m_SR = tl.load(maxes_ptr + at, mask=known, other=NEVER)
        m_new = tl.maximum(m_R, tl.max(m_SR, 0))
        carry_R = tl.where(bounded, 1.0, tl.exp2(m_R - m_new))
        share_SR = tl.where(bounded, 1.0, tl.exp2(m_SR - m_new[None, :]))
        l_R = l_R * carry_R + tl.sum(l_SR * share_SR, 0)
        m_R = m_new
    if final == 0:
        tl.store(sums_ptr + row, l_R, mask=row < width)
        tl.store(maxes_ptr + row, m_R, mask=row < width)
        return
    lse_R = (tl.log2(l_R) + tl.where(bounded, shift, m_R)) * LN2
    lse_R = tl.where((m_R < NOTHING) & (bounded == 0), -float("inf"), lse_R)
    tl.store(out_ptr + row, lse_R, mask=row < count)
    if tops != 0:
        top_R = tl.where(m_R < NOTHING, -float("inf"), m_R * LN2)
        tl.store(top_ptr + row, tl.where(l_R != l_R, l_R, top_R), mask=row < count)


@_jit
def contrast_mean_kernel(q_ptr, k_ptr, scale_ptr, q_label_ptr, k_label_ptr, q_row_ptr, k_row_ptr,
                         sums_ptr, maxes_ptr, acc_ptr, N: tl.int64, K: tl.int64, keep: tl.int64,
                         apart: tl.int64, num_blocks: tl.int64, strip: tl.int64, BI: tl.constexpr,
                         BJ: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Attention with V = K: one pass over a strip of keys leaves row sums, maxima and
    sum_j exp(x_ij - max_i) k_j, (strips, P, BK). Always the running maximum: in fp16 a fixed shift
    would flush small weights to zero before they are added."""
    i = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1).to(tl.int64)
    begin = c * strip
    end = tl.minimum(begin + strip, (K + BJ - 1) // BJ)
    rows = tl.arange(0, BI)
    a_IK = _rows(q_ptr, i, N, BI, BK)
    label_I, row_I = _own_ids(q_label_ptr, q_row_ptr, i, N, keep, apart, BI)
    per_logit = tl.load(scale_ptr) * LOG2E
    l_I = tl.zeros([BI], dtype=tl.float32)
    m_I = tl.full([BI], NEVER, dtype=tl.float32)
    acc_IK = tl.zeros([BI, BK], dtype=tl.float32)
    for j in range(begin, end):
        b_JK = _rows(k_ptr, j, K, BJ, BK)
        s_IJ = tl.zeros([BI, BJ], dtype=tl.float32)
        s_IJ = product(a_IK, tl.trans(b_JK), s_IJ, PRECISION)
        x_IJ = _counted(s_IJ * per_logit, label_I, row_I, k_label_ptr, k_row_ptr, i, j,
                        N, K, keep, apart, BI, BJ)  # fmt: skip
        m_new = tl.maximum(m_I, tl.max(x_IJ, 1))
        shrink_I = tl.exp2(m_I - m_new)
        e_IJ = tl.exp2(x_IJ - m_new[:, None])
        l_I = l_I * shrink_I + tl.sum(e_IJ, 1)
        acc_IK *= shrink_I[:, None]
        # weights take the precision of the queries: beside float32 they are not rounded
        acc_IK = product(e_IJ.to(a_IK.dtype), b_JK, acc_IK, PRECISION)
        m_I = m_new
    slot = (c * num_blocks + i) * BI
    tl.store(sums_ptr + slot + rows, l_I)
    tl.store(maxes_ptr + slot + rows, m_I)
    at = rows[:, None] * BK + tl.arange(0, BK)[None, :]
    tl.store(acc_ptr + slot * BK + at, acc_IK)


@_jit
def contrast_average_kernel(sums_ptr, maxes_ptr, acc_ptr, mean_ptr, N: tl.int64, D: tl.int64,
                            padded: tl.int64, num_k: tl.int64, strips: tl.int64,
                            ROWS: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """The strips' weighted sums, brought to one maximum and divided by the whole sum: (N, D)."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.program_id(1) * BK + tl.arange(0, BK)
    depth = num_k * BK
    m_R = tl.full([ROWS], NEVER, dtype=tl.float32)
    for strip in range(strips):
        m_R = tl.maximum(m_R, tl.load(maxes_ptr + strip * padded + row))
    l_R = tl.zeros([ROWS], dtype=tl.float32)
    mean = tl.zeros([ROWS, BK], dtype=tl.float32)
    for strip in range(strips):
        share_R = tl.exp2(tl.load(maxes_ptr + strip * padded + row) - m_R)
        l_R += tl.load(sums_ptr + strip * padded + row) * share_R
        at = (strip * padded + row)[:, None] * depth + k[None, :]
        mean += tl.load(acc_ptr + at) * share_R[:, None]
    none = (m_R < NOTHING)[:, None]  # no pair counts: no gradient either
    mean = tl.where(none, 0.0, mean / tl.where(none, 1.0, l_R[:, None]))
    inside = (row < N)[:, None] & (k < D)[None, :]
    tl.store(mean_ptr + row[:, None] * D + k[None, :], mean, mask=inside)
