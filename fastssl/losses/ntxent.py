"""SimCLR's loss as a module (Chen et al. 2020, arXiv:2002.05709, eq. 1)."""

# shapes: N samples, D embedding, V views, M = V * N rows
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.kernels.ntxent.checks import REDUCTIONS
from fastssl.kernels.ntxent.op import ntxent
from fastssl.losses.arguments import (
    bad,
    check_reduction,
    check_same_shape,
    hold_temperature,
    scale_of,
)
from fastssl.losses.denominators import unit_rows
from fastssl.losses.distributed import mean_over_ranks, symmetric_over_ranks
from fastssl.losses.metrics import ContrastiveMetrics, Terms
from fastssl.losses.multicrop import multi_crop_terms
from fastssl.losses.options import PLAIN, Options, check_options
from fastssl.losses.two_views import two_view_terms

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


class NTXentLoss(nn.Module):
    """Normalised temperature-scaled cross entropy over all views of a batch.

    Each row's positives are the other views of its sample; its negatives are every other row.
    Embeddings are given raw: the L2 normalisation is part of the kernel, and no M x M matrix of
    logits is handed to autograd.

    Args:
        temperature: finite and non-zero. A float; a one-element ``nn.Parameter`` to learn it; or a
            one-element tensor, which becomes a buffer: it follows ``.to()``, and is not saved.
        reduction: "mean" (over V * N rows), "sum" or "none".
        options: margin, smoothing, tau_plus (debiased), beta (hard negatives); two views alone.
        group: ranks whose batches are one batch: the rows of all of them are negatives; ``Ring`` of
            them to pass rows round instead of gathering them. None: the local rows alone. See
            ``gathered_ntxent`` for the loss and gradient that a rank gets.

    In a child forked after its parent computed with several threads it hangs, as torch does: use
    "spawn", or call ``torch.set_num_threads(1)`` first in the child.

    Example:
        >>> import torch
        >>> from fastssl.losses import NTXentLoss
        >>> z0, z1 = torch.randn(2, 256, 128, requires_grad=True)
        >>> loss = NTXentLoss(temperature=0.1)(z0, z1)
        >>> loss.backward()
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        reduction: str = "mean",
        options: Options | None = None,
        group: Group | None = None,
    ) -> None:
        super().__init__()
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"NTXentLoss: reduction must be one of {REDUCTIONS}; received {reduction!r}"
            )
        check_options("NTXentLoss", options)
        hold_temperature(self, temperature)
        self.reduction = reduction
        self.options = options
        self.group = group

    def forward(self, *views_ND: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        """Loss of two or more (N, D) views: () or, with reduction "none", (V * N,).

        Views are given by position: lightly's keywords ``out0`` and ``out1`` are not taken.
        With two views, ``sample_ids`` (N,) takes the rows of one id out of each other's
        negatives; the own partner stays.
        """
        if sample_ids is None and self.options in (None, PLAIN):
            if self.group is None:
                return ntxent(views_ND, self.temperature, reduction=self.reduction)
            return gathered_ntxent(
                views_ND, self.temperature, reduction=self.reduction, group=self.group
            )
        return self._terms(views_ND, sample_ids).reduced(self.reduction)

    def with_metrics(
        self, *views_ND: Tensor, sample_ids: Tensor | None = None
    ) -> tuple[Tensor, ContrastiveMetrics]:
        """The loss and its metrics; a top-1 hit: the nearest other row is of its sample."""
        terms = self._terms(views_ND, sample_ids)
        return terms.reduced(self.reduction), terms.metrics()

    def _terms(self, views_ND: tuple[Tensor, ...], sample_ids: Tensor | None) -> Terms:
        if len(views_ND) == 2:
            return two_view_terms(
                "NTXentLoss", *views_ND, self.temperature,
                sample_ids=sample_ids, options=self.options, group=self.group,
            )  # fmt: skip
        if sample_ids is not None or self.options not in (None, PLAIN) or len(views_ND) < 2:
            raise bad("NTXentLoss", "views", "two with options or sample_ids", len(views_ND))
        return multi_crop_terms(views_ND, self.temperature, None, self.group)

    def extra_repr(self) -> str:
        options = "" if self.options is None else f", options={self.options}"
        return f"temperature={self.temperature}, reduction={self.reduction!r}{options}"


def gathered_ntxent(
    views: Sequence[Tensor],
    temperature: float | Tensor = 0.1,
    *,
    reduction: str = "mean",
    group: Group,
) -> Tensor:
    """NT-Xent whose negatives are the rows of all ranks of ``group``, exact after DDP's averaging.

    Args:
        views: V >= 2 tensors (N, D) of raw embeddings, this rank's share of the global batch. N may
            differ from rank to rank (drop nothing), V and D may not.
        temperature: as ``ntxent``; the same on all ranks.
        reduction: "mean" over the LOCAL rows (ragged: weighted, so that the ranks' average is the
            global mean), "sum" of them or "none".
        group: every rank of it takes part, in forward and backward.

    Returns:
        () or (M,). The gradient is that of the SUM of all ranks' losses with respect to what this
        rank holds: averaged over ranks, as DDP does with the gradients of parameters (a learnt
        temperature among them), it is the gradient of the global mean.

    Raises:
        ValueError: an argument or the group does not fit; the message names it.
    """
    check_reduction("NTXentLoss", reduction)
    if isinstance(views, Tensor) or len(views) < 2:
        received = "one tensor" if isinstance(views, Tensor) else len(views)
        raise bad("NTXentLoss", "views", "at least two (N, D) tensors", received)
    check_same_shape("NTXentLoss", **{f"views[{v}]": view for v, view in enumerate(views)})
    z_MD = torch.cat([unit_rows(view) for view in views])
    scale = scale_of("NTXentLoss", temperature, views[0])
    z_VND = z_MD.unflatten(0, (len(views), -1))
    other_views_VND = z_VND.sum(dim=0) - z_VND
    positive_M = (z_VND * other_views_VND).sum(dim=2).flatten() / (len(views) - 1)
    loss_M = symmetric_over_ranks(z_MD, scale, group=group, bound=1.0).rows - scale * positive_M
    if reduction == "mean":
        return mean_over_ranks(loss_M, group=group)
    return loss_M.sum() if reduction == "sum" else loss_M
