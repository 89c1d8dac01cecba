"""Stochastic contrastive learning, after the abstract of Ramapuram et al. 2021 (arXiv:2110.00552).

Not verified against the full paper: only its abstract is public; what follows is a reconstruction.
  q(u | x): latent with posterior from a linear map;   u_v ~ q(u | x_v)
  L = NT-Xent(z_1, z_2; tau) + beta(t) 1/2 sum_v mean_n KL(q(u | x_v) || p(u))
placement "representation": u = latent(f(x)), z = g(u);   "head": u = latent(g(f(x))), z = u
beta rises linearly from 0 over the warm-up. At test time the code replaces the sample.
"""

# shapes: N batch, C channels, S side, D embedding
from __future__ import annotations

import torch
from torch import Tensor, nn

from fastssl.augment.drawn import Drawn
from fastssl.losses import NTXentLoss
from fastssl.losses.arguments import check_setting
from fastssl.methods.paper_configs import StochasticConfig
from fastssl.methods.views import check_two_views
from fastssl.nn.heads import mlp
from fastssl.nn.latent import (
    NATS_PER_BIT,
    BernoulliLatent,
    CategoricalLatent,
    Coded,
    GaussianLatent,
)


class Stochastic(nn.Module):
    """SimCLR through a stochastic bottleneck, whose rate is paid for.

    backbone: (N, 3, S, S) -> (N, F), with F as its ``num_features``.
    """

    steps: Tensor

    def __init__(self, backbone: nn.Module, config: StochasticConfig) -> None:
        super().__init__()
        check_setting("stochastic", "beta", config.beta, least=0.0)
        check_setting("stochastic", "relaxation", config.relaxation, above=0.0)
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.placement = config.placement
        if config.placement == "head":
            self.backbone = backbone
            self.projector = mlp(width, config.projector_dims)
            self.latent = make_latent(config.projector_dims[-1], config)
        else:
            self.backbone = Coded(backbone, make_latent(width, config))
            self.projector = mlp(self.backbone.num_features, config.projector_dims)
        self.loss = NTXentLoss(config.temperature)
        self.beta, self.warmup_steps = config.beta, config.warmup_beta_steps
        self.register_buffer("steps", torch.zeros(()))

    def forward(
        self, views: tuple[Tensor, Tensor], table: Drawn | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of two views (N, C, S, S); ``rate_bits`` is the KL per view."""
        check_two_views("stochastic", views)
        x_MCSS = torch.cat(views)
        if self.placement == "head":
            posterior = self.latent(self.projector(self.backbone(x_MCSS)))
            z_MD = posterior.sample_ND
        else:
            posterior = self.backbone.posterior(x_MCSS)
            z_MD = self.projector(posterior.sample_ND.to(x_MCSS.dtype))
        contrast = self.loss(*z_MD.chunk(2))
        rate = posterior.rate_N.mean()
        weight = self.beta * self._progress().to(rate.dtype)
        metrics = {"contrast": contrast.detach(), "rate_bits": rate.detach() / NATS_PER_BIT}
        return contrast + weight * rate, metrics

    def _progress(self) -> Tensor:
        """Of the warm-up of beta, 0 to 1."""
        if not self.warmup_steps:
            return torch.ones_like(self.steps)
        return (self.steps / self.warmup_steps).clamp(max=1.0)

    def after_step(self, step: int, total: int) -> None:
        """Counts steps for the warm-up of beta."""
        self.steps.fill_(step + 1)

    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) of the encoder, or (N, latent_dim) where the latent's code is its output."""
        return self.backbone(x_NCSS)


def make_latent(width: int, config: StochasticConfig) -> nn.Module:
    """The latent layer that the settings name."""
    if config.latent == "gaussian":
        return GaussianLatent(width, config.latent_dim)
    options = {"relaxation": config.relaxation, "sampling": config.sampling}
    if config.latent == "bernoulli":
        return BernoulliLatent(width, config.latent_dim, **options)  # type: ignore[arg-type]
    return CategoricalLatent(width, config.latent_dim, values=config.values, **options)  # type: ignore[arg-type]
