"""CISSL (Dubois et al. 2022, arXiv:2209.06235, section 4.1): contrastive, with a linear student.

a_r = h(z_r) / |.|   student, of the probe's architecture: linear
b_c = g(z_c) / |.|   teacher, an MLP;   z = f(x) over the 2N views
L = -1/(2N) sum_r 1/2 [log softmax_c(a_r.b_c / tau) at c = r, and at c = the other view of r]
The self column stays: the heads differ. Nothing is detached.
"""

# shapes: N batch, M = 2 N rows, C channels, S side, D embedding
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses import CISSLLoss
from fastssl.losses.arguments import check_setting
from fastssl.methods.paper_configs import CISSLConfig
from fastssl.methods.views import check_two_views
from fastssl.nn.cosine import row_cosine
from fastssl.nn.expand import expand
from fastssl.nn.heads import mlp


class CISSL(nn.Module):
    """Contrasts linear student rows with MLP teacher rows.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    def __init__(self, backbone: nn.Module, config: CISSLConfig) -> None:
        super().__init__()
        check_setting("cissl", "dim", config.dim or 0, least=0)
        self.backbone = expand(backbone, config.dim) if config.dim else backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.teacher = mlp(width, config.projector_dims, last="bn")
        self.student = mlp(width, config.projector_dims[-1:], last="bn")
        self.loss = CISSLLoss(config.temperature)

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S); their order does not matter."""
        check_two_views("cissl", views)
        h_MF = self.backbone(torch.cat(views))
        a_MD, b_MD = self.student(h_MF), self.teacher(h_MF)
        other_MD = torch.cat(b_MD.detach().chunk(2)[::-1])
        similarity = row_cosine(a_MD.detach(), other_MD).mean()
        return self.loss(a_MD, b_MD), {"positive_similarity": similarity}

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the heads."""
        return self.backbone(x_NCSS)

    def chance_loss(self, num_samples: int) -> float:
        """The loss where all logits are equal: log 2N."""
        return math.log(2 * num_samples)
