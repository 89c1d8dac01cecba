"""Few-shot N-way k-shot classification on features, many episodes at once.

An episode: N classes, k labelled (support) and q unlabelled (query) samples of each, drawn without
replacement. Readouts fitted to the support, on features of unit length (Tian et al. 2020,
arXiv:2003.11539):
  centroid   the nearest class mean, Euclidean (Snell et al. 2017, arXiv:1703.05175)
  ridge      W = S_c' (S_c S_c' + penalty I)^-1 Y_c, centred: sklearn's RidgeClassifier
  logistic   min_W,b  C sum_n CE(W s_n + b, y_n) + |W|^2 / 2: sklearn's LogisticRegression
Reported: accuracy, mean over episodes, and half the width of its 95 % interval.
"""

# shapes: N samples, F features, E episodes (e: some), W ways, K samples of a class, S support,
# Q query
from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.evaluation.features import check_finite

CLASSIFIERS = ("centroid", "ridge", "logistic")
PENALTY, INVERSE_PENALTY = 1.0, 1.0  # of ridge and (C) of logistic regression, sklearn's defaults
MOST_STEPS, TOLERANCE = 1000, 1e-5  # of the logistic fit: largest gradient of its objective
PROTOCOL = {
    "readout": "few-shot episodes, each with its own fit",
    "features_scaled": "to unit length",
    "ridge_penalty": PENALTY,
    "logistic_C": INVERSE_PENALTY,
    "interval": "1.96 standard errors over episodes",
}
CHUNK = 128  # episodes at a time: their tensors stay in the cache
_CACHED = 1 << 18  # numbers of the queries' features at a time, for the same reason


def few_shot(
    features_NF: Tensor,
    label_N: Tensor,
    *,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 10_000,
    classifiers: Sequence[str] = CLASSIFIERS,
    seed: int = 0,
) -> Iterator[tuple[str, float]]:
    """Yields ("NAME_top1", mean accuracy), ("NAME_ci95", half width) of each readout.

    features_NF: (N, F) of classes that the encoder may not have been trained to tell apart.
    label_N: (N,) integers. Raises ValueError where too few classes have shots + queries samples.
    """
    check_classifiers(classifiers)
    if features_NF.ndim != 2 or len(features_NF) != len(label_N):
        raise ValueError(
            f"few_shot: expected features (N, F) and labels (N,), received "
            f"{tuple(features_NF.shape)} and {tuple(label_N.shape)}"
        )
    check_finite("few_shot", given=features_NF)
    chosen_EWK = draw_episodes(
        label_N, ways=ways, samples=shots + queries, episodes=episodes, seed=seed
    )
    unit_NF = F.normalize(features_NF.float(), dim=1)
    with one_thread():
        parts = [accuracies(unit_NF, some, shots, classifiers) for some in chosen_EWK.split(CHUNK)]
    for name in classifiers:
        yield from told(name, torch.cat([part[name] for part in parts]).double())


def check_classifiers(classifiers: Sequence[str]) -> None:
    """ValueError unless they are some of CLASSIFIERS."""
    unknown = sorted(set(classifiers) - set(CLASSIFIERS))
    if unknown or not classifiers:
        raise ValueError(
            f"few_shot: classifiers must be some of {', '.join(CLASSIFIERS)}, received "
            f"{', '.join(unknown) or 'none'}"
        )


