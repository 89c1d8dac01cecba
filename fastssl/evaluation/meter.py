"""How invariant features are: by augmentation, and all augmentations together.

    cosine(a) = mean_x cos(f(x), f(a(x)))
    ratio     = E_x[Var(h | x)] / Var(h),     h = f(t(x)) / |f(t(x))|, traces over the features

Var(h | x) runs over the draws of ONE image. The authors of InvCLR reshaped image-major features as
draw-major ones, so that their conditional variance mixed images; the ratio, unlike Var(h | x), is
also indifferent to a large constant part of the features. 0: invariant; 1: the image says nothing;
NaN: a collapsed encoder, whose Var(h) is that of rounding and whose ratio would be any number.
"""

# shapes: D draws, N images, F features
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.evaluation.features import check_finite

PROTOCOL = {
    "cosine": "clean against transformed features, one draw per image, as the policy draws it",
    "variance_ratio": "trace of E[Var(h|x)] over trace of Var(h), h of unit length; nan where "
    "Var(h) is no more than float32 rounding: the features do not tell the images apart",
}


def meter(
    clean_NF: Tensor, by_name: Mapping[str, Tensor], drawn_DNF: Tensor
) -> Iterator[tuple[str, float]]:
    """Yields ("cosine/NAME", .), ("variance_conditional", .), ("variance_total", .),
    ("variance_ratio", .).

    by_name: features (N, F) of the images under one augmentation alone. drawn_DNF: (D, N, F) under
    all of them, D draws of each image, D >= 2. The ratio is NaN where Var(h) does not exceed
    F eps^2, eps of float32: what rounding alone makes of equal features of F values.
    """
    if drawn_DNF.ndim != 3 or drawn_DNF.shape[0] < 2 or drawn_DNF.shape[1:] != clean_NF.shape:
        raise ValueError(
            f"meter: expected drawn features (D, N, F) with D >= 2 and clean (N, F), received "
            f"{tuple(drawn_DNF.shape)} and {tuple(clean_NF.shape)}"
        )
    check_finite("meter", clean=clean_NF, drawn=drawn_DNF, **by_name)
    for name, other_NF in by_name.items():
        cosine_N = F.cosine_similarity(clean_NF.double(), other_NF.double(), dim=1)
        yield f"cosine/{name}", float(cosine_N.mean())
    conditional, total = variances(F.normalize(drawn_DNF.double(), dim=2))
    rounding = clean_NF.shape[1] * torch.finfo(torch.float32).eps ** 2
    yield "variance_conditional", conditional
    yield "variance_total", total
    yield "variance_ratio", conditional / total if total > rounding else math.nan


def variances(h_DNF: Tensor) -> tuple[float, float]:
    """E[Var(h | x)], unbiased over the draws, and Var(h) over everything; sums over F.

    Var(h) is the conditional variance plus that of the images' means, less its own sampling error.
    """
    draws = h_DNF.shape[0]
    conditional = float(h_DNF.var(0).mean(0).sum())
    between = float(h_DNF.mean(0).var(0).sum()) if h_DNF.shape[1] > 1 else 0.0
    return conditional, conditional + max(between - conditional / draws, 0.0)
