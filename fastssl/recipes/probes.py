"""Readouts that are trained: glue between labelled data, an encoder and the evaluations."""

# shapes: N train images, M test images, C channels, S side, F features
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from torch import Tensor

from fastssl.augment.spirograph import SHIFTS, shifted_bounds
from fastssl.evaluation import finetune, linear, ridge, robustness, sensitivity
from fastssl.evaluation.features import standardise
from fastssl.evaluation.fractions import fractions as by_fraction
from fastssl.evaluation.knn import top_accuracies
from fastssl.evaluation.sgd_probe import Schedule, sgd_probe
from fastssl.recipes.feature_cache import CLEAN, KeptEncoder, Look, features_of

Metrics = Iterator[tuple[str, float]]
Fitted = Callable[[Tensor], Callable[[Tensor], Metrics]]
HIDDEN_DIMS = (2048, 2048)
MOST_JITTER = 2.5
AMOUNTS: dict[str, tuple[float, ...]] = {
    "h": (-0.5, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5),
    "background": (0.0, 0.1, 0.2, 0.3, 0.4),
    "foreground": (-0.3, -0.2, -0.1, 0.0, 0.1),
    "h-wide": (0.0, 0.1, 0.2, 0.3, 0.4),
    "background-wide": (0.0, 0.1, 0.2, 0.3, 0.4),
    "foreground-wide": (0.0, 0.1, 0.2, 0.3, 0.4),
    "jitter": tuple(step / 8 for step in range(9)),
}
"""How far each shift goes where --amounts is not given: those of Foster et al. 2021, where they
report some (h, background and the strength of the jitter)."""


def clean_features(train: Any, test: Any, encode: Any) -> tuple[Tensor, Tensor]:
    """(N, F) and (M, F) of the images as they are."""
    return features_of(encode, train), features_of(encode, test)


def linear_sgd(train: Any, test: Any, encode: Any, **options: Any) -> Metrics:
    """The linear probe by SGD."""
    return _sgd("linear_sgd", train, test, encode, options)


def mlp(train: Any, test: Any, encode: Any, **options: Any) -> Metrics:
    """The MLP probe."""
    return _sgd("mlp", train, test, encode, options)


def _sgd(name: str, train: Any, test: Any, encode: Any, options: dict[str, Any]) -> Metrics:
    schedule = Schedule(**options)
    train_NF, test_MF = clean_features(train, test, encode)
    return sgd_probe(
        train_NF,
        train.target,
        test_MF,
        test.target,
        name=name,
        schedule=schedule,
        names=target_names(train),
        device=getattr(encode, "device", None),
    )


def target_names(part: Any) -> tuple[str, ...]:
    """Names of continuous targets; () for classes."""
    return part.names if part.task == "regression" else ()


def label_fractions(train: Any, test: Any, encode: Any, *, fractions: tuple[float, ...]) -> Metrics:
    """The usual readout from fewer and fewer labels."""
    train_NF, test_MF = clean_features(train, test, encode)

    def readout(some_NF: Tensor, label_N: Tensor) -> Metrics:
        if train.task == "regression":
            return ridge.ridge(some_NF, label_N, test_MF, test.target, names=train.names)
        return linear.linear(some_NF, label_N, test_MF, test.target)

    return by_fraction(train_NF, train.target, readout, shares=fractions)


def fine_tuning(
    train: Any,
    test: Any,
    encode: Any,
    *,
    views: Literal["usual", "clean", "crop", "policy"] = "usual",
    **options: Any,
) -> Metrics:
    """``encode`` must be a KeptEncoder: the net itself is trained, a copy of it."""
    assert isinstance(encode, KeptEncoder)
    return finetune.finetune(
        encode.net,
        finetune.Images(train.target, train.render, _view(train, views)),
        finetune.Images(test.target, test.render),
        tuning=finetune.Tuning(**options),
        names=target_names(train),
        device=encode.device,
    )


def _view(train: Any, views: str) -> Callable[[np.ndarray, int], Tensor] | None:
    """What the net is trained on in an epoch, None for the clean images."""
    if views == "usual":
        views = "crop" if "crop" in train.varied else "policy" if train.redraw else "clean"
    if views == "clean":
        return None
    if train.redraw is None or (views == "crop" and "crop" not in train.varied):
        raise ValueError(f"--views {views}: these data have no such views; use --views clean")
    only = "crop" if views == "crop" else None
    return lambda position_n, epoch: train.redraw(position_n, epoch, only)


