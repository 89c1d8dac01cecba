"""Alpha probe: ridge regression from features to the parameters of what the image was drawn with.

An error near that of the mean predictor says that the features are invariant to a nuisance, or
keep it in a form that no line finds. Foster et al. 2021 (arXiv:2010.09515), section 5.
"""

# shapes: N train images, M test images, F features, A nuisances
from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from fastssl.evaluation.ridge import PROTOCOL as RIDGE
from fastssl.evaluation.ridge import mean_predictor, ridge

PROTOCOL = {**RIDGE, "targets": "the nuisance parameters; alpha_chance is the mean predictor"}


def alpha(
    train_NF: Tensor,
    train_NA: Tensor,
    test_MF: Tensor,
    test_MA: Tensor,
    *,
    names: Sequence[str] = (),
) -> Iterator[tuple[str, float]]:
    """Yields ("alpha_mse", .), ("alpha_mse/NAME", .) and ("alpha_chance", .)."""
    for name, value in ridge(train_NF, train_NA, test_MF, test_MA, names=names):
        yield f"alpha_{name}", value
    yield "alpha_chance", mean_predictor(train_NA, test_MA)
