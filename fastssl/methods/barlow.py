"""Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230).

z_v = BN(g(f(x_v)))  (per dimension over the batch, no scale or shift),  C = z_1^T z_2 / N
L = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2                                    eq. 1
"""

# shapes: N batch, C channels, S side, D embedding
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses.arguments import check_setting
from fastssl.losses.distributed import count_over_ranks, sum_over_ranks
from fastssl.methods.configs import BarlowConfig
from fastssl.methods.views import check_two_views
from fastssl.nn.heads import mlp

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class BarlowTwins(nn.Module):
    """Makes the cross-correlation of two views' embeddings the identity.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    def __init__(self, backbone: nn.Module, config: BarlowConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(int(backbone.num_features), config.projector_dims, last="no_bias")  # type: ignore[arg-type]
        self.loss = CrossCorrelationLoss(config.redundancy)

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S); their order does not matter."""
        check_two_views("barlow", views)
        z0_ND, z1_ND = (self.projector(self.backbone(view)) for view in views)
        return self.loss(z0_ND, z1_ND)

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the projector."""
        return self.backbone(x_NCSS)


class CrossCorrelationLoss(nn.Module):
    """Equation 1; with ``group`` the batch is that of all ranks (gradients as in losses/)."""

    def __init__(self, redundancy: float, *, group: ProcessGroup | None = None) -> None:
        super().__init__()
        check_setting("barlow", "redundancy", redundancy, least=0.0)
        self.redundancy = redundancy
        self.group = group

    def forward(self, z0_ND: Tensor, z1_ND: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss () and the mean correlation on the diagonal."""
        dtype = torch.promote_types(z0_ND.dtype, torch.float32)
        with torch.autocast(z0_ND.device.type, enabled=False):  # products of float32 stay so
            return self._loss(z0_ND.to(dtype), z1_ND.to(dtype))

    def _loss(self, z0_ND: Tensor, z1_ND: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        count = len(z0_ND) if self.group is None else count_over_ranks(z0_ND, group=self.group)
        unit0_ND, unit1_ND = (self._standardised(z_ND, count) for z_ND in (z0_ND, z1_ND))
        c_DD = self._total(unit0_ND.T @ unit1_ND) / count
        on_D = c_DD.diagonal()
        off = c_DD.square().sum() - on_D.square().sum()
        loss = (1 - on_D).square().sum() + self.redundancy * off
        return loss, {"diagonal": on_D.detach().mean()}

    def _standardised(self, z_ND: Tensor, count: int) -> Tensor:
        """Batch normalisation without scale and shift, over the rows of all ranks."""
        centred_ND = z_ND - self._total(z_ND.sum(0)) / count
        variance_D = self._total(centred_ND.square().sum(0)) / count
        return centred_ND * torch.rsqrt(variance_D + 1e-5)

    def _total(self, x: Tensor) -> Tensor:
        return x if self.group is None else sum_over_ranks(x, group=self.group)
