"""Crop, resize, flips, affine and the pointwise stages in Triton: one read of the image.

A sample without contrast, blur and equalize is finished here. One with contrast leaves its pixels
as they are before that step in the scratch x, and partial sums of their grey; kernel_tone.py goes
on. Taps and weights are those of reference_resize.py, taken along both axes at once.
"""

# shapes: B pixels of a block of a view; N samples, S side of a view, M views of samples
from __future__ import annotations

import triton
import triton.language as tl

from fastssl.kernels.augment import kernel_colour as colour
from fastssl.kernels.augment.kernel_colour import jit
from fastssl.kernels.augment.reference_resize import EDGE as _EDGE
from fastssl.kernels.augment.table import STAGE_BIT, VALUES

P = tl.constexpr(len(VALUES))
LEFT = tl.constexpr(VALUES.index("left"))
TOP = tl.constexpr(VALUES.index("top"))
WIDTH = tl.constexpr(VALUES.index("width"))
HEIGHT = tl.constexpr(VALUES.index("height"))
ANGLE = tl.constexpr(VALUES.index("angle"))
TRANSLATE = tl.constexpr(VALUES.index("translate_x"))  # then y
SCALE = tl.constexpr(VALUES.index("scale"))
SHEAR = tl.constexpr(VALUES.index("shear_x"))  # then y
HFLIP = tl.constexpr(STAGE_BIT["hflip"])
VFLIP = tl.constexpr(STAGE_BIT["vflip"])
AFFINE = tl.constexpr(STAGE_BIT["affine"])
EDGE = tl.constexpr(_EDGE)
NEAREST_EVEN = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds a float32 to a whole number


@triton.jit
def axis(start, extent, length, S, cubic):
    """Of a box along one axis: start, ratio, half width of the filter, first pixel, one past the
    last, and how many taps an output can have. Whatever the numbers, pixels are the image's."""
    stop = tl.minimum(start + extent, length.to(tl.float32))
    start = tl.maximum(start, 0.0)
    first = tl.floor(start + EDGE).to(tl.int32)
    last = tl.maximum(tl.ceil(stop - EDGE).to(tl.int32), first + 1)
    ratio = (stop - start) / S
    half = tl.where(cubic != 0, 2.0, 1.0) * tl.maximum(ratio, 1.0)
    taps = tl.ceil(2.0 * half).to(tl.int32) + 1
    return start, ratio, half, tl.maximum(first, 0), tl.minimum(last, length.to(tl.int32)), taps


@triton.jit
def first_tap(start, centre_B, half):
    """The first pixel within reach of an output; whole pixels and fractions are kept apart."""
    whole = tl.floor(start)
    near_B = tl.floor((start - whole) + centre_B - half - 0.5)
    return whole.to(tl.int32) + near_B.to(tl.int32) + 1


@triton.jit
def weight(distance_B, shrink, cubic):
    """Triangle, or Keys' cubic with a = -1/2; 0 beyond their reach."""
    x_B = tl.abs(distance_B * shrink)
    if cubic != 0:
        near_B = (1.5 * x_B - 2.5) * x_B * x_B + 1.0
        far_B = ((-0.5 * x_B + 2.5) * x_B - 4.0) * x_B + 2.0
        w_B = tl.where(x_B < 1.0, near_B, tl.where(x_B < 2.0, far_B, 0.0))
    else:
        w_B = tl.maximum(1.0 - x_B, 0.0)
    return w_B


