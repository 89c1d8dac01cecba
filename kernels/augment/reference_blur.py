"""Gaussian blur in plain torch: reflect padding and kernel as one matrix for each axis.

k_j = exp(-j^2 / (2 sigma^2)) / sum, |j| <= window // 2
"""

# shapes: M views of samples, S side of a view, K window
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def blur(x_M3SS: Tensor, sigma_M: Tensor, window: int) -> Tensor:
    """Each view blurred with its own sigma (pixels), the same along both axes."""
    size, half = x_M3SS.shape[-1], window // 2
    offset_K = torch.arange(-half, half + 1, dtype=x_M3SS.dtype, device=x_M3SS.device)
    weight_MK = torch.softmax(-0.5 * (offset_K / sigma_M[:, None]).square(), dim=1)
    source_SK = reflect(offset_K.long() + torch.arange(size, device=x_M3SS.device)[:, None], size)
    hit_SKS = F.one_hot(source_SK, size).to(x_M3SS.dtype)
    matrix_MSS = torch.einsum("mk,skp->msp", weight_MK, hit_SKS)
    return matrix_MSS[:, None] @ x_M3SS @ matrix_MSS[:, None].mT


def reflect(position: Tensor, size: int) -> Tensor:
    """Positions less than ``size`` outside are mirrored at the first and last pixel."""
    position = position.abs()
    return torch.where(position < size, position, 2 * (size - 1) - position)
