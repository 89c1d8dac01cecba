"""Amortised invariance learning (Chavhan et al. 2023, arXiv:2302.12712).

i in {0, 1}^K drawn once per step; group k of augmentations runs where i_k = 1
h = f(x; i)   kernels (or a ViT's prompt token) are functions of i; one head per corner i
L = contrastive loss of the two views under that i                                  section 3.2
over "simclr" NT-Xent; "mocov2" a momentum encoder and a queue per corner; "mocov3" predictor
heads, a momentum encoder, 2 tau CE in both directions
Downstream i in [0, 1]^K is learned with the readout, everything else stays (evaluation/invariance).
"""

# shapes: N batch, C channels, S side, K bits, D embedding
from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses import InfoNCELoss, KeyQueue, MoCoLoss, NTXentLoss
from fastssl.losses.arguments import check_count
from fastssl.methods.paper_configs import AmortisedConfig
from fastssl.methods.views import check_two_views
from fastssl.nn.corner_heads import CornerHeads
from fastssl.nn.ema import EMA, cosine_momentum
from fastssl.nn.hyper import HyperEncoder
from fastssl.nn.prompt_vit import PromptViT
from fastssl.nn.split_norm import split_batch_norm


class Amortised(nn.Module):
    """One encoder for every invariance of the cube, told which one by a vector.

    backbone: a torchvision ResNet or ViT, or the convnet.
    """

    def __init__(self, backbone: nn.Module, config: AmortisedConfig) -> None:
        super().__init__()
        check_count("amortised", "rank", config.rank)
        self.backbone = condition(backbone, config)
        dims, corners = config.projector_dims, config.num_corners
        norm = "batch" if config.over == "mocov3" else "none"
        width = int(self.backbone.num_features)  # type: ignore[arg-type]
        self.heads = CornerHeads(corners, width, dims, norm=norm)
        self.over = config.over
        self.temperature, self.momentum = config.temperature, config.momentum
        if config.over == "simclr":
            self.loss: nn.Module = NTXentLoss(config.temperature)
            return
        self.keys = EMA(nn.ModuleDict({"backbone": self.backbone, "heads": self.heads}))
        if config.over == "mocov2":
            split_batch_norm(self.keys, config.bn_splits)
            self.loss = MoCoLoss(config.temperature)
            self.queues = KeyQueue(config.queue_size, dims[-1], num_queues=corners)
            return
        self.loss = InfoNCELoss(config.temperature)
        hidden = config.predictor_hidden_dims
        self.predictors = CornerHeads(corners, dims[-1], (*hidden, dims[-1]), norm=norm)

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S) made under the corner of the table."""
        check_two_views("amortised", views)
        bits_K, corner = table.bits_K.to(views[0].dtype), table.corner
        num_bits = int(self.backbone.num_bits)  # type: ignore[arg-type]
        if len(bits_K) != num_bits:
            raise ValueError(
                f"amortised: num_bits: expected {len(bits_K)}, the groups of the data's "
                f"augmentations, received {num_bits}"
            )
        losses = {"simclr": self._simclr, "mocov2": self._mocov2, "mocov3": self._mocov3}
        loss = losses[self.over](views, bits_K, corner)
        return loss, {"bits_on": bits_K.sum()}

    def features(self, x_NCSS: Tensor, bits_K: Tensor | None = None) -> Tensor:
        """(N, F) under an invariance vector (K,); by default invariant to all groups."""
        if bits_K is None:
            bits_K = x_NCSS.new_ones(int(self.backbone.num_bits))  # type: ignore[arg-type]
        return self.backbone(x_NCSS, bits_K)

    def after_step(self, step: int, total: int) -> None:
        """Moves the key encoder, where there is one."""
        if self.over == "simclr":
            return
        momentum = self.momentum
        if self.over == "mocov3":
            momentum = cosine_momentum(step, base=self.momentum, total=total)
        source = nn.ModuleDict({"backbone": self.backbone, "heads": self.heads})
        self.keys.update(source, momentum=momentum)

    def _simclr(self, views: tuple[Tensor, Tensor], bits_K: Tensor, corner: Tensor) -> Tensor:
        z_MD = self.heads(self.backbone(torch.cat(views), bits_K), corner)
        return self.loss(*z_MD.chunk(2))

    def _mocov2(self, views: tuple[Tensor, Tensor], bits_K: Tensor, corner: Tensor) -> Tensor:
        q_ND = self.heads(self.backbone(views[0], bits_K), corner)
        k_ND = self._keys(views[1], bits_K, corner)
        rows_KD = self.queues.rows.index_select(0, corner.view(1))[0]
        loss = self.loss(q_ND, k_ND, rows_KD)
        if self.training:
            self.queues.enqueue(k_ND, queue=corner)
        return loss

    def _mocov3(self, views: tuple[Tensor, Tensor], bits_K: Tensor, corner: Tensor) -> Tensor:
        queries = [self.heads(self.backbone(view, bits_K), corner) for view in views]
        queries = [self.predictors(q_ND, corner) for q_ND in queries]
        keys = [self._keys(view, bits_K, corner) for view in views]
        pairs = ((queries[0], keys[1]), (queries[1], keys[0]))
        return 2 * self.temperature * sum(self.loss(q_ND, k_ND) for q_ND, k_ND in pairs)

    @torch.no_grad()
    def _keys(self, view: Tensor, bits_K: Tensor, corner: Tensor) -> Tensor:
        slow = self.keys.module
        return slow["heads"](slow["backbone"](view, bits_K), corner)


def condition(backbone: nn.Module, config: AmortisedConfig) -> nn.Module:
    """The backbone told an invariance vector: by its kernels, or by a prompt token for a ViT."""
    if hasattr(backbone, "class_token"):
        return PromptViT(backbone, config.num_bits, num_networks=config.prompt_networks)
    return HyperEncoder(
        backbone,
        config.num_bits,
        generator=config.generator,
        rank=config.rank,
        dropout=config.dropout,
    )
