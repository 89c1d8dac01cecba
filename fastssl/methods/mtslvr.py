"""MT-SLVR (Heggan et al. 2023, arXiv:2305.17191): contrast and prediction of the augmentations.

f^0, f^1 = the encoder's outputs for the two tasks;  features [f^0, f^1]
L_c = NT-Xent of g(f^0), or SimSiam's loss of it                                 section 3
L_p = mean over samples, views and operators of BCE(q(f^1), y),  y_j = 1 where operator j ran
L = L_c + w L_p,  w = 1;  task "cont" is L_c alone, "pred" L_p alone
The shared part of the encoder runs once per step, what is a task's own once per task. The authors'
learning rate swings back up every 1,000 steps: --schedule oscillating; ours falls once.
"""

# shapes: N batch, M views of all samples, C channels, S side, D task's output, O operators
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses import NTXentLoss
from fastssl.methods.paper_configs import MTSLVRConfig
from fastssl.methods.views import check_two_views
from fastssl.nn.adapters import AdapterNet, SplitNet
from fastssl.nn.cosine import row_cosine
from fastssl.nn.heads import mlp


class MTSLVR(nn.Module):
    """Learns what augmentations leave alone, and which of them ran, in two halves of the features.

    backbone: a torchvision ResNet-18 or 34, or the convnet; any encoder without adapters.
    """

    def __init__(self, backbone: nn.Module, config: MTSLVRConfig) -> None:
        super().__init__()
        self.task, self.over, self.weight = config.task, config.over, config.weight
        self.backbone = encoder(backbone, config)
        one = config.task != "both" or config.adapter == "none"
        dim = config.output_dim if one else config.output_dim // 2
        if self.task != "pred":
            hidden = "relu" if self.over == "simclr" else "bn"
            last = "linear" if self.over == "simclr" else "bn_fixed"
            dims = config.projector_dims
            self.projector = mlp(dim, dims, hidden=hidden, last=last)  # type: ignore[arg-type]
            if self.over == "simsiam":
                self.predictor = mlp(dims[-1], (config.predictor_hidden_dim, dims[-1]))
        if self.task != "cont":
            self.operators = mlp(dim, (*config.operator_hidden_dims, config.num_operators))
        self.num_operators = config.num_operators
        self.loss = NTXentLoss(config.temperature)

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S) whose table says which operators ran."""
        check_two_views("mtslvr", views)
        contrast_MD, predict_MD = self.backbone.tasks(torch.cat(views))  # type: ignore[operator]
        loss, metrics = views[0].new_zeros(()), {}
        if self.task != "pred":
            contrast = self._contrast(contrast_MD)
            loss, metrics["contrast"] = loss + contrast, contrast.detach()
        if self.task != "cont":
            prediction = self._prediction(predict_MD, table)
            weight = self.weight if self.task == "both" else 1.0
            loss, metrics["prediction"] = loss + weight * prediction, prediction.detach()
        return loss, metrics

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, output_dim): the two halves, side by side; before the heads."""
        return self.backbone(x_NCSS)

    def _contrast(self, f_MD: Tensor) -> Tensor:
        if self.over == "simclr":
            return self.loss(*self.projector(f_MD).chunk(2))
        z0_ND, z1_ND = (self.projector(f_ND) for f_ND in f_MD.chunk(2))
        p0_ND, p1_ND = self.predictor(z0_ND), self.predictor(z1_ND)
        first_N = row_cosine(p0_ND, z1_ND.detach())
        second_N = row_cosine(p1_ND, z0_ND.detach())
        return -(first_N.mean() + second_N.mean()) / 2

    def _prediction(self, f_MD: Tensor, table: Drawn) -> Tensor:
        labels_MO = table.labels_VNO.flatten(0, 1)
        if labels_MO.shape[1] != self.num_operators:
            raise ValueError(
                f"mtslvr: num_operators: expected {labels_MO.shape[1]}, those of the data's "
                f"augmentations, received {self.num_operators}"
            )
        logits_MO = self.operators(f_MD)
        return F.binary_cross_entropy_with_logits(logits_MO, labels_MO.to(logits_MO.dtype))


def encoder(backbone: nn.Module, config: MTSLVRConfig) -> nn.Module:
    """The backbone with one output for both tasks, or with the adapters and halves of the tasks."""
    if config.output_dim < 2 or config.output_dim % 2:
        raise ValueError(
            f"mtslvr: output_dim: expected an even number, received {config.output_dim}"
        )
    if config.task != "both" or config.adapter == "none":
        return SplitNet(backbone, (config.output_dim,))
    half = config.output_dim // 2
    if config.adapter == "split":
        return SplitNet(backbone, (half, half))
    return AdapterNet(backbone, config.adapter, dim=half)
