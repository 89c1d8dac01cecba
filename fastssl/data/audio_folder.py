"""A folder of sound files as a source: any rate, length and number of channels, some files bad.

Batch t is a pure function of (seed, t), as for images: the place of a crop is keyed by (seed,
epoch, index) and a file that cannot be decoded is replaced by the first good file of a sequence
keyed by its own index. A clip shorter than the crop is repeated from its start.
"""

# shapes: N batch, T samples of a clip, L samples of a file
from __future__ import annotations

import importlib
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastssl.augment import keyed
from fastssl.data.audio_decode import (
    AudioHeader,
    DaliAudio,
    check_audio,
    decode_audio,
    finite,
)
from fastssl.data.audio_views import AudioViews
from fastssl.data.audio_windows import Normalise, count_windows, cut, normalised
from fastssl.data.batch import (
    Batch,
    Labelled,
    check_batch_size,
    contents_identity,
    fingerprint,
    part,
)
from fastssl.data.folder_labels import Split, find_split, labelled_indices
from fastssl.data.headers import BadFile
from fastssl.data.prefetch import Prefetcher
from fastssl.data.scan import find_files
from fastssl.data.sounds import EXTENSIONS
from fastssl.data.store import printable, read_file

Backend = Literal["auto", "dali", "soundfile"]
_WINDOWED_S = 500.0  # seconds of sound that are encoded together
_REFILLS = 64  # candidates for one slot; after them the files in turn


