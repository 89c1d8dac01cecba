"""64 digits as 64 classes whose maximal invariant is known: M(x) = which of them x is a view of.

An epoch is one batch, so that no sample is its own negative. Scored on views that training has not
seen: which prototype (64 classes), and random two-class tasks on the prototypes.
"""

# shapes: N views, C classes, F features, T tasks
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.claims import digits
from fastssl.augment.presets import digits as policy_of
from fastssl.data import rendering
from fastssl.data.arrays import as_images
from fastssl.evaluation import features, linear
from fastssl.recipes.readouts import FeaturesFn

CLASSES, TASKS = 64, 200
DRAWS = {"fit": range(0, 10), "score": range(10, 20)}  # views of each prototype


def write(file: Path) -> Path:
    """The array file of a run: the prototypes alone."""
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, images=digits.split("train").image_NHW[:CLASSES])
    return file


def scores(encode: FeaturesFn) -> dict[str, float]:
    """Accuracies of linear probes: ``classes`` (64-way), ``tasks`` (mean of 200 random two-class
    tasks) and ``worst`` (of them)."""
    fit_NF, score_NF = (_features(encode, draws) for draws in DRAWS.values())
    prototype_N = torch.arange(CLASSES).repeat(len(DRAWS["fit"]))
    ways = dict(linear.linear(fit_NF, prototype_N, score_NF, prototype_N))
    task_CT = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (CLASSES, TASKS)))
    right_T = tasks(fit_NF, score_NF, task_CT[prototype_N].double())
    return {
        "classes": ways["linear_top1"],
        "tasks": float(right_T.mean()),
        "worst": float(right_T.min()),
    }


def tasks(fit_NF: Tensor, score_NF: Tensor, label_NT: Tensor, *, l2: float = 1e-5) -> Tensor:
    """(T,) accuracies of logistic regressions, all fitted at once: the objective is their sum."""
    fit_NF, score_NF = features.standardise(fit_NF, score_NF)
    weight_FT = torch.zeros(fit_NF.shape[1], label_NT.shape[1]).double().requires_grad_()
    bias_T = torch.zeros(label_NT.shape[1]).double().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight_FT, bias_T], max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits_NT = fit_NF @ weight_FT + bias_T
        loss_T = F.binary_cross_entropy_with_logits(logits_NT, label_NT, reduction="none").mean(0)
        loss = (loss_T + l2 * weight_FT.square().sum(0)).sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    with torch.no_grad():
        said_NT = score_NF @ weight_FT + bias_T > 0
    return (said_NT == label_NT.bool()).double().mean(0)


def _features(encode: FeaturesFn, draws: range) -> Tensor:
    images_N3HW = as_images(digits.split("train").image_NHW[:CLASSES], "prototypes")
    policy, index_N = policy_of(digits.SIDE), np.arange(CLASSES)
    views = (rendering.redrawn(policy, images_N3HW, index_N, draw=draw) for draw in draws)
    return features.extract(encode, views)