def amounts_of(
    train: Any, shift: str | None, amounts: tuple[float, ...] | None
) -> dict[str, tuple[float, ...]]:
    """How far each shift goes: one, or all that the data know. ValueError for what cannot be."""
    if not train.shifts:
        raise ValueError(
            "robustness: needs data whose variation can be shifted: spirograph, or images"
        )
    if amounts is not None and shift is None and len(train.shifts) > 1:
        raise ValueError(f"--amounts: needs --shift, one of {', '.join(train.shifts)}")
    if shift is not None and shift not in train.shifts:
        raise ValueError(f"--shift: expected one of: {', '.join(train.shifts)}; received {shift!r}")
    names = train.shifts if shift is None else (shift,)
    chosen = {name: amounts or AMOUNTS.get(name, ()) for name in names}
    for name, values in chosen.items():
        for amount in values:
            _check_amount(name, amount)
    return chosen


def _check_amount(name: str, amount: float) -> None:
    if name == "jitter" and not 0 <= amount <= MOST_JITTER:
        raise ValueError(
            f"--amounts: expected 0 to {MOST_JITTER:g} for jitter (a hue turns by .2 of it, half a "
            f"turn at most), received {amount:g}"
        )
    if not math.isfinite(amount):
        raise ValueError(f"--amounts: expected finite numbers, received {amount:g}")
    if name in SHIFTS:
        shifted_bounds(name, amount)


def shifts(train: Any, test: Any, encode: Any, *, amounts: dict[str, tuple[float, ...]]) -> Metrics:
    """The curves of the shifts that ``amounts_of`` gave."""
    for name, values in amounts.items():

        def seen(amount: float | None, name: str = name) -> tuple[Tensor, Tensor]:
            look = CLEAN if amount is None else Look(shift=name, amount=amount)
            return features_of(encode, train, look), features_of(encode, test, look)

        yield from robustness.robustness(seen, _fitted(train, test), shift=name, amounts=values)


def _fitted(train: Any, test: Any) -> Fitted:
    def regression(train_NF: Tensor) -> Callable[[Tensor], Metrics]:
        answer, _ = ridge.fitted(train_NF, train.target)
        return lambda x_MF: ridge.regression_scores(answer(x_MF), test.target, names=train.names)

    def classes(train_NF: Tensor) -> Callable[[Tensor], Metrics]:
        answer, _ = linear.fitted(train_NF, train.target)
        return lambda x_MF: top_accuracies("linear", answer(x_MF), test.target)

    return regression if train.task == "regression" else classes


def sensitivities(train: Any, test: Any, encode: Any, *, parts: int) -> Metrics:
    """Mahalanobis ratio of each augmentation alone, of all features and of each part of them."""
    if test.redraw is None:
        raise ValueError("sensitivity: these data have no augmentation of single images")
    clean_MF = features_of(encode, test)
    width = _part_width(clean_MF, parts)
    for name in test.varied:
        changed_MF = features_of(encode, test, Look(draw=1, only=name))
        yield f"ratio/{name}", sensitivity.mahalanobis_ratio(clean_MF, changed_MF)
        pairs = zip(clean_MF.split(width, 1), changed_MF.split(width, 1), strict=True)
        for position, pair in enumerate(pairs if parts > 1 else ()):
            yield f"ratio/{name}/part{position}", sensitivity.mahalanobis_ratio(*pair)


def weight_shares(train: Any, test: Any, encode: Any, *, parts: int) -> Metrics:
    """How much of a linear classifier's weight lies on each part of the features."""
    if train.task != "classification":
        raise ValueError("weight-shares: needs classes, received continuous targets")
    train_NF, test_MF = clean_features(train, test, encode)
    width = _part_width(train_NF, parts)
    penalty = linear.choose_penalty(train_NF, train.target, linear.PENALTIES)
    train_NF, test_MF = standardise(train_NF, test_MF)
    weight_CF, bias_C = linear.fit(train_NF, train.target, penalty)
    yield from top_accuracies("linear", test_MF @ weight_CF.T + bias_C, test.target)
    widths = (width,) * parts
    for position, share in enumerate(sensitivity.weight_shares(weight_CF, widths)):
        yield f"share/part{position}", share


def _part_width(features_NF: Tensor, parts: int) -> int:
    width = features_NF.shape[1]
    if parts < 1 or width % parts:
        raise ValueError(f"--parts: expected a divisor of {width} (features), received {parts}")
    return width // parts


LINEAR_FACTS = {"readout": "linear probe by SGD"}
MLP_FACTS = {"readout": "MLP probe by SGD, BatchNorm and ReLU after each hidden layer"}
SENSITIVITY_FACTS = {
    "ratio": "mean Mahalanobis distance of test features from those of the augmented image, over "
    "sqrt(2 F)",
    "covariance_ridge": sensitivity.RIDGE,
}
SHARE_FACTS = {"share": "sum of absolute weights on standardised features, of the whole"}
