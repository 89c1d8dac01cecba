"""SimSiam (Chen and He 2021, arXiv:2011.10566).

z_v = g(f(x_v)),  p_v = h(z_v)
L = D(p_1, sg(z_2)) / 2 + D(p_2, sg(z_1)) / 2,  D(p, z) = -cos(p, z)         eq. 2, algorithm 1
"""

# shapes: N batch, C channels, S side, D embedding
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.methods.configs import SimSiamConfig
from fastssl.methods.views import check_two_views
from fastssl.nn.cosine import row_cosine
from fastssl.nn.heads import mlp


class SimSiam(nn.Module):
    """Predicts one view's projection from the other's; the target gets no gradient.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    def __init__(self, backbone: nn.Module, config: SimSiamConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(int(backbone.num_features), config.projector_dims, last="bn_fixed")  # type: ignore[arg-type]
        width = config.projector_dims[-1]
        self.predictor = mlp(width, (config.predictor_hidden_dim, width))

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S); their order does not matter."""
        check_two_views("simsiam", views)
        z0_ND, z1_ND = (self.projector(self.backbone(view)) for view in views)
        p0_ND, p1_ND = self.predictor(z0_ND), self.predictor(z1_ND)
        first_N = row_cosine(p0_ND, z1_ND.detach())
        second_N = row_cosine(p1_ND, z0_ND.detach())
        spread = F.normalize(z0_ND.detach(), dim=1).std(dim=0).mean() * z0_ND.shape[1] ** 0.5
        return -(first_N.mean() + second_N.mean()) / 2, {"embedding_std": spread}

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the projector."""
        return self.backbone(x_NCSS)
