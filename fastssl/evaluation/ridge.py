"""Ridge probe: linear regression from features to continuous targets, in closed form.

    W = (X'X + lambda n I)^-1 X'(Y - mean Y)      X standardised, everything in float64

lambda is chosen on a held-out fifth of the train split, then W is fitted to the whole of it; the
test split is only scored. Foster et al. 2021 (arXiv:2010.09515)
read Spirograph out by linear regression and report the error averaged over its raw targets.
"""

# shapes: N train images, M test images, F features, T targets
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.evaluation.features import HELD_OUT, check_finite, hold_out, standardise

LAMBDAS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
PROTOCOL = {
    "readout": "ridge regression, closed form, float64",
    "features_scaled": "to mean 0 and deviation 1 on the train split",
    "lambda_chosen_on": HELD_OUT,
    "lambdas": list(LAMBDAS),
    "error": "squared error, mean over targets and test images; r2 as in sklearn.metrics",
}


def ridge(
    train_NF: Tensor,
    train_NT: Tensor,
    test_MF: Tensor,
    test_MT: Tensor,
    *,
    names: Sequence[str] = (),
    lambdas: Sequence[float] = LAMBDAS,
) -> Iterator[tuple[str, float]]:
    """Yields ``regression_scores`` and ("lambda", .)."""
    _check("ridge", train_NF, train_NT, test_MF, test_MT)
    predict_of, chosen = fitted(train_NF, train_NT, lambdas=lambdas)
    yield from regression_scores(predict_of(test_MF), test_MT, names=names)
    yield "lambda", chosen


def fitted(
    train_NF: Tensor, train_NT: Tensor, *, lambdas: Sequence[float] = LAMBDAS
) -> tuple[Callable[[Tensor], Tensor], float]:
    """The readout as a function of features (M, F) -> (M, T), and the lambda that it chose."""
    chosen = choose_lambda(train_NF, train_NT, lambdas)
    normal = _Normal.of(standardise(train_NF)[0], train_NT)
    return lambda x_MF: normal.predict(standardise(train_NF, x_MF)[1], chosen), chosen


def regression_scores(
    guess_MT: Tensor, test_MT: Tensor, *, names: Sequence[str] = ()
) -> Iterator[tuple[str, float]]:
    """Yields ("mse", .), ("mse/NAME", .) of each target, ("r2", .), the mean over targets of

        R^2 = 1 - sum_m (guess - y)^2 / sum_m (y - mean y)^2
    A target that is constant on the test images counts 1 where it is met and else 0.
    """
    test_MT = test_MT.double()
    squares_MT = (guess_MT.double() - test_MT).square()
    error_T = squares_MT.mean(0)
    yield "mse", float(error_T.mean())
    for name, error in zip(names, error_T.tolist(), strict=False):
        yield f"mse/{name}", error
    spread_T = (test_MT - test_MT.mean(0)).square().mean(0)
    r2_T = torch.where(spread_T > 0, 1 - error_T / spread_T, (error_T == 0).double())
    yield "r2", float(r2_T.mean())


def mean_predictor(train_NT: Tensor, test_MT: Tensor) -> float:
    """Squared error of answering the train targets' mean: what knowing nothing costs."""
    return float((test_MT.double() - train_NT.double().mean(0)).square().mean())


def choose_lambda(train_NF: Tensor, train_NT: Tensor, lambdas: Sequence[float] = LAMBDAS) -> float:
    """The lambda with the least squared error on the held-out fifth of the train split."""
    fit_n, held_m = hold_out(train_NT)
    fit_NF, held_MF = standardise(train_NF[fit_n], train_NF[held_m])
    held_MT = train_NT[held_m].double()
    normal = _Normal.of(fit_NF, train_NT[fit_n])
    errors = [float((normal.predict(held_MF, x) - held_MT).square().mean()) for x in lambdas]
    return lambdas[errors.index(min(errors))]


def predict(train_NF: Tensor, train_NT: Tensor, test_MF: Tensor, scale: float) -> Tensor:
    """(M, T) predictions of the ridge fitted with lambda = ``scale`` to standardised features."""
    return _Normal.of(train_NF, train_NT).predict(test_MF, scale)


@dataclass(frozen=True)
class _Normal:
    """The normal equations, kept for several lambdas, in the smaller of their two forms.

    W = (X'X/n + lambda I)^-1 X'Y/n = X' (XX'/n + lambda I)^-1 Y/n
    """

    gram: Tensor  # (F, F), or (N, N) where there are fewer images than features
    right: Tensor  # (F, T) or (N, T)
    lift: Tensor | None  # (F, N) in the second form
    mean_T: Tensor

    @classmethod
    def of(cls, x_NF: Tensor, y_NT: Tensor) -> _Normal:
        n, mean_T = len(x_NF), y_NT.double().mean(0)
        centred_NT = (y_NT.double() - mean_T) / n
        if n < x_NF.shape[1]:
            return cls(x_NF @ x_NF.T / n, centred_NT, x_NF.T, mean_T)
        return cls(x_NF.T @ x_NF / n, x_NF.T @ centred_NT, None, mean_T)

    def predict(self, test_MF: Tensor, scale: float) -> Tensor:
        shifted = self.gram + scale * torch.eye(len(self.gram), dtype=self.gram.dtype)
        solved = torch.cholesky_solve(self.right, torch.linalg.cholesky(shifted))
        weight_FT = solved if self.lift is None else self.lift @ solved
        return test_MF @ weight_FT + self.mean_T


def _check(op: str, train_NF: Tensor, train_NT: Tensor, test_MF: Tensor, test_MT: Tensor) -> None:
    if len(train_NF) < 5 or len(test_MF) < 1:
        raise ValueError(
            f"{op}: expected at least 5 train and 1 test images, "
            f"received {len(train_NF)} and {len(test_MF)}"
        )
    pairs = (("train", train_NF, train_NT), ("test", test_MF, test_MT))
    for split, features, targets in pairs:
        if features.ndim != 2 or targets.ndim != 2 or len(features) != len(targets):
            raise ValueError(
                f"{op}: expected {split} features (N, F) and targets (N, T), "
                f"received {tuple(features.shape)} and {tuple(targets.shape)}"
            )
        if not torch.isfinite(targets).all():
            raise ValueError(f"{op}: {split} targets must be finite, received NaN or infinite ones")
    check_finite(op, train=train_NF, test=test_MF)
