"""Crop boxes: torchvision's RandomResizedCrop for all samples at once, and the centre.

Only sums, products, quotients of tensors, square roots and rounding are used, each of which IEEE
754 defines to the last bit: the boxes are the same on every device. (CUDA multiplies by the rounded
reciprocal where a tensor is divided by a number, so only powers of two are divided by.)
"""

# shapes: V views, N samples, A attempts
from __future__ import annotations

import math

import torch
from torch import Tensor

ATTEMPTS = 10  # torchvision's number of tries for a crop that fits
_HALVINGS, _TERMS = 3, 12


def random_boxes(
    unit_VNA4: Tensor, *, scale_2V: Tensor, log_ratio_2V: Tensor, height_N: Tensor, width_N: Tensor
) -> Tensor:
    """(V, N, 4) float64: left, top, width, height in whole pixels, inside the image.

    The first of the attempts whose box fits; where none does, the largest centred box whose ratio
    is within bounds. ``scale_2V`` and ``log_ratio_2V`` hold the two ends of each view's interval.
    """
    low_V11, high_V11 = scale_2V[:, :, None, None]
    area_VNA = low_V11 + (high_V11 - low_V11) * unit_VNA4[..., 0]
    area_VNA = (height_N * width_N)[:, None] * area_VNA
    low_V11, high_V11 = log_ratio_2V[:, :, None, None]
    aspect_VNA = exact_exp(low_V11 + (high_V11 - low_V11) * unit_VNA4[..., 1])
    w_VNA, h_VNA = (area_VNA * aspect_VNA).sqrt().round(), (area_VNA / aspect_VNA).sqrt().round()
    fits_VNA = (w_VNA >= 1) & (w_VNA <= width_N[:, None])
    fits_VNA &= (h_VNA >= 1) & (h_VNA <= height_N[:, None])
    first_VN1 = fits_VNA.to(torch.int8).argmax(dim=2, keepdim=True)
    w_VN, h_VN, left_VN, top_VN = (
        column.gather(2, first_VN1)[..., 0]
        for column in (w_VNA, h_VNA, unit_VNA4[..., 2], unit_VNA4[..., 3])
    )
    left_VN = (left_VN * (width_N - w_VN + 1)).floor()
    top_VN = (top_VN * (height_N - h_VN + 1)).floor()
    drawn_VN4 = torch.stack([left_VN, top_VN, w_VN, h_VN], dim=2)
    none_fits_VN1 = ~fits_VNA.any(dim=2, keepdim=True)
    return torch.where(none_fits_VN1, _within_ratio(log_ratio_2V, height_N, width_N), drawn_VN4)


def centre_boxes(kept_V: Tensor, *, height_N: Tensor, width_N: Tensor) -> Tensor:
    """(V, N, 4) float64: the share ``kept_V`` of each side, about the centre."""
    w_VN, h_VN = kept_V[:, None] * width_N, kept_V[:, None] * height_N
    return torch.stack([(width_N - w_VN) / 2, (height_N - h_VN) / 2, w_VN, h_VN], dim=2)


def exact_exp(x: Tensor) -> Tensor:
    """exp for |x| up to about 2, to a few units in the last place; the same on every device."""
    x = x / 2**_HALVINGS
    result = torch.ones_like(x)
    for term in range(_TERMS, 0, -1):
        result = 1.0 + result * x * (1.0 / term)
    for _ in range(_HALVINGS):
        result = result * result
    return result


def _within_ratio(log_ratio_2V: Tensor, height_N: Tensor, width_N: Tensor) -> Tensor:
    least_V1, most_V1 = exact_exp(log_ratio_2V)[:, :, None]
    w_VN = torch.minimum(width_N, (height_N * most_V1).round()).clamp(min=1)
    h_VN = torch.minimum(height_N, (width_N / least_V1).round()).clamp(min=1)
    left_VN, top_VN = ((width_N - w_VN) / 2).floor(), ((height_N - h_VN) / 2).floor()
    return torch.stack([left_VN, top_VN, w_VN, h_VN], dim=2)


def log_ratio(ratio: tuple[float, float]) -> tuple[float, float]:
    """Logarithms of the two ends of an interval of ratios."""
    return math.log(ratio[0]), math.log(ratio[1])
