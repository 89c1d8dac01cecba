"""Options of softmax losses, and what each does to the denominator or the target.

With x = s / tau, the positive p of a row and its n negatives:
    margin m        x_p becomes (s_p - m) / tau, above and below the line
    beta            sum e^{x_n} becomes n sum e^{(1 + beta) x_n} / sum e^{beta x_n}  (2010.04592, 3)
    tau_plus t      the sum S becomes n max((S / n - t e^{x_p}) / (1 - t), e^{-1 / tau})
                    (arXiv:2007.00224, eq. 8, one positive)
    smoothing e     the target is (1 - e) on p plus e uniformly over p and the negatives
"""

# shapes: N rows
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.kernels.scalars import is_real
from fastssl.losses.arguments import bad


@dataclass(frozen=True)
class Options:
    """What to change in a loss; None is off.

    ``beta`` and ``tau_plus`` compose, ``margin`` and ``smoothing`` compose.

    Args:
        margin: additive, in units of cosine similarity, taken from the positive.
        smoothing: label smoothing in [0, 1).
        tau_plus: prior of a negative being of the positive's class, in [0, 1).
        beta: weight of hard negatives, >= 0, in units of logits.

    Raises:
        ValueError: a value is out of range, or the combination has no defined meaning.
    """

    margin: float | None = None
    smoothing: float | None = None
    tau_plus: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        ranges = {"margin": (-2.0, 2.0), "beta": (0.0, math.inf)}
        for name in ("margin", "smoothing", "tau_plus", "beta"):
            value = getattr(self, name)
            if value is None:
                continue
            if not is_real(value):
                raise bad("Options", name, "a float or None", type(value).__name__)
            low, high = ranges.get(name, (0.0, 1.0))
            if not (low <= value < high):
                raise bad("Options", name, f"in [{low}, {high})", value)
        for weighting in ("tau_plus", "beta"):
            for other in ("margin", "smoothing"):
                if getattr(self, weighting) is not None and getattr(self, other) is not None:
                    expected = f"None beside {other}: no paper defines the two together"
                    raise bad("Options", weighting, expected, getattr(self, weighting))

    @property
    def splits(self) -> bool:
        """Whether the denominator's negatives are needed without the positive."""
        return self.margin is not None or self.weights

    @property
    def weights(self) -> bool:
        """Whether the negatives are re-weighted, which needs their number."""
        return self.tau_plus is not None or self.beta is not None


PLAIN = Options()


def check_options(loss: str, options: Options | None) -> None:
    """``Options`` or None."""
    if options is not None and not isinstance(options, Options):
        raise bad(loss, "options", "an Options or None", type(options).__name__)


def hardened(log_sum_N: Tensor, log_weight_N: Tensor, count_N: Tensor) -> Tensor:
    """log(n sum e^{(1 + beta) x} / sum e^{beta x}); -inf where there is no negative."""
    some_N = count_N > 0
    ratio_N = torch.where(some_N, log_sum_N, 0.0) - torch.where(some_N, log_weight_N, 0.0)
    return torch.where(some_N, ratio_N + count_N.clamp_min(1).log(), -torch.inf)


def debiased(
    log_sum_N: Tensor, logit_N: Tensor, count_N: Tensor, scale: float | Tensor, tau_plus: float
) -> Tensor:
    """The log of the negatives' sum less its expected share of positives, floored."""
    if tau_plus == 0.0:
        return log_sum_N
    some_N = count_N > 0
    log_count_N = count_N.clamp_min(1).log()
    log_mean_N = torch.where(some_N, log_sum_N, 0.0) - log_count_N
    excess_N = math.log(tau_plus) + logit_N - log_mean_N
    left_N = log_mean_N + _log1mexp(excess_N) - math.log1p(-tau_plus)
    floor_N = torch.zeros_like(left_N) - abs(scale)
    kept_N = (excess_N < 0) & (left_N > floor_N)
    return torch.where(some_N, torch.where(kept_N, left_N, floor_N) + log_count_N, -torch.inf)


def _log1mexp(x_N: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0; anything finite elsewhere, so that no gradient is NaN."""
    safe_N = torch.where(x_N < 0, x_N, -1.0)
    return torch.log(-torch.expm1(safe_N))
