"""InvCLR (Foster, Pukdee, Rainforth 2021, arXiv:2010.09515): a gradient penalty for invariance.

h(alpha) = f(t(x; alpha)) / |.|        alpha: the differentiable parameters of the first view
V = mean_n E_alpha' |dh_n/dalpha (alpha' - alpha_n)|^2,   L = L_contrast + lambda min(V, u)
"forward": one alpha' a sample, all of h exactly, values and derivatives in one pass (nn.tangent);
"closed", "monte-carlo": G_n = d/d alpha_n sum_nd r_nd h_nd of fresh Rademacher r, double backward;
the mean of (G_n . (alpha' - alpha_n))^2 in closed form, G' (Cov + offset offset') G for uniforms,
or the authors' mean over 100 draws. The views pass the encoder separately.
Ours: bound "each", mean_n V_n u / (V_n + u), where a few samples rule the mean (h: 2 pi h / b);
normalise "total", V over the variance of all unit h: a constant h has no V, but no less of this.
"""

# shapes: N batch, C channels, S side, F features, A parameters, D embedding, L draws
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.augment.differentiable import alpha_of, limits_of, moved, rerender, with_leaf
from fastssl.augment.drawn import Drawn
from fastssl.losses.arguments import check_setting
from fastssl.methods.configs import MoCoV2Config, SimCLRConfig
from fastssl.methods.mocov2 import MoCoV2
from fastssl.methods.paper_configs import InvCLRConfig
from fastssl.methods.simclr import SimCLR
from fastssl.methods.views import check_two_views
from fastssl.nn.tangent import tangent

_DRAWS = 100


class InvCLR(nn.Module):
    """SimCLR or MoCo v2 whose features are pressed not to move with a view's parameters.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    def __init__(self, backbone: nn.Module, config: InvCLRConfig) -> None:
        super().__init__()
        check_setting("invclr", "penalty", config.penalty, least=0.0)
        check_setting("invclr", "clip", config.clip, above=0.0)
        temperature, dims = config.temperature, config.projector_dims
        self.contrast: nn.Module
        if config.over == "simclr":
            settings = SimCLRConfig(temperature=temperature, projector_dims=dims)
            self.contrast = SimCLR(backbone, settings)
        else:
            of_moco = MoCoV2Config(
                temperature=temperature,
                projector_dims=dims,
                queue_size=config.queue_size,
                momentum=config.momentum,
                bn_splits=config.bn_splits,
            )
            self.contrast = MoCoV2(backbone, of_moco)
        self.penalty, self.clip, self.bound = config.penalty, config.clip, config.bound
        self.expectation, self.normalise = config.expectation, config.normalise

    @property
    def backbone(self) -> nn.Module:
        """The encoder."""
        return self.contrast.backbone  # type: ignore[return-value]

    def leaves(self, table: Drawn) -> Drawn:
        """The table as ``forward`` needs it: alpha with a gradient. Called before each step."""
        return with_leaf(table)

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S); the first is made anew from its alpha."""
        check_two_views("invclr", views)
        penalised = self._forward if self.expectation == "forward" else self._reverse
        h_NF, variance_N = penalised(views[0], table)
        loss, metrics = self.contrast.contrast(h_NF, views[1])  # type: ignore[operator]
        metrics = {**metrics, "contrast": loss.detach(), "variance": variance_N.mean().detach()}
        return loss + self.penalty * self._bounded(variance_N), metrics

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation for evaluation: the encoder's output, before the projector."""
        return self.backbone(x_NCSS)

    def after_step(self, step: int, total: int) -> None:
        """Moves MoCo's key encoder."""
        if isinstance(self.contrast, MoCoV2):
            self.contrast.after_step(step, total)

    def _bounded(self, variance_N: Tensor) -> Tensor:
        if self.bound == "mean":
            return variance_N.mean().clamp(max=self.clip)
        return (variance_N * (self.clip / (variance_N + self.clip))).mean()

    def _forward(self, view_NCSS: Tensor, table: Drawn) -> tuple[Tensor, Tensor]:
        """Features of the first view and V_n (N,), of one alpha' for each sample."""
        low_A, high_A = limits_of(table)
        alpha_NA = alpha_of(table, 0)
        step_NA = low_A + (high_A - low_A) * torch.rand_like(alpha_NA) - alpha_NA.detach()
        made = moved(table, 0, alpha_NA, step_NA, side=view_NCSS.shape[-1])
        h_NF, dh_NF = tangent(self.backbone, *(part.to(view_NCSS.dtype) for part in made))
        if self.normalise == "none":
            return h_NF, _wide(dh_NF).square().sum(1)
        length_N1 = _wide(h_NF).norm(dim=1, keepdim=True).clamp(min=1e-12)
        unit_NF, dunit_NF = _wide(h_NF) / length_N1, _wide(dh_NF) / length_N1
        dunit_NF = dunit_NF - unit_NF * (unit_NF * dunit_NF).sum(1, keepdim=True)
        return h_NF, self._relative(dunit_NF.square().sum(1), unit_NF)

    def _reverse(self, view_NCSS: Tensor, table: Drawn) -> tuple[Tensor, Tensor]:
        """Features of the first view and V_n (N,), of one sign for each feature."""
        alpha_NA = alpha_of(table, 0)
        made_NCSS = rerender(table, 0, alpha_NA, side=view_NCSS.shape[-1]).to(view_NCSS.dtype)
        h_NF = self.backbone(made_NCSS)
        unit_NF = _wide(h_NF) if self.normalise == "none" else F.normalize(_wide(h_NF), dim=1)
        signs_NF = torch.randint(0, 2, h_NF.shape, device=h_NF.device).to(unit_NF.dtype) * 2 - 1
        (g_NA,) = torch.autograd.grad((signs_NF * unit_NF).sum(), alpha_NA, create_graph=True)
        low_A, high_A = limits_of(table)
        if self.expectation == "monte-carlo":
            unit_LNA = torch.rand(_DRAWS, *g_NA.shape, dtype=g_NA.dtype, device=g_NA.device)
            apart_LNA = low_A + (high_A - low_A) * unit_LNA - alpha_NA.detach()
            return h_NF, self._relative((g_NA * apart_LNA).sum(2).square().mean(0), unit_NF)
        spread_A = (high_A - low_A).square() / 12
        offset_NA = (low_A + high_A) / 2 - alpha_NA.detach()
        squares_N = (g_NA.square() * spread_A).sum(1) + (g_NA * offset_NA).sum(1).square()
        return h_NF, self._relative(squares_N, unit_NF)

    def _relative(self, variance_N: Tensor, unit_NF: Tensor) -> Tensor:
        """Over the batch's variance of all unit features, where that is asked for."""
        if self.normalise != "total":
            return variance_N
        return variance_N / unit_NF.var(0).sum().clamp(min=1e-12)


def _wide(h_NF: Tensor) -> Tensor:
    return h_NF.float() if h_NF.dtype.itemsize < 4 else h_NF
