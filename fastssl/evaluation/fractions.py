"""Label fractions: the same readout from fewer labels, the test split always whole.

Of classes, the same share of each (at least one image); of continuous targets, of all images. A
smaller subset is part of a larger one. Foster et al. 2021 (arXiv:2010.09515) report the shares
linspace(.05, 1, 8).
"""

# shapes: N train images, M test images, F features, n a subset
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

FRACTIONS = tuple(round(0.05 + 0.95 * step / 7, 4) for step in range(8))
PROTOCOL = {
    "labels": "the same share of each class of the train split, nested; l2 or lambda chosen on a "
    "fifth of the subset",
}


def fractions(
    train_NF: Tensor,
    train_N: Tensor,
    readout: Callable[[Tensor, Tensor], Iterator[tuple[str, float]]],
    *,
    shares: Sequence[float] = FRACTIONS,
    seed: int = 0,
) -> Iterator[tuple[str, float]]:
    """Yields ("METRIC@SHARE", .) and ("images@SHARE", .) for each share, in rising order.

    readout: features and labels of a subset of the train split -> its metrics on the test split.
    """
    for share in sorted(set(shares)):
        kept_n = subset(train_N, share, seed=seed)
        yield f"images@{share:g}", float(len(kept_n))
        for name, value in readout(train_NF[kept_n], train_N[kept_n]):
            yield f"{name}@{share:g}", value


def subset(label_N: Tensor, share: float, *, seed: int = 0) -> Tensor:
    """(n,) sorted positions of a ``share`` of each class of (N,), or of all targets (N, T)."""
    if not 0 < share <= 1:
        raise ValueError(f"--fractions: expected above 0 and at most 1, received {share:g}")
    generator = torch.Generator().manual_seed(seed)
    order_N = torch.randperm(len(label_N), generator=generator)
    if label_N.ndim == 2:
        return order_N[: math.ceil(share * len(label_N))].sort().values
    parts = []
    for label in label_N.unique().tolist():
        of_class = order_N[label_N[order_N] == label]
        parts.append(of_class[: math.ceil(share * len(of_class) - 1e-9)])
    return torch.cat(parts).sort().values
