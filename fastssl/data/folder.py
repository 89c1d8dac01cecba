"""A folder of images as a source: nested or flat, labelled by folder or not, some files bad.

Batch t is a pure function of (seed, t): an epoch is a keyed permutation, every parameter is keyed
by (seed, epoch, index), and a file that cannot be decoded is replaced by the first good file of a
sequence keyed by its own index, whenever and by whomever it is found out.
"""

# shapes: N batch, C channels, S side
from __future__ import annotations

import importlib
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastssl.augment import keyed
from fastssl.augment.linear_policy import as_drawn, draw, from_policy
from fastssl.augment.presets import preset
from fastssl.augment.render import views_of
from fastssl.data.batch import Batch, Labelled, Shown, check_batch_size, part
from fastssl.data.dali_reader import DaliReader
from fastssl.data.decode import decode, read
from fastssl.data.folder_labels import Split, find_split, labelled_indices
from fastssl.data.headers import BadFile
from fastssl.data.prefetch import Prefetcher
from fastssl.data.scan import known_undecodable, note_undecodable, printable, scan
from fastssl.data.torch_reader import TorchReader, normalise, resized

Backend = Literal["auto", "dali", "torchvision"]
_REFILLS = 64  # candidates for one slot; after them the files in turn
_MANY = 0.05  # of the files: worth a warning of its own


class TooManyBadFiles(ValueError):
    """More files than ``--max-bad-files`` allows cannot be used."""


