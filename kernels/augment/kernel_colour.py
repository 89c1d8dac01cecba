"""Jitter, grayscale and the stages after the blur in Triton, on pixels held in registers.

A program owns pixels of one sample, so every choice between steps is one branch for all of them.
"""

# shapes: B pixels of a block; P values, C codes of a sample
from __future__ import annotations

import triton
import triton.language as tl

from fastssl.kernels.augment.table import CODES, STAGE_BIT, VALUES

P = tl.constexpr(len(VALUES))
C = tl.constexpr(len(CODES))
ORDER = tl.constexpr(CODES.index("jitter_order"))
BITS = tl.constexpr(CODES.index("posterize_bits"))
BRIGHTNESS = tl.constexpr(VALUES.index("brightness"))
CONTRAST = tl.constexpr(VALUES.index("contrast"))
SATURATION = tl.constexpr(VALUES.index("saturation"))
HUE = tl.constexpr(VALUES.index("hue"))
THRESHOLD = tl.constexpr(VALUES.index("solarize"))
ERASE = tl.constexpr(VALUES.index("erase_left"))  # then top, width, height
COLOUR = tl.constexpr(VALUES.index("erase_red"))  # then green, blue
JITTER = tl.constexpr(STAGE_BIT["jitter"])
GRAY = tl.constexpr(STAGE_BIT["gray"])
BLUR = tl.constexpr(STAGE_BIT["blur"])
SOLARIZE = tl.constexpr(STAGE_BIT["solarize"])
POSTERIZE = tl.constexpr(STAGE_BIT["posterize"])
EQUALIZE = tl.constexpr(STAGE_BIT["equalize"])
ERASED = tl.constexpr(STAGE_BIT["erase"])
TURN = tl.constexpr(6.283185307179586)
_USERS = {"table_ptr", "sizes_ptr", "values_ptr", "codes_ptr"}


def jit(function):
    """Compile once per config: no size, stride, number or user pointer is specialised on."""
    plain = {"tl.int32", "tl.int64", "tl.float32"}
    numbers = [name for name, kind in function.__annotations__.items() if kind in plain]
    users = [name for name in function.__code__.co_varnames if name in _USERS]
    return triton.jit(function, do_not_specialize=numbers, do_not_specialize_on_alignment=users)