@triton.jit
def resized(image_ptr, step_c, step_h, step_w, row_B, column_B, inside_B, top, ratio_y, half_y,
            first_y, last_y, taps_y, left, ratio_x, half_x, first_x, last_x, taps_x, cubic,
            UINT8: tl.constexpr):  # fmt: skip
    """The resized crop at whole coordinates (row, column) of the view."""
    centre_y_B, centre_x_B = ratio_y * (row_B + 0.5), ratio_x * (column_B + 0.5)
    y0_B, x0_B = first_tap(top, centre_y_B, half_y), first_tap(left, centre_x_B, half_x)
    shrink_y, shrink_x = 1.0 / tl.maximum(ratio_y, 1.0), 1.0 / tl.maximum(ratio_x, 1.0)
    total_B = tl.zeros_like(row_B)
    r_B, g_B, b_B = total_B, total_B, total_B
    for tap_y in range(taps_y):
        y_B = y0_B + tap_y
        w_y_B = weight(y_B.to(tl.float32) + 0.5 - top - centre_y_B, shrink_y, cubic)
        seen_B = inside_B & (y_B >= first_y) & (y_B < last_y)
        line_B = image_ptr + y_B * step_h
        for tap_x in range(taps_x):
            x_B = x0_B + tap_x
            w_B = w_y_B * weight(x_B.to(tl.float32) + 0.5 - left - centre_x_B, shrink_x, cubic)
            hit_B = seen_B & (x_B >= first_x) & (x_B < last_x) & (w_B != 0.0)
            w_B = tl.where(hit_B, w_B, 0.0)
            at_B = line_B + x_B * step_w
            total_B += w_B
            r_B += w_B * tl.load(at_B, mask=hit_B, other=0).to(tl.float32)
            g_B += w_B * tl.load(at_B + step_c, mask=hit_B, other=0).to(tl.float32)
            b_B += w_B * tl.load(at_B + 2 * step_c, mask=hit_B, other=0).to(tl.float32)
    share_B = tl.div_rn(1.0, tl.where(inside_B, total_B, 1.0))
    r_B, g_B, b_B = r_B * share_B, g_B * share_B, b_B * share_B
    if UINT8:
        # exact division: a level must meet its own threshold
        r_B, g_B, b_B = tl.div_rn(r_B, 255.0), tl.div_rn(g_B, 255.0), tl.div_rn(b_B, 255.0)
        if cubic != 0:
            r_B = tl.minimum(tl.maximum(r_B, 0.0), 1.0)
            g_B = tl.minimum(tl.maximum(g_B, 0.0), 1.0)
            b_B = tl.minimum(tl.maximum(b_B, 0.0), 1.0)
    return r_B, g_B, b_B


@triton.jit
def source(value_ptr, row_B, column_B, S):
    """Where the affine stage finds the pixels of the view (torchvision's matrix, inverted)."""
    middle = (S - 1) * 0.5
    angle = tl.load(value_ptr + ANGLE) / 360.0
    shear_x, shear_y = tl.load(value_ptr + SHEAR) / 360.0, tl.load(value_ptr + SHEAR + 1) / 360.0
    scale = tl.load(value_ptr + SCALE)
    sin_angle, cos_angle = colour.sine_cosine(angle)
    sin_x, cos_x = colour.sine_cosine(shear_x)
    _, cos_y = colour.sine_cosine(shear_y)
    sin_turned, cos_turned = colour.sine_cosine(angle - shear_y)
    tan_x = sin_x / cos_x
    a, c = cos_turned / cos_y, sin_turned / cos_y
    b, d = -a * tan_x - sin_angle, -c * tan_x + cos_angle
    across_B = column_B.to(tl.float32) - middle - tl.load(value_ptr + TRANSLATE)
    down_B = row_B.to(tl.float32) - middle - tl.load(value_ptr + TRANSLATE + 1)
    y_B = (-c / scale) * across_B + (a / scale) * down_B + middle
    x_B = (d / scale) * across_B + (-b / scale) * down_B + middle
    return y_B, x_B


