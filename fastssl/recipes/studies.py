"""Evaluations that look at more than one rendering of an image, glued to data and encoders."""

# shapes: D draws, N images, F features, A nuisances
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastssl.evaluation import (
    alpha,
    averaging,
    compression,
    features,
    few_shot,
    finetune,
    fractions,
    invariance,
    linear,
    meter,
    ridge,
    robustness,
    sgd_probe,
)
from fastssl.recipes import episodes, probes
from fastssl.recipes.compression import study as _compression
from fastssl.recipes.feature_cache import Look, features_of

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
        return {**features.PROTOCOL, **counts, **self.facts}


def make_study(
    source: Any, kind: str, *, train_limit: int | None, test_limit: int | None, **options: Any
) -> Study:
    """The study ``kind`` of STUDIES on a source. ValueError where its labels are missing."""
    _check_least(LEAST.get(kind, {}), options)
    train, test = source.labelled("train", train_limit), source.labelled("test", test_limit)
    if train is None or test is None:
        raise ValueError(
            f"{kind}: {source.name} has no labels; sort the images into one folder per class"
        )
    measure, protocol = STUDIES[kind]
    facts = dict(protocol)
    if kind == "few-shot":
        prepared = episodes.prepare(source, test, test_limit, options)
        test, measure = prepared.test, partial(measure, clip_W=prepared.clip_W)
        facts, options = {**facts, **prepared.facts}, prepared.options
    if kind in ("averaging", "invariance", "fractions", "robustness"):
        facts.update((ridge if train.task == "regression" else linear).PROTOCOL)
    if kind == "robustness":
        options["amounts"] = probes.amounts_of(train, options.pop("shift"), options["amounts"])
    return Study(
        kind=kind,
        train=train,
        test=test,
        measure=partial(measure, **options),
        facts={**facts, **{k: str(v) if isinstance(v, Path) else v for k, v in options.items()}},
    )


def _check_least(least: dict[str, int], options: dict[str, Any]) -> None:
    for name, number in least.items():
        if options[name] < number:
            raise ValueError(f"--{name}: expected at least {number}, received {options[name]}")


def _averaging(train: Any, test: Any, encode: FeaturesFn, *, averages: tuple[int, ...]) -> Metrics:
    _refuse_still("averaging", train)

    def of_draw(draw: int) -> tuple[Tensor, Tensor]:
        return tuple(  # type: ignore[return-value]
            features_of(encode, part, Look(draw=draw)) for part in (train, test)
        )

    def readout(train_NF: Tensor, test_NF: Tensor) -> Metrics:
        if train.task == "regression":
            return ridge.ridge(train_NF, train.target, test_NF, test.target, names=train.names)
        return linear.linear(train_NF, train.target, test_NF, test.target)

    return averaging.averaging(of_draw, readout, averages=averages)


def _meter(train: Any, test: Any, encode: FeaturesFn, *, draws: int) -> Metrics:
    _refuse_still("meter", test)
    clean_NF = features_of(encode, test)
    by_name = {name: features_of(encode, test, Look(draw=1, only=name)) for name in test.varied}
    drawn = [features_of(encode, test, Look(draw=d)) for d in range(draws)]
    return meter.meter(clean_NF, by_name, torch.stack(drawn))


def _refuse_still(kind: str, part: Any) -> None:
    if part.redraw is None:
        raise ValueError(f"{kind}: these data have no augmentation of single images")


def _alpha(train: Any, test: Any, encode: FeaturesFn) -> Metrics:
    if train.nuisance is None:
        raise ValueError(
            "alpha: needs images that come with the parameters they were drawn with: --data "
            "spirograph; the jitter of views of other images, under --augment invclr too, is not "
            "probed: use meter or sensitivity"
        )
    train_NF = features_of(encode, train)
    test_NF = features_of(encode, test)
    return alpha.alpha(train_NF, train.nuisance, test_NF, test.nuisance, names=train.varied)


def _invariance(train: Any, test: Any, encode: Any, *, targets: str, **options: Any) -> Metrics:
    """``encode``: see recipes.encoders.Conditioned; options: steps, rate, start of the vector."""
    target_N, test_M, names = train.target, test.target, train.names
    regression = train.task == "regression"
    if targets == "nuisances":
        if train.nuisance is None:
            raise ValueError("--targets nuisances: needs data that know them: --data spirograph")
        target_N, test_M, names = train.nuisance, test.nuisance, train.varied

    def of_positions(position_n: Tensor, bits_K: Tensor) -> Tensor:
        return encode(train.render(position_n.numpy()), bits_K)

    def score(bits_K: Tensor) -> Metrics:
        under = partial(_under, encode, bits_K)
        parts = [features.extract(under, part.images(_CHUNK), part.split) for part in (train, test)]
        if regression:
            return ridge.ridge(parts[0], target_N, parts[1], test_M, names=names)
        return linear.linear(parts[0], target_N, parts[1], test_M)

    wanted_NT = target_N if regression else torch.nn.functional.one_hot(target_N).float()
    bits = encode.num_bits
    learned_K = invariance.learn_vector(of_positions, wanted_NT, num_bits=bits, **options)
    return invariance.invariance(learned_K, score)


def _under(encode: Any, bits_K: Tensor, x_NCSS: Tensor) -> Tensor:
    return encode(x_NCSS, bits_K)


LEAST = {
    "few-shot": {"ways": 2, "shots": 1, "queries": 1, "episodes": 2},  # an interval needs two
    "meter": {"draws": 2},
}
STUDIES: dict[str, tuple[Callable[..., Metrics], dict[str, Any]]] = {
    "averaging": (_averaging, averaging.PROTOCOL),
    "meter": (_meter, meter.PROTOCOL),
    "alpha": (_alpha, alpha.PROTOCOL),
    "invariance": (_invariance, invariance.PROTOCOL),
    "compression": (_compression, compression.PROTOCOL),
    "few-shot": (episodes.measure, few_shot.PROTOCOL),
    "linear-sgd": (probes.linear_sgd, {**probes.LINEAR_FACTS, **sgd_probe.PROTOCOL}),
    "mlp": (probes.mlp, {**probes.MLP_FACTS, **sgd_probe.PROTOCOL}),
    "fractions": (probes.label_fractions, fractions.PROTOCOL),
    "finetune": (probes.fine_tuning, finetune.PROTOCOL),
    "robustness": (probes.shifts, robustness.PROTOCOL),
    "sensitivity": (probes.sensitivities, probes.SENSITIVITY_FACTS),
    "weight-shares": (probes.weight_shares, {**linear.PROTOCOL, **probes.SHARE_FACTS}),
}
