"""Supervised contrastive learning (Khosla et al. 2020, arXiv:2004.11362).

L_out = sum_i -1/|P(i)| sum_{p in P(i)} log exp(z_i.z_p / tau) / sum_{a != i} exp(z_i.z_a / tau)
over all 2N views, P(i) the other views with the label of i                     eq. 2; L_in eq. 3
"""

# shapes: N batch, V views, C channels, S side, D embedding
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses import SupConLoss
from fastssl.methods.configs import SupConConfig
from fastssl.methods.views import check_two_views
from fastssl.nn.heads import mlp


class SupCon(nn.Module):
    """Contrasts views of one class with those of all others; needs labels.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    def __init__(self, backbone: nn.Module, config: SupConConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(int(backbone.num_features), config.projector_dims, hidden="relu")  # type: ignore[arg-type]
        self.loss = SupConLoss(config.temperature, form=config.form)

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S) whose table knows their classes."""
        check_two_views("supcon", views)
        if table.class_N is None:
            raise ValueError("supcon: expected data with classes (one folder per class), got none")
        z0_ND, z1_ND = self.projector(self.backbone(torch.cat(views))).chunk(2)
        similarity_N = F.cosine_similarity(z0_ND.detach(), z1_ND.detach())
        loss = self.loss(torch.stack([z0_ND, z1_ND], dim=1), table.class_N)
        return loss, {"positive_similarity": similarity_N.mean()}

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the projector."""
        return self.backbone(x_NCSS)

    def chance_loss(self, num_samples: int) -> float:
        """The loss of embeddings that are all alike: log(2N - 1)."""
        return math.log(2 * num_samples - 1)
