"""SwAV (Caron et al. 2020, arXiv:2006.09882), multi-crop included.

z_v = g(f(x_v)) / |.|,  scores_v = z_v C^T                C: prototypes, unit rows
q_v = codes of the large crops by Sinkhorn-Knopp, balanced over the batch      section 3.1, alg. 1
L = mean over large crops v and other crops w of -<q_v, log softmax(scores_w / tau)>     eq. 1, 2
"""

# shapes: N batch, V crops, C channels, S side, D embedding
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses import KeyQueue, SwAVLoss
from fastssl.methods.configs import SwAVConfig
from fastssl.methods.views import by_size, check_crops
from fastssl.nn.heads import CosinePrototypes, mlp


class SwAV(nn.Module):
    """Predicts the cluster codes of one crop from the others.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    steps: Tensor

    def __init__(self, backbone: nn.Module, config: SwAVConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(int(backbone.num_features), config.projector_dims)  # type: ignore[arg-type]
        width = config.projector_dims[-1]
        self.prototypes = CosinePrototypes(width, config.num_prototypes)
        self.loss = SwAVLoss(config.temperature, epsilon=config.epsilon)
        self.queue = None
        if config.queue_size:
            self.queue = KeyQueue(config.queue_size, width, num_queues=2, dtype=torch.float32)
        self.frozen_steps = config.freeze_prototypes_steps
        self.register_buffer("steps", torch.zeros(()))

    def forward(
        self, views: tuple[Tensor, ...], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two large views (N, C, S, S), then any number of smaller ones."""
        check_crops("swav", views)
        # the head, and its batch norm, sees all crops at once, as in the authors' code
        embeddings = by_size(self.projector, by_size(self.backbone, views))
        trained = (self.steps >= self.frozen_steps).to(embeddings[0].dtype)
        scores = [self.prototypes(z_ND, trained) for z_ND in embeddings]
        older = None
        if self.queue is not None:
            with torch.no_grad():
                # over ranks all hold one queue: each brings its share to the balancing
                older = [self.prototypes(rows.to(scores[0].dtype)) for rows in self.queue.share()]
        loss = self.loss(scores, older)
        if self.queue is not None and self.training:
            self.queue.enqueue(torch.stack(embeddings[:2]).detach())
        with torch.no_grad():
            share_C = F.one_hot(scores[0].argmax(1), scores[0].shape[1]).to(loss.dtype).mean(0)
            used = torch.special.entr(share_C).sum().exp()
        return loss, {"prototypes_used": used}

    def after_step(self, step: int, total: int) -> None:
        """Prototypes go back to unit length, as the authors keep them."""
        self.steps.fill_(step + 1)
        with torch.no_grad():
            weight = self.prototypes.weight
            weight.copy_(F.normalize(weight, dim=1))

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the projector."""
        return self.backbone(x_NCSS)
