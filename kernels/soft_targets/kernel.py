"""Soft-target cross entropy in Triton; grids and outputs are in launch.py.

One program owns one row and walks it twice: the largest logits, then the sums, from the L2 cache.
The batch marginal belongs to programs that own columns and walk the rows, so that no sum depends on
the order of the blocks. Exponents are in units of log 2.
"""

# shapes: N rows, C outputs, B outputs of a block, R rows of a block
from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


def _jit(function):
    """Compile once per config: no size or stride is specialised on."""
    sizes = [name for name, kind in function.__annotations__.items() if kind == "tl.int64"]
    return triton.jit(function, do_not_specialize=sizes)


@triton.jit
def _logits(row_ptr, step, centre_ptr, c_B, inside_B, CENTRED: tl.constexpr):
    """A block of a row in fp32, less the centre; -inf beyond its end."""
    x_B = tl.load(row_ptr + c_B * step, mask=inside_B, other=-float("inf")).to(tl.float32)
    if CENTRED:
        x_B -= tl.load(centre_ptr + c_B, mask=inside_B, other=0.0)
    return x_B


@_jit
def soft_forward_kernel(a_ptr, b_ptr, centre_ptr, loss_ptr, stats_ptr, N: tl.int64, C: tl.int64,
                        a_n: tl.int64, a_c: tl.int64, b_n: tl.int64, b_c: tl.int64, scale_a,
                        scale_b, CENTRED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Loss (N,) and stats (4, N): top and log-sum of the student, then of the teacher."""
    n = tl.program_id(0).to(tl.int64)
    a_row, b_row = a_ptr + n * a_n, b_ptr + n * b_n
    cols = tl.arange(0, BLOCK)
    top_a_B = tl.full([BLOCK], -float("inf"), dtype=tl.float32)
    top_b_B = top_a_B
    for c0 in range(0, C, BLOCK):
        c_B = c0 + cols
        top_a_B = tl.maximum(top_a_B, _logits(a_row, a_c, centre_ptr, c_B, c_B < C, False))
        top_b_B = tl.maximum(top_b_B, _logits(b_row, b_c, centre_ptr, c_B, c_B < C, CENTRED))
    top_a, top_b = tl.max(top_a_B, 0), tl.max(top_b_B, 0)
    sum_a_B = tl.zeros([BLOCK], dtype=tl.float32)
    sum_b_B = tl.zeros([BLOCK], dtype=tl.float32)
    dot_B = tl.zeros([BLOCK], dtype=tl.float32)
    for c0 in range(0, C, BLOCK):
        c_B = c0 + cols
        a_B = _logits(a_row, a_c, centre_ptr, c_B, c_B < C, False) - top_a
        b_B = _logits(b_row, b_c, centre_ptr, c_B, c_B < C, CENTRED) - top_b
        e_B = tl.exp2(b_B * (scale_b * LOG2E))
        sum_a_B += tl.exp2(a_B * (scale_a * LOG2E))
        sum_b_B += e_B
        dot_B += e_B * tl.where(c_B < C, a_B, 0.0)
    log_a, sum_b = tl.log2(tl.sum(sum_a_B, 0)) * LN2, tl.sum(sum_b_B, 0)
    tl.store(loss_ptr + n, log_a - scale_a * (tl.sum(dot_B, 0) / sum_b))
    tl.store(stats_ptr + n, top_a)
    tl.store(stats_ptr + N + n, log_a)
    tl.store(stats_ptr + 2 * N + n, top_b)
    tl.store(stats_ptr + 3 * N + n, tl.log2(sum_b) * LN2)


@_jit
def soft_marginal_kernel(b_ptr, centre_ptr, stats_ptr, parts_ptr, N: tl.int64, C: tl.int64,
                         b_n: tl.int64, b_c: tl.int64, per_split: tl.int64, scale_b,
                         CENTRED: tl.constexpr, ROWS: tl.constexpr,
                         BLOCK: tl.constexpr):  # fmt: skip
    """Sums (splits, C) of the teacher's probabilities over the rows of a split."""
    split = tl.program_id(1).to(tl.int64)
    c_B = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside_B = c_B < C
    total_B = tl.zeros([BLOCK], dtype=tl.float32)
    centre_B = tl.zeros([BLOCK], dtype=tl.float32)
    if CENTRED:
        centre_B = tl.load(centre_ptr + c_B, mask=inside_B, other=0.0)
    end = tl.minimum(N, (split + 1) * per_split)
    for n0 in range(split * per_split, end, ROWS):
        n_R = n0 + tl.arange(0, ROWS)
        real_R = n_R < end
        at = b_ptr + n_R[:, None] * b_n + c_B[None, :] * b_c
        mask = real_R[:, None] & inside_B[None, :]
        b_RB = tl.load(at, mask=mask, other=-float("inf")).to(tl.float32) - centre_B[None, :]
        top_R = tl.load(stats_ptr + 2 * N + n_R, mask=real_R, other=0.0)
        log_R = tl.load(stats_ptr + 3 * N + n_R, mask=real_R, other=0.0)
        shifted_RB = (b_RB - top_R[:, None]) * (scale_b * LOG2E) - (log_R * LOG2E)[:, None]
        total_B += tl.sum(tl.exp2(shifted_RB), 0)
    tl.store(parts_ptr + split * C + c_B, total_B, mask=inside_B)


@_jit
def soft_backward_kernel(a_ptr, b_ptr, centre_ptr, g_ptr, h_ptr, loss_ptr, stats_ptr, da_ptr,
                         db_ptr, N: tl.int64, C: tl.int64, a_n: tl.int64, a_c: tl.int64,
                         b_n: tl.int64, b_c: tl.int64, scale_a, scale_b, CENTRED: tl.constexpr,
                         MARGINAL: tl.constexpr, TEACHER: tl.constexpr,
                         BLOCK: tl.constexpr):  # fmt: skip
    """da = g scale_a (p - q); db = scale_b q (u - sum q u) with u = h - g log p. Contiguous."""
    n = tl.program_id(0).to(tl.int64)
    a_row, b_row = a_ptr + n * a_n, b_ptr + n * b_n
    cols = tl.arange(0, BLOCK)
    g, loss = tl.load(g_ptr + n), tl.load(loss_ptr + n)
    top_a, log_a = tl.load(stats_ptr + n), tl.load(stats_ptr + N + n)
    top_b, log_b = tl.load(stats_ptr + 2 * N + n), tl.load(stats_ptr + 3 * N + n)
    expected = g * loss
    if MARGINAL:
        total_B = tl.zeros([BLOCK], dtype=tl.float32)
        for c0 in range(0, C, BLOCK):
            c_B = c0 + cols
            b_B = _logits(b_row, b_c, centre_ptr, c_B, c_B < C, CENTRED) - top_b
            q_B = tl.exp2(b_B * (scale_b * LOG2E) - log_b * LOG2E)
            total_B += q_B * tl.load(h_ptr + c_B, mask=c_B < C, other=0.0)
        expected += tl.sum(total_B, 0)
    for c0 in range(0, C, BLOCK):
        c_B = c0 + cols
        inside_B = c_B < C
        log_p_B = _logits(a_row, a_c, centre_ptr, c_B, inside_B, False) - top_a
        log_p_B = log_p_B * scale_a - log_a
        b_B = _logits(b_row, b_c, centre_ptr, c_B, inside_B, CENTRED) - top_b
        q_B = tl.exp2(b_B * (scale_b * LOG2E) - log_b * LOG2E)
        da_B = (tl.exp2(log_p_B * LOG2E) - q_B) * (g * scale_a)
        tl.store(da_ptr + n * C + c_B, da_B.to(da_ptr.dtype.element_ty), mask=inside_B)
        if TEACHER:
            u_B = -g * log_p_B - expected
            if MARGINAL:
                u_B += tl.load(h_ptr + c_B, mask=inside_B, other=0.0)
            db_B = q_B * u_B * scale_b
            tl.store(db_ptr + n * C + c_B, db_B.to(db_ptr.dtype.element_ty), mask=inside_B)


@_jit
def given_forward_kernel(a_ptr, t_ptr, loss_ptr, stats_ptr, N: tl.int64, C: tl.int64, a_n: tl.int64,
                         a_c: tl.int64, t_n: tl.int64, t_c: tl.int64, scale,
                         BLOCK: tl.constexpr):  # fmt: skip
    """Loss (N,) and stats (3, N): top, log-sum, sum of the targets."""
    n = tl.program_id(0).to(tl.int64)
    a_row, t_row = a_ptr + n * a_n, t_ptr + n * t_n
    cols = tl.arange(0, BLOCK)
    top_B = tl.full([BLOCK], -float("inf"), dtype=tl.float32)
    for c0 in range(0, C, BLOCK):
        c_B = c0 + cols
        top_B = tl.maximum(top_B, _logits(a_row, a_c, a_row, c_B, c_B < C, False))
    top = tl.max(top_B, 0)
    sum_B = tl.zeros([BLOCK], dtype=tl.float32)
    total_B = tl.zeros([BLOCK], dtype=tl.float32)
    dot_B = tl.zeros([BLOCK], dtype=tl.float32)
    for c0 in range(0, C, BLOCK):
        c_B = c0 + cols
        a_B = _logits(a_row, a_c, a_row, c_B, c_B < C, False) - top
        t_B = tl.load(t_row + c_B * t_c, mask=c_B < C, other=0.0).to(tl.float32)
        sum_B += tl.exp2(a_B * (scale * LOG2E))
        total_B += t_B
        dot_B += t_B * tl.where(c_B < C, a_B, 0.0)
    log_sum, total = tl.log2(tl.sum(sum_B, 0)) * LN2, tl.sum(total_B, 0)
    tl.store(loss_ptr + n, log_sum * total - scale * tl.sum(dot_B, 0))
    tl.store(stats_ptr + n, top)
    tl.store(stats_ptr + N + n, log_sum)
    tl.store(stats_ptr + 2 * N + n, total)


@_jit
def given_backward_kernel(a_ptr, t_ptr, g_ptr, stats_ptr, da_ptr, N: tl.int64, C: tl.int64,
                          a_n: tl.int64, a_c: tl.int64, t_n: tl.int64, t_c: tl.int64, scale,
                          BLOCK: tl.constexpr):  # fmt: skip
    """da = g scale (total p - t), contiguous; it may lie where the logits do."""
    n = tl.program_id(0).to(tl.int64)
    a_row, t_row = a_ptr + n * a_n, t_ptr + n * t_n
    g = tl.load(g_ptr + n) * scale
    top, log_sum = tl.load(stats_ptr + n), tl.load(stats_ptr + N + n)
    total = tl.load(stats_ptr + 2 * N + n)
    for c0 in range(0, C, BLOCK):
        c_B = c0 + tl.arange(0, BLOCK)
        inside_B = c_B < C
        a_B = _logits(a_row, a_c, a_row, c_B, inside_B, False) - top
        p_B = tl.exp2(a_B * (scale * LOG2E) - log_sum * LOG2E)
        t_B = tl.load(t_row + c_B * t_c, mask=inside_B, other=0.0).to(tl.float32)
        da_B = g * (total * p_B - t_B)
        tl.store(da_ptr + n * C + c_B, da_B.to(da_ptr.dtype.element_ty), mask=inside_B)
