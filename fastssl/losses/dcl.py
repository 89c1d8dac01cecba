"""Decoupled contrastive learning (Yeh et al. 2022, arXiv:2110.06848): no positive below the line.

    DCL_i  = log sum_{n not of i's sample} exp(z_i . z_n / tau) - z_i . z_p / tau          (eq. 6)
    DCLW_i = the same with the positive times  w_i = 2 - e^{z_i . z_p / sigma} / mean_k e^{...}

The negatives are the 2N - 2 rows of other samples in both views; w has no gradient (eq. 7).
"""

# shapes: N samples, M = 2N rows, D embedding
from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from fastssl.losses.arguments import (
    bad,
    check_reduction,
    check_setting,
    hold_temperature,
    scale_of,
)
from fastssl.losses.distributed import count_over_ranks, gather_rows
from fastssl.losses.matching import log_negatives
from fastssl.losses.metrics import ContrastiveMetrics, Terms
from fastssl.losses.options import PLAIN
from fastssl.losses.two_views import two_views

if TYPE_CHECKING:
    from fastssl.losses.exchange import Group


def dcl_loss(
    view0: Tensor,
    view1: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    reduction: str = "mean",
    group: Group | None = None,
) -> Tensor:
    """DCL of raw, un-normalised embeddings.

    Args:
        view0: (N, D) with N >= 2, any float dtype.
        view1: (N, D) of the same dtype; row i is the same sample.
        temperature: finite, non-zero; a float, or a one-element tensor to learn it.
        reduction: "mean" or "sum" over the M = 2N rows, or "none".
        group: ranks whose batches are one batch, or ``Ring`` of them to pass rows round instead of
            gathering them; None: this process alone. The loss is over local rows; averaged by DDP
            its gradient is exact (convention: fastssl/losses/distributed.py).

    Returns:
        () or (M,) in float32 (float64 for float64 input).

    Raises:
        ValueError: an argument does not fit; the message names it.
    """
    check_reduction("dcl_loss", reduction)
    return dcl_terms(view0, view1, temperature, group).reduced(reduction)


def dclw_loss(
    view0: Tensor,
    view1: Tensor,
    temperature: float | Tensor = 0.1,
    *,
    sigma: float = 0.5,
    reduction: str = "mean",
    group: Group | None = None,
) -> Tensor:
    """DCL with the positive weighted by 2 - N softmax(s_p / sigma); else as ``dcl_loss``."""
    check_reduction("dclw_loss", reduction)
    return dclw_terms(view0, view1, temperature, sigma, group).reduced(reduction)


def dcl_terms(
    view0: Tensor,
    view1: Tensor,
    temperature: float | Tensor,
    group: Group | None = None,
) -> Terms:
    """Losses per row of DCL and what the metrics are read from."""
    return _terms("dcl_loss", view0, view1, temperature, None, group)


def dclw_terms(
    view0: Tensor,
    view1: Tensor,
    temperature: float | Tensor,
    sigma: float,
    group: Group | None = None,
) -> Terms:
    """Losses per row of DCLW and what the metrics are read from."""
    check_setting("dclw_loss", "sigma", sigma, above=0)
    return _terms("dclw_loss", view0, view1, temperature, sigma, group)


def _terms(
    name: str,
    view0: Tensor,
    view1: Tensor,
    temperature: float | Tensor,
    sigma: float | None,
    group: Group | None,
) -> Terms:
    matching = two_views(name, view0, view1, group=group)
    num_samples = count_over_ranks(view0, group=group)
    if num_samples < 2:
        raise bad(name, "view0", "of at least 2 samples, else nothing is negative", num_samples)
    scale = scale_of(name, temperature, view0)
    (log_M,), top_M, _ = log_negatives(matching, scale, PLAIN, False)
    pull_M = matching.positive_N * scale
    if sigma is not None:
        share_N = _softmax(matching.positive_N.detach()[: view0.shape[0]] / sigma, group)
        pull_M = pull_M * (2 - num_samples * share_N).repeat(2)
    return Terms(
        log_M - pull_M,
        matching.positive_N,
        lambda: matching.positive_N,
        top_M,
        scale,
        lambda: (matching.sums(), matching.counts()),
        group=group,
    )


def _softmax(x_N: Tensor, group: Group | None) -> Tensor:
    """Softmax over the rows of all ranks."""
    if group is None:
        return x_N.softmax(0)
    return (x_N - gather_rows(x_N, group=group).logsumexp(0)).exp()


class DCLLoss(nn.Module):
    """``dcl_loss`` as a module.

    Args:
        temperature, reduction, group: as of ``dcl_loss``.

    Example:
        >>> import torch
        >>> from fastssl.losses import DCLLoss
        >>> z0, z1 = torch.randn(2, 64, 128, requires_grad=True)
        >>> DCLLoss(temperature=0.1)(z0, z1).backward()
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        reduction: str = "mean",
        group: Group | None = None,
    ) -> None:
        super().__init__()
        check_reduction("DCLLoss", reduction)
        hold_temperature(self, temperature)
        self.reduction = reduction
        self.group = group

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """Loss of two (N, D) views: () or, with reduction "none", (2N,)."""
        return dcl_terms(view0, view1, self.temperature, self.group).reduced(self.reduction)

    def with_metrics(self, view0: Tensor, view1: Tensor) -> tuple[Tensor, ContrastiveMetrics]:
        """The loss and what its forward tells beside it."""
        terms = dcl_terms(view0, view1, self.temperature, self.group)
        return terms.reduced(self.reduction), terms.metrics()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"


class DCLWLoss(nn.Module):
    """``dclw_loss`` as a module.

    Args:
        temperature, sigma, reduction, group: as of ``dclw_loss``.

    Example:
        >>> import torch
        >>> from fastssl.losses import DCLWLoss
        >>> z0, z1 = torch.randn(2, 64, 128, requires_grad=True)
        >>> DCLWLoss(temperature=0.1)(z0, z1).backward()
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        *,
        sigma: float = 0.5,
        reduction: str = "mean",
        group: Group | None = None,
    ) -> None:
        super().__init__()
        check_reduction("DCLWLoss", reduction)
        check_setting("DCLWLoss", "sigma", sigma, above=0)
        hold_temperature(self, temperature)
        self.sigma = sigma
        self.reduction = reduction
        self.group = group

    def forward(self, view0: Tensor, view1: Tensor) -> Tensor:
        """Loss of two (N, D) views: () or, with reduction "none", (2N,)."""
        return dclw_terms(view0, view1, self.temperature, self.sigma, self.group).reduced(
            self.reduction
        )

    def with_metrics(self, view0: Tensor, view1: Tensor) -> tuple[Tensor, ContrastiveMetrics]:
        """The loss and what its forward tells beside it."""
        terms = dclw_terms(view0, view1, self.temperature, self.sigma, self.group)
        return terms.reduced(self.reduction), terms.metrics()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, sigma={self.sigma}, reduction={self.reduction!r}"
