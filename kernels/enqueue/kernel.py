"""The queue write in Triton: one program normalises, casts and writes one key."""

# shapes: N keys of a batch, K rows of the ring, D features, B features of a block
from __future__ import annotations

import triton
import triton.language as tl

EPS = tl.constexpr(1e-12)
SMALLEST = tl.constexpr(1.1754944e-38)


def _jit(function):
    """Compile once per config: no size or stride is specialised on."""
    sizes = [name for name, kind in function.__annotations__.items() if kind == "tl.int64"]
    return triton.jit(function, do_not_specialize=sizes)


@_jit
def enqueue_kernel(keys_ptr, rows_ptr, pointer_ptr, first: tl.int64, K: tl.int64, D: tl.int64,
                   keys_n: tl.int64, keys_d: tl.int64, BLOCK: tl.constexpr):  # fmt: skip
    """Key first + i to row (pointer + first + i) mod K; the pointer is moved on by launch.py.

    A key is scaled by its largest entry before it is squared, so that none overflows.
    """
    n = first + tl.program_id(0).to(tl.int64)
    at = (tl.load(pointer_ptr) + n) % K
    key_ptr = keys_ptr + n * keys_n
    cols = tl.arange(0, BLOCK)
    top_B = tl.zeros([BLOCK], dtype=tl.float32)
    for d0 in range(0, D, BLOCK):
        d_B = d0 + cols
        x_B = tl.load(key_ptr + d_B * keys_d, mask=d_B < D, other=0.0).to(tl.float32)
        top_B = tl.maximum(top_B, tl.abs(x_B))
    top = tl.maximum(tl.max(top_B, 0), SMALLEST)
    square_B = tl.zeros([BLOCK], dtype=tl.float32)
    for d0 in range(0, D, BLOCK):
        d_B = d0 + cols
        x_B = tl.load(key_ptr + d_B * keys_d, mask=d_B < D, other=0.0).to(tl.float32)
        x_B = tl.div_rn(x_B, top + tl.zeros([BLOCK], dtype=tl.float32))
        square_B += x_B * x_B
    root = tl.sqrt_rn(tl.sum(square_B, 0))
    short = top * root <= EPS  # False for nan, which must survive
    for d0 in range(0, D, BLOCK):
        d_B = d0 + cols
        x_B = tl.load(key_ptr + d_B * keys_d, mask=d_B < D, other=0.0).to(tl.float32)
        divisor_B = tl.where(short, EPS, top) + tl.zeros([BLOCK], dtype=tl.float32)
        second_B = tl.where(short, 1.0, root) + tl.zeros([BLOCK], dtype=tl.float32)
        unit_B = tl.div_rn(tl.div_rn(x_B, divisor_B), second_B)
        tl.store(rows_ptr + at * D + d_B, unit_B.to(rows_ptr.dtype.element_ty), mask=d_B < D)
