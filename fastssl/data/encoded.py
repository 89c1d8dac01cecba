"""Image files as a source: decoded by DALI or PIL, rendered by ``augment``.

Batch t is a pure function of (seed, t): an epoch is a keyed permutation, every parameter is keyed
by (seed, epoch, index), and a file that cannot be decoded is replaced by a keyed one (roster.py).
"""

# shapes: N batch, V views, S side
from __future__ import annotations

import importlib
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastssl.augment import keyed
from fastssl.augment.policy import Policy
from fastssl.data import rendering
from fastssl.data.batch import (
    Batch,
    Labelled,
    Shown,
    check_batch_size,
    contents_identity,
    fingerprint,
    with_classes,
)
from fastssl.data.folder_labels import Split, labelled_indices
from fastssl.data.maker import BatchMaker, Decoded
from fastssl.data.pil_decoder import Failures, attempt, pixels
from fastssl.data.prefetch import Prefetcher
from fastssl.data.roster import Roster, TooManyBadFiles
from fastssl.data.store import Store, fetch, num_files, printable

Backend = Literal["auto", "dali", "torchvision"]
_AT_A_TIME = 64  # images of the readout in memory at once


class EncodedSource:
    """Augmented views of the images of ``store``, trained on in the order of ``split.train``.

    decoded: "whole" decodes each image once for all its views; "regions" decodes, for each view,
        the part that it shows (DALI alone). "whole" is the faster one wherever it was measured
        (``python -m benchmarks.systems loader``); the views are the same.
    """

    def __init__(
        self,
        store: Store,
        split: Split,
        *,
        name: str,
        kind: str,
        policy: Policy,
        workers: int = 2,
        device: torch.device | None = None,
        cache_dir: Path | None = None,
        max_bad: float | None = None,
        backend: Backend = "auto",
        decoded: Decoded = "whole",
    ) -> None:
        self.name, self.kind = name, kind
        self.policy = rendering.for_training(policy)
        self.num_views, self.image_shape = policy.num_views, (3, *[policy.sizes[0]] * 2)
        self.num_samples = len(split.train)
        self.task = "classification" if split.classes else None
        self.has_test_split = len(split.test) > 0
        self.all_listed = store.complete
        self._store, self._split = store, split
        self._workers, self._device = max(1, workers), device or torch.device("cpu")
        self._roster = Roster(store, split.train, name=name, max_bad=max_bad, cache_dir=cache_dir)
        self.backend, self.decoded = _choose_backend(backend), decoded
        if decoded == "regions" and policy.alpha:
            raise ValueError(f"decoded: 'regions' has no place for the base views of {policy.name}")
        if decoded == "regions" and self.backend != "dali":
            raise ValueError("decoded: 'regions' needs DALI; use 'whole' or install nvidia-dali")

    @property
    def loading(self) -> str:
        """How batches come about, in a few words."""
        where = {"dali": f"DALI on {self._device.type}", "torchvision": "PIL"}[self.backend]
        how = {"whole": "each image once", "regions": "the region of each view"}[self.decoded]
        return f"{where} decodes {how}, augment renders the views"

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass; the incomplete last one is left out."""
        unusable = f" ({self._roster.bad_files()})" if self._store.skipped else ""
        check_batch_size(batch_size, self.num_samples, f"{self.name}{unusable}")
        return self.num_samples // batch_size

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        device: torch.device | None = None,
        shard: tuple[int, int] = (0, 1),
    ) -> Prefetcher[Batch]:
        """Endless batches from ``start_step`` on, made ahead of time by one thread.

        ``shard`` (rank, ranks) takes its part of each. A rank does not know which files of another
        part turn out bad in decoding; only then may one image stand in for two of them.
        """
        per_epoch = self.steps_per_epoch(batch_size)
        maker = BatchMaker(
            self._store,
            self._roster,
            self.policy,
            stage=rendering.Stage(device or self._device),
            workers=self._workers,
            backend=self.backend,
            decoded=self.decoded,
            seed=seed,
            shard=shard,
        )

        @lru_cache(maxsize=2)  # sorting a million keys takes longer than a batch
        def order(epoch: int) -> np.ndarray:
            return keyed.permutation(self.num_samples, seed=seed, epoch=epoch)

        def make(step: int) -> Batch:
            epoch, position = divmod(step, per_epoch)
            chosen = order(epoch)[position * batch_size : (position + 1) * batch_size]
            batch = maker.batch(self._split.train[chosen], epoch=epoch, step=step)
            return self._with_classes(batch)

        return Prefetcher(make, start=start_step, release=maker.close)

    def rehearsal(self, num_samples: int) -> Batch:
        """A batch of noise with the shapes and the table of a training batch."""
        batch = rendering.rehearsal(self.policy, self.image_shape, num_samples)
        return self._with_classes(
            replace(batch, index_N=torch.arange(num_samples) % self.num_samples)
        )

    def _with_classes(self, batch: Batch) -> Batch:
        return with_classes(batch, self._split.label) if self._split.classes else batch

    def shown(self, count: int, *, seed: int) -> Shown:
        """The first ``count`` images that decode, and their views in step 0, not normalised."""
        good: list[int] = []
        for begin in range(0, self.num_samples, count):
            some = self._split.train[begin : begin + count]
            self._try(some)
            good += self._roster.usable(some).tolist()
            if len(good) >= count:
                break
        if not good:
            raise TooManyBadFiles(f"--data: no usable image is left; {self._roster.bad_files()}")
        index_N = np.array(good[:count])
        images = self._decode(index_N)
        assert isinstance(images, list), "they were decoded before"
        names = [printable(self._store.paths[index]) for index in index_N]
        return rendering.shown(self.policy, images, index_N, names, seed=seed)

    def report(self) -> dict:
        """What was skipped and why, ready for JSON."""
        skipped = self._roster.skipped()
        unused = len(self._store.paths) - len(self._split.train) - len(self._split.test)
        return {
            "skipped": [{"path": printable(path), "reason": why} for path, why in skipped],
            "num_files": num_files(self._store),
            "unchecked": self._store.unchecked,  # more than 0 only where the scan was bounded
            "outside_splits": unused,  # loose images beside train/ and val/
        }

    def fingerprint(self) -> dict[str, Any] | None:
        """Names, sizes and labels in few bytes; None where the scan was bounded."""
        store = self._store
        if store.unchecked or not store.complete:
            return None
        stamps = (store.stamp(index) for index in range(len(store.paths)))
        sizes = (0 if stamp is None else json.loads(stamp)[1] for stamp in stamps)
        named = (f"{path} {size}" for path, size in zip(store.paths, sizes, strict=True))
        return fingerprint(named, self._split.label)

    def labelled(self, split: str, limit: int | None = None) -> Labelled | None:
        """Clean images with their class, or None where fewer than two classes are known.

        "test" is the data's own test split where it has one; else a fifth of the images, the same
        for every seed: held out from the readout, not from training. Files that do not decode are
        left out.
        """
        chosen = labelled_indices(self._split, split, limit=limit)
        if chosen is None:
            return None
        self._try(chosen)
        good = self._roster.usable(chosen)
        classes = torch.from_numpy(self._split.label[good])

        def render(position_N: np.ndarray) -> Tensor:
            images = self._decode(good[position_N])
            assert isinstance(images, list), "they were decoded before"
            size, settings = self.image_shape[1], self.policy.groups[0].settings
            return rendering.clean(images, size=size, settings=settings)

        def redraw(position_N: np.ndarray, draw: int, only: str | None) -> Tensor:
            images = self._decode(good[position_N])
            assert isinstance(images, list), "they were decoded before"
            return rendering.redrawn(self.policy, images, good[position_N], draw=draw, only=only)

        def shift(position_N: np.ndarray, name: str, amount: float) -> Tensor:
            images = self._decode(good[position_N])
            assert isinstance(images, list), "they were decoded before"
            return rendering.jittered(self.policy, images, good[position_N], strength=amount)

        def identity() -> str:
            return contents_identity(self.policy, (self._store.read(int(i)) for i in good))

        return Labelled(
            classes,
            "classification",
            self._split.classes,
            render,
            redraw,
            rendering.varied(self.policy),
            shift=shift,
            shifts=rendering.SHIFTS,
            identity=identity,
            split=split,
        )

    def _try(self, index_N: np.ndarray) -> None:
        """Decode, and exclude what fails."""
        for begin in range(0, len(index_N), _AT_A_TIME):
            some = index_N[begin : begin + _AT_A_TIME]
            images = self._decode(some)
            if isinstance(images, dict):
                self._roster.exclude({int(some[slot]): why for slot, why in images.items()})

    def _decode(self, index_N: np.ndarray) -> list[Tensor] | Failures:
        """Through PIL whatever the backend: scores do not depend on it."""
        with ThreadPoolExecutor(max_workers=self._workers) as pool:
            return attempt(pool.map, lambda i: pixels(fetch(self._store, int(i))), index_N)


@cache
def _say_no_dali(why: str) -> None:
    logging.getLogger("fastssl").warning(
        "DALI cannot be imported (%s): images are decoded by PIL, slower. "
        'pip install "fastssl[train]" brings nvidia-dali-cuda130.',
        why,
    )


def _choose_backend(backend: Backend) -> Literal["dali", "torchvision"]:
    if backend != "auto":
        return backend
    try:
        importlib.import_module("nvidia.dali")
    except ImportError as error:
        _say_no_dali(str(error))
        return "torchvision"
    return "dali"