@triton.jit
def block(S, tiles, B: tl.constexpr):
    """Sample, pixels, rows and columns of this program, and which pixels exist."""
    pid = tl.program_id(0)
    m = (pid // tiles).to(tl.int64)
    pixel_B = (pid % tiles) * B + tl.arange(0, B)
    return m, pixel_B, pixel_B // S, pixel_B % S, pixel_B < S * S


@triton.jit
def load_rgb(x_ptr, plane, pixel_B, inside_B):
    """Three planes of a float scratch."""
    return (
        tl.load(x_ptr + pixel_B, mask=inside_B, other=0.0),
        tl.load(x_ptr + plane + pixel_B, mask=inside_B, other=0.0),
        tl.load(x_ptr + 2 * plane + pixel_B, mask=inside_B, other=0.0),
    )


@triton.jit
def store_rgb(x_ptr, plane, pixel_B, inside_B, r_B, g_B, b_B):
    """Three planes of a float scratch."""
    tl.store(x_ptr + pixel_B, r_B, mask=inside_B)
    tl.store(x_ptr + plane + pixel_B, g_B, mask=inside_B)
    tl.store(x_ptr + 2 * plane + pixel_B, b_B, mask=inside_B)


@triton.jit
def sine_cosine(turns):
    """Of an angle in turns, to 1e-7; libdevice's would keep a table on the stack."""
    turns -= tl.floor(turns + 0.5)
    quarter = tl.floor(4.0 * turns + 0.5)
    x = (turns - 0.25 * quarter) * TURN
    y = x * x
    sine = 1.0 + y * (-1 / 6 + y * (1 / 120 + y * (-1 / 5040 + y * (1 / 362880))))
    sine *= x
    cosine = 1 + y * (-1 / 2 + y * (1 / 24 + y * (-1 / 720 + y * (1 / 40320 - y * (1 / 3628800)))))
    odd = (quarter == 1.0) | (quarter == -1.0)
    upper, right = tl.where(odd, cosine, sine), tl.where(odd, sine, cosine)
    half = (quarter == 2.0) | (quarter == -2.0)
    upper = tl.where(half | (quarter == -1.0), -upper, upper)
    right = tl.where(half | (quarter == 1.0), -right, right)
    return upper, right


@triton.jit
def order_of(index):
    """The four steps of JITTER_ORDERS[index], two bits each, first in the lowest; and the place
    of contrast (step 1). The orders are the permutations in lexicographic order."""
    first = index // 6
    second = (index % 6) // 2
    second += (second >= first).to(tl.int32)
    lowest = tl.where((first == 0) | (second == 0), tl.where((first == 1) | (second == 1), 2, 1), 0)
    highest = 6 - first - second - lowest
    third = tl.where(index % 2 == 0, lowest, highest)
    fourth = lowest + highest - third
    place = tl.where(second == 1, 1, tl.where(third == 1, 2, tl.where(fourth == 1, 3, 0)))
    return first | (second << 2) | (third << 4) | (fourth << 6), place


@triton.jit
def mixed(x_B, other, factor):
    """clamp(factor x + (1 - factor) other), x itself at factor 1."""
    y_B = factor * x_B + (1.0 - factor) * other
    return tl.where(factor == 1.0, x_B, tl.minimum(tl.maximum(y_B, 0.0), 1.0))


@triton.jit
def turned_hsv(r_B, g_B, b_B, turns):
    """Hue + turns at the same saturation and value."""
    top_B = tl.maximum(tl.maximum(r_B, g_B), b_B)
    spread_B = top_B - tl.minimum(tl.minimum(r_B, g_B), b_B)
    unit_B = tl.where(spread_B == 0.0, 1.0, spread_B)
    sixths_B = tl.where(
        top_B == r_B,
        (g_B - b_B) / unit_B,
        tl.where(top_B == g_B, 2.0 + (b_B - r_B) / unit_B, 4.0 + (r_B - g_B) / unit_B),
    )
    sixths_B += 6.0 * turns
    return (
        top_B - spread_B * dropped(sixths_B + 5.0),
        top_B - spread_B * dropped(sixths_B + 3.0),
        top_B - spread_B * dropped(sixths_B + 1.0),
    )


@triton.jit
def dropped(away_B):
    """Share of the spread that a channel lies below the top, this many sixths away from it."""
    away_B -= 6.0 * tl.floor(away_B / 6.0)
    away_B = tl.where(away_B < 2.0, away_B, 4.0 - away_B)
    return tl.minimum(tl.maximum(away_B, 0.0), 1.0)


@triton.jit
def turned_yiq(r_B, g_B, b_B, turns):
    """Chroma rotated in YIQ with InvCLR's constants (reference_jitter.YIQ, RGB)."""
    sine, cosine = sine_cosine(turns)
    y_B = 0.299 * r_B + 0.587 * g_B + 0.114 * b_B
    i_B = 0.596 * r_B - 0.274 * g_B - 0.321 * b_B
    q_B = 0.211 * r_B - 0.523 * g_B + 0.311 * b_B
    u_B, v_B = cosine * i_B - sine * q_B, sine * i_B + cosine * q_B
    return (
        y_B + 0.956 * u_B + 0.621 * v_B,
        y_B - 0.272 * u_B - 0.647 * v_B,
        y_B - 1.107 * u_B + 1.705 * v_B,
    )


@triton.jit
def grey_of(r_B, g_B, b_B, yiq):
    """InvCLR's or torchvision's weights (settings.GREY)."""
    return tl.where(yiq != 0, 0.299, 0.2989) * r_B + 0.587 * g_B + 0.114 * b_B


@triton.jit
def steps(r_B, g_B, b_B, value_ptr, order, begin, end, mean, yiq):
    """Steps begin..end-1 of the jitter; ``mean`` is the view's mean grey, for contrast."""
    for turn in range(begin, end):
        step = (order >> (2 * turn)) & 3
        if step == 0:
            factor = tl.load(value_ptr + BRIGHTNESS)
            r_B, g_B, b_B = (
                mixed(r_B, 0.0, factor),
                mixed(g_B, 0.0, factor),
                mixed(b_B, 0.0, factor),
            )
        elif step == 1:
            factor = tl.load(value_ptr + CONTRAST)
            r_B, g_B, b_B = (
                mixed(r_B, mean, factor), mixed(g_B, mean, factor), mixed(b_B, mean, factor),
            )  # fmt: skip
        elif step == 2:
            factor = tl.load(value_ptr + SATURATION)
            grey_B = grey_of(r_B, g_B, b_B, yiq)
            r_B, g_B, b_B = (
                mixed(r_B, grey_B, factor), mixed(g_B, grey_B, factor), mixed(b_B, grey_B, factor),
            )  # fmt: skip
        else:
            turns = tl.load(value_ptr + HUE)
            if turns != 0.0:
                if yiq != 0:
                    r_B, g_B, b_B = turned_yiq(r_B, g_B, b_B, turns)
                else:
                    r_B, g_B, b_B = turned_hsv(r_B, g_B, b_B, turns)
    return r_B, g_B, b_B


@triton.jit
def solarized(x_B, threshold):
    """Inverted from the threshold on."""
    return tl.where(x_B >= threshold, 1.0 - x_B, x_B)


@triton.jit
def posterized(x_B, levels):
    """The level below, as torchvision takes it for floats."""
    return tl.minimum(tl.maximum(tl.floor(x_B * levels), 0.0), levels - 1.0) / levels


@triton.jit
def write(r_B, g_B, b_B, value_ptr, stages, out_ptr, row_B, column_B, inside_B, m_r, m_g, m_b,
          s_r, s_g, s_b, o_c, o_h, o_w):  # fmt: skip
    """Erase, normalise and store: the end of every view."""
    if (stages & ERASED) != 0:
        left, top = tl.load(value_ptr + ERASE), tl.load(value_ptr + ERASE + 1)
        right = left + tl.load(value_ptr + ERASE + 2)
        below = top + tl.load(value_ptr + ERASE + 3)
        x_B, y_B = column_B.to(tl.float32), row_B.to(tl.float32)
        hit_B = (x_B >= tl.floor(left + 0.5)) & (x_B < tl.floor(right + 0.5))
        hit_B = hit_B & (y_B >= tl.floor(top + 0.5)) & (y_B < tl.floor(below + 0.5))
        r_B = tl.where(hit_B, tl.load(value_ptr + COLOUR), r_B)
        g_B = tl.where(hit_B, tl.load(value_ptr + COLOUR + 1), g_B)
        b_B = tl.where(hit_B, tl.load(value_ptr + COLOUR + 2), b_B)
    at_B = out_ptr + row_B * o_h + column_B * o_w
    tl.store(at_B, (r_B - m_r) / s_r, mask=inside_B)
    tl.store(at_B + o_c, (g_B - m_g) / s_g, mask=inside_B)
    tl.store(at_B + 2 * o_c, (b_B - m_b) / s_b, mask=inside_B)


@triton.jit
def finish(r_B, g_B, b_B, value_ptr, code_ptr, x_ptr, plane, out_ptr, pixel_B, row_B, column_B,
           inside_B, m_r, m_g, m_b, s_r, s_g, s_b, o_c, o_h, o_w):  # fmt: skip
    """Everything after the blur. A sample to be equalized goes to the scratch x instead."""
    stages = tl.load(code_ptr)
    if (stages & SOLARIZE) != 0:
        threshold = tl.load(value_ptr + THRESHOLD)
        r_B, g_B, b_B = (
            solarized(r_B, threshold),
            solarized(g_B, threshold),
            solarized(b_B, threshold),
        )
    if (stages & POSTERIZE) != 0:
        levels = (1 << tl.load(code_ptr + BITS)).to(tl.float32)
        r_B, g_B, b_B = posterized(r_B, levels), posterized(g_B, levels), posterized(b_B, levels)
    if (stages & EQUALIZE) != 0:
        store_rgb(x_ptr, plane, pixel_B, inside_B, r_B, g_B, b_B)
    else:
        write(r_B, g_B, b_B, value_ptr, stages, out_ptr, row_B, column_B, inside_B, m_r, m_g, m_b,
              s_r, s_g, s_b, o_c, o_h, o_w)  # fmt: skip
