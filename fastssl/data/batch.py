"""What a source hands out: training batches and labelled evaluation images."""

# shapes: N batch, C channels, S side, V views, T targets
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastssl.augment.drawn import Drawn


@dataclass(frozen=True)
class Batch:
    """V views of the same N samples, with the table of the parameters that made them."""

    # V tensors (N, C, S, S), float32, where S may differ between them; of sounds (N, T)
    views: tuple[Tensor, ...]
    index_N: Tensor  # int64 index of each sample in the data set
    table: Drawn = field(compare=False)  # values, operator labels and group bits of all views

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        if device.type == "cpu":
            return self
        moved = tuple(view.to(device, non_blocking=True) for view in self.views)
        return Batch(moved, self.index_N.to(device, non_blocking=True), self.table.to(device))


@dataclass(frozen=True)
class Shown:
    """A few samples to look at, in [0, 1]."""

    images: tuple[Tensor, ...]  # N images (C, H_n, W_n), float32, as they are
    views: tuple[Tensor, ...]  # V tensors (N, C, S, S), float32, not normalised
    names: tuple[str, ...]  # of the N samples


@dataclass(frozen=True)
class Labelled:
    """Clean images in a fixed order, with their targets."""

    target: Tensor  # (n,) int64 classes, or (n, T) float32
    task: Literal["classification", "regression"]
    names: tuple[str, ...]  # class names, or the names of the T targets
    render: Callable[[np.ndarray], Tensor]  # positions (N,) int64 -> images (N, C, S, S)
    # positions, number of the draw, what is drawn (None: all) -> one augmented view of each image
    redraw: Callable[[np.ndarray, int, str | None], Tensor] | None = None
    varied: tuple[str, ...] = ()  # the augmentations that ``redraw`` knows by name
    nuisance: Tensor | None = None  # (n, A): what varies in ``render``, columns ``varied``
    # positions, one of ``shifts``, amount -> images whose variation is shifted or widened
    shift: Callable[[np.ndarray, str, float], Tensor] | None = None
    shifts: tuple[str, ...] = ()
    # text that tells these images and their order from any others; costs a look at all of them
    identity: Callable[[], str] | None = None
    at_once: int | None = None  # most images in a batch, where they are larger than usual
    split: str = ""  # "train" or "test", for messages

    def images(self, batch_size: int) -> Iterator[Tensor]:
        """Batches of at most ``batch_size`` images, (N, C, S, S) float32, in target order."""
        n = len(self.target)
        batch_size = min(batch_size, self.at_once or batch_size)
        for begin in range(0, n, batch_size):
            yield self.render(np.arange(begin, min(begin + batch_size, n)))

    def redrawn(self, batch_size: int, *, draw: int, only: str | None = None) -> Iterator[Tensor]:
        """The same images under one augmentation each, keyed by ``draw``; ``only``: one of varied.

        ValueError for data whose images are not augmented.
        """
        if self.redraw is None:
            raise ValueError("redrawn: these data have no augmentation of single images")
        n = len(self.target)
        for begin in range(0, n, batch_size):
            yield self.redraw(np.arange(begin, min(begin + batch_size, n)), draw, only)

    def shifted(self, batch_size: int, *, name: str, amount: float) -> Iterator[Tensor]:
        """The same images with the variation ``name`` shifted by ``amount``; see ``shifts``.

        ValueError for a name that these data do not know.
        """
        if self.shift is None or name not in self.shifts:
            known = ", ".join(self.shifts) or "none for these data"
            raise ValueError(f"--shift: expected one of: {known}; received {name!r}")
        n = len(self.target)
        for begin in range(0, n, batch_size):
            yield self.shift(np.arange(begin, min(begin + batch_size, n)), name, amount)


def contents_identity(what: object, contents: Iterable[bytes]) -> str:
    """``what`` and the SHA-256 of all contents, as text."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return f"{what} {digest.hexdigest()}"


def fingerprint(what: Iterable[str], label_M: np.ndarray) -> dict[str, int | str]:
    """Number of samples, and the SHA-256 of ``what`` tells each apart and of the labels (M,).

    Nothing that changes when the data are moved or copied belongs in ``what``.
    """
    digest, samples = hashlib.sha256(), 0
    for text in what:
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
        samples += 1
    digest.update(np.ascontiguousarray(label_M, dtype="<i8").tobytes())
    return {"samples": samples, "sha256": digest.hexdigest()}


def with_classes(batch: Batch, label_M: np.ndarray) -> Batch:
    """The batch, its table with the class of each sample; ``label_M`` is that of each index.

    A sample without a class (-1) gets a number of its own, so that it is nobody's positive.
    """
    index_N = batch.index_N.cpu()
    class_N = torch.from_numpy(np.asarray(label_M, dtype=np.int64))[index_N]
    class_N = torch.where(class_N < 0, -2 - index_N, class_N).to(batch.index_N.device)
    return replace(batch, table=replace(batch.table, class_N=class_N))


def part(index_N: np.ndarray, shard: tuple[int, int]) -> np.ndarray:
    """The rows of rank ``shard[0]`` of ``shard[1]``, contiguous, in rank order."""
    rank, size = shard
    return index_N[rank * len(index_N) // size : (rank + 1) * len(index_N) // size]


def check_batch_size(batch_size: int, num_samples: int, name: str) -> None:
    """ValueError when one epoch of ``name`` would hold no full batch."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if batch_size > num_samples:
        smaller = f"give --batch-size {num_samples} or less, or " if num_samples >= 2 else ""
        raise ValueError(
            f"{name}: {num_samples} usable training samples, but --batch-size is {batch_size}; "
            f"{smaller}add images"
        )