def told(name: str, accuracy_E: Tensor) -> Iterator[tuple[str, float]]:
    """The mean over episodes, and half the width of its 95 % interval."""
    yield f"{name}_top1", float(accuracy_E.mean())
    spread = float(accuracy_E.std()) if len(accuracy_E) > 1 else float("nan")
    yield f"{name}_ci95", 1.96 * spread / len(accuracy_E) ** 0.5


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Thousands of tiny products: a second thread costs each more than it saves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def draw_episodes(
    label_N: Tensor, *, ways: int, samples: int, episodes: int, seed: int = 0
) -> Tensor:
    """(E, W, K) positions: K = ``samples`` different ones of each of W classes, in random order.

    Classes with fewer than K samples take no part.
    """
    if min(ways - 1, samples - 1, episodes) < 1:
        raise ValueError(
            "few_shot: expected ways and shots + queries of at least 2 and at least 1 episode, "
            f"received {ways}, {samples} and {episodes}"
        )
    order_N = torch.argsort(label_N, stable=True)
    size_C = torch.unique_consecutive(label_N[order_N], return_counts=True)[1]
    begin_C = size_C.cumsum(0) - size_C
    large = size_C >= samples
    begin_C, size_C = begin_C[large], size_C[large]
    if len(size_C) < ways:
        raise ValueError(
            f"few_shot: {ways} ways of shots + queries = {samples} samples need as many classes "
            f"with that many, received {len(size_C)} such classes"
        )
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for begin in range(0, episodes, 4096):
        rows = min(4096, episodes - begin)
        class_EW = torch.rand(rows, len(size_C), generator=generator).topk(ways, dim=1).indices
        inside_EWK = _without_replacement(size_C[class_EW], samples, generator)
        parts.append(order_N[begin_C[class_EW][..., None] + inside_EWK])
    return torch.cat(parts)


