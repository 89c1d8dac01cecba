"""Spirograph as a source: procedural 32 px images with known factors (augment/spirograph.py)."""

# shapes: N samples, S side, T targets, A nuisances, V views
from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssl.augment import keyed
from fastssl.augment import spirograph as policies
from fastssl.augment.spirograph import (
    NUISANCES,
    TARGETS,
    draw_nuisances,
    draw_targets,
    render,
    shifted_bounds,
)
from fastssl.data.batch import Batch, Labelled, Shown, check_batch_size, part
from fastssl.data.prefetch import Prefetcher

__all__ = ["NUISANCES", "TARGETS", "SpirographSource", "draw_nuisances", "draw_targets", "render"]

NUM_TRAIN, NUM_TEST = 100_000, 20_000


class SpirographSource:
    """Endless Spirograph batches. ``seed`` keys the objects; ``batches(seed=)`` order and views.

    The 20,000 test objects come from a stream of their own and are never trained on.
    """

    name = kind = "spirograph"
    task = "regression"

    def __init__(
        self,
        *,
        seed: int = 0,
        image_size: int = 32,
        num_views: int = 2,
        augment: str = "spirograph",
    ) -> None:
        if image_size < 8:
            raise ValueError(f"image_size must be at least 8 for spirograph, got {image_size}")
        if num_views < 1:
            raise ValueError(f"num_views must be at least 1, got {num_views}")
        self.num_samples = NUM_TRAIN
        self.num_views = num_views
        self.image_shape = (3, image_size, image_size)
        self._seed = seed
        self._policy = policies.preset(augment)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass; the incomplete last one is dropped."""
        check_batch_size(batch_size, self.num_samples, self.name)
        return self.num_samples // batch_size

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        device: torch.device,
        shard: tuple[int, int] = (0, 1),
    ) -> Prefetcher[Batch]:
        """Endless iterator; batch t depends on (seed, t) alone. ``shard``: (rank, ranks)."""
        per_epoch = self.steps_per_epoch(batch_size)
        order = lru_cache(maxsize=2)(
            lambda epoch: keyed.permutation(self.num_samples, seed=seed, epoch=epoch)
        )

        def make(step: int) -> Batch:
            epoch, position = divmod(step, per_epoch)
            index_N = order(epoch)[position * batch_size : (position + 1) * batch_size]
            mine_N = part(index_N, shard)
            return self.batch(mine_N, seed=seed, epoch=epoch, step=step).to(device)

        return Prefetcher(make, start=start_step)

    def batch(self, index_N: np.ndarray, *, seed: int, epoch: int, step: int = 0) -> Batch:
        """All views of the training objects ``index_N``; the table has objects and nuisances."""
        table = policies.sample(
            self._policy,
            seed=seed,
            epoch=epoch,
            step=step,
            index_N=index_N,
            object_NT=_tensor(draw_targets(index_N, seed=self._seed, split="train")),
            num_views=self.num_views,
        )
        assert table.object_NT is not None and table.nuisance_VNA is not None
        views = tuple(self._render(table.object_NT, drawn) for drawn in table.nuisance_VNA)
        return Batch(views, torch.from_numpy(np.ascontiguousarray(index_N)), table)

    def rehearsal(self, num_samples: int) -> Batch:
        """A batch of any images with a table that fits: to try a method on."""
        return self.batch(np.arange(num_samples), seed=0, epoch=0)

    def shown(self, count: int, *, seed: int) -> Shown:
        """The first ``count`` objects as the readout sees them, and their views in step 0."""
        clean = self.labelled("train", count)
        index_N = np.arange(len(clean.target))
        batch = self.batch(index_N, seed=seed, epoch=0)
        names = tuple(f"object {index}" for index in index_N)
        return Shown(tuple(clean.render(index_N)), batch.views, names)

    def report(self) -> dict:
        """Nothing can be skipped here."""
        return {"skipped": []}

    def labelled(self, split: str, limit: int | None = None) -> Labelled:
        """The first ``limit`` objects of "train" or "test", one fresh keyed view of each."""
        index_n = np.arange(_count(split, limit))
        target_nT = _tensor(draw_targets(index_n, seed=self._seed, split=split))

        def drawn(position_N: np.ndarray, epoch: int, **bounds: Any) -> Tensor:
            key: dict[str, Any] = {"seed": self._seed, "epoch": epoch, "stream": f"readout/{split}"}
            return _tensor(draw_nuisances(index_n[position_N], **key, **bounds))

        nuisance_nA = drawn(np.arange(len(index_n)), 0)

        def images(position_N: np.ndarray) -> Tensor:
            return self._render(target_nT[position_N], nuisance_nA[position_N])

        def redraw(position_N: np.ndarray, draw: int, only: str | None) -> Tensor:
            """Draw 0 of all nuisances is the image itself."""
            fresh_NA = drawn(position_N, draw)
            if only is not None:
                kept_NA, column = nuisance_nA[position_N].clone(), NUISANCES.index(only)
                kept_NA[:, column] = fresh_NA[:, column]
                fresh_NA = kept_NA
            return self._render(target_nT[position_N], fresh_NA)

        def shift(position_N: np.ndarray, name: str, amount: float) -> Tensor:
            """The draw of the images themselves between other bounds; amount 0 is the images."""
            shifted_NA = drawn(position_N, 0, bounds=shifted_bounds(name, amount))
            return self._render(target_nT[position_N], shifted_NA)

        return Labelled(
            target=target_nT,
            task="regression",
            names=TARGETS,
            render=images,
            redraw=redraw,
            varied=NUISANCES,
            nuisance=nuisance_nA,
            shift=shift,
            shifts=policies.SHIFTS,
            identity=lambda: f"{self.name} {self._seed} {split} {len(index_n)} {self.image_shape}",
            split=split,
        )

    @torch.no_grad()
    def _render(self, target_NT: Tensor, nuisance_NA: Tensor) -> Tensor:
        return render(target_NT, nuisance_NA, side=self.image_shape[-1])


def _count(split: str, limit: int | None) -> int:
    sizes = {"train": NUM_TRAIN, "test": NUM_TEST}
    if split not in sizes:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    return min(limit or sizes[split], sizes[split])


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
