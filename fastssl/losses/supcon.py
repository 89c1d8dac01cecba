"""SupCon (Khosla et al. 2020, arXiv:2004.11362): rows of a label are each other's positives.

With x_ij = z_i . z_j / tau, P(i) the other rows of i's label and A(i) all other rows:

    L_out_i = log sum_{a in A(i)} e^{x_ia} - mean_{p in P(i)} x_ip                      (eq. 2)
    L_in_i  = log sum_{a in A(i)} e^{x_ia} - log mean_{p in P(i)} e^{x_ip}              (eq. 3)

Rows without a positive have no loss: they are left out of the mean (but stay in denominators).
"""

# shapes: N samples, V views, M rows, D embedding
from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.kernels.contrast.checks import Pairs
from fastssl.kernels.contrast.op import Denominators
from fastssl.losses.arguments import (
    bad,
    check_embeddings,
    check_reduction,
    checked_ids,
    hold_temperature,
    scale_of,
)
from fastssl.losses.classes import class_counts, class_sums, class_tops
from fastssl.losses.denominators import among_themselves, denominators, unit_rows
from fastssl.losses.distributed import count_over_ranks, ids_over_ranks, sum_over_ranks
from fastssl.losses.metrics import ContrastiveMetrics, Terms

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


def sup_con_out(
    embeddings: Tensor,
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    *,
    reduction: str = "mean",
    group: Group | None = None,
) -> Tensor:
    """SupCon with the positives outside the logarithm (L_out), in O(M D) beside the denominators.

    Args:
        embeddings: (M, D), or (N, V, D) for V views of N samples; raw, any float dtype.
        labels: integer (M,) or (N,), a label or an id; None with views: a label per sample.
        temperature: finite, non-zero; a float, or a one-element tensor to learn it.
        reduction: "mean" over the rows that have a positive, "sum", or "none" (0 for the others).
        group: ranks whose batches are one batch, or ``Ring`` of them to pass rows round instead of
            gathering them; None: this process alone. The loss is over local rows; averaged by DDP
            its gradient is exact (convention: fastssl/losses/distributed.py).
            Labels mean the same on all ranks; None with views: no sample is on two ranks.

    Returns:
        () or (M,), rows in the order of ``embeddings.flatten(0, -2)``, in float32 (float64 for
        float64 input). Without any positive: 0, with a gradient of zero.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_reduction("sup_con_out", reduction)
    return out_losses(embeddings, labels, temperature, group).reduced(reduction)


def sup_con_in(
    embeddings: Tensor,
    labels: Tensor | None = None,
    temperature: float | Tensor = 0.1,
    *,
    reduction: str = "mean",
    group: Group | None = None,
) -> Tensor:
    """SupCon with the positives inside the logarithm (L_in); arguments as of ``sup_con_out``."""
    check_reduction("sup_con_in", reduction)
    return in_terms(embeddings, labels, temperature, group).reduced(reduction)


def out_terms(
    embeddings: Tensor,
    labels: Tensor | None,
    temperature: float | Tensor,
    group: Group | None = None,
) -> Terms:
    """Losses per row of L_out and what the metrics are read from."""
    name = "sup_con_out"
    z_MD, labels_M = _rows(name, embeddings, labels, group)
    return rows_out_terms(z_MD, labels_M, scale_of(name, temperature, embeddings), group)


def out_losses(
    embeddings: Tensor,
    labels: Tensor | None,
    temperature: float | Tensor,
    group: Group | None = None,
) -> Terms:
    """``out_terms`` at half the work, without what top-1 is read from: it is NaN."""
    name = "sup_con_out"
    z_MD, labels_M = _rows(name, embeddings, labels, group)
    return rows_out_losses(z_MD, labels_M, scale_of(name, temperature, embeddings), group)


def rows_out_losses(
    z_MD: Tensor, labels_M: Tensor, scale: float | Tensor, group: Group | None = None
) -> Terms:
    """``rows_out_terms`` at half the work."""
    return _out(z_MD, labels_M, scale, among_themselves(z_MD, scale, group), group)


def rows_out_terms(
    z_MD: Tensor, labels_M: Tensor, scale: float | Tensor, group: Group | None = None
) -> Terms:
    """L_out of unit rows."""
    row_M = torch.arange(z_MD.shape[0], device=z_MD.device)
    found = denominators(z_MD, z_MD, scale, pairs=Pairs(rows=(row_M, row_M)), group=group)
    return _out(z_MD, labels_M, scale, found, group)


def _out(
    z_MD: Tensor,
    labels_M: Tensor,
    scale: float | Tensor,
    found: Denominators,
    group: Group | None,
) -> Terms:
    counts_M, positive_M = _positives(z_MD, labels_M, group)
    some_M = counts_M > 0
    loss_M = torch.where(some_M, found.rows - positive_M * scale, 0.0)

    def best() -> Tensor:
        return class_tops(z_MD, labels_M, scale, group) / scale

    negatives = _negatives(z_MD, counts_M, positive_M, group)
    return Terms(loss_M, positive_M, best, found.top, scale, negatives, some_M, group)


def in_terms(
    embeddings: Tensor,
    labels: Tensor | None,
    temperature: float | Tensor,
    group: Group | None = None,
) -> Terms:
    """Losses per row of L_in and what the metrics are read from."""
    name = "sup_con_in"
    z_MD, labels_M = _rows(name, embeddings, labels, group)
    scale = scale_of(name, temperature, embeddings)
    row_M = torch.arange(z_MD.shape[0], device=z_MD.device)
    rows = (row_M, row_M)
    found = denominators(z_MD, z_MD, scale, pairs=Pairs(rows=rows), group=group)
    pairs = Pairs(keep="same", labels=(labels_M, labels_M), rows=rows)
    same = denominators(z_MD, z_MD, scale, pairs=pairs, group=group)
    counts_M, positive_M = _positives(z_MD, labels_M, group)
    some_M = counts_M > 0
    log_counts_M = counts_M.clamp_min(1).to(z_MD.dtype).log()
    loss_M = torch.where(some_M, found.rows - same.rows + log_counts_M, 0.0)
    negatives = _negatives(z_MD, counts_M, positive_M, group)
    return Terms(
        loss_M, positive_M, lambda: same.top / scale, found.top, scale, negatives, some_M, group
    )


def _rows(
    name: str, embeddings: Tensor, labels: Tensor | None, group: Group | None
) -> tuple[Tensor, Tensor]:
    """Unit rows (M, D) and their labels (M,)."""
    if not isinstance(embeddings, Tensor):
        raise bad(name, "embeddings", "a tensor, (M, D) or (N, V, D)", type(embeddings).__name__)
    if embeddings.dim() not in (2, 3) or 0 in embeddings.shape:
        expected = "(M, D) or (N, V, D), non-empty"
        raise bad(name, "embeddings", expected, f"shape {tuple(embeddings.shape)}")
    h_MD = embeddings.flatten(0, -2)
    check_embeddings(name, embeddings=h_MD)
    num_samples, num_rows = embeddings.shape[0], h_MD.shape[0]
    if labels is None:
        if embeddings.dim() == 2:
            raise bad(name, "labels", "given for (M, D) embeddings", None)
        labels = ids_over_ranks(embeddings, group=group)
    labels_N = checked_ids(name, "labels", labels, num_samples, embeddings)
    labels_M = labels_N.repeat_interleave(num_rows // num_samples, output_size=num_rows)
    return unit_rows(h_MD), labels_M


def _positives(z_MD: Tensor, labels_M: Tensor, group: Group | None) -> tuple[Tensor, Tensor]:
    """(M,) number of positives and (M,) mean similarity to them, 0 without; no M x M mask."""
    counts_M = class_counts(labels_M, labels_M, group) - 1
    others_MD = class_sums(z_MD, labels_M, labels_M, group) - z_MD
    return counts_M, (z_MD * others_MD).sum(1) / counts_M.clamp_min(1)


def _negatives(
    z_MD: Tensor, counts_M: Tensor, positive_M: Tensor, group: Group | None
) -> Callable[[], tuple[Tensor, Tensor]]:
    def negatives() -> tuple[Tensor, Tensor]:
        sum_D = z_MD.sum(0)
        if group is not None:
            sum_D = sum_over_ranks(sum_D, group=group)
        total_M = (z_MD * (sum_D - z_MD)).sum(1)
        num_rows = count_over_ranks(z_MD, group=group)
        return total_M - positive_M * counts_M, num_rows - 1 - counts_M

    return negatives


FORMS = {"out": out_terms, "in": in_terms}
LOSSES = {"out": out_losses, "in": in_terms}


class SupConLoss(nn.Module):
    """``sup_con_out`` or ``sup_con_in`` as a module.

    Args:
        temperature, reduction, group: as of ``sup_con_out``.
        form: "out" (the paper's choice) or "in".

    Example:
        >>> import torch
        >>> from fastssl.losses import SupConLoss
        >>> loss = SupConLoss(0.1)(torch.randn(64, 128), torch.arange(64) % 10)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        form: str = "out",
        reduction: str = "mean",
        group: Group | None = None,
    ) -> None:
        super().__init__()
        check_reduction("SupConLoss", reduction)
        if form not in FORMS:
            raise bad("SupConLoss", "form", f"one of {tuple(FORMS)}", repr(form))
        hold_temperature(self, temperature)
        self.form = form
        self.reduction = reduction
        self.group = group

    def forward(self, embeddings: Tensor, labels: Tensor | None = None) -> Tensor:
        """Loss of (M, D) rows or (N, V, D) views and their labels: () or (M,)."""
        terms = LOSSES[self.form](embeddings, labels, self.temperature, self.group)
        return terms.reduced(self.reduction)

    def with_metrics(
        self, embeddings: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, ContrastiveMetrics]:
        """The loss and its metrics; a top-1 hit: the nearest other row is of its label."""
        terms = FORMS[self.form](embeddings, labels, self.temperature, self.group)
        return terms.reduced(self.reduction), terms.metrics()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, form={self.form!r}, reduction={self.reduction!r}"
