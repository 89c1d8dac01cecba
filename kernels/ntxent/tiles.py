"""NT-Xent as a formula in tiles: what transforms and second derivatives are answered by.

The equation of reference.py, whose M x M matrix is never whole.
"""

# shapes: V views, N samples, M = V * N rows, D embedding
from __future__ import annotations

import torch
from torch import Tensor

from fastssl.kernels.contrast import tiles
from fastssl.kernels.contrast.reference import Ids
from fastssl.kernels.ntxent import reference
from fastssl.kernels.precision import own_precision


def ntxent(views: list[Tensor], temperature: Tensor, reduction: str) -> Tensor:
    """The loss, differentiable to any order."""
    with own_precision(views[0]):
        z_MD, _ = reference.normalise(torch.cat(views))
        scale = temperature.to(z_MD.dtype).reshape(()).reciprocal()
        row_M = torch.arange(z_MD.shape[0], device=z_MD.device)
        ids = Ids(q_row_N=row_M, k_row_K=row_M)
        lse_M, _, _ = tiles.denominators(z_MD, z_MD, scale, ids, False)
        loss_M = lse_M - reference.positive_similarity(z_MD, len(views)) * scale
        return reference.reduce(loss_M, reduction)