class FolderSource:
    """Two or more augmented views of every image below ``root`` (of root/train where it exists)."""

    kind = "folder"

    def __init__(
        self,
        root: Path,
        *,
        image_size: int,
        workers: int = 2,
        device: torch.device | None = None,
        cache_dir: Path | None = None,
        max_bad: float | None = None,
        num_views: int = 2,
        augment: str = "simclr",
        backend: Backend = "auto",
        scan_budget_s: float | None = None,
    ) -> None:
        self.name = os.path.basename(os.path.abspath(root)) or "folder"
        self.image_shape = (3, image_size, image_size)
        self._preset = preset(augment, image_size=image_size, num_views=num_views)
        self.policy = from_policy(self._preset)
        self.num_views = self._preset.num_views
        self._workers, self._max_bad = workers, max_bad
        self._device = device or torch.device("cpu")
        self._scan = scan(
            root, workers=max(workers, 4), cache_dir=cache_dir, budget_s=scan_budget_s
        )
        self.all_listed = self._scan.complete
        self._refuse_nothing(root)
        self._split: Split = find_split(self._scan.paths)
        self._width = np.array([header.width for header in self._scan.headers])
        self._height = np.array([header.height for header in self._scan.headers])
        self.num_samples = len(self._split.train)
        self.task = "classification" if self._split.classes else None
        self.backend = _choose_backend(backend)
        self._cache_dir = cache_dir
        self._bad = known_undecodable(self._scan, cache_dir)  # index -> reason, seen in decoding
        self._lock = threading.Lock()
        self._warned = False
        self._weigh_bad()

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass; the incomplete last one is left out."""
        unusable = f" ({self._bad_files()})" if self._scan.skipped else ""
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
        target = device or self._device
        reader = self._reader(target)

        @lru_cache(maxsize=2)  # sorting a million keys takes longer than a batch
        def order(epoch: int) -> np.ndarray:
            return keyed.permutation(self.num_samples, seed=seed, epoch=epoch)

        def make(step: int) -> Batch:
            epoch, position = divmod(step, per_epoch)
            chosen = order(epoch)[position * batch_size : (position + 1) * batch_size]
            return self._batch(reader, self._split.train[chosen], seed, epoch, shard).to(target)

        return Prefetcher(make, start=start_step, release=reader.close)

    def _batch(
        self,
        reader: DaliReader | TorchReader,
        batch_N: np.ndarray,
        seed: int,
        epoch: int,
        shard: tuple[int, int],
    ) -> Batch:
        wanted_N = part(batch_N, shard)
        while True:
            index_N = part(self._refilled(batch_N, seed, epoch), shard)
            tables = [
                draw(
                    self.policy,
                    seed=seed,
                    epoch=epoch,
                    index_N=wanted_N,  # the slot's own: a file that stands in twice varies
                    view=view,
                    width_N=self._width[index_N],
                    height_N=self._height[index_N],
                )
                for view in range(self.num_views)
            ]
            paths = [self._scan.full(int(index)) for index in index_N]
            headers = [self._scan.headers[int(index)] for index in index_N]
            made = reader.views(paths, headers, tables)
            if not isinstance(made, dict):
                return Batch(made, torch.from_numpy(index_N), as_drawn(tables))
            self._exclude({int(index_N[slot]): reason for slot, reason in made.items()})

    def _refilled(self, wanted_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """``wanted_N`` with every bad file replaced, slot after slot."""
        index_N = wanted_N.copy()
        taken = set(wanted_N.tolist())
        for slot, index in enumerate(wanted_N.tolist()):
            if index in self._bad:
                index_N[slot] = self._replacement(index, taken, seed, epoch)
                taken.add(int(index_N[slot]))
        return index_N

    def _replacement(self, index: int, taken: set[int], seed: int, epoch: int) -> int:
        """The first good file of the keyed sequence of ``index``, a new one to the batch if any."""
        unit_K = keyed.uniform(
            _REFILLS, seed=seed, epoch=epoch, index_N=np.array([index]), stream="refill"
        )[0]
        train = self._split.train
        position_K = (unit_K * self.num_samples).astype(np.int64)
        turn = (train[i % self.num_samples] for i in range(position_K[-1], 2 * self.num_samples))
        first = None  # of the good ones, should all of them be in the batch already
        for candidate in map(int, chain(train[position_K], turn)):
            if candidate not in self._bad:
                if candidate not in taken:
                    return candidate
                first = candidate if first is None else first
        if first is None:
            raise TooManyBadFiles(f"--data: no usable image is left; {self._bad_files()}")
        return first

    def _reader(self, device: torch.device) -> DaliReader | TorchReader:
        side = self.image_shape[1]
        if self.backend == "torchvision":
            return TorchReader(self.policy, side=side, workers=self._workers)
        device_id = (device.index or 0) if device.type == "cuda" else None
        return DaliReader(
            self.policy,
            side=side,
            num_views=self.num_views,
            workers=self._workers,
            device_id=device_id,
        )

    def _exclude(self, found: dict[int, str]) -> None:
        with self._lock:
            for index, reason in found.items():
                if index not in self._bad:
                    self._bad[index] = reason
                    note_undecodable(self._scan, index, reason, self._cache_dir)
                    path = printable(self._scan.paths[index])
                    logging.getLogger("fastssl").warning("skipped %s: %s", path, reason)
        self._weigh_bad()

    def rehearsal(self, num_samples: int) -> Batch:
        """A batch of noise with the shapes and the table of a training batch."""
        images = torch.rand(num_samples, *self.image_shape)
        sizes_N2 = torch.full((num_samples, 2), self.image_shape[1])
        index_N = torch.arange(num_samples)
        views, table = views_of(
            self._preset, images, seed=0, epoch=0, step=0, index_N=index_N, sizes_N2=sizes_N2
        )
        return Batch(views, index_N, table)

    def shown(self, count: int, *, seed: int) -> Shown:
        """The first ``count`` images that decode, and their views in step 0, not normalised."""
        good_N = self._first_good(count)
        images = [self._whole(int(index)) for index in good_N]
        views, _ = views_of(
            self._preset.without_normalisation(),
            images,
            seed=seed,
            epoch=0,
            step=0,
            index_N=good_N,
            sizes_N2=[image.shape[1:] for image in images],
        )
        names = tuple(printable(self._scan.paths[int(index)]) for index in good_N)
        return Shown(tuple(image.float() / 255 for image in images), views, names)

    def _first_good(self, count: int) -> np.ndarray:
        """Training indices in order, ``count`` of them or as many as decode."""
        good: list[int] = []
        for begin in range(0, self.num_samples, count):
            good += self._decodable(self._split.train[begin : begin + count]).tolist()
            if len(good) >= count:
                break
        if not good:
            raise TooManyBadFiles(f"--data: no usable image is left; {self._bad_files()}")
        return np.array(good[:count])

    def _whole(self, index: int) -> Tensor:
        """(3, H, W) uint8, a view of the decoded image."""
        image = decode(read(self._scan.full(index)), self._scan.headers[index])
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of every file that is not used, sorted by path."""
        decoded = [(self._scan.paths[index], reason) for index, reason in self._bad.items()]
        return sorted([*self._scan.skipped, *decoded])

    def report(self) -> dict:
        """What was skipped and why, ready for JSON."""
        entries = [{"path": printable(path), "reason": why} for path, why in self.skipped()]
        unused = len(self._scan.paths) - len(self._split.train) - len(self._split.test)
        return {
            "skipped": entries,
            "num_files": self._scan.num_files,
            "unchecked": self._scan.unchecked,  # more than 0 only where the scan was bounded
            "outside_splits": unused,  # loose images beside train/ and val/
        }

    def _refuse_nothing(self, root: Path) -> None:
        if self._scan.paths:
            return
        skipped = [f"{printable(path)}: {reason}" for path, reason in self._scan.skipped[:5]]
        found = "; ".join(skipped) if skipped else "no file named *.jpg, *.png, *.webp or *.bmp"
        raise ValueError(f"--data {root}: expected a folder with images, found {found}")

    def _weigh_bad(self) -> None:
        """Refuse what the user's limit forbids; warn once where the bad files are many."""
        num_bad = len(self._scan.skipped) + len(self._bad)
        share = num_bad / self._scan.num_files
        if self._max_bad is not None and share > self._max_bad:
            raise TooManyBadFiles(
                f"--data {self.name}: more than --max-bad-files {self._max_bad:g} allows; raise "
                f"it, leave it out or remove them: {self._bad_files(10)}"
            )
        if share > _MANY and not self._warned:
            self._warned = True
            logging.getLogger("fastssl").warning(
                "%s: many bad files; the run goes on without them: %s",
                self.name,
                self._bad_files(),
            )

    def _bad_files(self, named: int = 3) -> str:
        skipped = self.skipped()
        listed = "\n  ".join(f"{printable(path)}: {reason}" for path, reason in skipped[:named])
        return (
            f"{len(skipped)} of {self._scan.num_files} files cannot be used, the first ones:"
            f"\n  {listed}"
        )

    def labelled(self, split: str, limit: int | None = None) -> Labelled | None:
        """Clean images with their class, or None where the folders name fewer than two classes.

        "test" is root/val (or test) where it exists; else a fifth of the images, the same for every
        seed: held out from the readout, not from training. Files that do not decode are left out.
        """
        chosen = labelled_indices(self._split, split, limit=limit)
        if chosen is None:
            return None
        good = self._decodable(chosen)
        classes = torch.from_numpy(self._split.label[good])

        def render(position_N: np.ndarray) -> Tensor:
            with ThreadPoolExecutor(max_workers=max(1, self._workers)) as pool:
                pixels = list(pool.map(lambda p: self._clean(int(good[p])), position_N))
            x_N3SS = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
            return normalise(x_N3SS, self.policy)

        return Labelled(classes, "classification", self._split.classes, render)

    def _decodable(self, index_N: np.ndarray) -> np.ndarray:
        def reason(index: int) -> str | None:
            try:
                self._clean(index)
            except BadFile as bad:
                return str(bad)
            return None

        with ThreadPoolExecutor(max_workers=max(1, self._workers)) as pool:
            reasons = list(pool.map(reason, index_N.tolist()))
        bad = {int(i): why for i, why in zip(index_N, reasons, strict=True) if why is not None}
        self._exclude(bad)
        return np.array([i for i in index_N.tolist() if i not in self._bad], dtype=np.int64)

    def _clean(self, index: int) -> np.ndarray:
        """Shorter side to the eval size, then the central square: (S, S, 3) uint8."""
        side = self.image_shape[1]
        image = decode(read(self._scan.full(index)), self._scan.headers[index])
        kept = 1.0 if side < 96 else 224 / 256  # of the shorter side
        edge = kept * min(image.size)
        left, top = (image.width - edge) / 2, (image.height - edge) / 2
        return resized(image, np.array([left, top, edge, edge]), side)


@cache
def _say_no_dali(why: str) -> None:
    logging.getLogger("fastssl").warning(
        "DALI cannot be imported (%s): images are decoded by PIL, slower. "
        'pip install "fastssl[train]" brings nvidia-dali-cuda130.',
        why,
    )


def _choose_backend(backend: Backend) -> Backend:
    if backend != "auto":
        return backend
    try:
        importlib.import_module("nvidia.dali")
    except ImportError as error:
        _say_no_dali(str(error))
        return "torchvision"
    return "dali"