class AudioFolderSource:
    """Two or more augmented views of every sound file below ``root`` (root/train where it exists).

    Raises ValueError where no file can be used, or more than the fraction ``max_bad`` cannot.
    """

    kind = "audio-folder"

    def __init__(
        self,
        root: Path,
        *,
        views: AudioViews | None = None,
        workers: int = 2,
        max_bad: float | None = None,
        backend: Backend = "auto",
    ) -> None:
        self.name = os.path.basename(os.path.abspath(root)) or "folder"
        self.views, self._root = views or AudioViews(), os.fspath(root)
        self.num_views, self.image_shape = self.views.num_views, self.views.shape
        self._pool = ThreadPoolExecutor(max_workers=max(1, workers))
        self._max_bad, self._lock = max_bad, threading.Lock()
        self._scan()
        self._bad: dict[int, str] = {}  # index -> reason, found in decoding
        self._split: Split = find_split(self._paths)
        self.num_samples = len(self._split.train)
        self.task = "classification" if self._split.classes else None
        self.has_test_split = len(self._split.test) > 0
        self.backend = _chosen(backend)
        self._dali = None
        if self.backend == "dali":
            self._dali = DaliAudio(rate=self.views.sample_rate, workers=workers)
        self._weigh_bad()

    def _scan(self) -> None:
        """Sets the usable paths with their headers, and what is wrong with the others."""
        found, closed, _ = find_files(self._root, EXTENSIONS)
        verdicts = list(self._pool.map(lambda path: self._verdict(path), found))
        named = list(zip(found, verdicts, strict=True))
        self._paths = tuple(path for path, v in named if isinstance(v, AudioHeader))
        self._headers = [v for v in verdicts if isinstance(v, AudioHeader)]
        self._unusable = [(path, v) for path, v in named if isinstance(v, str)] + closed
        self._num_files = len(found) + len(closed)
        if not self._paths:
            names = ", ".join(f"*{ending}" for ending in EXTENSIONS)
            skipped = "; ".join(f"{printable(p)}: {why}" for p, why in self._unusable[:5])
            raise ValueError(
                f"--data {self._root}: expected a folder with sounds, found "
                f"{skipped or f'no file named {names}'}"
            )

    def _verdict(self, path: str) -> AudioHeader | str:
        try:
            return check_audio(os.path.join(self._root, path))
        except BadFile as bad:
            return str(bad)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass; the incomplete last one is left out."""
        check_batch_size(batch_size, self.num_samples, self.name)
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
        """Endless batches from ``start_step`` on, made ahead of time by one thread."""
        per_epoch = self.steps_per_epoch(batch_size)
        target = device or torch.device("cpu")

        @lru_cache(maxsize=2)
        def order(epoch: int) -> np.ndarray:
            return keyed.permutation(self.num_samples, seed=seed, epoch=epoch)

        def make(step: int) -> Batch:
            epoch, position = divmod(step, per_epoch)
            chosen = order(epoch)[position * batch_size : (position + 1) * batch_size]
            slot_N = part(self._split.train[chosen], shard)
            index_N, clip_NT = self.clips(
                self._split.train[chosen], seed=seed, epoch=epoch, shard=shard
            )
            return self.views.batch(
                clip_NT.to(target),
                slot_N=slot_N,
                index_N=index_N,
                seed=seed,
                epoch=epoch,
                step=step,
            )

        return Prefetcher(make, start=start_step)

    def clips(
        self, wanted_N: np.ndarray, *, seed: int, epoch: int, shard: tuple[int, int] = (0, 1)
    ) -> tuple[np.ndarray, Tensor]:
        """(indices that came, clips (N, T)): keyed crops of the files, bad ones replaced."""
        place_N = keyed.uniform(
            1, seed=seed, epoch=epoch, index_N=part(wanted_N, shard), stream="audio crop"
        )[:, 0]
        while True:
            index_N = part(self._refilled(wanted_N, seed, epoch), shard)
            sounds = self._decoded(index_N)
            bad = {int(i): s for i, s in zip(index_N, sounds, strict=True) if isinstance(s, str)}
            if not bad:
                pairs = zip(sounds, place_N.tolist(), strict=True)
                return index_N, torch.stack([self._cropped(s, p) for s, p in pairs])
            self._exclude(bad)

    def _cropped(self, sound_L: Tensor | str, place: float) -> Tensor:
        assert isinstance(sound_L, Tensor)
        length = self.views.samples
        if len(sound_L) < length:
            sound_L = sound_L.repeat(-(-length // len(sound_L)))[:length]
        begin = int(place * (len(sound_L) - length + 1))
        return sound_L[begin : begin + length]

    def _decoded(self, index_N: np.ndarray) -> list[Tensor | str]:
        """The samples of each file, or what is wrong with it."""
        sounds: list[Tensor | str | None] = [None] * len(index_N)
        plain = [k for k, i in enumerate(index_N) if self._headers[int(i)].plain]
        if self._dali is not None and plain:
            paths = [os.path.join(self._root, self._paths[int(index_N[k])]) for k in plain]
            contents = list(self._pool.map(_content, paths))
            for k, sound in zip(plain, self._dali.decode(contents), strict=True):
                wanted = self._headers[int(index_N[k])].length_at(self.views.sample_rate)
                whole = sound is not None and len(sound) >= wanted - 1
                sounds[k] = sound if whole and bool(torch.isfinite(sound).all()) else None
        left = [k for k, sound in enumerate(sounds) if sound is None]
        for k, sound in zip(left, self._pool.map(self._by_soundfile, index_N[left]), strict=True):
            sounds[k] = sound
        return [sound for sound in sounds if sound is not None]

    def _by_soundfile(self, index: int) -> Tensor | str:
        path = os.path.join(self._root, self._paths[int(index)])
        try:
            return finite(
                decode_audio(path, self._headers[int(index)], rate=self.views.sample_rate)
            )
        except BadFile as bad:
            return str(bad)

    def _refilled(self, wanted_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
        """``wanted_N`` with every bad file replaced, slot after slot."""
        index_N, taken = wanted_N.copy(), set(wanted_N.tolist())
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
        drawn_K = (unit_K * self.num_samples).astype(np.int64)
        train = self._split.train
        good = [int(i) for i in (*train[drawn_K], *train) if int(i) not in self._bad]
        if not good:
            raise ValueError(f"--data {self.name}: no usable sound is left; {self._bad_files()}")
        return next((i for i in good if i not in taken), good[0])

    def _exclude(self, found: dict[int, str]) -> None:
        with self._lock:
            for index, reason in found.items():
                if index not in self._bad:
                    self._bad[index] = reason
                    path = printable(self._paths[index])
                    logging.getLogger("fastssl").warning("skipped %s: %s", path, reason)
        self._weigh_bad()

    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of every file that is not used, sorted by path."""
        return sorted([*self._unusable, *((self._paths[i], why) for i, why in self._bad.items())])

    def rehearsal(self, num_samples: int) -> Batch:
        """A batch of noise with a table that fits: to try a method on."""
        clips_NT = torch.rand(num_samples, self.views.samples)
        index_N = np.arange(num_samples)
        return self.views.batch(clips_NT, slot_N=index_N, index_N=index_N, seed=0, epoch=0)

    def heard(self, count: int, *, seed: int) -> tuple[Tensor, tuple[str, ...]]:
        """Clips (N, T) of the first ``count`` training files and their paths, to look at."""
        index_N, clip_NT = self.clips(self._split.train[:count], seed=seed, epoch=0)
        return clip_NT, tuple(printable(self._paths[int(i)]) for i in index_N)

    def report(self) -> dict:
        """What was skipped and why, ready for JSON."""
        entries = [{"path": printable(path), "reason": why} for path, why in self.skipped()]
        return {"skipped": entries, "num_files": self._num_files}

    def fingerprint(self) -> dict[str, int | str]:
        """Names, sizes and labels in few bytes."""
        sizes = (os.stat(os.path.join(self._root, path)).st_size for path in self._paths)
        named = (f"{path} {size}" for path, size in zip(self._paths, sizes, strict=True))
        return fingerprint(named, self._split.label)

    def _weigh_bad(self) -> None:
        share = len(self.skipped()) / self._num_files
        if self._max_bad is not None and share > self._max_bad:
            raise ValueError(
                f"--data {self.name}: more than --max-bad-files {self._max_bad:g} allows; raise "
                f"it, leave it out or remove them: {self._bad_files()}"
            )

    def _bad_files(self) -> str:
        listed = "\n  ".join(f"{printable(path)}: {why}" for path, why in self.skipped()[:10])
        return f"{len(self.skipped())} of {self._num_files} files cannot be used:\n  {listed}"

    def _good(self, split: str, limit: int | None) -> np.ndarray | None:
        """The labelled files of a split that decode, or None without labels."""
        chosen = labelled_indices(self._split, split, limit=limit)
        if chosen is None:
            return None
        for begin in range(0, len(chosen), 256):
            some = chosen[begin : begin + 256]
            found = zip(some.tolist(), self._decoded(some), strict=True)
            self._exclude({i: sound for i, sound in found if isinstance(sound, str)})
        return np.array([i for i in chosen.tolist() if i not in self._bad], dtype=np.int64)

    def windowed(
        self, split: str, limit: int | None = None, *, seconds: float, normalise: Normalise
    ) -> tuple[Labelled, Tensor] | None:
        """All windows of every sound that ``labelled`` gives, each with its sound's class.

        Returns them with the number of the sound of each window, ascending from 0. ``normalise``
        is done to the whole sound. None without labels.
        """
        good = self._good(split, limit)
        if good is None:
            return None
        views = replace(self.views, seconds=seconds)
        length_n = np.array([self._headers[i].length_at(views.sample_rate) for i in good])
        count_n = np.array([count_windows(int(length), views.samples) for length in length_n])
        clip_W, first_n = np.repeat(np.arange(len(good)), count_n), np.cumsum(count_n) - count_n

        def render(position_N: np.ndarray) -> Tensor:
            clips = np.unique(clip_W[position_N])
            cuts = {
                clip: cut(
                    normalised(sound, normalise), length=length_n[clip], samples=views.samples
                )
                for clip, sound in zip(clips.tolist(), self._decoded(good[clips]), strict=True)
                if isinstance(sound, Tensor)
            }
            wanted = [cuts[clip_W[w]][w - first_n[clip_W[w]]] for w in position_N.tolist()]
            return views.clean(torch.stack(wanted))

        def identity() -> str:
            paths = (os.path.join(self._root, self._paths[i]) for i in good)
            what = f"{self.backend} windows {views.samples} {views.sample_rate} {normalise}"
            return contents_identity(f"{what} {views.front}", map(_content, paths))

        class_W = torch.from_numpy(self._split.label[good[clip_W]])
        once = max(1, round(_WINDOWED_S / seconds))
        part = Labelled(class_W, "classification", self._split.classes, render, identity=identity,
                        at_once=once)  # fmt: skip
        return part, torch.from_numpy(clip_W)

    def labelled(self, split: str, limit: int | None = None) -> Labelled | None:
        """Central crops with their class, or None where the folders name fewer than two classes.

        "test" is root/val (or test) where it exists; else a fifth of the files, the same for every
        seed. Files that do not decode are left out.
        """
        good = self._good(split, limit)
        if good is None:
            return None
        classes = torch.from_numpy(self._split.label[good])

        def render(position_N: np.ndarray) -> Tensor:
            sounds = self._decoded(good[position_N])
            return self.views.clean(torch.stack([self._cropped(s, 0.5) for s in sounds]))

        def redraw(position_N: np.ndarray, draw: int, only: str | None) -> Tensor:
            index_N = good[position_N]
            clip_NT = torch.stack([self._cropped(s, 0.5) for s in self._decoded(index_N)])
            return self.views.redrawn(clip_NT, index_N, draw=draw, only=only)

        def identity() -> str:
            views, paths = self.views, (os.path.join(self._root, self._paths[i]) for i in good)
            what = f"{self.backend} {views.policy} {views.samples} {views.sample_rate}"
            return contents_identity(f"{what} {views.front}", map(_content, paths))

        names, varied = self._split.classes, self.views.varied
        return Labelled(
            classes,
            "classification",
            names,
            render,
            redraw,
            varied,
            identity=identity,
            split=split,
        )


def _content(path: str) -> bytes:
    try:
        return read_file(path)
    except BadFile:
        return b"\0"  # no decoder takes it: soundfile is asked next, and says why


def _chosen(backend: Backend) -> Backend:
    if backend != "auto":
        return backend
    try:
        importlib.import_module("nvidia.dali")
    except ImportError as error:
        logging.getLogger("fastssl").warning(
            "DALI cannot be imported (%s): sounds are decoded by soundfile, slower.", error
        )
        return "soundfile"
    return "dali"
