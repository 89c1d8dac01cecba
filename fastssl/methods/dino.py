"""DINO (Caron et al. 2021, arXiv:2104.14294), multi-crop included.

P_s = softmax(g_s(f_s(x)) / tau_s),  P_t = softmax((g_t(f_t(x)) - c) / tau_t)            eq. 1
L = mean over large crops v and other crops w of -<P_t(v), log P_s(w)>              eq. 3, alg. 1
c <- m c + (1 - m) mean of the teacher's outputs (eq. 4); the teacher is an average of students
tau_t warms up, the last layer stands still at first                       section 3.1, appendix
"""

# shapes: N batch, V crops, C channels, S side, D embedding
from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses import DINOLoss
from fastssl.losses.arguments import check_setting
from fastssl.losses.dino import dino_loss
from fastssl.methods.configs import DINOConfig
from fastssl.methods.views import by_size, check_crops
from fastssl.nn.ema import EMA, cosine_momentum
from fastssl.nn.heads import CosinePrototypes, mlp


class DINO(nn.Module):
    """Matches a slow teacher's sharpened, centred distribution over learned outputs.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    steps: Tensor

    def __init__(self, backbone: nn.Module, config: DINOConfig) -> None:
        super().__init__()
        first = config.warmup_teacher_temperature
        check_setting("dino", "warmup_teacher_temperature", first, above=0.0)
        self.backbone = backbone
        self.projector = mlp(int(backbone.num_features), config.projector_dims, hidden="gelu")  # type: ignore[arg-type]
        self.outputs = CosinePrototypes(config.projector_dims[-1], config.num_outputs)
        self.teacher = EMA(self._encoder())
        self.loss = DINOLoss(
            config.num_outputs,
            student_temperature=config.temperature,
            teacher_temperature=config.teacher_temperature,
            centre_momentum=config.centre_momentum,
        )
        self.first_temperature = first
        self.warmup_steps = config.warmup_teacher_steps
        self.frozen_steps = config.freeze_outputs_steps
        self.momentum = config.momentum
        self.register_buffer("steps", torch.zeros(()))

    def forward(
        self, views: tuple[Tensor, ...], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two large views (N, C, S, S), then any number of smaller ones."""
        check_crops("dino", views)
        embeddings = by_size(lambda x: self.projector(self.backbone(x)), views)
        trained = (self.steps >= self.frozen_steps).to(embeddings[0].dtype)
        students = [self.outputs(z_ND, trained) for z_ND in embeddings]
        teachers = by_size(self.teacher, views[:2])
        loss = self._loss(students, teachers)
        with torch.no_grad():
            centred = (teachers[0] - self.loss.centre) / self._temperature()
            entropy = torch.special.entr(centred.softmax(1)).sum(1).mean()
        return loss, {"teacher_entropy": entropy}

    def after_step(self, step: int, total: int) -> None:
        """Moves the teacher; ``step`` of ``total`` sets how far."""
        self.steps.fill_(step + 1)
        momentum = cosine_momentum(step, base=self.momentum, total=total)
        self.teacher.update(self._encoder(), momentum=momentum)

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the projector."""
        return self.backbone(x_NCSS)

    def _loss(self, students: list[Tensor], teachers: list[Tensor]) -> Tensor:
        """DINOLoss at the temperature of this step: logits carry what it differs from the last."""
        ratio = self.loss.teacher_temperature / self._temperature()
        loss = dino_loss(
            students,
            [logits_NC * ratio.to(logits_NC.dtype) for logits_NC in teachers],
            self.loss.centre * ratio.to(self.loss.centre.dtype),
            student_temperature=self.loss.student_temperature,
            teacher_temperature=self.loss.teacher_temperature,
            group=self.loss.group,
        )
        if self.training:
            self.loss.move_centre(teachers)
        return loss

    def _temperature(self) -> Tensor:
        """Of the teacher now: linear from the first to the last over the warm-up."""
        progress = (self.steps / max(self.warmup_steps, 1)).clamp(max=1.0)
        progress = progress if self.warmup_steps else torch.ones_like(progress)
        last = self.loss.teacher_temperature
        return self.first_temperature + (last - self.first_temperature) * progress

    def _encoder(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector, self.outputs)
