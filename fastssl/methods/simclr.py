"""SimCLR (Chen et al. 2020, arXiv:2002.05709).

h = f(x)                                     encoder, section 2.1
z = g(h) = W2 relu(BN(W1 h))                 projection head, section 2.1
l(i, j) = -log exp(s_ij / tau) / sum_{k != i} exp(s_ik / tau)     eq. 1, s = cosine similarity
L = mean of l over all positive pairs (i, j) and (j, i)           algorithm 1
"""

# shapes: N batch, C channels, S side, D embedding
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses import NTXentLoss
from fastssl.methods.configs import SimCLRConfig
from fastssl.methods.views import check_two_views
from fastssl.nn.heads import projector


class SimCLR(nn.Module):
    """Contrasts two views of each image against all other images of the batch.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    def __init__(self, backbone: nn.Module, config: SimCLRConfig) -> None:
        super().__init__()
        if not 0 < config.temperature < math.inf:
            raise ValueError(
                f"simclr: temperature must be positive, received {config.temperature:g}"
            )
        self.backbone = backbone
        self.projector = projector(int(backbone.num_features), config.projector_dims)  # type: ignore[arg-type]
        self.loss = NTXentLoss(config.temperature)

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views, each (N, C, S, S), whose rows are the same N samples.

        Both views pass the network as one batch, so that batch normalisation sees them together
        as in the paper; the order of the views does not matter.
        """
        check_two_views("simclr", views)
        return self._loss(self.features(torch.cat(views)))

    def contrast(self, h_NF: Tensor, view: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, of the first view's features (N, F) and the second view."""
        return self._loss(torch.cat([h_NF, self.features(view)]))

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the projector."""
        return self.backbone(x_NCSS)

    def chance_loss(self, num_samples: int) -> float:
        """The loss of embeddings that are all alike: log(2N - 1)."""
        return math.log(2 * num_samples - 1)

    def _loss(self, h_MF: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z0_ND, z1_ND = self.projector(h_MF).chunk(2)
        similarity_N = F.cosine_similarity(z0_ND.detach(), z1_ND.detach())
        return self.loss(z0_ND, z1_ND), {"positive_similarity": similarity_N.mean()}
