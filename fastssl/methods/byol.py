"""BYOL (Grill et al. 2020, arXiv:2006.07733).

z_v = g(f(x_v)), p_v = h(z_v) online;  t_v = g'(f'(x_v)) target, an exponential average
L = sum over both orders of |p_v / |p_v| - t_w / |t_w||^2 = 2 - 2 cos(p_v, t_w)            eq. 2
m rises from its base to 1 along half a cosine                                       section 3.2
"""

# shapes: N batch, C channels, S side, D embedding
from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.methods.configs import BYOLConfig
from fastssl.methods.views import check_two_views
from fastssl.nn.cosine import row_cosine
from fastssl.nn.ema import EMA, cosine_momentum
from fastssl.nn.heads import mlp


class BYOL(nn.Module):
    """Predicts a slow copy's projection of the other view; no negatives.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    def __init__(self, backbone: nn.Module, config: BYOLConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(int(backbone.num_features), config.projector_dims)  # type: ignore[arg-type]
        width = config.projector_dims[-1]
        self.predictor = mlp(width, (config.predictor_hidden_dim, width))
        self.target = EMA(self._encoder())
        self.momentum = config.momentum

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S); their order does not matter."""
        check_two_views("byol", views)
        p0_ND, p1_ND = (self.predictor(self.projector(self.backbone(view))) for view in views)
        t0_ND, t1_ND = (self.target(view) for view in views)
        similarity_N = row_cosine(p0_ND, t1_ND) + row_cosine(p1_ND, t0_ND)
        spread = F.normalize(t0_ND, dim=1).std(dim=0).mean() * t0_ND.shape[1] ** 0.5
        return 4 - 2 * similarity_N.mean(), {"embedding_std": spread}

    def after_step(self, step: int, total: int) -> None:
        """Moves the target network; ``step`` of ``total`` sets how far."""
        momentum = cosine_momentum(step, base=self.momentum, total=total)
        self.target.update(self._encoder(), momentum=momentum)

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the projector."""
        return self.backbone(x_NCSS)

    def _encoder(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector)
