"""The product of a tile whose two sides need not have one dtype, inside of a Triton kernel."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b; operands of one dtype as PRECISION says.

    float32 beside 16 bits: both are taken apart into bfloat16 terms, which loses nothing (24 bits
    are three times 8, and float16's 11 are 8 and 3), so tensor cores give float32's own product.
    """
    if a.dtype == b.dtype:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        if b.dtype == tl.float16:
            high = b.to(tl.bfloat16)
            acc = product(a, (b.to(tl.float32) - high.to(tl.float32)).to(tl.bfloat16), acc,
                           PRECISION)  # fmt: skip
            acc = product(a, high, acc, PRECISION)
        elif a.dtype == tl.float16:
            high = a.to(tl.bfloat16)
            acc = product((a.to(tl.float32) - high.to(tl.float32)).to(tl.bfloat16), b, acc,
                           PRECISION)  # fmt: skip
            acc = product(high, b, acc, PRECISION)
        elif a.dtype == tl.float32:
            high, middle, low = _three(a)
            acc = tl.dot(low, b, acc)
            acc = tl.dot(middle, b, acc)
            acc = tl.dot(high, b, acc)
        else:
            high, middle, low = _three(b)
            acc = tl.dot(a, low, acc)
            acc = tl.dot(a, middle, acc)
            acc = tl.dot(a, high, acc)
    return acc


@triton.jit
def _three(x):
    """Three bfloat16 terms whose sum is the float32 x."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return high, middle, (rest - middle.to(tl.float32)).to(tl.bfloat16)
