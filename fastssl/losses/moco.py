"""MoCo's loss (He et al. 2020, arXiv:1911.05722, eq. 1): a positive key against a queue.

loss_i = log(e^{q_i . k_i / tau} + sum_r e^{q_i . queue_r / tau}) - q_i . k_i / tau
"""

# shapes: N queries, K queue rows, D embedding
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from fastssl.losses.arguments import (
    DTYPES,
    bad,
    check_reduction,
    check_same_shape,
    hold_temperature,
    scale_of,
)
from fastssl.losses.denominators import ROUNDED_UNIT, UNIT, unit_rows
from fastssl.losses.matching import Matching, matched
from fastssl.losses.metrics import ContrastiveMetrics, Terms
from fastssl.losses.options import Options, check_options

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group

NAME = "moco_loss"


class Queue(Protocol):
    """Anything that keeps its keys in ``rows``, (K, D) and already normalised."""

    rows: Tensor


def moco_loss(
    query: Tensor,
    key: Tensor,
    queue: Tensor | Queue,
    temperature: float | Tensor = 0.2,
    *,
    options: Options | None = None,
    reduction: str = "mean",
    group: Group | None = None,
) -> Tensor:
    """InfoNCE against a queue, loss and query gradient in one pass over it.

    Nothing of the queue is cloned or saved: it may be written to before the backward.

    Args:
        query: (N, D) raw embeddings of the trained encoder.
        key: (N, D) raw embeddings of the momentum encoder; gets a gradient only if it asks.
        queue: (K, D) unit rows of any float dtype, or an object whose attribute ``rows`` is that.
            They are taken as they are; on the CPU longer rows are noticed and take more time.
        temperature: finite, non-zero; a float, or a one-element tensor to learn it.
        options: margin, smoothing, tau_plus, beta.
        reduction: "mean", "sum" or "none".
        group: ranks whose batches are one batch, or ``Ring`` of them to pass rows round instead of
            gathering them; None: this process alone. The loss is over local rows; averaged by DDP
            its gradient is exact (convention: fastssl/losses/distributed.py).
            Every rank holds the same queue: ``KeyQueue(group=...)`` takes the keys of all.

    Returns:
        () or (N,) in float32 (float64 if an operand is).

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_reduction(NAME, reduction)
    return moco_terms(query, key, queue, temperature, options, group).reduced(reduction)


def moco_terms(
    query: Tensor,
    key: Tensor,
    queue: Tensor | Queue,
    temperature: float | Tensor,
    options: Options | None = None,
    group: Group | None = None,
) -> Terms:
    """Losses per query and what the metrics are read from; arguments of ``moco_loss``."""
    check_options(NAME, options)
    check_same_shape(NAME, query=query, key=key)
    rows_KD = _checked_queue(query, queue)
    scale = scale_of(NAME, temperature, query)
    q_ND, k_ND = unit_rows(query), unit_rows(key)
    rounded = torch.finfo(rows_KD.dtype).bits == 16
    matching = Matching(
        q_ND,
        rows_KD,
        (q_ND * k_ND).sum(1),
        None,
        bound=ROUNDED_UNIT if rounded else UNIT,
    )
    return replace(matched(matching, scale, options), group=group)


def _checked_queue(query: Tensor, queue: Tensor | Queue) -> Tensor:
    rows_KD = queue if isinstance(queue, Tensor) else getattr(queue, "rows", None)
    if not isinstance(rows_KD, Tensor):
        raise bad(NAME, "queue", "a (K, D) tensor or have one as .rows", type(queue).__name__)
    if rows_KD.dim() != 2 or rows_KD.shape[0] < 1 or rows_KD.shape[1] != query.shape[1]:
        expected = f"of shape (K >= 1, {query.shape[1]}), a key per row"
        raise bad(NAME, "queue", expected, tuple(rows_KD.shape))
    if rows_KD.dtype not in DTYPES:
        raise bad(NAME, "queue", "float16, bfloat16, float32 or float64", rows_KD.dtype)
    if rows_KD.device != query.device:
        raise bad(NAME, "queue", f"on {query.device} like the query", rows_KD.device)
    if rows_KD.requires_grad:
        raise bad(NAME, "queue", "without a gradient (use info_nce)", "requires_grad = True")
    return rows_KD


class MoCoLoss(nn.Module):
    """``moco_loss`` as a module; the queue is an argument, not a state.

    Args:
        temperature, options, reduction, group: as of ``moco_loss``.

    Example:
        >>> import torch
        >>> from fastssl.losses import MoCoLoss
        >>> query, key = torch.randn(2, 64, 128)
        >>> queue = torch.nn.functional.normalize(torch.randn(4096, 128))
        >>> loss = MoCoLoss(temperature=0.2)(query, key, queue)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.2,
        *,
        options: Options | None = None,
        reduction: str = "mean",
        group: Group | None = None,
    ) -> None:
        super().__init__()
        check_reduction("MoCoLoss", reduction)
        check_options("MoCoLoss", options)
        hold_temperature(self, temperature)
        self.options = options
        self.reduction = reduction
        self.group = group

    def forward(self, query: Tensor, key: Tensor, queue: Tensor | Queue) -> Tensor:
        """Loss of (N, D) queries and keys and a (K, D) queue: () or (N,)."""
        terms = self._terms(query, key, queue)
        return terms.reduced(self.reduction)

    def with_metrics(
        self, query: Tensor, key: Tensor, queue: Tensor | Queue
    ) -> tuple[Tensor, ContrastiveMetrics]:
        """The loss and what its forward tells beside it."""
        terms = self._terms(query, key, queue)
        return terms.reduced(self.reduction), terms.metrics()

    def _terms(self, query: Tensor, key: Tensor, queue: Tensor | Queue) -> Terms:
        return moco_terms(query, key, queue, self.temperature, self.options, self.group)

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, options={self.options}, reduction={self.reduction!r}"
        )
