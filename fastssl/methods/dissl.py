"""DISSL (Dubois et al. 2022, arXiv:2209.06235, section 4.2): distillation from a joint teacher.

t_v = softmax(g(z_v) / tau_t),  s_v = softmax(h(z_v) / tau_s),  p_v = mean over the batch of t_v
L = mean_{v != w} -<t_v, log s_w>                       distillation to a linear student
  - lambda mean_v H(p_v)                                maximality
  + beta mean_{v != w} -<t_v, log t_w>                  invariance and determinism
v over the large crops, w of the first sum over all. Nothing is detached; no momentum, no queue.
"""

# shapes: N batch, V crops, C channels, S side, F features
from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses import DISSLLoss
from fastssl.losses.arguments import check_setting
from fastssl.methods.paper_configs import DISSLConfig
from fastssl.methods.views import by_size, check_crops
from fastssl.nn.expand import expand
from fastssl.nn.heads import mlp


class DISSL(nn.Module):
    """Distils a teacher that maximises the entropy of its classes over the batch.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    def __init__(self, backbone: nn.Module, config: DISSLConfig) -> None:
        super().__init__()
        check_setting("dissl", "dim", config.dim or 0, least=0)
        self.backbone = expand(backbone, config.dim) if config.dim else backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        classes, neck = config.num_outputs, config.bottleneck_dim
        self.teacher = nn.Sequential(
            *mlp(width, (*config.teacher_hidden_dims, neck), last="bn"), nn.Linear(neck, classes)
        )
        self.student = nn.Sequential(*mlp(width, (neck,), last="bn"), nn.Linear(neck, classes))
        self.loss = DISSLLoss(
            config.temperature,
            config.teacher_temperature,
            maximality=config.maximality,
            invariance=config.invariance,
        )

    def forward(
        self, views: tuple[Tensor, ...], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two large views (N, C, S, S), then any number of smaller ones."""
        check_crops("dissl", views)
        features = by_size(self.backbone, views)
        students = by_size(self.student, features)
        teachers = by_size(self.teacher, features[:2])
        loss = self.loss(students, teachers)
        with torch.no_grad():
            t_NC = (teachers[0].float() / self.loss.settings["teacher_temperature"]).softmax(1)
            marginal = torch.special.entr(t_NC.mean(0)).sum()
            conditional = torch.special.entr(t_NC).sum(1).mean()
        return loss, {"teacher_entropy": marginal, "conditional_entropy": conditional}

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the heads."""
        return self.backbone(x_NCSS)
