"""A line of a claim: what to show, the paper's figure, ours over the seeds, whether it holds.

A figure is a mean and its standard error (ddof 1) over the seeds.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

Values = Sequence[float]  # one per seed


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    what: str
    figure: str
    wanted: str
    holds: bool
    paper: str = ""  # the paper's number, where it has one

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "does not hold"
        return f"{self.what:<64} {self.figure:<24} {self.wanted:<22} {verdict}"


def mean_and_error(values: Values) -> tuple[float, float]:
    """Mean and standard error; the error of one value is infinite."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.inf
    spread = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)  # takes NaN
    return mean, math.sqrt(spread / len(values))


def figure(values: Values) -> str:
    """ "mean +- error"."""
    mean, error = mean_and_error(values)
    return f"{mean:.4g}" + (f" +- {error:.2g}" if math.isfinite(error) else "")


def at_most(what: str, values: Values, bound: float, *, paper: str = "") -> Row:
    """Holds where the mean is at most ``bound``. NaN does not."""
    return Row(what, figure(values), f"<= {bound:g}", mean_and_error(values)[0] <= bound, paper)


def at_least(what: str, values: Values, bound: float, *, paper: str = "") -> Row:
    """Holds where the mean is at least ``bound``. NaN does not."""
    return Row(what, figure(values), f">= {bound:g}", mean_and_error(values)[0] >= bound, paper)


def lower(what: str, values: Values, other: Values, *, errors: float, paper: str = "") -> Row:
    """Holds where ``values`` are below ``other`` by ``errors`` standard errors of the paired
    difference: seed k of one against seed k of the other."""
    assert len(values) == len(other)
    mean, error = mean_and_error([b - a for a, b in zip(values, other, strict=True)])
    holds = mean > 0 and mean >= errors * error
    shown = f"{figure(values)} against {figure(other)}"
    return Row(what, shown, f"lower by {errors:g} s.e.", holds, paper)


def higher(what: str, values: Values, other: Values, *, errors: float, paper: str = "") -> Row:
    """As ``lower``, the other way round."""
    turned = lower(what, [-v for v in values], [-v for v in other], errors=errors, paper=paper)
    shown = f"{figure(values)} against {figure(other)}"
    return Row(what, shown, f"higher by {errors:g} s.e.", turned.holds, paper)


def falling(what: str, by_setting: Sequence[Values], *, paper: str = "") -> Row:
    """Holds where the mean falls from each setting to the next."""
    means = [mean_and_error(values)[0] for values in by_setting]
    holds = all(a > b for a, b in itertools.pairwise(means))
    return Row(what, " > ".join(f"{mean:.3g}" for mean in means), "falling", holds, paper)
