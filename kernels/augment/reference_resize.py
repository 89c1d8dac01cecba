"""Crop and antialiased resize in plain torch, as two matrix products per view.

Along one axis of n pixels a box [start, stop) is clipped to [0, n]; r = (stop - start) / S.
Output i lies at c_i = start + r (i + 1/2) and is the mean of the box's pixels p weighted with
f((p + 1/2 - c_i) / max(r, 1)), f the triangle or the cubic of half width 1 or 2. The box's pixels
are floor(start) .. ceil(stop) - 1; which they are is constant in derivatives. For whole numbers
this is torch's ``interpolate(antialias=True)`` of the cropped image.
"""

# shapes: V views, N samples, S side of a view, L pixels of an axis, H x W an image
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NARROWEST = 1e-4
"""A box is at least this wide within its image, whatever the table says."""
EDGE = 1e-3
"""A box that ends less than this beyond a pixel's edge ends there: rounding adds no pixel."""


def triangle(x: Tensor) -> Tensor:
    """Bilinear filter, half width 1."""
    return (1 - x.abs()).clamp_min(0)


def cubic(x: Tensor) -> Tensor:
    """Keys' filter with a = -1/2, half width 2."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


FILTERS = {"bilinear": triangle, "bicubic": cubic}


def stack(images: list[Tensor], sizes_N2: Tensor | None, dtype: torch.dtype):
    """(N, 3, H, W) in ``dtype`` and [0, 1], zeros where a smaller image ends; sizes (N, 2)."""
    if images[0].dim() == 3:
        sizes_N2 = torch.tensor([tuple(image.shape[1:]) for image in images])
        height, width = (int(side) for side in sizes_N2.amax(0))
        padded = [F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in images]
        stacked = torch.stack(padded)
    else:
        (stacked,) = images
    x_N3HW = stacked.to(dtype) / 255 if stacked.dtype == torch.uint8 else stacked.to(dtype)
    height, width = x_N3HW.shape[2:]
    if sizes_N2 is None:
        sizes_N2 = torch.tensor([[height, width]]).expand(len(x_N3HW), 2)
        return x_N3HW, sizes_N2.to(x_N3HW.device)
    sizes_N2 = sizes_N2.to(x_N3HW.device)
    inside_NH = torch.arange(height, device=x_N3HW.device) < sizes_N2[:, :1]
    inside_NW = torch.arange(width, device=x_N3HW.device) < sizes_N2[:, 1:]
    inside_N1HW = inside_NH[:, None, :, None] & inside_NW[:, None, None, :]
    return x_N3HW.masked_fill(~inside_N1HW, 0), sizes_N2


def crop(
    x_N3HW: Tensor, sizes_N2: Tensor, boxes_VN4: Tensor, size: int, interpolation: str
) -> Tensor:
    """(V, N, 3, S, S): every box (left, top, width, height) resized to the view."""
    left, top, width, height = boxes_VN4.unbind(-1)
    kernel = FILTERS[interpolation]
    rows_VNSH = taps(top, height, sizes_N2[:, 0], x_N3HW.shape[2], size, kernel)
    columns_VNSW = taps(left, width, sizes_N2[:, 1], x_N3HW.shape[3], size, kernel)
    return rows_VNSH[:, :, None] @ x_N3HW @ columns_VNSW[:, :, None].mT


def clipped(start_VN: Tensor, extent_VN: Tensor, length_N: Tensor) -> tuple[Tensor, Tensor]:
    """Start and stop of the boxes within [0, length], at least ``NARROWEST`` apart.

    An edge that touches its image's edge is not clipped, and keeps its whole gradient. Widening
    is constant in derivatives.
    """
    stop_VN = start_VN + extent_VN
    stop_VN = torch.where(stop_VN > length_N, length_N, stop_VN)
    start_VN = torch.where(start_VN < 0, torch.zeros_like(start_VN), start_VN)
    beyond_VN = (start_VN - (length_N - NARROWEST)).clamp(min=0)
    start_VN = start_VN - beyond_VN.detach()
    missing_VN = (start_VN + NARROWEST - stop_VN).clamp(min=0)
    return start_VN, stop_VN + missing_VN.detach()


def taps(start_VN, extent_VN, length_N, num_pixels: int, size: int, kernel) -> Tensor:
    """(V, N, S, L): weight of each pixel of an axis in each output."""
    length_N = length_N.to(start_VN.dtype)
    start_VN, stop_VN = clipped(start_VN, extent_VN, length_N)
    first_VN = torch.minimum((start_VN.detach() + EDGE).floor(), length_N - 1)
    last_VN = torch.maximum((stop_VN.detach() - EDGE).ceil(), first_VN + 1)
    ratio_VN = (stop_VN - start_VN) / size
    pixel_L = torch.arange(num_pixels, dtype=start_VN.dtype, device=start_VN.device)
    output_S = torch.arange(size, dtype=start_VN.dtype, device=start_VN.device) + 0.5
    # positions are taken from the box's start, where they are small and exact for whole numbers
    from_start_VNL = pixel_L + 0.5 - start_VN[..., None]
    centre_VNS = ratio_VN[..., None] * output_S
    distance_VNSL = from_start_VNL[..., None, :] - centre_VNS[..., None]
    weight_VNSL = kernel(distance_VNSL / ratio_VN.clamp(min=1)[..., None, None])
    inside_VNL = (pixel_L >= first_VN[..., None]) & (pixel_L < last_VN[..., None])
    weight_VNSL = weight_VNSL.masked_fill(~inside_VNL[..., None, :], 0)
    return weight_VNSL / weight_VNSL.sum(-1, keepdim=True)
