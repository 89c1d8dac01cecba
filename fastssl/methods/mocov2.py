"""MoCo v2 (He et al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297).

q = g(f(x_q)),  k = g'(f'(x_k))                       f', g': exponential averages of f, g
L = -log exp(q.k / tau) / (exp(q.k / tau) + sum_r exp(q.queue_r / tau))               eq. 1
theta' <- m theta' + (1 - m) theta;  k joins the queue, the oldest keys leave         alg. 1
"""

# shapes: N batch, C channels, S side, D embedding, K queue
from __future__ import annotations

import math

from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses import KeyQueue, MoCoLoss
from fastssl.methods.configs import MoCoV2Config
from fastssl.methods.views import check_two_views
from fastssl.nn.cosine import row_cosine
from fastssl.nn.ema import EMA
from fastssl.nn.heads import mlp
from fastssl.nn.split_norm import split_batch_norm


class MoCoV2(nn.Module):
    """Queries of one view against a momentum encoder's keys of the other and a queue of old keys.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    def __init__(self, backbone: nn.Module, config: MoCoV2Config) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = mlp(int(backbone.num_features), config.projector_dims, hidden="relu")  # type: ignore[arg-type]
        self.keys = EMA(self._encoder())
        split_batch_norm(self.keys, config.bn_splits)
        self.queue = KeyQueue(config.queue_size, config.projector_dims[-1])
        self.loss = MoCoLoss(config.temperature)
        self.momentum = config.momentum
        self.queries = config.queries

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S); keys of this batch join the queue after."""
        check_two_views("mocov2", views)
        first = self._loss(self.backbone(views[0]), views[1])
        if self.queries == "first":
            loss, similarity, keys = first[0], first[1], [first[2]]
        else:
            second = self._loss(self.backbone(views[1]), views[0])
            loss, similarity = ((a + b) / 2 for a, b in zip(first[:2], second[:2], strict=True))
            keys = [first[2], second[2]]
        self._enqueue(keys)
        return loss, {"positive_similarity": similarity}

    def contrast(self, h_NF: Tensor, view: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same with queries from features (N, F) and keys from a view."""
        loss, similarity, k_ND = self._loss(h_NF, view)
        self._enqueue([k_ND])
        return loss, {"positive_similarity": similarity}

    def after_step(self, step: int, total: int) -> None:
        """Moves the key encoder."""
        self.keys.update(self._encoder(), momentum=self.momentum)

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the projector."""
        return self.backbone(x_NCSS)

    def chance_loss(self, num_samples: int) -> float:
        """The loss of embeddings that are all alike: log(1 + K)."""
        return math.log(1 + len(self.queue.rows))

    def _encoder(self) -> nn.Sequential:
        return nn.Sequential(self.backbone, self.projector)

    def _loss(self, h_NF: Tensor, of_key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_ND, k_ND = self.projector(h_NF), self.keys(of_key)
        similarity = row_cosine(q_ND.detach(), k_ND).mean()
        return self.loss(q_ND, k_ND, self.queue), similarity, k_ND

    def _enqueue(self, keys: list[Tensor]) -> None:
        if self.training:
            for k_ND in keys:
                self.queue.enqueue(k_ND)
