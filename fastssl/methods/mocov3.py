"""MoCo v3 (Chen, Xie, He 2021, arXiv:2104.02057): a momentum encoder, no queue.

q_v = h(g(f(x_v))),  k_v = g'(f'(x_v))          h predictor, f', g' exponential averages of f, g
L = ctr(q_1, k_2) + ctr(q_2, k_1),  ctr(q, k) = 2 tau CE(q k^T / tau, diagonal)        alg. 1
m rises from its base to 1 along half a cosine (appendix A)
"""

# shapes: N batch, C channels, S side, D embedding
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses import InfoNCELoss
from fastssl.methods.configs import MoCoV3Config
from fastssl.methods.views import check_two_views
from fastssl.nn.cosine import row_cosine
from fastssl.nn.ema import EMA, cosine_momentum
from fastssl.nn.heads import mlp


class MoCoV3(nn.Module):
    """Predicted queries of each view against a momentum encoder's keys of the other.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    def __init__(self, backbone: nn.Module, config: MoCoV3Config) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(int(backbone.num_features), config.projector_dims, last="bn_fixed")  # type: ignore[arg-type]
        width = config.projector_dims[-1]
        dims = (*config.predictor_hidden_dims, width)
        self.predictor = mlp(width, dims, last="bn_fixed")
        self.keys = EMA(self._encoder())
        self.loss = InfoNCELoss(config.temperature)
        self.temperature = config.temperature
        self.momentum = config.momentum
        if config.freeze_patch_embedding:
            freeze_patch_embedding(backbone)

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S); their order does not matter."""
        check_two_views("mocov3", views)
        queries = [self.predictor(self.projector(self.backbone(view))) for view in views]
        keys = [self.keys(view) for view in views]
        pairs = [(queries[0], keys[1]), (queries[1], keys[0])]
        losses = [2 * self.temperature * self.loss(q_ND, k_ND) for q_ND, k_ND in pairs]
        similarity = [row_cosine(q_ND.detach(), k_ND).mean() for q_ND, k_ND in pairs]
        return losses[0] + losses[1], {"positive_similarity": torch.stack(similarity).mean()}

    def after_step(self, step: int, total: int) -> None:
        """Moves the key encoder; ``step`` of ``total`` sets how far."""
        momentum = cosine_momentum(step, base=self.momentum, total=total)
        self.keys.update(self._encoder(), momentum=momentum)

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the projector."""
        return self.backbone(x_NCSS)

    def chance_loss(self, num_samples: int) -> float:
        """The loss of embeddings that are all alike: 4 tau log N."""
        return 4 * self.temperature * math.log(num_samples)

    def _encoder(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector)


def freeze_patch_embedding(backbone: nn.Module) -> None:
    """A random, fixed patch projection keeps ViTs stable (section 4.2 of the paper), in place.

    Raises ValueError for a backbone without one.
    """
    for name in ("conv_proj", "patch_embed"):  # torchvision's and timm's names
        embedding = getattr(backbone, name, None)
        if isinstance(embedding, nn.Module):
            embedding.requires_grad_(False)
            return
    raise ValueError(
        "freeze_patch_embedding: expected a ViT of torchvision or timm, received "
        f"{type(backbone).__name__}"
    )
