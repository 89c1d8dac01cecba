"""Probes trained by SGD: a linear one, or an MLP, as papers report them.

SGD, momentum .9, learning rate .3 with one cosine to 0 over 100 epochs (a step per epoch), batches
of 512, no warm-up; features of images that are not augmented, as they are. MLP: two hidden layers
of 2,048 with BatchNorm and ReLU. Dubois et al. 2022 (arXiv:2209.06235), who take the best of the
weight decays 1e-4, 1e-5, 1e-6 by the test split; here a held-out fifth of the train split decides.
"""

# shapes: N train images, n batch, M test images, F features, C classes, T targets, D outputs
from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastssl.evaluation.features import HELD_OUT, check_finite, hold_out
from fastssl.evaluation.knn import top_accuracies
from fastssl.evaluation.ridge import regression_scores

WEIGHT_DECAYS = (1e-4, 1e-5, 1e-6)
MOMENTUM = 0.9
PROTOCOL: dict[str, Any] = {
    "features_scaled": "no",
    "optimizer": "SGD, momentum .9, cosine to 0 by epoch, no warm-up",
    "weight_decay_chosen_on": f"{HELD_OUT}, by its loss",
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a probe is trained. ValueError for what cannot be."""

    lr: float = 0.3
    epochs: int = 100
    batch_size: int = 512
    weight_decays: tuple[float, ...] = WEIGHT_DECAYS
    hidden_dims: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "batch_size"):
            if not 0 < getattr(self, name) < math.inf:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag}: expected above 0, received {getattr(self, name)}")
        if not self.weight_decays or min(self.weight_decays) < 0:
            raise ValueError(
                f"--weight-decays: expected one or more of at least 0, received "
                f"{' '.join(map(str, self.weight_decays)) or 'none'}"
            )
        if any(width < 1 for width in self.hidden_dims):
            raise ValueError(f"--hidden-dims: expected at least 1, received {self.hidden_dims}")


def sgd_probe(
    train_NF: Tensor,
    train_N: Tensor,
    test_MF: Tensor,
    test_M: Tensor,
    *,
    name: str = "linear_sgd",
    schedule: Schedule | None = None,
    names: Sequence[str] = (),
    device: torch.device | None = None,
) -> Iterator[tuple[str, float]]:
    """Yields ("NAME_top1", .) of classes (N,), or ("mse", .) and the like of targets (N, T), and
    ("weight_decay", .).

    Targets are learnt with mean 0 and deviation 1 of the train split, by their squared error.
    """
    schedule = schedule or Schedule()
    if len(train_NF) < 10:
        raise ValueError(f"{name}: expected at least 10 train images, received {len(train_NF)}")
    check_finite(name, train=train_NF, test=test_MF)
    goal = Goal.of(train_N)
    where = device or torch.device("cpu")
    x_NF, y_N = train_NF.float().to(where), goal.scaled(train_N).to(where)
    fit_n, held_m = (part.to(where) for part in hold_out(train_N))
    losses = []
    for decay in schedule.weight_decays:
        net = train_probe(x_NF[fit_n], y_N[fit_n], goal.width, decay, schedule)
        loss = float(goal.loss(outputs(net, x_NF[held_m]), y_N[held_m]))
        losses.append(loss if math.isfinite(loss) else math.inf)
    if not math.isfinite(min(losses)):
        raise ValueError(f"{name}: the loss is not finite; take an --lr below {schedule.lr:g}")
    chosen = schedule.weight_decays[losses.index(min(losses))]
    net = train_probe(x_NF, y_N, goal.width, chosen, schedule)
    answer_MD = outputs(net, test_MF.float().to(where)).cpu()
    yield from goal.scores(name, answer_MD, test_M, names)
    yield "weight_decay", chosen


@dataclass(frozen=True)
class Goal:
    """What outputs are compared with: classes by cross entropy, or targets by squared error."""

    width: int  # D
    centre_T: Tensor | None = None
    spread_T: Tensor | None = None

    @classmethod
    def of(cls, train_N: Tensor) -> Goal:
        """The goal that train labels (N,) or targets (N, T) set."""
        if train_N.ndim == 1:
            return cls(int(train_N.max()) + 1)
        spread_T = train_N.std(0, unbiased=False).clamp(min=1e-12)
        return cls(train_N.shape[1], train_N.mean(0), spread_T)

    def scaled(self, y_N: Tensor) -> Tensor:
        """Labels as they are; targets with the train split's mean 0 and deviation 1."""
        return y_N if self.centre_T is None else (y_N - self.centre_T) / self.spread_T

    def loss(self, answer_ND: Tensor, scaled_N: Tensor) -> Tensor:
        """Mean over the images (and targets)."""
        if self.centre_T is None:
            return F.cross_entropy(answer_ND, scaled_N)
        return F.mse_loss(answer_ND, scaled_N)

    def scores(
        self, name: str, answer_MD: Tensor, test_M: Tensor, names: Sequence[str]
    ) -> Iterator[tuple[str, float]]:
        """Accuracies as NAME_top1, or the errors in the targets' own units."""
        if self.centre_T is None or self.spread_T is None:
            return top_accuracies(name, answer_MD, test_M)
        return regression_scores(answer_MD * self.spread_T + self.centre_T, test_M, names=names)


def train_probe(
    x_NF: Tensor, y_N: Tensor, width: int, weight_decay: float, schedule: Schedule
) -> nn.Module:
    """The trained head (N, F) -> (N, width), in eval mode; its start and order depend on the seed.

    The last batch of an epoch is smaller; one of a single image is left out.
    """
    generator = torch.Generator().manual_seed(schedule.seed)
    net = head(x_NF.shape[1], width, schedule.hidden_dims, generator).to(x_NF.device)
    optimizer = torch.optim.SGD(
        net.parameters(), lr=schedule.lr, momentum=MOMENTUM, weight_decay=weight_decay
    )
    goal = Goal(width, None if y_N.ndim == 1 else y_N.new_zeros(width))
    net.train()
    for epoch in range(schedule.epochs):
        turn = math.pi * epoch / schedule.epochs
        optimizer.param_groups[0]["lr"] = schedule.lr * (1 + math.cos(turn)) / 2
        order_N = torch.randperm(len(x_NF), generator=generator).to(x_NF.device)
        for some_n in order_N.split(schedule.batch_size):
            if len(some_n) == 1:
                continue
            with torch.enable_grad():
                loss = goal.loss(net(x_NF[some_n]), y_N[some_n])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def head(
    width_in: int, width_out: int, hidden_dims: Sequence[int], generator: torch.Generator
) -> nn.Sequential:
    """Linear layers, with BatchNorm and ReLU between them; uniform starts as torch's Linear has."""
    layers: list[nn.Module] = []
    widths = (width_in, *hidden_dims, width_out)
    for before, after in itertools.pairwise(widths):
        linear = nn.Linear(before, after)
        for part in linear.parameters():
            reach = 1 / math.sqrt(before)
            nn.init.uniform_(part, -reach, reach, generator=generator)
        layers += [linear, nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers[:-2])


@torch.no_grad()
def outputs(net: nn.Module, x_MF: Tensor) -> Tensor:
    """(M, D) in chunks."""
    return torch.cat([net(part) for part in x_MF.split(4096)])
