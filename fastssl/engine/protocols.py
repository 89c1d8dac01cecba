"""What the loop asks of data, methods and readouts. Satisfied by shape, never by inheritance."""

# shapes: N batch, C channels, S side, F features
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Table(Protocol):
    """What methods read beside the views; the engine only moves it. augment/drawn.py has it."""

    def to(self, device: torch.device) -> Any:
        """The same on ``device``."""
        ...


class Batch(Protocol):
    """One training batch: V views of the same N samples."""

    views: tuple[Tensor, ...]  # V tensors (N, C, S, S), float32, normalised; of sounds (N, T)
    index_N: Tensor  # int64 index of each sample in the data set
    table: Table | None  # the parameters that made the views


class BatchIterator(Protocol):
    """Endless, prefetching; batch t depends on (seed, t) alone."""

    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def close(self) -> None: ...


class Source(Protocol):
    """Where batches come from.

    Optional: ``fingerprint()``, plain values that tell on a resume whether the data are the same.
    """

    name: str
    kind: str  # "spirograph", "folder", ...
    num_samples: int
    num_views: int
    image_shape: tuple[int, int, int]

    def steps_per_epoch(self, batch_size: int) -> int: ...

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int,
        device: torch.device,
        shard: tuple[int, int] = (0, 1),
    ) -> BatchIterator:
        """Batches of ``batch_size``; of each the part ``shard`` = (rank, number of ranks)."""
        ...

    def rehearsal(self, num_samples: int) -> Batch:
        """Any batch of that many samples, with the shapes and the table of a training batch."""
        ...

    def report(self) -> dict:
        """What was skipped: ``{"skipped": [{"path": ..., "reason": ...}, ...]}``."""
        ...


class Method(Protocol):
    """An ``nn.Module`` that turns views, and the table of their parameters, into a loss.

    Optional: ``after_step(step, total_steps)`` after each update; ``leaves(table)``, the table with
    a gradient where ``forward`` differentiates by it, called before each step; ``chance_loss(N)``;
    ``front``, where it is called with waveforms (nn.hearing).
    """

    backbone: nn.Module

    def __call__(
        self, views: tuple[Tensor, ...], table: Any
    ) -> tuple[Tensor, dict[str, Tensor]]: ...
    def features(self, x_NCSS: Tensor) -> Tensor:
        """(N, F) representation used by evaluation."""
        ...


FeaturesFn = Callable[[Tensor], Tensor]
Readout = Callable[[FeaturesFn], Iterator[tuple[str, float]]]