def _without_replacement(size_EW: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """(E, W, K) different numbers below ``size_EW``: Floyd's algorithm, then a shuffle."""
    picked_EWK = torch.full((*size_EW.shape, samples), -1)
    for step in range(samples):
        last_EW = size_EW - samples + step
        unit_EW = torch.rand(size_EW.shape, generator=generator, dtype=torch.float64)
        new_EW = (unit_EW * (last_EW + 1)).long()
        taken_EW = (picked_EWK == new_EW[..., None]).any(-1)
        picked_EWK[..., step] = torch.where(taken_EW, last_EW, new_EW)
    shuffle_EWK = torch.rand(picked_EWK.shape, generator=generator).argsort(-1)
    return picked_EWK.gather(-1, shuffle_EWK)


def accuracies(
    unit_NF: Tensor, chosen_EWK: Tensor, shots: int, classifiers: Sequence[str]
) -> dict[str, Tensor]:
    """Of each readout (E,): the share of queries that it gets right in each episode."""
    ways = chosen_EWK.shape[1]
    support_ES, query_EQ = chosen_EWK[:, :, :shots].flatten(1), chosen_EWK[:, :, shots:].flatten(1)
    label_Q = torch.arange(ways).repeat_interleave(chosen_EWK.shape[2] - shots)
    found = scores(unit_NF, support_ES, query_EQ, ways, classifiers)
    return {name: (s_EQW.argmax(2) == label_Q).float().mean(1) for name, s_EQW in found.items()}


def scores(
    unit_NF: Tensor, support_ES: Tensor, query_EQ: Tensor, ways: int, classifiers: Sequence[str]
) -> dict[str, Tensor]:
    """Of each readout (E, Q, W): how well each query fits each of the ways; the largest answers.

    support_ES: positions in ``unit_NF``, sorted by way, as many of each; query_EQ: positions.
    """
    label_S = torch.arange(ways).repeat_interleave(support_ES.shape[1] // ways)
    # the fits need products alone: S S' and Q S'
    support_ESF = unit_NF[support_ES]
    gram_ESS = support_ESF @ support_ESF.mT
    few = max(1, _CACHED // max(1, query_EQ.shape[1] * unit_NF.shape[1]))
    parts = zip(query_EQ.split(few), support_ESF.split(few), strict=True)
    cross_EQS = torch.cat([unit_NF[query_eQ] @ support_eSF.mT for query_eQ, support_eSF in parts])
    onehot_SW = F.one_hot(label_S, ways).to(unit_NF.dtype)
    fits = {"centroid": _centroid, "ridge": _ridge, "logistic": _logistic}
    return {name: fits[name](gram_ESS, cross_EQS, onehot_SW) for name in classifiers}


def _centroid(gram_ESS: Tensor, cross_EQS: Tensor, onehot_SW: Tensor) -> Tensor:
    """(E, Q, W): q . m_w - |m_w|^2 / 2, which orders as -|q - m_w|^2 does."""
    mean_SW = onehot_SW / onehot_SW.sum(0)
    length_EW = torch.einsum("sw,est,tw->ew", mean_SW, gram_ESS, mean_SW)
    return cross_EQS @ mean_SW - length_EW[:, None] / 2


def _ridge(gram_ESS: Tensor, cross_EQS: Tensor, onehot_SW: Tensor) -> Tensor:
    """(E, Q, W) answers of the ridge with a free intercept, in its dual form."""
    mean_E1S = gram_ESS.mean(1, keepdim=True)
    centred_ESS = gram_ESS - mean_E1S - mean_E1S.mT + mean_E1S.mean(2, keepdim=True)
    eye_SS = torch.eye(gram_ESS.shape[1], dtype=gram_ESS.dtype)
    factor_ESS = torch.linalg.cholesky(centred_ESS + PENALTY * eye_SS)
    target_SW = onehot_SW - onehot_SW.mean(0)
    dual_ESW = torch.cholesky_solve(target_SW.expand(len(gram_ESS), -1, -1), factor_ESS)
    # q . S_c' a; the part of q's own mean drops out because the columns of a sum to zero
    return (cross_EQS - mean_E1S) @ (dual_ESW - dual_ESW.mean(1, keepdim=True))


def _logistic(gram_ESS: Tensor, cross_EQS: Tensor, onehot_SW: Tensor) -> Tensor:
    """(E, Q, W) logits of the penalised optimum: accelerated gradient steps on W = S' a and b."""
    scale, target_WS = INVERSE_PENALTY, onehot_SW.T
    # the objective's curvature: at most C/2 times the largest eigenvalue of S S' + 1 1', plus 1
    bound_E11 = (gram_ESS + 1).abs().sum(2).amax(1).view(-1, 1, 1)
    rate_E11 = 1 / (scale * bound_E11 / 2 + 1)
    root_E11 = rate_E11.sqrt()
    push_E11 = (1 - root_E11) / (1 + root_E11)
    dual_EWS = torch.zeros(len(gram_ESS), *target_WS.shape, dtype=gram_ESS.dtype)
    bias_EW1 = torch.zeros(len(gram_ESS), len(target_WS), 1, dtype=gram_ESS.dtype)
    ahead_EWS, ahead_EW1 = dual_EWS, bias_EW1
    for step in range(MOST_STEPS):
        error_EWS = _softmax(torch.baddbmm(ahead_EW1, ahead_EWS, gram_ESS)) - target_WS
        slope_EWS = scale * error_EWS + ahead_EWS
        slope_EW1 = scale * error_EWS.sum(2, keepdim=True)
        next_EWS, next_EW1 = ahead_EWS - rate_E11 * slope_EWS, ahead_EW1 - rate_E11 * slope_EW1
        ahead_EWS = torch.addcmul(next_EWS, push_E11, next_EWS - dual_EWS)
        ahead_EW1 = torch.addcmul(next_EW1, push_E11, next_EW1 - bias_EW1)
        dual_EWS, bias_EW1 = next_EWS, next_EW1
        # the gradient by W = S' a is S' slope; the rows of S are of unit length
        if step % 10 == 9 and max(slope_EWS.abs().max(), slope_EW1.abs().max()) < TOLERANCE:
            break
    return torch.baddbmm(bias_EW1, dual_EWS, cross_EQS.mT).mT


def _softmax(logits_EWS: Tensor) -> Tensor:
    """Over the few ways in the middle: several times faster here than torch's."""
    weight_EWS = (logits_EWS - logits_EWS.amax(1, keepdim=True)).exp()
    return weight_EWS / weight_EWS.sum(1, keepdim=True)
