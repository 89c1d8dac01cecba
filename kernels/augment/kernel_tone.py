"""What a view still needs after the crop: from contrast on, the blur, equalize.

Programs of samples that need none of it return at once, so that no one asks the device which
samples those are. Sums have one order: no atomics.
"""

# shapes: B pixels of a block of a view; S side of a view, M views of samples, L levels
from __future__ import annotations

import triton
import triton.language as tl

from fastssl.kernels.augment import kernel_colour as colour
from fastssl.kernels.augment.kernel_colour import jit
from fastssl.kernels.augment.table import VALUES

P = tl.constexpr(len(VALUES))
SIGMA = tl.constexpr(VALUES.index("sigma"))
L = tl.constexpr(256)


@jit
def augment_tone_kernel(values_ptr, codes_ptr, x_ptr, parts_ptr, out_ptr, S: tl.int32,
                        tiles: tl.int32, yiq: tl.int32, blurs: tl.int32, m_r: tl.float32,
                        m_g: tl.float32, m_b: tl.float32, s_r: tl.float32, s_g: tl.float32,
                        s_b: tl.float32, o_m: tl.int64, o_c: tl.int64, o_h: tl.int64,
                        o_w: tl.int64, PARTS: tl.constexpr, B: tl.constexpr):  # fmt: skip
    """The jitter from contrast on, then gray; in place where blur follows, else to the end."""
    m, pixel_B, row_B, column_B, inside_B = colour.block(S, tiles, B)
    value_ptr, code_ptr = values_ptr + m * P, codes_ptr + m * colour.C
    stages = tl.load(code_ptr)
    if (stages & colour.JITTER) == 0:
        return
    if tl.load(value_ptr + colour.CONTRAST) == 1.0:
        return
    total = tl.zeros([PARTS], dtype=tl.float32)
    for part0 in range(0, tiles, PARTS):
        part = part0 + tl.arange(0, PARTS)
        total += tl.load(parts_ptr + m * tiles + part, mask=part < tiles, other=0.0)
    plane = S.to(tl.int64) * S
    mean = tl.sum(total, 0) / plane.to(tl.float32)
    x_ptr += m * 3 * plane
    r_B, g_B, b_B = colour.load_rgb(x_ptr, plane, pixel_B, inside_B)
    order, place = colour.order_of(tl.load(code_ptr + colour.ORDER))
    r_B, g_B, b_B = colour.steps(r_B, g_B, b_B, value_ptr, order, place, 4, mean, yiq)
    if (stages & colour.GRAY) != 0:
        r_B = colour.grey_of(r_B, g_B, b_B, yiq)
        g_B, b_B = r_B, r_B
    if ((stages & colour.BLUR) != 0) & (blurs != 0):
        colour.store_rgb(x_ptr, plane, pixel_B, inside_B, r_B, g_B, b_B)
    else:
        colour.finish(
            r_B, g_B, b_B, value_ptr, code_ptr, x_ptr, plane, out_ptr + m * o_m, pixel_B, row_B,
            column_B, inside_B, m_r, m_g, m_b, s_r, s_g, s_b, o_c, o_h, o_w,
        )  # fmt: skip


@triton.jit
def reflected(at_B, S):
    """Mirrored at the first and last pixel; a window wider than the view stays within it."""
    at_B = tl.abs(at_B)
    at_B = tl.where(at_B < S, at_B, 2 * (S - 1) - at_B)
    return tl.minimum(tl.maximum(at_B, 0), S - 1)


@triton.jit
def blurred(x_ptr, plane, base_B, along_B, step, inside_B, sigma, half, S):
    """Gaussian mean along one axis: pixels base + step * (reflected position)."""
    r_B = tl.zeros_like(along_B).to(tl.float32)
    g_B, b_B, total = r_B, r_B, 0.0
    for offset in range(-half, half + 1):
        away = offset / sigma
        w = tl.exp(-0.5 * away * away)
        at_B = base_B + step * reflected(along_B + offset, S)
        red_B, green_B, blue_B = colour.load_rgb(x_ptr, plane, at_B, inside_B)
        total += w
        r_B += w * red_B
        g_B += w * green_B
        b_B += w * blue_B
    return r_B / total, g_B / total, b_B / total


@jit
def augment_blur_rows_kernel(values_ptr, codes_ptr, x_ptr, y_ptr, S: tl.int32, tiles: tl.int32,
                             half: tl.int32, B: tl.constexpr):  # fmt: skip
    """Along the rows of x, to y."""
    m, pixel_B, row_B, column_B, inside_B = colour.block(S, tiles, B)
    if (tl.load(codes_ptr + m * colour.C) & colour.BLUR) == 0:
        return
    plane = S.to(tl.int64) * S
    sigma = tl.load(values_ptr + m * P + SIGMA)
    r_B, g_B, b_B = blurred(
        x_ptr + m * 3 * plane, plane, row_B * S, column_B, 1, inside_B, sigma, half, S
    )
    colour.store_rgb(y_ptr + m * 3 * plane, plane, pixel_B, inside_B, r_B, g_B, b_B)


