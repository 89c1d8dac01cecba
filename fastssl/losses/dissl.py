"""DISSL's loss: distillation to a jointly trained teacher (Dubois et al. 2022, arXiv:2209.06235).

    t_i^a = softmax(teacher_i^a / tau_t)     s_i^b = softmax(student_i^b / tau_s)
    L = mean_{a != b} mean_i -<t_i^a, log s_i^b>                     distillation
        - lambda mean_a H(mean_i t_i^a)                              maximality
        + beta mean_{a != b} mean_i -<t_i^a, log t_i^b>              invariance and determinism

a and the second sum's b run over the teacher's crops, the first sum's b over the student's.
"""

# shapes: N samples, C outputs, T crops of the teacher
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.kernels.soft_targets.op import soft_targets
from fastssl.losses.arguments import check_setting
from fastssl.losses.crops import check_students, crop_list, other_crops
from fastssl.losses.distributed import count_over_ranks, mean_over_ranks, sum_over_ranks

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


def dissl_loss(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 0.5,
    maximality: float = 2.3,
    invariance: float = 0.8,
    group: Group | None = None,
) -> Tensor:
    """Loss () of the logits of all crops.

    Args:
        students: (N, C) per crop; the teacher's crops first and in the same order.
        teachers: (N, C) per crop the teacher sees, at least two. Nothing is detached.
        student_temperature, teacher_temperature: positive.
        maximality: lambda, of the entropy of the batch marginal. invariance: beta.
        group: ranks whose batches are one batch, or ``Ring`` of them to pass rows round instead of
            gathering them; None: this process alone. The loss is over local rows; averaged by DDP
            its gradient is exact (convention: fastssl/losses/distributed.py).
            The marginal is that of all ranks' samples.

    Raises:
        ValueError: crops are too few or of different shapes, or a temperature is not positive.

    Source: Dubois et al. 2022; the authors' issl/losses/dissl.py.
    """
    _check_weights(maximality, invariance)
    teachers = crop_list("DISSLLoss", "teachers", teachers, at_least=2)
    students = crop_list("DISSLLoss", "students", students, at_least=2)
    check_students("DISSLLoss", students, teachers)
    distil, invariant, marginals = [], [], []
    for position, teacher in enumerate(teachers):
        marginal = None
        for student in other_crops(position, students):
            found = soft_targets(
                student,
                teacher,
                student_temperature=student_temperature,
                teacher_temperature=teacher_temperature,
                marginal=marginal is None,
            )
            distil.append(found.loss)
            marginal = found.marginal if marginal is None else marginal
        marginals.append(marginal)
        for other in other_crops(position, teachers):
            invariant.append(_at_one(teacher_temperature, other, teacher))
    loss_N = torch.stack(distil).mean(0) + invariance * torch.stack(invariant).mean(0)
    marginals = _over_ranks(torch.stack(marginals), teachers[0], group)
    entropies = torch.stack([entropy(marginal_C) for marginal_C in marginals])
    mean = loss_N.mean() if group is None else mean_over_ranks(loss_N, group=group)
    return mean - maximality * entropies.mean()


def _at_one(tau: float, other: Tensor, teacher: Tensor) -> Tensor:
    found = soft_targets(other, teacher, student_temperature=tau, teacher_temperature=tau)
    return found.loss


def _check_weights(maximality: float, invariance: float) -> None:
    check_setting("DISSLLoss", "maximality", maximality)
    check_setting("DISSLLoss", "invariance", invariance)


def _over_ranks(marginals_TC: Tensor, rows: Tensor, group: Group | None) -> Tensor:
    """The marginals of all ranks' rows from those of each rank's."""
    if group is None:
        return marginals_TC
    share = rows.shape[0] / count_over_ranks(rows, group=group)
    return sum_over_ranks(marginals_TC * share, group=group)


def entropy(marginal_C: Tensor) -> Tensor:
    """-sum p log p in nats; the gradient stays finite where p is zero."""
    floor = torch.finfo(marginal_C.dtype).tiny
    return -(marginal_C * marginal_C.clamp_min(floor).log()).sum()


class DISSLLoss(nn.Module):
    """``dissl_loss`` as a module, ``group`` included.

    Example:
        >>> import torch
        >>> from fastssl.losses import DISSLLoss
        >>> students, teachers = torch.randn(2, 2, 256, 1000, requires_grad=True).unbind(0)
        >>> loss = DISSLLoss()(list(students), list(teachers))
        >>> loss.backward()
    """

    def __init__(
        self,
        student_temperature: float = 1.0,
        teacher_temperature: float = 0.5,
        *,
        maximality: float = 2.3,
        invariance: float = 0.8,
        group: Group | None = None,
    ) -> None:
        super().__init__()
        _check_weights(maximality, invariance)
        self.settings = {
            "student_temperature": student_temperature,
            "teacher_temperature": teacher_temperature,
            "maximality": maximality,
            "invariance": invariance,
        }
        self.group = group

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Loss () of the crops' logits, (N, C) each; see ``dissl_loss``."""
        return dissl_loss(students, teachers, **self.settings, group=self.group)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())
