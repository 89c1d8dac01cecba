"""What a loss can tell beside its value, without a second pass over the pairs."""

# shapes: N rows
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastssl.losses.arguments import reduced
from fastssl.losses.distributed import mean_over_ranks, num_ranks, sum_over_ranks

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group

SLACK = 16
"""Rounding, in units of eps * scale, between a positive logit of torch and one of the kernel."""


class ContrastiveMetrics(NamedTuple):
    """0-d tensors without gradient.

    top1: share of rows whose nearest candidate, the largest logit of the denominator, is a positive
        (of several, any). A tie with some negatives is a hit; a tie with all of them is a miss, so
        that collapsed embeddings score 0. NaN where a row or what it is compared with has NaN.
    alignment: mean cosine similarity of a row and its positives.
    negative_similarity: mean cosine similarity over all (row, negative) pairs; NaN without any.
    """

    top1: Tensor
    alignment: Tensor
    negative_similarity: Tensor


@dataclass(frozen=True)
class Terms:
    """Losses per row, and what the metrics are read from.

    best: similarities of the best positives, to be compared with top_N (the largest logit of the
    denominator) at ``top_scale``. negatives: sums of similarities, and counts. Both are asked for
    by ``metrics`` alone. counted_N: rows that have a positive; None where all have. group: ranks
    over which "mean" is weighted; metrics are of the local rows.
    """

    loss_N: Tensor
    similarity_N: Tensor
    best: Callable[[], Tensor]
    top_N: Tensor
    top_scale: float | Tensor
    negatives: Callable[[], tuple[Tensor, Tensor]]
    counted_N: Tensor | None = None
    group: Group | None = None

    def reduced(self, reduction: str) -> Tensor:
        """The loss: over the counted rows alone, 0 if there is none."""
        if self.group is not None and reduction == "mean":
            return self._mean_over_ranks(self.group)
        if self.counted_N is None or reduction != "mean":
            return reduced(self.loss_N, reduction)
        return self.loss_N.sum() / self.counted_N.sum().clamp_min(1)

    def _mean_over_ranks(self, group: Group) -> Tensor:
        """Weighted so that the ranks' average is the mean over the counted rows of all ranks."""
        if self.counted_N is None:
            return mean_over_ranks(self.loss_N, group=group)
        count = sum_over_ranks(self.counted_N.sum(), group=group).clamp_min(1)
        return self.loss_N.sum() * num_ranks(group) / count

    def metrics(self) -> ContrastiveMetrics:
        """Evaluated now, in O(N D)."""
        with torch.no_grad():  # as a decorator it wraps a bound method, which cannot be traced
            dtype, device = self.top_N.dtype, self.top_N.device
            scale = torch.as_tensor(self.top_scale, dtype=dtype, device=device)
            slack = SLACK * torch.finfo(dtype).eps * scale.abs()
            best_N = self.best() * scale
            sum_N, count_N = self.negatives()
            # no negative is above the top, so their mean is there only if all of them are
            all_tie_N = (count_N > 0) & (sum_N * scale >= (self.top_N - slack) * count_N)
            top1_N = ((best_N >= self.top_N - slack) & ~all_tie_N).to(best_N.dtype)
            unknown_N = self.top_N.isnan() | best_N.isnan() | sum_N.isnan()
            hit_N = torch.where(unknown_N, torch.nan, top1_N)
            if self.counted_N is None:
                top1, alignment = hit_N.mean(), self.similarity_N.mean()
            else:
                weight_N = self.counted_N.to(hit_N.dtype) / self.counted_N.sum()
                top1, alignment = (hit_N * weight_N).sum(), (self.similarity_N * weight_N).sum()
            count = count_N.sum()
            negative = torch.where(count > 0, sum_N.sum() / count, torch.nan)
            return ContrastiveMetrics(top1, alignment, negative)