@jit
def augment_crop_kernel(table_ptr, sizes_ptr, values_ptr, codes_ptr, x_ptr, parts_ptr, out_ptr,
                        address: tl.int64, step_n: tl.int64, step_c: tl.int64, step_h: tl.int64,
                        step_w: tl.int64, H: tl.int64, W: tl.int64, ragged: tl.int32,
                        sized: tl.int32, N: tl.int64, S: tl.int32, tiles: tl.int32,
                        cubic: tl.int32, yiq: tl.int32, nearest: tl.int32, blurs: tl.int32,
                        m_r: tl.float32, m_g: tl.float32, m_b: tl.float32, s_r: tl.float32,
                        s_g: tl.float32, s_b: tl.float32, o_m: tl.int64, o_c: tl.int64,
                        o_h: tl.int64, o_w: tl.int64, UINT8: tl.constexpr,
                        B: tl.constexpr):  # fmt: skip
    """B pixels of view m. An image is an address: of sample n of a batch, or from the table's
    rows (address, steps of channel, row and column, height, width) of a ragged list."""
    m, pixel_B, row_B, column_B, inside_B = colour.block(S, tiles, B)
    n = m % N
    value_ptr, code_ptr = values_ptr + m * P, codes_ptr + m * colour.C
    stages = tl.load(code_ptr)
    own = table_ptr + n * 6
    if UINT8:
        at = tl.load(own, mask=ragged != 0, other=address + n * step_n)
        image_ptr = at.to(tl.pointer_type(tl.uint8))
    else:
        at = tl.load(own, mask=ragged != 0, other=address + 4 * n * step_n)
        image_ptr = at.to(tl.pointer_type(tl.float32))
    step_c = tl.load(own + 1, mask=ragged != 0, other=step_c)
    step_h = tl.load(own + 2, mask=ragged != 0, other=step_h)
    step_w = tl.load(own + 3, mask=ragged != 0, other=step_w)
    height = tl.load(own + 4, mask=ragged != 0, other=H)
    width = tl.load(own + 5, mask=ragged != 0, other=W)
    # a size beyond the padding, which the device cannot refuse, must not lead out of the batch
    height = tl.minimum(tl.load(sizes_ptr + 2 * n, mask=sized != 0, other=height), height)
    width = tl.minimum(tl.load(sizes_ptr + 2 * n + 1, mask=sized != 0, other=width), width)
    top, ratio_y, half_y, first_y, last_y, taps_y = axis(
        tl.load(value_ptr + TOP), tl.load(value_ptr + HEIGHT), height, S, cubic
    )
    left, ratio_x, half_x, first_x, last_x, taps_x = axis(
        tl.load(value_ptr + LEFT), tl.load(value_ptr + WIDTH), width, S, cubic
    )
    y_B, x_B = row_B.to(tl.float32), column_B.to(tl.float32)
    corners = tl.where(((stages & AFFINE) != 0) & (nearest == 0), 4, 1)
    if (stages & AFFINE) != 0:
        y_B, x_B = source(value_ptr, row_B, column_B, S)
        if nearest != 0:
            y_B, x_B = (y_B + NEAREST_EVEN) - NEAREST_EVEN, (x_B + NEAREST_EVEN) - NEAREST_EVEN
    y0_B, x0_B = tl.floor(y_B), tl.floor(x_B)
    r_B = tl.zeros([B], dtype=tl.float32)
    g_B, b_B = r_B, r_B
    for corner in range(corners):
        corner_y_B, corner_x_B = y0_B + corner // 2, x0_B + corner % 2
        seen_B = inside_B & (corner_y_B >= 0.0) & (corner_y_B < S)
        seen_B = seen_B & (corner_x_B >= 0.0) & (corner_x_B < S)
        share_B = (1.0 - tl.abs(corner_y_B - y_B)) * (1.0 - tl.abs(corner_x_B - x_B))
        corner_y_B = tl.where((stages & VFLIP) != 0, S - 1 - corner_y_B, corner_y_B)
        corner_x_B = tl.where((stages & HFLIP) != 0, S - 1 - corner_x_B, corner_x_B)
        red_B, green_B, blue_B = resized(
            image_ptr, step_c, step_h, step_w, corner_y_B, corner_x_B, seen_B, top, ratio_y,
            half_y, first_y, last_y, taps_y, left, ratio_x, half_x, first_x, last_x, taps_x,
            cubic, UINT8,
        )  # fmt: skip
        r_B += tl.where(seen_B, share_B * red_B, 0.0)
        g_B += tl.where(seen_B, share_B * green_B, 0.0)
        b_B += tl.where(seen_B, share_B * blue_B, 0.0)
    order, place = colour.order_of(tl.load(code_ptr + colour.ORDER))
    jittered = (stages & colour.JITTER) != 0
    waits = jittered & (tl.load(value_ptr + colour.CONTRAST) != 1.0)
    end = tl.where(jittered, tl.where(waits, place, 4), 0)
    r_B, g_B, b_B = colour.steps(r_B, g_B, b_B, value_ptr, order, 0, end, 0.0, yiq)
    plane = S.to(tl.int64) * S
    x_ptr += m * 3 * plane
    if waits:
        grey_B = tl.where(inside_B, colour.grey_of(r_B, g_B, b_B, yiq), 0.0)
        tl.store(parts_ptr + tl.program_id(0), tl.sum(grey_B, 0))
        colour.store_rgb(x_ptr, plane, pixel_B, inside_B, r_B, g_B, b_B)
    else:
        if (stages & colour.GRAY) != 0:
            r_B = colour.grey_of(r_B, g_B, b_B, yiq)
            g_B, b_B = r_B, r_B
        if ((stages & colour.BLUR) != 0) & (blurs != 0):
            colour.store_rgb(x_ptr, plane, pixel_B, inside_B, r_B, g_B, b_B)
        else:
            colour.finish(
                r_B, g_B, b_B, value_ptr, code_ptr, x_ptr, plane, out_ptr + m * o_m, pixel_B,
                row_B, column_B, inside_B, m_r, m_g, m_b, s_r, s_g, s_b, o_c, o_h, o_w,
            )  # fmt: skip
