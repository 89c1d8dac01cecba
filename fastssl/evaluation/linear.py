"""Linear probe: multinomial logistic regression on frozen features, by full-batch L-BFGS.

    min_W,b  mean_n CE(W x_n + b, y_n) + l2 |W|^2      x standardised, float64, b free

l2 is chosen on a held-out fifth of the train split, then the whole of it is fitted; the test
split is only scored. The objective is convex, so the answer does not depend on a schedule.
"""

# shapes: N train images, M test images, F features, C classes
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.evaluation.features import HELD_OUT, check_finite, hold_out, standardise
from fastssl.evaluation.knn import top_accuracies

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2)
STEPS = 200
PROTOCOL = {
    "readout": "logistic regression, full-batch L-BFGS, float64",
    "features_scaled": "to mean 0 and deviation 1 on the train split",
    "l2_chosen_on": HELD_OUT,
    "l2_tried": list(PENALTIES),
    "steps": STEPS,
}


def linear(
    train_NF: Tensor,
    train_N: Tensor,
    test_MF: Tensor,
    test_M: Tensor,
    *,
    penalties: Sequence[float] = PENALTIES,
) -> Iterator[tuple[str, float]]:
    """Yields ("linear_top1", .), from six classes on ("linear_top5", .), and ("l2", .)."""
    if len(train_NF) < 5:
        raise ValueError(f"linear: expected at least 5 train images, received {len(train_NF)}")
    check_finite("linear", train=train_NF, test=test_MF)
    scores_of, chosen = fitted(train_NF, train_N, penalties=penalties)
    yield from top_accuracies("linear", scores_of(test_MF), test_M)
    yield "l2", chosen


def fitted(
    train_NF: Tensor, train_N: Tensor, *, penalties: Sequence[float] = PENALTIES
) -> tuple[Callable[[Tensor], Tensor], float]:
    """The probe as a function of features (M, F) -> logits (M, C), and the l2 that it chose."""
    chosen = choose_penalty(train_NF, train_N, penalties)
    weight_CF, bias_C = fit(standardise(train_NF)[0], train_N, chosen)
    return lambda x_MF: standardise(train_NF, x_MF)[1] @ weight_CF.T + bias_C, chosen


def choose_penalty(train_NF: Tensor, train_N: Tensor, penalties: Sequence[float]) -> float:
    """The penalty with the least cross entropy on the held-out fifth of the train split."""
    fit_n, held_m = hold_out(train_N)
    fit_NF, held_MF = standardise(train_NF[fit_n], train_NF[held_m])
    num_classes = int(train_N.max()) + 1
    losses = []
    for penalty in penalties:
        weight_CF, bias_C = fit(fit_NF, train_N[fit_n], penalty, num_classes=num_classes)
        losses.append(float(F.cross_entropy(held_MF @ weight_CF.T + bias_C, train_N[held_m])))
    return penalties[losses.index(min(losses))]


def fit(
    train_NF: Tensor, train_N: Tensor, penalty: float, *, num_classes: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weights (C, F) and biases (C,) of the penalised optimum on standardised float64 features."""
    classes = num_classes or int(train_N.max()) + 1
    weight_CF = torch.zeros(classes, train_NF.shape[1], dtype=torch.float64, requires_grad=True)
    bias_C = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_CF, bias_C],
        max_iter=STEPS,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            logits_NC = train_NF @ weight_CF.T + bias_C
            loss = F.cross_entropy(logits_NC, train_N) + penalty * weight_CF.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return weight_CF.detach(), bias_C.detach()
