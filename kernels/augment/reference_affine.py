"""The affine stage in plain torch: torchvision's rotation, shear, scale, translation, by gathers.

    A = R(angle) Shear_y Shear_x scale,  source = A^-1 (p - t) about the centre of the view
Outside the view is 0. Nearest rounds half to even and has no gradient in its parameters.
"""

# shapes: M views of samples, S side of a view
from __future__ import annotations

import torch
from torch import Tensor


def inverse(angle_M, scale_M, shear_x_M, shear_y_M) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 2 x 2 matrix from view to source, angles in degrees (torchvision's matrix, inverted)."""
    angle, shear_x, shear_y = (x.deg2rad() for x in (angle_M, shear_x_M, shear_y_M))
    turned = angle - shear_y
    a = turned.cos() / shear_y.cos()
    b = -turned.cos() * shear_x.tan() / shear_y.cos() - angle.sin()
    c = turned.sin() / shear_y.cos()
    d = -turned.sin() * shear_x.tan() / shear_y.cos() + angle.cos()
    return d / scale_M, -b / scale_M, -c / scale_M, a / scale_M


def affine(x_M3SS: Tensor, parameters_M6: Tensor, interpolation: str) -> Tensor:
    """Columns angle, translate_x, translate_y, scale, shear_x, shear_y. Same shape as x."""
    angle, translate_x, translate_y, scale, shear_x, shear_y = parameters_M6.unbind(-1)
    size = x_M3SS.shape[-1]
    middle = (size - 1) / 2
    grid_S = torch.arange(size, dtype=x_M3SS.dtype, device=x_M3SS.device) - middle
    matrix = inverse(angle, scale, shear_x, shear_y)
    xx, xy, yx, yy = (entry[:, None, None] for entry in matrix)
    across_M1S = grid_S[None, None, :] - translate_x[:, None, None]
    down_MS1 = grid_S[None, :, None] - translate_y[:, None, None]
    column_MSS = xx * across_M1S + xy * down_MS1 + middle
    row_MSS = yx * across_M1S + yy * down_MS1 + middle
    if interpolation == "nearest":
        return _pick(x_M3SS, row_MSS.detach().round(), column_MSS.detach().round())
    top_MSS, left_MSS = row_MSS.detach().floor(), column_MSS.detach().floor()
    below_MSS, right_MSS = row_MSS - top_MSS, column_MSS - left_MSS
    corners = (
        (0, 0, (1 - below_MSS) * (1 - right_MSS)),
        (0, 1, (1 - below_MSS) * right_MSS),
        (1, 0, below_MSS * (1 - right_MSS)),
        (1, 1, below_MSS * right_MSS),
    )
    parts = [w[:, None] * _pick(x_M3SS, top_MSS + dy, left_MSS + dx) for dy, dx, w in corners]
    return parts[0] + parts[1] + parts[2] + parts[3]


def _pick(x_M3SS: Tensor, row_MSS: Tensor, column_MSS: Tensor) -> Tensor:
    """Pixels at whole coordinates, 0 outside."""
    size = x_M3SS.shape[-1]
    inside = (row_MSS >= 0) & (row_MSS < size) & (column_MSS >= 0) & (column_MSS < size)
    index = row_MSS.clamp(0, size - 1).long() * size + column_MSS.clamp(0, size - 1).long()
    index_M3P = index.flatten(1)[:, None].expand(-1, 3, -1)
    return x_M3SS.flatten(2).gather(2, index_M3P).view_as(x_M3SS).masked_fill(~inside[:, None], 0)
