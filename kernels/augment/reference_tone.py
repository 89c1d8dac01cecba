"""Solarize, posterize, equalize, erase and normalise in plain torch."""

# shapes: M views of samples, S side of a view, L levels of a channel
from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 256


def solarize(x_M3SS: Tensor, threshold_M: Tensor) -> Tensor:
    """1 - x where x >= threshold; no gradient in the threshold."""
    return torch.where(x_M3SS >= threshold_M.detach()[:, None, None, None], 1 - x_M3SS, x_M3SS)


def posterize(x_M3SS: Tensor, bits_M: Tensor) -> Tensor:
    """floor(2^bits x) / 2^bits, at most 1 - 2^-bits, as torchvision does for floats."""
    levels = torch.pow(2.0, bits_M.to(x_M3SS.dtype))[:, None, None, None]
    step = (x_M3SS.detach() * levels).floor()
    return torch.minimum(step.clamp_min(0), levels - 1) / levels


def equalize(x_M3SS: Tensor) -> Tensor:
    """Each channel's histogram over 256 levels made even (PIL's rule); no gradient.

    A value's level is floor(255.999 x), as torchvision's conversion to uint8; NaN's is 0.
    """
    level_M3P = (x_M3SS.detach().nan_to_num(0).clamp(0, 1) * (LEVELS - 1e-3)).long().flatten(2)
    histogram_M3L = torch.zeros(
        *level_M3P.shape[:2], LEVELS, dtype=torch.int64, device=level_M3P.device
    ).scatter_add(2, level_M3P, torch.ones_like(level_M3P))
    up_to_M3L = histogram_M3L.cumsum(2)
    brightest_M31 = level_M3P.amax(2, keepdim=True)
    others_M31 = level_M3P.shape[2] - histogram_M3L.gather(2, brightest_M31)
    step_M31 = others_M31 // (LEVELS - 1)
    below_M3L = up_to_M3L - histogram_M3L
    even_M3L = (below_M3L + step_M31 // 2) // step_M31.clamp_min(1)
    table_M3L = torch.where(
        step_M31 == 0, torch.arange(LEVELS, device=level_M3P.device), even_M3L.clamp(max=255)
    )
    return (table_M3L.gather(2, level_M3P).to(x_M3SS.dtype) / 255).view_as(x_M3SS)


def erase(x_M3SS: Tensor, box_M4: Tensor, colour_M3: Tensor) -> Tensor:
    """The colour in the box (left, top, width, height), whose edges are rounded half up."""
    pixel_S = torch.arange(x_M3SS.shape[-1], dtype=x_M3SS.dtype, device=x_M3SS.device)
    left, top, width, height = (side[:, None] for side in box_M4.detach().unbind(1))
    columns_MS, rows_MS = (
        (pixel_S >= (start + 0.5).floor()) & (pixel_S < (start + extent + 0.5).floor())
        for start, extent in ((left, width), (top, height))
    )
    inside_M1SS = rows_MS[:, None, :, None] & columns_MS[:, None, None, :]
    return torch.where(inside_M1SS, colour_M3[:, :, None, None], x_M3SS)


def normalise(x_M3SS: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(x - mean) / std per channel."""
    mean_311, std_311 = (x_M3SS.new_tensor(c)[:, None, None] for c in (mean, std))
    return (x_M3SS - mean_311) / std_311
