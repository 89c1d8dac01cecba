"""Invariance learning: which invariances does a task want of an amortised encoder?

    min_i  loss(W(i) f(x; i), y) on held-out images,  W(i) = ridge of the fit images under i
Chavhan et al. 2023 (arXiv:2302.12712), downstream: i starts at 1/2, Adam, i <- clamp(i, 0, 1) after
each step, the encoder frozen. The authors learn W and i by one gradient of the training loss; here
W is solved for in each step and differentiated through, and i answers to images that W has not
seen, because the training loss prefers the vector that fits best. Vectors between the corners are
never trained and the loss has hills there; so i starts at the best of 1/2 and of the points half
way from there to each corner ("half": at 1/2, as the authors). The test split is only scored.
"""

# shapes: N images, n batch, K bits, F features, T targets
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Literal

import torch
from torch import Tensor

from fastssl.evaluation.features import check_finite, hold_out, standardise

# 256 images for a readout of 128 features left the vector half way to its corner in 60 steps
STEPS, RATE, BATCH, PENALTY = 60, 0.1, 512, 1e-2
FLOOR, LEAST = 1e-8, 1e-60  # of a variance: relative to the mean square, and of columns of zeros
MOST_CORNERS = 32
Start = Literal["best", "half"]
PROTOCOL = {
    "vector": "projected gradient (Adam, clamp to 0..1), encoder frozen",
    "vector_start": "best: of 1/2 and of the points half way to each corner, on held-out images; "
    "half: 1/2",
    "vector_learned_on": "a keyed fifth of the train split; its readout on the others",
    "vector_loss": "squared error of a ridge on standardised targets (classes: one-hot)",
}


def learn_vector(
    features: Callable[[Tensor, Tensor], Tensor],
    target_NT: Tensor,
    *,
    num_bits: int,
    steps: int = STEPS,
    rate: float = RATE,
    batch: int = BATCH,
    seed: int = 0,
    start: Start = "best",
) -> Tensor:
    """(K,) in [0, 1]: the invariances that the targets want.

    features: positions (n,) of train images and a vector (K,) -> (n, F), differentiable in the
    vector. target_NT: (N, T) float targets of the train images, classes as one-hot rows. batch:
    images of the readout in each step; half as many judge it. start: the best of 1/2 and of the
    points half way to the corners (where there are at most 32), or 1/2.
    """
    _check(target_NT, num_bits, steps, rate)
    fit_n, held_m = hold_out(target_NT)
    (y_NT,) = standardise(target_NT)
    generator = torch.Generator().manual_seed(seed)

    def loss_under(bits_K: Tensor, size: int) -> Tensor:
        sizes = ((fit_n, size), (held_m, max(size // 2, 1)))
        some = [_some(part, count, generator) for part, count in sizes]
        fit_NF, held_NF = (features(part, bits_K).double() for part in some)
        check_finite("learn_vector", train=torch.cat([fit_NF, held_NF]))
        return (_ridge(fit_NF, y_NT[some[0]], held_NF) - y_NT[some[1]]).square().mean()

    points = _starts(num_bits) if start == "best" else [torch.full((num_bits,), 0.5)]
    with torch.no_grad():
        bits_K = min(points, key=lambda point_K: float(loss_under(point_K, 2 * batch)))
    bits_K.requires_grad_()
    optimizer = torch.optim.Adam([bits_K], lr=rate)
    for _ in range(steps):
        with torch.enable_grad():
            (bits_K.grad,) = torch.autograd.grad(loss_under(bits_K, batch), bits_K)
        optimizer.step()
        with torch.no_grad():
            bits_K.clamp_(0, 1)
    return bits_K.detach()


def invariance(
    learned_K: Tensor, score: Callable[[Tensor], Iterator[tuple[str, float]]]
) -> Iterator[tuple[str, float]]:
    """Yields ("bit/k", .) of the learned vector, then METRIC@VECTOR for every corner (K <= 5), for
    "default" (all ones), "learned" and "rounded" (each coordinate to 1 from 1/2 on).

    score: a vector (K,) -> the metrics of the full readout under it.
    """
    for position, bit in enumerate(learned_K.tolist()):
        yield f"bit/{position}", bit
    vectors = {"default": torch.ones_like(learned_K), "learned": learned_K}
    vectors["rounded"] = (learned_K >= 0.5).to(learned_K.dtype)
    if 2 ** len(learned_K) <= MOST_CORNERS:
        for corner in product((0, 1), repeat=len(learned_K)):
            vectors["".join(map(str, corner))] = learned_K.new_tensor(corner)
    known: dict[tuple[float, ...], list[tuple[str, float]]] = {}
    for name, vector_K in vectors.items():
        key = tuple(vector_K.tolist())
        if key not in known:
            known[key] = list(score(vector_K))
        for metric, value in known[key]:
            yield f"{metric}@{name}", value


def _check(target_NT: Tensor, num_bits: int, steps: int, rate: float) -> None:
    if target_NT.ndim != 2 or len(target_NT) < 10 or num_bits < 1:
        raise ValueError(
            f"learn_vector: expected targets (N >= 10, T) and at least 1 bit, received "
            f"{tuple(target_NT.shape)} and {num_bits}"
        )
    if steps < 0 or not 0 < rate < math.inf:
        raise ValueError(
            "learn_vector: expected --steps of at least 0 and --rate above 0, received "
            f"{steps} and {rate:g}"
        )


def _starts(num_bits: int) -> list[Tensor]:
    """1/2 in every coordinate and, where there are few, the points half way to the corners."""
    few = 2**num_bits <= MOST_CORNERS
    quarters = product((0.25, 0.75), repeat=num_bits) if few else ()
    return [torch.full((num_bits,), 0.5), *(torch.tensor(point) for point in quarters)]


def _some(position_n: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` of them, different ones."""
    return position_n[torch.randperm(len(position_n), generator=generator)[:count]]


def _ridge(fit_NF: Tensor, fit_NT: Tensor, other_NF: Tensor) -> Tensor:
    """Predictions for the other rows; differentiable in all features, whatever their scale.

    A column whose deviation is below 1e-4 of its size is that of rounding and stays small.
    """
    mean_F, floor_F = fit_NF.mean(0), FLOOR * fit_NF.square().mean(0)
    scale_F = (fit_NF.var(0) + floor_F).clamp(min=LEAST).sqrt()
    fit_NF, other_NF = (fit_NF - mean_F) / scale_F, (other_NF - mean_F) / scale_F
    mean_T = fit_NT.mean(0)
    eye = torch.eye(fit_NF.shape[1], dtype=fit_NF.dtype)
    gram = fit_NF.T @ fit_NF / len(fit_NF) + PENALTY * eye
    right = fit_NF.T @ (fit_NT - mean_T) / len(fit_NF)
    return other_NF @ torch.linalg.solve(gram, right) + mean_T
