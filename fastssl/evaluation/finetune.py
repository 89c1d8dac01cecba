"""Fine-tuning: the whole encoder and a linear head, from the exported weights.

SGD with Nesterov momentum .9, one cosine to 0, no weight decay (Chen et al. 2020, arXiv:2002.05709,
appendix B.5). The epoch whose net does best on a held-out fifth of the labelled images is the one
that is scored; the test split is only scored, once.
"""

# shapes: N train images, n batch, M test images, S side, F features, D outputs
from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastssl.evaluation.features import HELD_OUT, hold_out
from fastssl.evaluation.fractions import subset
from fastssl.evaluation.sgd_probe import Goal, head

PROTOCOL: dict[str, Any] = {
    "readout": "the encoder and a linear head, trained together",
    "optimizer": "SGD, Nesterov momentum .9, cosine to 0 by step",
    "epoch_chosen_on": f"{HELD_OUT} that is used, by its loss",
    "batch_norm": "train mode in training, eval mode in scoring",
}
_CHUNK = 256  # images scored at a time


class Images:
    """Where images come from: positions (n,) -> (n, C, S, S), clean or as they are trained on."""

    def __init__(
        self,
        target_N: Tensor,
        clean: Callable[[np.ndarray], Tensor],
        view: Callable[[np.ndarray, int], Tensor] | None = None,
    ) -> None:
        self.target_N, self.clean = target_N, clean
        self.view = view or (lambda position_n, epoch: clean(position_n))


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How the net is trained. ``lr`` is that of 256 images and scales with the batch; ``fraction``
    is the share of the train labels, see evaluation.fractions. ValueError for what cannot be."""

    lr: float = 0.05
    epochs: int = 30
    batch_size: int = 256
    fraction: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.lr < math.inf and self.epochs >= 1 and self.batch_size >= 2):
            raise ValueError(
                "finetune: expected --lr above 0, --epochs of at least 1 and --batch-size of at "
                f"least 2, received {self.lr:g}, {self.epochs} and {self.batch_size}"
            )


def finetune(
    encoder: nn.Module,
    train: Images,
    test: Images,
    *,
    tuning: Tuning | None = None,
    names: Sequence[str] = (),
    device: torch.device | None = None,
) -> Iterator[tuple[str, float]]:
    """Yields ("finetune_top1", .) or ("mse", .) and the like, ("best_epoch", .), ("images", .).

    encoder: (n, C, S, S) -> (n, F); it is not changed.
    """
    tuning = tuning or Tuning()
    kept_n = subset(train.target_N, tuning.fraction, seed=tuning.seed)
    if len(kept_n) < 10:
        raise ValueError(f"finetune: expected at least 10 labelled images, received {len(kept_n)}")
    where = device or torch.device("cpu")
    goal = Goal.of(train.target_N[kept_n])
    fit_n, held_m = (kept_n[part] for part in hold_out(train.target_N[kept_n]))
    generator = torch.Generator().manual_seed(tuning.seed)
    encoder = copy.deepcopy(encoder).requires_grad_(True).to(where)
    with torch.no_grad():
        width = encoder.eval()(train.clean(fit_n[:1].numpy()).to(where)).shape[1]
    net = nn.Sequential(encoder, head(width, goal.width, (), generator).to(where))
    best, least, state = 0, math.inf, {}
    for epoch in _trained(net, train, fit_n, goal, tuning, generator):
        answer_mD = _outputs(net, train, held_m)
        loss = float(goal.loss(answer_mD, goal.scaled(train.target_N[held_m])))
        if loss < least:
            best, least = epoch, loss
            state = {key: value.detach().clone() for key, value in net.state_dict().items()}
    if not state:
        raise ValueError(f"finetune: the loss is not finite; take an --lr below {tuning.lr:g}")
    net.load_state_dict(state)
    answer_MD = _outputs(net, test, torch.arange(len(test.target_N)))
    yield from goal.scores("finetune", answer_MD, test.target_N, names)
    yield "best_epoch", float(best)
    yield "images", float(len(kept_n))


def _trained(
    net: nn.Sequential,
    train: Images,
    fit_n: Tensor,
    goal: Goal,
    tuning: Tuning,
    generator: torch.Generator,
) -> Iterator[int]:
    """Trains; yields 1, 2, ... after each epoch. Batches are of a size, give or take one image.

    No batch is of one image, which has no batch statistics: where it would be, it joins another.
    """
    rate = tuning.lr * tuning.batch_size / 256
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9, nesterov=True)
    device = next(net.parameters()).device
    per_epoch = min(math.ceil(len(fit_n) / tuning.batch_size), len(fit_n) // 2)
    y_N, step = goal.scaled(train.target_N), 0
    for epoch in range(tuning.epochs):
        net.train()
        order_n = fit_n[torch.randperm(len(fit_n), generator=generator)]
        for some_n in order_n.tensor_split(per_epoch):
            turn = math.pi * step / (per_epoch * tuning.epochs)
            optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(turn)) / 2
            x_nCSS = train.view(some_n.numpy(), epoch).to(device)
            with torch.enable_grad():
                loss = goal.loss(net(x_nCSS), y_N[some_n].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        yield epoch + 1


@torch.no_grad()
def _outputs(net: nn.Sequential, images: Images, position_M: Tensor) -> Tensor:
    """(M, D) on the CPU, of clean images, in eval mode."""
    device = next(net.parameters()).device
    net.eval()
    parts = position_M.split(_CHUNK)
    return torch.cat([net(images.clean(some.numpy()).to(device)).cpu() for some in parts])
