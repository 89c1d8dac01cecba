"""Few-shot episodes on a source: clips in windows where they are of any length, else one look."""

# shapes: N samples, W windows, F features
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastssl.evaluation import few_shot, window_vote
from fastssl.recipes.feature_cache import features_of

SECONDS = 5.0  # of a window, those of Heggan et al. 2023
Metrics = Iterator[tuple[str, float]]


@dataclass(frozen=True)
class Prepared:
    """What is looked at, and how it is told."""

    test: Any  # labelled samples, see data.batch.Labelled; or windows of sounds
    clip_W: Tensor | None  # the sound of each window
    options: dict[str, Any]
    facts: dict[str, Any]


def prepare(source: Any, test: Any, limit: int | None, options: dict[str, Any]) -> Prepared:
    """Takes ``windows`` and ``normalise`` out of the options. ValueError where they do not fit."""
    options = dict(options)
    windows, normalise = options.pop("windows", None), options.pop("normalise", "clip")
    if windows is not None and not 0 <= windows < float("inf"):
        raise ValueError(f"--windows: expected seconds, 0 or more, received {windows:g}")
    if source.kind != "audio-folder":
        if windows:
            raise ValueError(
                f"--windows {windows:g}: {source.name} has no sounds to cut; windows are for a "
                "folder of sound files (--data DIR)"
            )
        return Prepared(test, None, options, {})
    if windows == 0:
        return Prepared(test, None, options, {})
    seconds = SECONDS if windows is None else windows
    part, clip_W = source.windowed("test", limit, seconds=seconds, normalise=normalise)
    facts = {
        **window_vote.PROTOCOL,
        "crop": f"windows of {seconds:g} s, what is left repeated",
        "normalise": normalise,
        "test_images": int(clip_W[-1]) + 1 if len(clip_W) else 0,
        "test_windows": len(clip_W),
    }
    return Prepared(part, clip_W, options, facts)


def measure(
    train: Any,
    test: Any,
    encode: Callable[[Tensor], Tensor],
    *,
    clip_W: Tensor | None = None,
    **options: Any,
) -> Metrics:
    """Accuracy of each readout and its interval."""
    if test.task != "classification":
        raise ValueError("few-shot: needs classes, received continuous targets; use ridge")
    _check_classes(test.target, options["ways"], options["shots"], options["queries"])
    features = features_of(encode, test)
    if clip_W is None:
        return few_shot.few_shot(features, test.target, **options)
    return window_vote.few_shot_windows(features, clip_W, test.target, **options)


def _check_classes(label_M: Tensor, ways: int, shots: int, queries: int) -> None:
    """ValueError, with what would do, where too few classes have enough test images."""
    size_C = torch.bincount(label_M).sort(descending=True).values
    enough = int((size_C >= shots + queries).sum())
    if enough >= ways:
        return
    most = int(size_C[ways - 1]) if len(size_C) >= ways else 0
    fits = [f"--ways {enough}"] if enough > 1 else []
    fits += [f"--shots 1 --queries {most - 1}"] if most > 1 else []
    raise ValueError(
        f"--ways {ways} --shots {shots} --queries {queries}: expected {ways} classes with "
        f"{shots + queries} test images each, received {enough}"
        + (f"; {' or '.join(fits)} would do" if fits else "")
    )
