"""DINO's loss with its running centre (Caron et al. 2021, arXiv:2104.14294, eq. 1-4, alg. 1)."""

# shapes: N samples, C outputs
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.kernels.soft_targets.op import soft_targets
from fastssl.losses.arguments import check_count, check_setting
from fastssl.losses.crops import check_students, crop_list, other_crops
from fastssl.losses.distributed import count_over_ranks, mean_over_ranks, sum_over_ranks

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


def dino_loss(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    centre: Tensor | None = None,
    *,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    group: Group | None = None,
) -> Tensor:
    """Loss (): the mean cross entropy over pairs of a teacher's crop and another of the student.

    Args:
        students: (N, C) logits per crop; the teacher's crops first and in the same order.
        teachers: (N, C) logits per global crop; no gradient flows into them.
        centre: (C,) subtracted from the teacher's logits.
        student_temperature, teacher_temperature: positive.
        group: ranks whose batches are one batch, or ``Ring`` of them to pass rows round instead of
            gathering them; None: this process alone. The loss is over local rows; averaged by DDP
            its gradient is exact (convention: fastssl/losses/distributed.py).

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: Caron et al. 2021, eq. 3 and alg. 1.
    """
    teachers = crop_list("DINOLoss", "teachers", teachers, at_least=1)
    students = crop_list("DINOLoss", "students", students, at_least=2)
    check_students("DINOLoss", students, teachers)
    losses = []
    for position, teacher in enumerate(teachers):
        for student in other_crops(position, students):
            found = soft_targets(
                student,
                teacher.detach(),
                centre=centre,
                student_temperature=student_temperature,
                teacher_temperature=teacher_temperature,
            )
            losses.append(found.loss)
    loss_N = torch.stack(losses).mean(0)
    return loss_N.mean() if group is None else mean_over_ranks(loss_N, group=group)


class DINOLoss(nn.Module):
    """``dino_loss`` with the centre as a buffer: an exponential mean of the teacher's logits.

    The centre moves after each loss of training mode (eq. 4); a batch is centred by what the
    batches before it left. With a ``group`` (see ``dino_loss``) it is the mean over all ranks, the
    same on each. ``teacher_temperature`` may be set anew each epoch (DINO warms it up).

    Example:
        >>> import torch
        >>> from fastssl.losses import DINOLoss
        >>> students = [torch.randn(64, 1000, requires_grad=True) for _ in range(4)]
        >>> loss = DINOLoss(1000)(students, list(torch.randn(2, 64, 1000)))
        >>> loss.backward()
    """

    centre: Tensor

    def __init__(
        self,
        num_outputs: int,
        *,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        centre_momentum: float = 0.9,
        group: Group | None = None,
    ) -> None:
        super().__init__()
        check_count("DINOLoss", "num_outputs", num_outputs)
        check_setting("DINOLoss", "centre_momentum", centre_momentum)
        if not 0 <= centre_momentum <= 1:
            expected = "between 0 and 1"
            raise ValueError(
                f"DINOLoss: centre_momentum must be {expected}; received {centre_momentum}"
            )
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.centre_momentum = centre_momentum
        self.group = group
        self.register_buffer("centre", torch.zeros(num_outputs))

    def forward(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Loss () of the crops' logits, (N, C) each; see ``dino_loss``."""
        loss = dino_loss(
            students,
            teachers,
            self.centre.clone(),  # the backward needs the centre of this batch
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
            group=self.group,
        )
        if self.training:
            self.move_centre(teachers)
        return loss

    @torch.no_grad()
    def move_centre(self, teachers: Sequence[Tensor]) -> None:
        """centre <- m centre + (1 - m) mean of the teacher's logits over crops and samples."""
        mean_C = torch.stack([crop.to(self.centre.dtype).mean(0) for crop in teachers]).mean(0)
        if self.group is not None:
            share = teachers[0].shape[0] / count_over_ranks(teachers[0], group=self.group)
            mean_C = sum_over_ranks(mean_C * share, group=self.group)
        self.centre.lerp_(mean_C, 1 - self.centre_momentum)

    def extra_repr(self) -> str:
        return (
            f"num_outputs={len(self.centre)}, student_temperature={self.student_temperature}, "
            f"teacher_temperature={self.teacher_temperature}"
        )
