"""Weighted k-nearest-neighbour classification on cosine similarity (Wu et al. 2018, 1805.01978).

    score(c) = sum over the k nearest train images of class c of exp(s_i / T)     section 3.4

k = 20 and T = 0.07 are DINO's (Caron et al. 2021, arXiv:2104.14294). Exact: every test image is
compared with every train image, a chunk of test images at a time.
"""

# shapes: N train images, M test images, m chunk, F features, K neighbours, C classes
from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.evaluation.features import check_finite

CHUNK = 1024
PROTOCOL = {
    "readout": "weighted kNN vote on cosine similarity, exact",
    "weights": "exp(similarity / temperature)",
}


def knn(
    train_NF: Tensor,
    train_N: Tensor,
    test_MF: Tensor,
    test_M: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Iterator[tuple[str, float]]:
    """Yields ("knn_top1", .) and, from six classes on, ("knn_top5", .), as fractions."""
    if not 1 <= k <= len(train_NF):
        raise ValueError(f"knn: k must lie in 1..{len(train_NF)} (train images), received {k}")
    if not temperature > 0:
        raise ValueError(f"knn: temperature must be positive, received {temperature}")
    check_finite("knn", train=train_NF, test=test_MF)
    score_MC = knn_scores(train_NF, train_N, test_MF, k=k, temperature=temperature)
    yield from top_accuracies("knn", score_MC, test_M)


def knn_scores(
    train_NF: Tensor, train_N: Tensor, test_MF: Tensor, *, k: int, temperature: float
) -> Tensor:
    """(M, C) summed weights of each class among the k nearest train images."""
    unit_NF = F.normalize(train_NF.float(), dim=1)
    num_classes = int(train_N.max()) + 1
    parts = []
    for chunk_mF in F.normalize(test_MF.float(), dim=1).split(CHUNK):
        near_mK, index_mK = (chunk_mF @ unit_NF.T).topk(k, dim=1)
        # exp((s - 1)/T) orders the classes as exp(s/T) does, and cannot overflow.
        weight_mK = ((near_mK.double() - 1) / temperature).exp()
        score_mC = torch.zeros(len(chunk_mF), num_classes, dtype=torch.float64)
        parts.append(score_mC.scatter_add_(1, train_N[index_mK], weight_mK))
    return torch.cat(parts)


def top_accuracies(prefix: str, score_MC: Tensor, test_M: Tensor) -> Iterator[tuple[str, float]]:
    """Top-1, and top-5 where there are more than five classes; a class unseen in train is wrong."""
    ranked = score_MC.topk(min(5, score_MC.shape[1]), dim=1).indices
    hit = ranked == test_M[:, None]
    yield f"{prefix}_top1", float(hit[:, 0].double().mean())
    if score_MC.shape[1] > 5:
        yield f"{prefix}_top5", float(hit.any(1).double().mean())
