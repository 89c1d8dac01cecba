"""What features keep of an augmentation, and which half of them a classifier leans on.

  d = mean over n of sqrt((f'_n - f_n)^T S^-1 (f'_n - f_n)),  S: covariance of the clean features
Independent samples of one Gaussian are about sqrt(2 F) apart: ``ratio`` is d over that, 0 invariant
and 1 as far as another sample (Heggan et al. 2023, arXiv:2305.17191, whose ridge is not published).
"""

# shapes: N samples, F features, C classes, P parts
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.evaluation.features import check_finite

RIDGE = 1e-3  # of the mean variance, added to the covariance's diagonal


def mahalanobis_ratio(clean_NF: Tensor, changed_NF: Tensor) -> float:
    """Mean Mahalanobis distance of samples from themselves changed, over chance, sqrt(2 F).

    Raises ValueError for other shapes, or fewer than two samples.
    """
    if clean_NF.shape != changed_NF.shape or clean_NF.ndim != 2 or len(clean_NF) < 2:
        raise ValueError(
            "mahalanobis_ratio: expected two tensors (N, F) of one shape, N at least 2, received "
            f"{tuple(clean_NF.shape)} and {tuple(changed_NF.shape)}"
        )
    check_finite("mahalanobis_ratio", clean=clean_NF, changed=changed_NF)
    clean_NF, changed_NF = clean_NF.double(), changed_NF.double()
    width = clean_NF.shape[1]
    s_FF = torch.cov(clean_NF.T).reshape(width, width)
    level = s_FF.diagonal().mean().clamp(min=torch.finfo(s_FF.dtype).tiny)
    s_FF = s_FF + RIDGE * level * torch.eye(width, dtype=s_FF.dtype)
    away_FN = torch.linalg.solve_triangular(
        torch.linalg.cholesky(s_FF), (changed_NF - clean_NF).T, upper=False
    )
    return float(away_FN.norm(dim=0).mean() / (2 * width) ** 0.5)


def weight_shares(weight_CF: Tensor, widths: Sequence[int]) -> tuple[float, ...]:
    """Shares of a linear classifier's sum of absolute weights on parts of ``widths`` features.

    Fit on standardised features, as ``evaluation.linear`` does, for shares that mean something.
    Raises ValueError where the widths do not add up to F.
    """
    if weight_CF.ndim != 2 or sum(widths) != weight_CF.shape[1]:
        raise ValueError(
            f"weight_shares: widths: expected a sum of {weight_CF.shape[-1]}, received "
            f"{tuple(widths)}"
        )
    size_P = torch.stack([part.abs().sum() for part in weight_CF.double().split(list(widths), 1)])
    return tuple((size_P / size_P.sum()).tolist())
