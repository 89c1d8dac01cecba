"""What a run is scored by: glue between labelled data and the evaluations.

Continuous targets are read out by ridge regression, classes by kNN. The same readout is applied
to three yardsticks in the same run: knowing nothing, raw pixels, and the untrained encoder.
"""

# shapes: N train images, M test images, F features
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastssl.evaluation import features, knn, linear, ridge
from fastssl.recipes.feature_cache import features_of

FeaturesFn = Callable[[Tensor], Tensor]
READOUTS = ("knn", "linear", "ridge")
_TASKS = {"knn": "classification", "linear": "classification", "ridge": "regression"}


@dataclass(frozen=True, kw_only=True)
class Readout:
    """One evaluation on fixed images: calling it with an encoder yields (metric, value)."""

    kind: str  # one of READOUTS
    train: Any  # labelled images, see data.batch.Labelled
    test: Any
    k: int = 20
    temperature: float = 0.07

    def first(self, *, train_limit: int, test_limit: int) -> Readout:
        """The same readout on the first images of each split only, to look often."""
        train = replace(self.train, target=self.train.target[:train_limit])
        test = replace(self.test, target=self.test.target[:test_limit])
        return replace(self, train=train, test=test, k=min(self.k, len(train.target)))

    @property
    def score_name(self) -> str:
        """The metric that a run is judged by."""
        return "mse" if self.kind == "ridge" else f"{self.kind}_top1"

    def __call__(self, encode: FeaturesFn) -> Iterator[tuple[str, float]]:
        train_NF = features_of(encode, self.train)
        test_MF = features_of(encode, self.test)
        parts = (train_NF, self.train.target, test_MF, self.test.target)
        if self.kind == "ridge":
            return ridge.ridge(*parts, names=self.train.names)
        if self.kind == "linear":
            return linear.linear(*parts)
        return knn.knn(*parts, k=self.k, temperature=self.temperature)

    def score(self, encode: FeaturesFn) -> float:
        """The value of ``score_name``."""
        return dict(self(encode))[self.score_name]

    def ignorance(self) -> float:
        """The score of an answer that ignores the image: the mean, or the commonest class."""
        if self.kind == "ridge":
            return ridge.mean_predictor(self.train.target, self.test.target)
        commonest = torch.bincount(self.train.target).argmax()
        return float((self.test.target == commonest).double().mean())

    def protocol(self) -> dict[str, Any]:
        """Everything that a reader needs to compare the number with another one."""
        module = {"knn": knn, "linear": linear, "ridge": ridge}[self.kind]
        chosen = {"k": self.k, "temperature": self.temperature} if self.kind == "knn" else {}
        counts = {"train_images": len(self.train.target), "test_images": len(self.test.target)}
        return {**module.PROTOCOL, **chosen, **features.PROTOCOL, **counts}


def make_readout(
    source: Any,
    kind: str,
    *,
    train_limit: int | None,
    test_limit: int | None,
    k: int | None = None,
    temperature: float = 0.07,
) -> Readout:
    """The readout ``kind`` of a source. ValueError where its labels do not fit or are missing."""
    train, test = source.labelled("train", train_limit), source.labelled("test", test_limit)
    if train is None or test is None:
        raise ValueError(
            f"{kind}: {source.name} has no labels; sort the images into one folder per class"
        )
    if train.task != _TASKS[kind]:
        fitting = [name for name in READOUTS if _TASKS[name] == train.task]
        raise ValueError(
            f"{kind}: {source.name} has {train.task} targets; use {' or '.join(fitting)}"
        )
    if k is not None and not 1 <= k <= len(train.target):
        raise ValueError(f"--k: expected 1 to {len(train.target)} (train images), received {k}")
    k = min(20, len(train.target)) if k is None else k
    return Readout(kind=kind, train=train, test=test, k=k, temperature=temperature)


def usual_kind(source: Any) -> str | None:
    """Ridge for continuous targets, kNN for classes, None for a source without labels."""
    return {"regression": "ridge", "classification": "knn", None: None}[source.task]


def pixels(x_NCSS: Tensor) -> Tensor:
    """The raw pixels as features (N, 3 S S), the second yardstick; averaged down to 32 px."""
    if x_NCSS.shape[-1] > 32:
        x_NCSS = torch.nn.functional.adaptive_avg_pool2d(x_NCSS, 32)
    return x_NCSS.flatten(1).float()
