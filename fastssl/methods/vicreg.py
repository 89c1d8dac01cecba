"""VICReg (Bardes, Ponce, LeCun 2022, arXiv:2105.04906).

L = l s(z, z') + m [v(z) + v(z')] + n [c(z) + c(z')]                                      eq. 6
s: mean squared difference per row over D;  v: mean over d of max(0, 1 - sqrt(var(z_d) + eps))
(halved, as in the authors' code)
c: sum of the squared off-diagonal covariances over D                                  eq. 1-5
"""

# shapes: N batch, C channels, S side, D embedding
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses.arguments import check_setting
from fastssl.losses.distributed import count_over_ranks, sum_over_ranks
from fastssl.methods.configs import VICRegConfig
from fastssl.methods.views import check_two_views
from fastssl.nn.heads import mlp

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_EPS = 1e-4


class VICReg(nn.Module):
    """Draws views together while each embedding keeps its variance and decorrelates.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    def __init__(self, backbone: nn.Module, config: VICRegConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(int(backbone.num_features), config.projector_dims, last="no_bias")  # type: ignore[arg-type]
        self.loss = VICRegLoss(config.invariance, config.variance, config.covariance)

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S); their order does not matter."""
        check_two_views("vicreg", views)
        z0_ND, z1_ND = (self.projector(self.backbone(view)) for view in views)
        return self.loss(z0_ND, z1_ND)

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the projector."""
        return self.backbone(x_NCSS)


class VICRegLoss(nn.Module):
    """Equation 6; with ``group`` statistics are those of all ranks (gradients as in losses/)."""

    def __init__(
        self,
        invariance: float,
        variance: float,
        covariance: float,
        *,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        check_setting("vicreg", "invariance", invariance, least=0.0)
        check_setting("vicreg", "variance", variance, least=0.0)
        check_setting("vicreg", "covariance", covariance, least=0.0)
        self.invariance, self.variance, self.covariance = invariance, variance, covariance
        self.group = group

    def forward(self, z0_ND: Tensor, z1_ND: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss () and its three parts."""
        dtype = torch.promote_types(z0_ND.dtype, torch.float32)
        with torch.autocast(z0_ND.device.type, enabled=False):  # products of float32 stay so
            return self._loss(z0_ND.to(dtype), z1_ND.to(dtype))

    def _loss(self, z0_ND: Tensor, z1_ND: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        count = len(z0_ND) if self.group is None else count_over_ranks(z0_ND, group=self.group)
        apart = self._total((z0_ND - z1_ND).square().sum()) / (count * z0_ND.shape[1])
        variance0, covariance0 = self._spread(z0_ND, count)
        variance1, covariance1 = self._spread(z1_ND, count)
        variance = (variance0 + variance1) / 2
        covariance = covariance0 + covariance1
        loss = self.invariance * apart + self.variance * variance + self.covariance * covariance
        parts = {"invariance": apart, "variance": variance, "covariance": covariance}
        return loss, {name: value.detach() for name, value in parts.items()}

    def _spread(self, z_ND: Tensor, count: int) -> tuple[Tensor, Tensor]:
        centred_ND = z_ND - self._total(z_ND.sum(0)) / count
        variance_D = self._total(centred_ND.square().sum(0)) / (count - 1)
        hinge = torch.relu(1 - torch.sqrt(variance_D + _EPS)).mean()
        c_DD = self._total(centred_ND.T @ centred_ND) / (count - 1)
        off = (c_DD.square().sum() - c_DD.diagonal().square().sum()) / len(variance_D)
        return hinge, off

    def _total(self, x: Tensor) -> Tensor:
        return x if self.group is None else sum_over_ranks(x, group=self.group)
