"""CISSL (Dubois et al. 2022, arXiv:2209.06235): a linear student against an MLP teacher.

    l_rc   = a_r . b_c / tau            a: unit student rows, b: unit teacher rows, r, c of M
    loss_r = log sum_c exp(l_rc) - mean_{v} l_{r, row of r's sample in view v}

The self column stays (the heads differ, so that it is no give-away) and is one of the targets:
with two views half the target is on the row itself and half on the other view.
"""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.losses.arguments import (
    bad,
    check_count,
    check_reduction,
    check_same_shape,
    hold_temperature,
    scale_of,
)
from fastssl.losses.denominators import denominators, unit_rows
from fastssl.losses.distributed import count_over_ranks, sum_over_ranks
from fastssl.losses.metrics import ContrastiveMetrics, Terms

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group

NAME = "cissl_loss"


def cissl_loss(
    student: Tensor,
    teacher: Tensor,
    temperature: float | Tensor = 0.07,
    *,
    num_views: int = 2,
    reduction: str = "mean",
    group: Group | None = None,
) -> Tensor:
    """CISSL's contrastive loss; nothing is detached, both heads learn.

    Args:
        student: (M, D) raw projections of all views, row v * N + n is sample n in view v.
        teacher: (M, D) raw projections of the same rows by the other head.
        temperature: finite, non-zero; a float, or a one-element tensor to learn it.
        num_views: V, which divides M.
        reduction: "mean", "sum" or "none".
        group: ranks whose batches are one batch, or ``Ring`` of them to pass rows round instead of
            gathering them; None: this process alone. The loss is over local rows; averaged by DDP
            its gradient is exact (convention: fastssl/losses/distributed.py).

    Returns:
        () or (M,) in float32 (float64 for float64 input); log M where all logits are equal.

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_reduction(NAME, reduction)
    return cissl_terms(student, teacher, temperature, num_views, group).reduced(reduction)


def cissl_terms(
    student: Tensor,
    teacher: Tensor,
    temperature: float | Tensor,
    num_views: int,
    group: Group | None = None,
) -> Terms:
    """Losses per row and what the metrics are read from; arguments of ``cissl_loss``."""
    check_same_shape(NAME, student=student, teacher=teacher)
    check_count(NAME, "num_views", num_views)
    if student.shape[0] % num_views:
        expected = f"of a multiple of num_views = {num_views} rows"
        raise bad(NAME, "student", expected, tuple(student.shape))
    scale = scale_of(NAME, temperature, student)
    a_MD, b_MD = unit_rows(student), unit_rows(teacher)
    found = denominators(a_MD, b_MD, scale, group=group)
    a_VND, b_VND = a_MD.unflatten(0, (num_views, -1)), b_MD.unflatten(0, (num_views, -1))
    positive_M = (a_VND * b_VND.mean(0)).sum(2).flatten()

    def best() -> Tensor:
        turns = [(a_VND * b_VND.roll(turn, 0)).sum(2).flatten() for turn in range(num_views)]
        return torch.stack(turns).amax(0)

    def negatives() -> tuple[Tensor, Tensor]:
        sum_D = b_MD.sum(0)
        if group is not None:
            sum_D = sum_over_ranks(sum_D, group=group)
        total_M = (a_MD * sum_D).sum(1) - num_views * positive_M
        num_rows = count_over_ranks(a_MD, group=group)
        return total_M, torch.full_like(total_M, num_rows - num_views)

    loss_M = found.rows - positive_M * scale
    return Terms(loss_M, positive_M, best, found.top, scale, negatives, group=group)


class CISSLLoss(nn.Module):
    """``cissl_loss`` as a module.

    Args:
        temperature, num_views, reduction, group: as of ``cissl_loss``.

    Example:
        >>> import torch
        >>> from fastssl.losses import CISSLLoss
        >>> student, teacher = torch.randn(2, 128, 64)  # two views of 64 samples, stacked
        >>> loss = CISSLLoss(temperature=0.07)(student, teacher)
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.07,
        *,
        num_views: int = 2,
        reduction: str = "mean",
        group: Group | None = None,
    ) -> None:
        super().__init__()
        check_reduction("CISSLLoss", reduction)
        hold_temperature(self, temperature)
        self.num_views = num_views
        self.reduction = reduction
        self.group = group

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Loss of (M, D) student and teacher rows: () or, with reduction "none", (M,)."""
        terms = cissl_terms(student, teacher, self.temperature, self.num_views, self.group)
        return terms.reduced(self.reduction)

    def with_metrics(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, ContrastiveMetrics]:
        """The loss and what its forward tells beside it."""
        terms = cissl_terms(student, teacher, self.temperature, self.num_views, self.group)
        return terms.reduced(self.reduction), terms.metrics()

    def extra_repr(self) -> str:
        return (
            f"temperature={self.temperature}, num_views={self.num_views}, "
            f"reduction={self.reduction!r}"
        )
