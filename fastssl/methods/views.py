"""What methods ask of the views they are given, and how crops of several sizes pass a network."""

# shapes: N batch, C channels, S side, F features
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def check_two_views(method: str, views: Sequence[Tensor]) -> None:
    """Raise ValueError unless these are two views of one shape."""
    if len(views) != 2 or views[0].shape != views[1].shape:
        shapes = [tuple(view.shape) for view in views]
        raise ValueError(f"{method}: expected two views of one shape, received {shapes}")


def check_crops(method: str, views: Sequence[Tensor], *, num_large: int = 2) -> None:
    """Raise ValueError unless the first ``num_large`` views share a shape and all share N."""
    large = {view.shape for view in views[:num_large]}
    if len(views) < num_large or len(large) != 1 or len({len(view) for view in views}) != 1:
        shapes = [tuple(view.shape) for view in views]
        raise ValueError(
            f"{method}: expected {num_large} views of one shape, then any number of smaller ones "
            f"of the same samples, received {shapes}"
        )


def by_size(net: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    """``net`` of every view, views of one size as one batch (as SwAV and DINO run multi-crop)."""
    outputs: list[Tensor] = []
    start = 0
    while start < len(views):
        stop = start + 1
        while stop < len(views) and views[stop].shape == views[start].shape:
            stop += 1
        outputs += net(torch.cat(tuple(views[start:stop]))).chunk(stop - start)
        start = stop
    return outputs
