"""Is it learning? Numbers that see collapse and a stuck loss, which the loss alone does not show.

feature std: mean over dimensions of the std of L2-normalised features; 1/sqrt(F) when they fill the
sphere, 0 when they collapsed (Chen and He 2021). RankMe: exp of the entropy of the singular values
(Garrido et al. 2023). Alignment and uniformity: Wang and Isola 2020, alpha = t = 2.
"""

# shapes: N samples, F features, K = min(N, F)
from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

_RANKME_EPS = 1e-7
# Untrained ReLU encoders give 0.1 and more; a collapsed one gives numbers near the rounding error.
_COLLAPSED_BELOW = 0.02
_AT_CHANCE_WITHIN = 0.01


def feature_std(f_NF: Tensor) -> float:
    """std of L2-normalised features times sqrt(F): 1 is a full sphere, 0 is collapse."""
    return float(normalize(f_NF, dim=1).std(dim=0).mean()) * math.sqrt(f_NF.shape[1])


def rankme(f_NF: Tensor) -> float:
    """Effective rank of the feature matrix, between 1 and min(N, F)."""
    s_K = torch.linalg.svdvals(f_NF.float())
    p_K = s_K / s_K.sum().clamp_min(1e-30) + _RANKME_EPS
    return float(torch.exp(-(p_K * p_K.log()).sum()))


def alignment(f_NF: Tensor, g_NF: Tensor) -> float:
    """Mean squared distance between two views' normalised features; 0 is perfect."""
    gap_NF = normalize(f_NF, dim=1) - normalize(g_NF, dim=1)
    return float(gap_NF.square().sum(dim=1).mean())


def uniformity(f_NF: Tensor) -> float:
    """log mean exp(-2 |f_i - f_j|^2) over pairs of normalised features; lower is more uniform."""
    return float(torch.pdist(normalize(f_NF.float(), dim=1)).square().mul(-2).exp().mean().log())


def measure(views: tuple[Tensor, ...]) -> dict[str, float]:
    """All monitors of the features (N, F) of one batch, one tensor per view.

    Rows that are not finite in every view (a damaged image) are left out; with fewer than two rows
    left there is nothing to measure and the result is empty.
    """
    finite_N = torch.stack([torch.isfinite(v).all(dim=1) for v in views]).all(dim=0)
    views = tuple(v[finite_N] for v in views)
    first = views[0].float()
    if len(first) < 2:
        return {}
    values = {
        "feature_std": feature_std(first),
        "rankme": rankme(first),
        "uniformity": uniformity(first),
    }
    if len(views) > 1:
        values["alignment"] = alignment(first, views[1].float())
    return values


def warnings(values: dict[str, float]) -> dict[str, str]:
    """What ``values`` (``measure`` plus ``loss_over_chance``) warn of: name -> advice."""
    found = {}
    if values.get("feature_std", 1.0) < _COLLAPSED_BELOW:
        found["collapse"] = (
            f"collapse: features of different images are almost equal (feature_std "
            f"{values['feature_std']:.4f}, 1 is a full sphere; RankMe {values['rankme']:.1f}). "
            "Try a lower --lr, more --warmup-steps, or a larger --batch-size."
        )
    ratio = values.get("loss_over_chance")
    if ratio is not None and abs(ratio - 1.0) < _AT_CHANCE_WITHIN:
        found["chance"] = (
            f"not learning: the loss is still that of equal embeddings, log(2N-1) "
            f"(ratio {ratio:.3f}). Try another --lr, a --temperature nearer 0.1 to 0.5, or weaker "
            "augmentation; check that the images are not all alike."
        )
    return found
