"""Softmax of one positive against many negatives: what InfoNCE, MoCo, NT-Xent and DCL share.

With x = s / tau, per query i with positive p and negatives n:

    loss_i = log(e^{x_p} + sum_n e^{x_n}) - x_p

``options`` change the terms (options.py); the denominators come from ``denominators`` alone.
"""

# shapes: N queries, K keys, H hard negatives per query, D embedding
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastssl.kernels.contrast.checks import Pairs
from fastssl.kernels.contrast.op import ALL_PAIRS
from fastssl.losses.classes import class_counts, class_sums
from fastssl.losses.denominators import UNIT, denominators
from fastssl.losses.distributed import count_over_ranks, sum_over_ranks
from fastssl.losses.metrics import Terms
from fastssl.losses.options import PLAIN, Options, debiased, hardened

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


@dataclass(frozen=True)
class Matching:
    """Unit rows, and who is whose positive.

    positive_N: similarity of each query and its positive.
    ids: of queries and keys; a key is a negative where they differ. None: every key is one.
    whole: the pairs of a denominator with the positive in it, where the op can form it at once.
    hard_NH: similarities of further negatives of each query.
    group: ranks whose keys are the keys, k_KD being those held here; ids are of all ranks.
    """

    q_ND: Tensor
    k_KD: Tensor
    positive_N: Tensor
    ids: tuple[Tensor, Tensor] | None
    whole: Pairs | None = None
    hard_NH: Tensor | None = None
    bound: float = UNIT
    group: Group | None = None

    @property
    def negatives(self) -> Pairs:
        """The pairs of a denominator without the positive."""
        return ALL_PAIRS if self.ids is None else Pairs(keep="different", labels=self.ids)

    def counts(self) -> Tensor:
        """(N,) how many negatives each query has."""
        num_keys = count_over_ranks(self.k_KD, group=self.group)
        count_N = self.positive_N.new_full((self.q_ND.shape[0],), num_keys)
        if self.ids is not None:
            count_N = count_N - class_counts(*self.ids, self.group)
        return count_N if self.hard_NH is None else count_N + self.hard_NH.shape[1]

    def sums(self) -> Tensor:
        """(N,) sum of the similarities of each query and its negatives, in O((N + K) D)."""
        k_KD = self.k_KD.to(self.q_ND.dtype)
        pull_ND = k_KD.sum(0)
        if self.group is not None:
            pull_ND = sum_over_ranks(pull_ND, group=self.group)
        if self.ids is not None:
            pull_ND = pull_ND - class_sums(k_KD, *self.ids, self.group)
        sum_N = (self.q_ND * pull_ND).sum(1)
        return sum_N if self.hard_NH is None else sum_N + self.hard_NH.sum(1)

    def mirrored(self) -> Matching:
        """Keys ask, queries answer; pairs alone (N = K, no further negatives)."""
        assert self.ids is not None and self.hard_NH is None
        ids = (self.ids[1], self.ids[0])
        return Matching(self.k_KD, self.q_ND, self.positive_N, ids, group=self.group)


def matched(
    matching: Matching,
    scale: float | Tensor,
    options: Options | None = None,
    *,
    symmetric: bool = False,
) -> Terms:
    """Losses per query or, symmetric, per pair: half of each direction."""
    options = options or PLAIN
    margin = options.margin or 0.0
    logit_N = (matching.positive_N - margin) * scale
    if matching.whole is not None and not options.splits:
        found = denominators(
            matching.q_ND, matching.k_KD, scale,
            pairs=matching.whole, columns=symmetric, group=matching.group,
        )  # fmt: skip
        top_N, top_scale = found.top, scale
        rows_N = with_hard(found.rows, matching.hard_NH, scale)
        logs = [rows_N, found.cols] if symmetric else [rows_N]
        surprises = [log_N - logit_N for log_N in logs]
    else:
        logs, top_N, top_scale = log_negatives(matching, scale, options, symmetric)
        surprises = [_surprise(log_N, logit_N) for log_N in logs]
    if options.smoothing:
        sides = [matching] + ([matching.mirrored()] if symmetric else [])
        surprises = [
            surprise_N + options.smoothing * (logit_N - _mean_logit(side, logit_N, scale))
            for surprise_N, side in zip(surprises, sides, strict=True)
        ]
    loss_N = (surprises[0] + surprises[1]) / 2 if symmetric else surprises[0]
    if matching.hard_NH is not None and matching.hard_NH.shape[1]:
        top_N = torch.maximum(top_N, (matching.hard_NH.detach() * top_scale).amax(1))
    return Terms(
        loss_N, matching.positive_N, lambda: matching.positive_N, top_N, top_scale,
        lambda: (matching.sums(), matching.counts()), group=matching.group,
    )  # fmt: skip


def log_negatives(
    matching: Matching, scale: float | Tensor, options: Options, symmetric: bool
) -> tuple[list[Tensor], Tensor, float | Tensor]:
    """Log-sums over the negatives of rows (and columns), the rows' largest logit, its scale."""
    sharp = scale * (1 + options.beta) if options.beta else scale
    logs, top_N = _log_sums(matching, sharp, symmetric)
    if not options.weights:
        return logs, top_N, sharp
    count_N = matching.counts()
    if options.beta:
        weights, _ = _log_sums(matching, scale * options.beta, symmetric)
        pairs = zip(logs, weights, strict=True)
        logs = [hardened(log_N, weight_N, count_N) for log_N, weight_N in pairs]
    if options.tau_plus:
        logit_N, tau_plus = matching.positive_N * scale, options.tau_plus
        logs = [debiased(log_N, logit_N, count_N, scale, tau_plus) for log_N in logs]
    return logs, top_N, sharp


def with_hard(rows_N: Tensor, hard_NH: Tensor | None, scale: float | Tensor) -> Tensor:
    """A log-sum with each row's own further negatives added."""
    if hard_NH is None or not hard_NH.shape[1]:
        return rows_N
    return torch.logaddexp(rows_N, (hard_NH * scale).logsumexp(1))


def _log_sums(
    matching: Matching, scale: float | Tensor, symmetric: bool
) -> tuple[list[Tensor], Tensor]:
    found = denominators(
        matching.q_ND, matching.k_KD, scale,
        pairs=matching.negatives, columns=symmetric, bound=matching.bound,
        group=matching.group,
    )  # fmt: skip
    rows_N = with_hard(found.rows, matching.hard_NH, scale)
    return [rows_N, found.cols] if symmetric else [rows_N], found.top


def _surprise(log_negatives_N: Tensor, logit_N: Tensor) -> Tensor:
    """log(e^{x_p} + sum_n) - x_p, accurate where it is tiny; 0 without negatives."""
    difference_N = log_negatives_N - logit_N
    return torch.logaddexp(difference_N, torch.zeros_like(difference_N))


def _mean_logit(matching: Matching, logit_N: Tensor, scale: float | Tensor) -> Tensor:
    """Mean over the positive and the negatives."""
    return (matching.sums() * scale + logit_N) / (matching.counts() + 1)
