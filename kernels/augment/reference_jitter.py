"""Colour jitter and grayscale in plain torch: four steps in each sample's own order.

    brightness clamp(b x), contrast clamp(c x + (1 - c) mean grey), saturation clamp(s x + (1 - s)
    grey), hue as set; grey = w . (R, G, B); clamps to [0, 1]
A step whose factor is exactly 1 (hue 0) returns its input, unclamped; its derivatives are the
step's own.
"""

# shapes: M views of samples, S side of a view
from __future__ import annotations

import math

import torch
from torch import Tensor

from fastssl.kernels.augment.rows import on_rows
from fastssl.kernels.augment.settings import GREY
from fastssl.kernels.augment.table import JITTER_ORDERS

# InvCLR's constants (Foster et al. 2021, their code); the two are inverse to three digits only.
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.321), (0.211, -0.523, 0.311))
RGB = ((1.0, 0.956, 0.621), (1.0, -0.272, -0.647), (1.0, -1.107, 1.705))


def jitter(x_M3SS: Tensor, order_M: Tensor, factors_M4: Tensor, hue: str) -> Tensor:
    """Columns brightness, contrast, saturation, hue; ``order_M`` indexes JITTER_ORDERS."""
    orders_M4 = torch.tensor(JITTER_ORDERS, device=order_M.device)[order_M.long()]
    weights = GREY[hue]
    steps = (
        brightness,
        lambda x, factor: contrast(x, factor, weights),
        lambda x, factor: saturation(x, factor, weights),
        hue_hsv if hue == "hsv" else hue_yiq,
    )
    for turn in range(4):
        for number, step in enumerate(steps):
            runs_M = orders_M4[:, turn] == number
            x_M3SS = on_rows(runs_M, step, x_M3SS, factors_M4[:, number])
    return x_M3SS


def grey(x_M3SS: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """(M, 1, S, S)."""
    red, green, blue = x_M3SS.split(1, dim=1)
    return weights[0] * red + weights[1] * green + weights[2] * blue


def brightness(x_M3SS: Tensor, factor_M: Tensor) -> Tensor:
    """clamp(b x)."""
    return _mixed(x_M3SS, torch.zeros_like(x_M3SS), factor_M)


def contrast(x_M3SS: Tensor, factor_M: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """clamp(c x + (1 - c) m), m the mean grey of the view."""
    return _mixed(x_M3SS, grey(x_M3SS, weights).mean((1, 2, 3), keepdim=True), factor_M)


def saturation(x_M3SS: Tensor, factor_M: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """clamp(s x + (1 - s) grey), pixel by pixel."""
    return _mixed(x_M3SS, grey(x_M3SS, weights), factor_M)


def _mixed(x_M3SS: Tensor, other: Tensor, factor_M: Tensor) -> Tensor:
    factor_M111 = factor_M[:, None, None, None]
    mixed = factor_M111 * x_M3SS + (1 - factor_M111) * other
    return torch.where(factor_M111 == 1, mixed, mixed.clamp(0, 1))


def hue_hsv(x_M3SS: Tensor, turns_M: Tensor) -> Tensor:
    """Hue h + turns at the same saturation and value, by the piecewise linear colour circle."""
    red, green, blue = x_M3SS.unbind(1)
    top, bottom = x_M3SS.amax(1), x_M3SS.amin(1)
    spread = top - bottom
    divisor = torch.where(spread == 0, torch.ones_like(spread), spread)
    sixths = torch.where(
        top == red,
        (green - blue) / divisor,
        torch.where(top == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sixths = sixths + 6 * turns_M[:, None, None]
    away = torch.stack([(sixths + n).remainder(6) for n in (5, 3, 1)], dim=1)
    drop_M3SS = torch.where(away < 2, away, 4 - away).clamp(0, 1)
    turned = top[:, None] - spread[:, None] * drop_M3SS
    return _unless_zero(turns_M, x_M3SS, turned)


def hue_yiq(x_M3SS: Tensor, turns_M: Tensor) -> Tensor:
    """Chroma rotated by 2 pi turns in YIQ, unclamped."""
    cos_M, sin_M = (2 * math.pi * turns_M).cos(), (2 * math.pi * turns_M).sin()
    to_yiq_33, to_rgb_33 = (x_M3SS.new_tensor(matrix) for matrix in (YIQ, RGB))
    luma, in_phase, quadrature = (to_yiq_33 @ x_M3SS.flatten(2)).unbind(1)
    cos_M1, sin_M1 = cos_M[:, None], sin_M[:, None]
    rotated = (luma, cos_M1 * in_phase - sin_M1 * quadrature)
    rotated += (sin_M1 * in_phase + cos_M1 * quadrature,)
    turned = (to_rgb_33 @ torch.stack(rotated, dim=1)).view_as(x_M3SS)
    return _unless_zero(turns_M, x_M3SS, turned)


def _unless_zero(turns_M: Tensor, x_M3SS: Tensor, turned_M3SS: Tensor) -> Tensor:
    """``turned``; for no turn the value of ``x`` with the derivatives of ``turned``."""
    kept = x_M3SS.detach() + (turned_M3SS - turned_M3SS.detach())
    return torch.where(turns_M[:, None, None, None] == 0, kept, turned_M3SS)
