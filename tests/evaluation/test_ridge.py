"""The ridge probe is the closed form, and never looks at the test split to choose anything."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastssl.evaluation import ridge as module
from fastssl.evaluation.features import hold_out
from fastssl.evaluation.ridge import choose_lambda, mean_predictor, ridge


def problem(train=120, test=40, features=9, targets=3, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(train + test, features)) * rng.uniform(0.1, 30, features) + 5
    y = x @ rng.normal(size=(features, targets))
    y = y + noise * rng.normal(size=(train + test, targets))
    parts = (x[:train], y[:train], x[train:], y[train:])
    return tuple(torch.from_numpy(part.astype(np.float32)) for part in parts)


def numpy_ridge_mse(parts, scale):
    """The textbook formula, intercept and all, with an explicit inverse."""
    x, y, x_test, y_test = (part.double().numpy() for part in parts)
    mean, deviation = x.mean(0), x.std(0)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    gram = x.T @ x + scale * len(x) * np.eye(x.shape[1])
    guess = x_test @ (np.linalg.inv(gram) @ x.T @ (y - y.mean(0))) + y.mean(0)
    return ((guess - y_test) ** 2).mean(0)


@pytest.mark.parametrize("scale", [1e-6, 0.1, 10.0])
def test_ridge_equals_the_numpy_closed_form(scale):
    parts = problem()
    found = dict(ridge(*parts, names=("a", "b", "c"), lambdas=[scale]))
    expected = numpy_ridge_mse(parts, scale)
    assert found["mse"] == pytest.approx(expected.mean(), rel=1e-9)
    assert [found["mse/a"], found["mse/b"], found["mse/c"]] == pytest.approx(expected, rel=1e-9)
    assert found["lambda"] == scale


def test_lambda_is_chosen_without_the_test_split(monkeypatch):
    train_x, train_y, test_x, test_y = problem()
    honest = dict(ridge(train_x, train_y, test_x, test_y))
    poisoned = dict(ridge(train_x, train_y, test_x * 1e3, -test_y))
    assert honest["lambda"] == poisoned["lambda"] == choose_lambda(train_x, train_y)


def test_lambda_is_the_best_one_on_the_held_out_train_images():
    train_x, train_y, _, _ = problem(train=60, features=25, seed=3, noise=60.0)
    held = np.isin(np.arange(60), hold_out(train_y)[1])
    split = (train_x[~held], train_y[~held], train_x[held], train_y[held])
    errors = [numpy_ridge_mse(split, scale).mean() for scale in module.LAMBDAS]
    assert choose_lambda(train_x, train_y) == module.LAMBDAS[int(np.argmin(errors))]
    assert 0 < int(np.argmin(errors)) < len(errors) - 1, "the grid must have something to choose"


def test_constant_and_duplicate_columns_do_no_harm():
    train_x, train_y, test_x, test_y = problem()
    plain = dict(ridge(train_x, train_y, test_x, test_y, lambdas=[1e-3]))["mse"]

    def widen(x):
        return torch.cat([x, torch.full((len(x), 2), 7.0)], dim=1)

    wide = dict(ridge(widen(train_x), train_y, widen(test_x), test_y, lambdas=[1e-3]))["mse"]
    assert wide == pytest.approx(plain, rel=1e-9)
    doubled = torch.cat([train_x, train_x], 1), torch.cat([test_x, test_x], 1)
    assert np.isfinite(dict(ridge(doubled[0], train_y, doubled[1], test_y))["mse"])


def test_more_features_than_images_is_answered():
    parts = problem(train=20, test=10, features=60)
    assert np.isfinite(dict(ridge(*parts))["mse"])


def test_mean_predictor_is_the_error_of_the_train_mean():
    train_y, test_y = torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [3.0]])
    assert mean_predictor(train_y, test_y) == pytest.approx((1.0 + 4.0) / 2)


@pytest.mark.parametrize("broken", ["shape", "nan", "few"])
def test_unusable_input_is_refused_by_name(broken):
    train_x, train_y, test_x, test_y = problem()
    if broken == "shape":
        train_y = train_y[:-1]
    elif broken == "nan":
        test_x = test_x.clone()
        test_x[3, 2] = float("nan")
    else:
        train_x, train_y = train_x[:4], train_y[:4]
    with pytest.raises(ValueError, match="ridge: "):
        list(ridge(train_x, train_y, test_x, test_y))
