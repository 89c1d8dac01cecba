"""NT-Xent in plain torch: the equation, any float dtype, any device; float64 is the ground truth.

    z_i    = h_i / max(|h_i|, eps)                                  s_ij = z_i . z_j
    loss_i = log sum_{j != i} exp(s_ij / tau)  -  mean_{p in pos(i)} s_ip / tau

Chen et al. 2020 (SimCLR, arXiv:2002.05709), eq. 1. Row v*N + n is sample n in view v and pos(i) are
the other V - 1 views of the sample, so that V = 2 is SimCLR and V > 2 averages over the positives.
"""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

import torch
from torch import Tensor

from fastssl.kernels.precision import own_precision

EPS = 1e-12  # of torch.nn.functional.normalize


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64, everything narrower is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def ntxent(views: list[Tensor], temperature: Tensor, reduction: str) -> Tensor:
    """The loss as a differentiable formula (any order of derivative)."""
    with own_precision(views[0]):
        z_MD, _ = normalise(torch.cat(views))
        tau = temperature.to(z_MD.dtype).reshape(())
        lse_M = _without_self(z_MD @ z_MD.T / tau).logsumexp(dim=1)
        loss_M = lse_M - positive_similarity(z_MD, len(views)) / tau
        return reduce(loss_M, reduction)


def forward(
    views: list[Tensor], temperature: Tensor, reduction: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, log-denominators, reciprocal norms; nothing is kept for the backward."""
    with own_precision(views[0]):
        z_MD, norm_M1 = normalise(torch.cat(views))
        tau = temperature.to(z_MD.dtype).reshape(())
        lse_M = _without_self(z_MD @ z_MD.T / tau).logsumexp(dim=1)
        loss_M = lse_M - positive_similarity(z_MD, len(views)) / tau
        rnorm_M = norm_M1.squeeze(1).reciprocal().to(z_MD.dtype)
        return reduce(loss_M, reduction), lse_M, rnorm_M, z_MD.new_empty(0)


def kept_numel(num_rows: int, embedding: int, dtype: torch.dtype) -> int:
    """Elements that ``forward`` keeps for ``backward``: none."""
    return 0


def backward(
    grad: Tensor,
    views: list[Tensor],
    temperature: Tensor,
    reduction: str,
    lse_M: Tensor,
    rnorm_M: Tensor,
    kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of the stacked rows (M, D) and of the temperature, written out by hand.

    With p_ij = exp(s_ij / tau - lse_i) and row weights g_i,

        tau dL/dz_i = sum_j (g_i p_ij + g_j p_ji) z_j - sum_{p in pos(i)} (g_i + g_p) z_p / (V - 1)
        dL/dh       = (dL/dz - z (z . dL/dz)) / |h|         where |h| > eps, else dL/dz / eps
    """
    with own_precision(views[0]):
        return _backward(grad, torch.cat(views), len(views), temperature, reduction, lse_M)


def _backward(
    grad: Tensor, h_MD: Tensor, num_views: int, temperature: Tensor, reduction: str, lse_M: Tensor
) -> tuple[Tensor, Tensor]:
    z_MD, norm_M1 = normalise(h_MD)
    tau = temperature.to(z_MD.dtype).reshape(())
    num_rows = z_MD.shape[0]
    g_M = grad.to(z_MD.dtype).expand(num_rows) / (num_rows if reduction == "mean" else 1)

    sim_MM = z_MD @ z_MD.T
    p_MM = (_without_self(sim_MM / tau) - lse_M[:, None]).exp()
    weighted_MM = g_M[:, None] * p_MM
    positive_M = positive_similarity(z_MD, num_views)
    expected_M = (p_MM * sim_MM).sum(dim=1)
    dtau = (g_M * (positive_M - expected_M)).sum() / tau**2

    gz_MD = g_M[:, None] * z_MD
    pull_MD = (g_M[:, None] * _sum_of_positives(z_MD, num_views)) + _sum_of_positives(
        gz_MD, num_views
    )
    dz_MD = ((weighted_MM + weighted_MM.T) @ z_MD - pull_MD / (num_views - 1)) / tau
    radial_M1 = (z_MD * dz_MD).sum(dim=1, keepdim=True)
    dz_MD = torch.where(norm_M1 > EPS, dz_MD - z_MD * radial_M1, dz_MD)
    dh_MD = dz_MD / norm_M1
    limit = torch.finfo(h_MD.dtype).max  # a zero row's 1e12 saturates; overflow elsewhere shows
    return torch.where(norm_M1 > EPS, dh_MD, dh_MD.clamp(-limit, limit)).to(h_MD.dtype), dtau


def normalise(h_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and their norms (M, 1), in float64; at least eps.

    No square overflows: rows that reach beyond 1 are divided by their largest magnitude first.
    """
    largest_M1 = h_MD.detach().abs().amax(dim=1, keepdim=True).to(torch.float64)
    scale_M1 = largest_M1.clamp(1.0, torch.finfo(torch.float64).max)
    y_MD = h_MD / scale_M1
    norm_M1 = torch.linalg.vector_norm(y_MD, dim=1, keepdim=True)
    norm_M1 = torch.maximum(norm_M1, EPS / scale_M1)
    return (y_MD / norm_M1).to(accumulate_dtype(h_MD.dtype)), norm_M1 * scale_M1


def _without_self(logits_MM: Tensor) -> Tensor:
    diagonal_MM = torch.eye(logits_MM.shape[0], dtype=torch.bool, device=logits_MM.device)
    return logits_MM.masked_fill(diagonal_MM, -torch.inf)


def _sum_of_positives(x_MD: Tensor, num_views: int) -> Tensor:
    """Row i: the sum of x over the other views of its sample."""
    x_VND = x_MD.unflatten(0, (num_views, -1))
    return (x_VND.sum(dim=0) - x_VND).flatten(0, 1)


def positive_similarity(z_MD: Tensor, num_views: int) -> Tensor:
    """Row i: mean similarity to its positives."""
    return (z_MD * _sum_of_positives(z_MD, num_views)).sum(dim=1) / (num_views - 1)


def reduce(loss_M: Tensor, reduction: str) -> Tensor:
    """Losses per row as they are, or their mean or sum."""
    if reduction == "mean":
        return loss_M.mean()
    return loss_M.sum() if reduction == "sum" else loss_M
