"""scikit-learn's 1,797 digits of 8 px for the claims, and the nets that are trained on them.

One split for every seed: 900 to train on, 300 to choose settings on, 597 that are only scored. The
file that a run is given holds the first two; its recipe's own score is one of validation images.
"""

# shapes: N images, H height, W width, S side, F features
from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastssl.augment.presets import digits as policy_of
from fastssl.data.rendering import clean
from fastssl.evaluation import features, knn, linear
from fastssl.recipes.catalogue import default_run
from fastssl.recipes.readouts import FeaturesFn
from fastssl.recipes.run import Run

Split = Literal["train", "validation", "test"]
ENDS = {"train": (0, 900), "validation": (900, 1200), "test": (1200, 1797)}
SIDE = 8  # of the digits and of the views
STORED = 32  # of the images in the file: a crop's edges lie on quarters of a digit's pixel
CHUNK = 500
PENALTIES = (
    1e-3,
    1e-2,
)  # of linear probes, chosen on a fifth of the train images; less overfits 900


class Digits(NamedTuple):
    """A split."""

    image_NHW: np.ndarray  # uint8, STORED x STORED
    label_N: Tensor


@lru_cache(maxsize=1)
def _all() -> Digits:
    """All of them in an order of their own, enlarged."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order_N = np.random.default_rng(0).permutation(len(found.images))
    image_NHW = np.repeat(np.repeat(found.images[order_N], 4, axis=1), 4, axis=2)
    pixels_NHW = (image_NHW * (255 / 16)).round().astype(np.uint8)
    return Digits(pixels_NHW, torch.from_numpy(found.target[order_N]).long())


def split(name: Split) -> Digits:
    """The images and classes of a split."""
    begin, end = ENDS[name]
    image_NHW, label_N = _all()
    return Digits(image_NHW[begin:end], label_N[begin:end])


def write(file: Path) -> Path:
    """The array file of a run: train and, as its test split, validation."""
    train, held = split("train"), split("validation")
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        file,
        images=train.image_NHW,
        labels=train.label_N.numpy(),
        test_images=held.image_NHW,
        test_labels=held.label_N.numpy(),
    )
    return file


def rendered(image_NHW: np.ndarray) -> Tensor:
    """(N, 3, S, S): images as a source renders them for evaluation."""
    x_N3HW = torch.from_numpy(image_NHW)[:, None].expand(-1, 3, -1, -1)
    return clean(x_N3HW, size=SIDE, settings=policy_of(SIDE).groups[0].settings)


def run_on(file: Path, method: str, settings: object, **train: object) -> Run:
    """The recipe of ``method`` for images, at the size of digits."""
    run = default_run(method, str(file))
    values = {
        "augment": "digits",
        "backbone": "mlp",
        "image_size": SIDE,
        "batch_size": 256,
        "lr": 4e-3,
        "warmup_steps": 20,
        "save_every": 10_000,
        "readout_every": 10_000,
        "epochs": None,
    }
    return Run(train=dataclasses.replace(run.train, **{**values, **train}), method=settings)


def features_on(encode: FeaturesFn, name: Split) -> Tensor:
    """(N, F) features of a split."""
    x_N3SS = rendered(split(name).image_NHW)
    return features.extract(encode, x_N3SS.split(CHUNK))


def accuracies(train_NF: Tensor, other_MF: Tensor, name: Split) -> dict[str, float]:
    """Top-1 of a linear probe and of kNN fitted on the train split."""
    parts = (train_NF, split("train").label_N, other_MF, split(name).label_N)
    found = {**dict(linear.linear(*parts, penalties=PENALTIES)), **dict(knn.knn(*parts))}
    return {"linear": found["linear_top1"], "knn": found["knn_top1"]}
