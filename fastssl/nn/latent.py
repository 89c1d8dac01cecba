"""Stochastic latent layers: a posterior per sample, its sample, its code, its rate.

Families: Gaussian N(mu, s^2) with prior N(0, 1); Bernoulli bits with prior 1/2, sampled relaxed
(binary Concrete, Maddison et al. 2017, arXiv:1611.00712) or hard with a straight-through gradient;
categorical variables of K values with a uniform prior (Gumbel-softmax, Jang et al. 2017). The rate
is the KL from the prior in nats, summed over the latent's dimensions. ``values`` and ``layout`` of
a latent are those of ``nn.codes``; 0 and None for floats.
"""

# shapes: N batch, C channels, S side, F features, D latent, G variables, K values of each
from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NATS_PER_BIT = math.log(2)
_LEAST_SCALE = 1e-4


class Posterior(NamedTuple):
    """What a latent layer makes of its input."""

    sample_ND: Tensor  # differentiable, what training goes on with
    code_ND: Tensor  # deterministic: mean, hard bits, or one-hot mode
    rate_N: Tensor  # KL from the prior, nats


class GaussianLatent(nn.Module):
    """D independent Gaussians."""

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.parameters_of = nn.Linear(num_features, 2 * dim)
        self.dim, self.values, self.layout = dim, 0, None
        self.code_bits = 32 * dim

    def forward(self, h_NF: Tensor) -> Posterior:
        """mu and softplus scale from a linear map; reparameterised sample."""
        mu_ND, raw_ND = _wide(self.parameters_of(h_NF)).chunk(2, dim=1)
        scale_ND = F.softplus(raw_ND) + _LEAST_SCALE
        sample_ND = mu_ND + scale_ND * torch.randn_like(mu_ND)
        rate_ND = 0.5 * (mu_ND.square() + scale_ND.square() - 1) - scale_ND.log()
        return Posterior(sample_ND, mu_ND, rate_ND.sum(1))

    def hardened(self, sample_ND: Tensor) -> Tensor:
        """The sample itself: its rate is that of floats."""
        return sample_ND


class BernoulliLatent(nn.Module):
    """D bits; ``relaxation`` is the Concrete's temperature. Samples and codes are -1 to 1."""

    def __init__(
        self,
        num_features: int,
        dim: int,
        *,
        relaxation: float = 0.5,
        sampling: Literal["relaxed", "hard"] = "relaxed",
    ) -> None:
        super().__init__()
        self.parameters_of = nn.Linear(num_features, dim)
        self.relaxation, self.sampling = relaxation, sampling
        self.dim, self.values, self.layout = dim, 2, "signs"
        self.code_bits = dim

    def forward(self, h_NF: Tensor) -> Posterior:
        """Logits from a linear map."""
        logits_ND = _wide(self.parameters_of(h_NF))
        u_ND = torch.rand_like(logits_ND).clamp(1e-6, 1 - 1e-6)
        soft_ND = torch.sigmoid((logits_ND + torch.logit(u_ND)) / self.relaxation)
        if self.sampling == "hard":
            soft_ND = (soft_ND > 0.5).to(soft_ND.dtype) + soft_ND - soft_ND.detach()
        p_ND = torch.sigmoid(logits_ND)
        entropy_ND = F.softplus(logits_ND) - logits_ND * p_ND
        code_ND = torch.where(logits_ND >= 0, 1.0, -1.0)
        return Posterior(2 * soft_ND - 1, code_ND, (math.log(2) - entropy_ND).sum(1))

    def hardened(self, sample_ND: Tensor) -> Tensor:
        """The bits, -1 or 1, of a relaxed sample: distributed as the rate supposes."""
        return torch.where(sample_ND > 0, 1.0, -1.0)


class CategoricalLatent(nn.Module):
    """G variables of K values each, one-hot: D = G K."""

    def __init__(
        self,
        num_features: int,
        dim: int,
        *,
        values: int = 16,
        relaxation: float = 0.5,
        sampling: Literal["relaxed", "hard"] = "relaxed",
    ) -> None:
        super().__init__()
        if values < 2:
            raise ValueError(f"values: expected at least 2 of each variable, received {values}")
        if dim % values:
            raise ValueError(f"latent_dim: expected a multiple of {values} values, received {dim}")
        self.parameters_of = nn.Linear(num_features, dim)
        self.relaxation, self.sampling = relaxation, sampling
        self.dim, self.values, self.layout = dim, values, "one-hot"
        self.code_bits = dim // values * math.ceil(math.log2(values))

    def forward(self, h_NF: Tensor) -> Posterior:
        """Logits from a linear map."""
        logits_NGK = _wide(self.parameters_of(h_NF)).unflatten(1, (-1, self.values))
        noise_NGK = -torch.log(-torch.log(torch.rand_like(logits_NGK).clamp(1e-6, 1 - 1e-6)))
        soft_NGK = ((logits_NGK + noise_NGK) / self.relaxation).softmax(2)
        if self.sampling == "hard":
            soft_NGK = _one_hot(soft_NGK) + soft_NGK - soft_NGK.detach()
        log_NGK = logits_NGK.log_softmax(2)
        rate_NG = (log_NGK.exp() * log_NGK).sum(2) + math.log(self.values)
        return Posterior(soft_NGK.flatten(1), _one_hot(logits_NGK).flatten(1), rate_NG.sum(1))

    def hardened(self, sample_ND: Tensor) -> Tensor:
        """The values, one-hot, of a relaxed sample: distributed as the rate supposes."""
        return _one_hot(sample_ND.unflatten(1, (-1, self.values))).flatten(1)


class Coded(nn.Module):
    """An encoder that ends in a latent: (N, C, S, S) -> (N, D), the code, which is not random."""

    def __init__(self, trunk: nn.Module, latent: nn.Module) -> None:
        super().__init__()
        self.trunk, self.latent = trunk, latent
        self.num_features = int(latent.dim)  # type: ignore[arg-type]

    def forward(self, x_NCSS: Tensor) -> Tensor:
        return self.posterior(x_NCSS).code_ND.to(x_NCSS.dtype)

    def posterior(self, x_NCSS: Tensor) -> Posterior:
        """Of these images, with one sample."""
        return self.latent(self.trunk(x_NCSS))


def _wide(x: Tensor) -> Tensor:
    """At least float32: rates are sums over many dimensions."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _one_hot(x_NGK: Tensor) -> Tensor:
    return F.one_hot(x_NGK.argmax(2), x_NGK.shape[2]).to(x_NGK.dtype)
