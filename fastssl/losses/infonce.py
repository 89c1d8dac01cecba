"""InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, eq. 4): N queries against K keys.

loss_i = log sum_k exp(q_i . k_k / tau) - q_i . k_{p(i)} / tau
"""

# shapes: N queries, K keys, H hard negatives per query, D embedding
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.kernels.contrast.op import ALL_PAIRS
from fastssl.losses.arguments import (
    bad,
    check_embeddings,
    check_reduction,
    checked_ids,
    hold_temperature,
    is_readable,
    scale_of,
)
from fastssl.losses.denominators import unit_rows
from fastssl.losses.distributed import ids_over_ranks
from fastssl.losses.matching import Matching, matched
from fastssl.losses.metrics import ContrastiveMetrics, Terms
from fastssl.losses.options import Options, check_options

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group

NAME = "info_nce"


def info_nce(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    positives: Tensor | None = None,
    hard_negatives: Tensor | None = None,
    sample_ids: Tensor | None = None,
    symmetric: bool = False,
    options: Options | None = None,
    reduction: str = "mean",
    group: Group | None = None,
) -> Tensor:
    """InfoNCE of raw, un-normalised embeddings; detached keys cost no gradient and no memory.

    Args:
        queries: (N, D), any float dtype, any strides.
        keys: (K, D) of the same dtype. Where they need no gradient, loss and query gradient are
            one pass.
        temperature: finite, non-zero; a float, or a one-element tensor to learn it.
        positives: (N,) key index of each query's positive; by default query i has key i.
        hard_negatives: (N, H, D), further negatives of each query alone.
        sample_ids: (K,) id of each key; a key with the id of a query's positive is not among its
            negatives.
        symmetric: mean of both directions over N = K pairs.
        options: margin, smoothing, tau_plus, beta.
        reduction: "mean", "sum" or "none".
        group: ranks whose batches are one batch, or ``Ring`` of them to pass rows round instead of
            gathering them; None: this process alone. The loss is over local rows; averaged by DDP
            its gradient is exact (convention: fastssl/losses/distributed.py).
            Positives are local keys, the keys of all ranks are negatives; ids are of all ranks.

    Returns:
        () or (N,) in float32 (float64 for float64 input).

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_reduction(NAME, reduction)
    return info_nce_terms(
        queries, keys, temperature, positives, hard_negatives, sample_ids, symmetric, options,
        group,
    ).reduced(reduction)  # fmt: skip


def info_nce_terms(
    queries: Tensor,
    keys: Tensor,
    temperature: float | Tensor,
    positives: Tensor | None = None,
    hard_negatives: Tensor | None = None,
    sample_ids: Tensor | None = None,
    symmetric: bool = False,
    options: Options | None = None,
    group: Group | None = None,
) -> Terms:
    """Losses per query and what the metrics are read from; arguments of ``info_nce``."""
    check_options(NAME, options)
    check_embeddings(NAME, queries=queries, keys=keys)
    scale = scale_of(NAME, temperature, queries)
    positives_N = _checked_positives(queries, keys, positives, symmetric)
    if hard_negatives is not None:
        _check_hard(queries, hard_negatives, symmetric)
    q_ND, k_KD = unit_rows(queries), unit_rows(keys)
    own_ND = k_KD[: q_ND.shape[0]] if positives is None else k_KD[positives_N]
    if sample_ids is None:
        ids_K = ids_over_ranks(k_KD, group=group)
    else:
        ids_K = checked_ids(NAME, "sample_ids", sample_ids, k_KD.shape[0], keys)
    hard_NH = None
    if hard_negatives is not None:
        hard_NHD = unit_rows(hard_negatives.flatten(0, 1)).unflatten(0, hard_negatives.shape[:2])
        hard_NH = (q_ND[:, None] * hard_NHD).sum(2)
    matching = Matching(
        q_ND,
        k_KD,
        (q_ND * own_ND).sum(1),
        (ids_K[positives_N], ids_K),
        whole=ALL_PAIRS if sample_ids is None else None,
        hard_NH=hard_NH,
        group=group,
    )
    return matched(matching, scale, options, symmetric=symmetric)


def _checked_positives(
    queries: Tensor, keys: Tensor, positives: Tensor | None, symmetric: bool
) -> Tensor:
    num_queries, num_keys = queries.shape[0], keys.shape[0]
    if symmetric and num_queries != num_keys:
        expected = f"of as many rows as queries ({num_queries}) where symmetric"
        raise bad(NAME, "keys", expected, tuple(keys.shape))
    if positives is None:
        if num_keys < num_queries:
            expected = f"at least {num_queries} rows, or positives given"
            raise bad(NAME, "keys", expected, tuple(keys.shape))
        return torch.arange(num_queries, device=queries.device)
    if symmetric:
        raise bad(NAME, "positives", "None where symmetric (pair i is query i, key i)", "a tensor")
    index_N = checked_ids(NAME, "positives", positives, num_queries, queries)
    if is_readable(index_N) and not 0 <= int(index_N.min()) <= int(index_N.max()) < num_keys:
        received = f"[{int(index_N.min())}, {int(index_N.max())}]"
        raise bad(NAME, "positives", f"key indices in [0, {num_keys})", received)
    return index_N


def _check_hard(queries: Tensor, hard_negatives: Tensor, symmetric: bool) -> None:
    if not isinstance(hard_negatives, Tensor) or hard_negatives.dim() != 3:
        shape = getattr(hard_negatives, "shape", type(hard_negatives).__name__)
        raise bad(NAME, "hard_negatives", "3-D, (N, H, D)", shape)
    if symmetric:
        expected = "None where symmetric: they are negatives of queries, not of keys"
        raise bad(NAME, "hard_negatives", expected, "a tensor")
    if hard_negatives.shape[0] != queries.shape[0] or hard_negatives.shape[1] < 1:
        expected = f"of shape ({queries.shape[0]}, H >= 1, {queries.shape[1]})"
        raise bad(NAME, "hard_negatives", expected, tuple(hard_negatives.shape))
    check_embeddings(NAME, queries=queries, hard_negatives=hard_negatives.flatten(0, 1))


class InfoNCELoss(nn.Module):
    """``info_nce`` as a module.

    Args:
        temperature, symmetric, options, reduction, group: as of ``info_nce``; an ``nn.Parameter``
            as temperature is learnt.

    Example:
        >>> import torch
        >>> from fastssl.losses import InfoNCELoss
        >>> queries, keys = torch.randn(2, 64, 128, requires_grad=True)
        >>> loss = InfoNCELoss(temperature=0.1)(queries, keys)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        symmetric: bool = False,
        options: Options | None = None,
        reduction: str = "mean",
        group: Group | None = None,
    ) -> None:
        super().__init__()
        check_reduction("InfoNCELoss", reduction)
        check_options("InfoNCELoss", options)
        hold_temperature(self, temperature)
        self.symmetric = symmetric
        self.options = options
        self.reduction = reduction
        self.group = group

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        *,
        positives: Tensor | None = None,
        hard_negatives: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        """Loss of (N, D) queries and (K, D) keys: () or, with reduction "none", (N,)."""
        terms = self._terms(queries, keys, positives, hard_negatives, sample_ids)
        return terms.reduced(self.reduction)

    def with_metrics(
        self,
        queries: Tensor,
        keys: Tensor,
        *,
        positives: Tensor | None = None,
        hard_negatives: Tensor | None = None,
        sample_ids: Tensor | None = None,
    ) -> tuple[Tensor, ContrastiveMetrics]:
        """The loss and what its forward tells beside it (of the queries' direction)."""
        terms = self._terms(queries, keys, positives, hard_negatives, sample_ids)
        return terms.reduced(self.reduction), terms.metrics()

    def _terms(self, queries, keys, positives, hard_negatives, sample_ids) -> Terms:
        return info_nce_terms(
            queries, keys, self.temperature, positives, hard_negatives, sample_ids,
            self.symmetric, self.options, self.group,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, symmetric={self.symmetric}, "
            f"options={self.options}, reduction={self.reduction!r}"
        )