@jit
def augment_blur_columns_kernel(values_ptr, codes_ptr, x_ptr, y_ptr, out_ptr, S: tl.int32,
                                tiles: tl.int32, half: tl.int32, m_r: tl.float32, m_g: tl.float32,
                                m_b: tl.float32, s_r: tl.float32, s_g: tl.float32,
                                s_b: tl.float32, o_m: tl.int64, o_c: tl.int64, o_h: tl.int64,
                                o_w: tl.int64, B: tl.constexpr):  # fmt: skip
    """Along the columns of y, then to the end of the view."""
    m, pixel_B, row_B, column_B, inside_B = colour.block(S, tiles, B)
    value_ptr, code_ptr = values_ptr + m * P, codes_ptr + m * colour.C
    if (tl.load(code_ptr) & colour.BLUR) == 0:
        return
    plane = S.to(tl.int64) * S
    sigma = tl.load(value_ptr + SIGMA)
    r_B, g_B, b_B = blurred(
        y_ptr + m * 3 * plane, plane, column_B, row_B, S, inside_B, sigma, half, S
    )
    colour.finish(
        r_B, g_B, b_B, value_ptr, code_ptr, x_ptr + m * 3 * plane, plane, out_ptr + m * o_m,
        pixel_B, row_B, column_B, inside_B, m_r, m_g, m_b, s_r, s_g, s_b, o_c, o_h, o_w,
    )  # fmt: skip


@triton.jit
def level_of(x_B):
    """torchvision's conversion to uint8."""
    return (tl.minimum(tl.maximum(x_B, 0.0), 1.0) * 255.999).to(tl.int32)


@triton.jit
def even_levels(x_ptr, lut_ptr, pixels, B: tl.constexpr):
    """PIL's rule: the table (L,) that makes the histogram of a plane even."""
    level_L = tl.arange(0, L)
    count_L = tl.zeros([L], dtype=tl.int32)
    for pixel0 in range(0, pixels, B):
        pixel_B = pixel0 + tl.arange(0, B)
        inside_B = pixel_B < pixels
        x_B = tl.load(x_ptr + pixel_B, mask=inside_B, other=0.0)
        # pixels past the end count as black, and are taken off again
        count_L += tl.histogram(level_of(x_B), L)
        past = tl.maximum(pixel0 + B - pixels, 0)
        count_L -= tl.where(level_L == 0, past, 0)
    brightest = tl.max(tl.where(count_L > 0, level_L, 0), 0)
    step = (pixels - tl.sum(tl.where(level_L == brightest, count_L, 0), 0)) // (L - 1)
    below_L = tl.cumsum(count_L, 0) - count_L
    even_L = tl.minimum((below_L + step // 2) // tl.maximum(step, 1), L - 1)
    tl.store(lut_ptr + level_L, tl.where(step == 0, level_L, even_L).to(tl.float32) / 255.0)


@jit
def augment_equalize_kernel(values_ptr, codes_ptr, x_ptr, lut_ptr, out_ptr, S: tl.int32,
                            m_r: tl.float32, m_g: tl.float32, m_b: tl.float32, s_r: tl.float32,
                            s_g: tl.float32, s_b: tl.float32, o_m: tl.int64, o_c: tl.int64,
                            o_h: tl.int64, o_w: tl.int64, B: tl.constexpr):  # fmt: skip
    """One view: the histograms of its three planes in x, their tables, the end of the view."""
    m = tl.program_id(0).to(tl.int64)
    value_ptr, stages = values_ptr + m * P, tl.load(codes_ptr + m * colour.C)
    if (stages & colour.EQUALIZE) == 0:
        return
    pixels = S * S
    x_ptr += m * 3 * pixels
    lut_ptr += m * 3 * L
    for channel in range(3):
        even_levels(x_ptr + channel * pixels, lut_ptr + channel * L, pixels, B)
    tl.debug_barrier()  # the tables are read by other threads than wrote them
    for pixel0 in range(0, pixels, B):
        pixel_B = pixel0 + tl.arange(0, B)
        inside_B = pixel_B < pixels
        r_B, g_B, b_B = colour.load_rgb(x_ptr, pixels, pixel_B, inside_B)
        r_B = tl.load(lut_ptr + level_of(r_B))
        g_B = tl.load(lut_ptr + L + level_of(g_B))
        b_B = tl.load(lut_ptr + 2 * L + level_of(b_B))
        colour.write(
            r_B, g_B, b_B, value_ptr, stages, out_ptr + m * o_m, pixel_B // S, pixel_B % S,
            inside_B, m_r, m_g, m_b, s_r, s_g, s_b, o_c, o_h, o_w,
        )  # fmt: skip
