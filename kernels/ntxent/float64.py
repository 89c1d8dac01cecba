"""NT-Xent of float64 CUDA tensors: plain-torch row chunks, never an M x M matrix.

Tensor cores and Triton's dot have nothing to offer in float64; this is for gradient checks.
"""

# shapes: V views, N samples, M = V * N rows, D features, C rows of a chunk
from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastssl.kernels.ntxent import reference


def forward(
    views: Sequence[Tensor], temperature: Tensor, *, chunk_bytes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, log-denominator and 1/max(|h|, eps) of each row, all (M,)."""
    z_MD, rnorm_M = _normalise(views)
    tau = temperature.to(torch.float64).reshape(())
    lse_M = torch.empty_like(rnorm_M)
    for begin, logits_CM in _logits(z_MD, tau, chunk_bytes):
        logits_CM.diagonal(begin).fill_(-torch.inf)
        lse_M[begin : begin + len(logits_CM)] = torch.logsumexp(logits_CM, 1)
    return lse_M - (z_MD * _others(z_MD, len(views))).sum(1) / tau, lse_M, rnorm_M


def backward(
    weight_M: Tensor,
    views: Sequence[Tensor],
    temperature: Tensor,
    lse_M: Tensor,
    rnorm_M: Tensor,
    *,
    chunk_bytes: int,
) -> tuple[Tensor, Tensor]:
    """Gradient of the stacked views (M, D) and of the temperature for dL/dloss_i = weight_i."""
    z_MD, _ = _normalise(views)
    tau = temperature.to(torch.float64).reshape(())
    dz_MD = torch.empty_like(z_MD)
    for begin, logits_CM in _logits(z_MD, tau, chunk_bytes):
        rows = slice(begin, begin + len(logits_CM))
        w_CM = weight_M[rows, None] * torch.exp(logits_CM - lse_M[rows, None])
        w_CM += weight_M * torch.exp(logits_CM - lse_M)
        w_CM.diagonal(begin).zero_()
        dz_MD[rows] = w_CM @ z_MD
    weighted_M1 = weight_M[:, None]
    num_views = len(views)
    dz_MD -= weighted_M1 * _others(z_MD, num_views) + _others(weighted_M1 * z_MD, num_views)
    dz_MD /= tau
    along_M1 = (z_MD * dz_MD).sum(1, keepdim=True)
    dtau = along_M1.sum() / (-2.0 * tau)
    kept_M1 = torch.where(rnorm_M < 1.0 / reference.EPS, 1.0, 0.0)[:, None]
    return rnorm_M[:, None] * (dz_MD - z_MD * along_M1 * kept_M1), dtau


def _normalise(views: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    z_MD, norm_M1 = reference.normalise(torch.cat(list(views)))
    return z_MD, norm_M1.squeeze(1).reciprocal()


def _others(x_MD: Tensor, num_views: int) -> Tensor:
    """For each row the mean of the same sample's rows in the other views."""
    x_VND = x_MD.view(num_views, -1, x_MD.shape[1])
    return ((x_VND.sum(0) - x_VND) / (num_views - 1)).flatten(0, 1)


def _logits(z_MD: Tensor, tau: Tensor, chunk_bytes: int) -> Iterator[tuple[int, Tensor]]:
    per_chunk = max(1, chunk_bytes // (8 * len(z_MD)))
    for begin in range(0, len(z_MD), per_chunk):
        yield begin, z_MD[begin : begin + per_chunk] @ z_MD.T / tau
