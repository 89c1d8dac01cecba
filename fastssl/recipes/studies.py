"""Evaluations that look at more than one rendering of an image, glued to data and encoders."""

# shapes: D draws, N images, F features, A nuisances
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastssl.evaluation import alpha, averaging, features, few_shot, linear, meter, ridge

FeaturesFn = Callable[[Tensor], Tensor]
Metrics = Iterator[tuple[str, float]]
_CHUNK = 500  # images encoded at a time


@dataclass(frozen=True, kw_only=True)
class Study:
    """One evaluation: calling it with an encoder yields (metric, value)."""

    kind: str
    train: Any  # labelled images, see data.batch.Labelled
    test: Any
    measure: Callable[[Any, Any, FeaturesFn], Metrics]
    facts: dict[str, Any]

    def __call__(self, encode: FeaturesFn) -> Metrics:
        return self.measure(self.train, self.test, encode)

    def protocol(self) -> dict[str, Any]:
        """Everything that a reader needs to compare the number with another one."""
        counts = {"train_images": len(self.train.target), "test_images": len(self.test.target)}
        return {**self.facts, **features.PROTOCOL, **counts}


def make_study(
    source: Any, kind: str, *, train_limit: int | None, test_limit: int | None, **options: Any
) -> Study:
    """The study ``kind`` of STUDIES on a source. ValueError where its labels are missing."""
    train, test = source.labelled("train", train_limit), source.labelled("test", test_limit)
    if train is None or test is None:
        raise ValueError(
            f"{kind}: {source.name} has no labels; sort the images into one folder per class"
        )
    measure, protocol = STUDIES[kind]
    facts = dict(protocol)
    if kind == "averaging":
        facts.update((ridge if train.task == "regression" else linear).PROTOCOL)
    return Study(
        kind=kind,
        train=train,
        test=test,
        measure=partial(measure, **options),
        facts={**facts, **options},
    )


def _averaging(train: Any, test: Any, encode: FeaturesFn, *, averages: tuple[int, ...]) -> Metrics:
    def features_of(draw: int) -> tuple[Tensor, Tensor]:
        return tuple(  # type: ignore[return-value]
            features.extract(encode, part.redrawn(_CHUNK, draw=draw)) for part in (train, test)
        )

    def readout(train_NF: Tensor, test_NF: Tensor) -> Metrics:
        if train.task == "regression":
            return ridge.ridge(train_NF, train.target, test_NF, test.target, names=train.names)
        return linear.linear(train_NF, train.target, test_NF, test.target)

    return averaging.averaging(features_of, readout, averages=averages)


def _meter(train: Any, test: Any, encode: FeaturesFn, *, draws: int) -> Metrics:
    clean_NF = features.extract(encode, test.images(_CHUNK))
    by_name = {
        name: features.extract(encode, test.redrawn(_CHUNK, draw=1, only=name))
        for name in test.varied
    }
    drawn = [features.extract(encode, test.redrawn(_CHUNK, draw=d)) for d in range(draws)]
    return meter.meter(clean_NF, by_name, torch.stack(drawn))


def _alpha(train: Any, test: Any, encode: FeaturesFn) -> Metrics:
    if train.nuisance is None:
        raise ValueError("alpha: needs data with known nuisance parameters: --data spirograph")
    train_NF = features.extract(encode, train.images(_CHUNK))
    test_NF = features.extract(encode, test.images(_CHUNK))
    return alpha.alpha(train_NF, train.nuisance, test_NF, test.nuisance, names=train.varied)


def _few_shot(train: Any, test: Any, encode: FeaturesFn, **options: Any) -> Metrics:
    if test.task != "classification":
        raise ValueError("few-shot: needs classes, received continuous targets; use ridge")
    test_NF = features.extract(encode, test.images(_CHUNK))
    return few_shot.few_shot(test_NF, test.target, **options)


STUDIES: dict[str, tuple[Callable[..., Metrics], dict[str, Any]]] = {
    "averaging": (_averaging, averaging.PROTOCOL),
    "meter": (_meter, meter.PROTOCOL),
    "alpha": (_alpha, alpha.PROTOCOL),
    "few-shot": (_few_shot, few_shot.PROTOCOL),
}
