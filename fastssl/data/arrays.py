"""Images in memory: numpy arrays, torch tensors, .npy, .npz and .safetensors files.

What fits lives on the device as uint8, all of it, and a batch is a gather and a rendering there.
Nothing here can be a bad file: an array is checked as a whole when it is opened.
"""

# shapes: N batch, M images, H height, W width, C channels, S side
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssl.augment import keyed
from fastssl.augment.policy import Policy
from fastssl.augment.presets import simclr
from fastssl.data import rendering
from fastssl.data.batch import (
    Batch,
    Labelled,
    Shown,
    check_batch_size,
    contents_identity,
    fingerprint,
    part,
    with_classes,
)
from fastssl.data.folder_labels import Split, check_labels, labelled_indices
from fastssl.data.prefetch import Prefetcher

SUFFIXES = (".npy", ".npz", ".safetensors")
KEYS = ("images", "labels", "test_images", "test_labels")
_DEVICE_SHARE = 0.25  # of the free memory of a CUDA device, at most, for the images


class ArraySource:
    """Augmented views of arrays. Made by ``array_source``, which checks its arguments."""

    def __init__(
        self,
        parts: tuple[Tensor, Tensor | None],
        split: Split,
        *,
        policy: Policy,
        device: torch.device,
        name: str,
        kind: str,
    ) -> None:
        self.name, self.kind = name, kind
        self.policy = rendering.for_training(policy)
        self.num_views, self.image_shape = policy.num_views, (3, *[policy.sizes[0]] * 2)
        self.num_samples = len(split.train)
        self.task = "classification" if split.classes else None
        self.has_test_split = len(split.test) > 0
        self._split, self._device = split, device
        self._train, self._test = parts

    @property
    def loading(self) -> str:
        """How batches come about, in a few words."""
        size = self._train.untyped_storage().nbytes() / 2**20
        return f"{size:,.0f} MiB in memory, on the device if it has room; augment renders the views"

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
        """Endless iterator; batch t depends on (seed, t) alone. ``shard``: (rank, ranks)."""
        per_epoch = self.steps_per_epoch(batch_size)
        stage = rendering.Stage(device or self._device)
        images = _placed(self._train, stage.device)
        order = lru_cache(maxsize=2)(
            lambda epoch: keyed.permutation(self.num_samples, seed=seed, epoch=epoch)
        )

        def make(step: int) -> Batch:
            epoch, position = divmod(step, per_epoch)
            index_N = order(epoch)[position * batch_size : (position + 1) * batch_size]
            index_N = part(index_N, shard)
            sizes_N2 = np.tile(np.array(images.shape[-2:]), (len(index_N), 1))
            draw = rendering.Draw(
                seed=seed, epoch=epoch, step=step, index_N=index_N, sizes_N2=sizes_N2
            )
            batch = stage.run(lambda: self._batch(images, stage.device, draw))
            return self._with_classes(batch)

        return Prefetcher(make, start=start_step)

    def _batch(self, images: Tensor, device: torch.device, draw: rendering.Draw) -> Batch:
        with rendering.one_thread():
            chosen = images[torch.from_numpy(draw.index_N).to(images.device)]
        chosen = chosen.to(device, non_blocking=True)
        return rendering.batch_of(self.policy, chosen, draw.index_N, draw)

    def rehearsal(self, num_samples: int) -> Batch:
        """A batch of noise with the shapes and the table of a training batch."""
        batch = rendering.rehearsal(self.policy, self.image_shape, num_samples)
        return self._with_classes(
            replace(batch, index_N=torch.arange(num_samples) % self.num_samples)
        )

    def _with_classes(self, batch: Batch) -> Batch:
        return with_classes(batch, self._split.label) if self._split.classes else batch

    def shown(self, count: int, *, seed: int) -> Shown:
        """The first ``count`` images, and their views in step 0, not normalised."""
        index_N = np.arange(min(count, self.num_samples))
        names = [f"image {index}" for index in index_N]
        images = list(self._train[: len(index_N)])
        return rendering.shown(self.policy, images, index_N, names, seed=seed)

    def report(self) -> dict:
        """Nothing can be skipped here."""
        return {"skipped": []}

    def fingerprint(self) -> dict[str, Any]:
        """Shapes and labels in few bytes."""
        shape = tuple(self._train.shape[1:])
        each = (f"{shape}" for _ in range(self.num_samples))
        tests = () if self._test is None else (f"test {tuple(self._test.shape)}",)
        return {**fingerprint((*each, *tests), self._split.label), "samples": self.num_samples}

    def labelled(self, split: str, limit: int | None = None) -> Labelled | None:
        """Clean images with their class, or None without labels of two classes at least.

        "test" are the test arrays; without them a fifth of the labelled images, the same for every
        seed: held out from the readout, not from training.
        """
        chosen = labelled_indices(self._split, split, limit=limit)
        if chosen is None:
            return None
        of_test = split == "test" and self._test is not None
        images = self._test if of_test else self._train
        rows = chosen - (self.num_samples if of_test else 0)
        assert images is not None

        def render(position_N: np.ndarray) -> Tensor:
            some = images[torch.from_numpy(rows[position_N])]
            size, settings = self.image_shape[1], self.policy.groups[0].settings
            return rendering.clean(some, size=size, settings=settings)

        classes = torch.from_numpy(self._split.label[chosen])

        def redraw(position_N: np.ndarray, draw: int, only: str | None) -> Tensor:
            some = images[torch.from_numpy(rows[position_N])]
            index_N = chosen[position_N]
            return rendering.redrawn(self.policy, some, index_N, draw=draw, only=only)

        def shift(position_N: np.ndarray, name: str, amount: float) -> Tensor:
            some = images[torch.from_numpy(rows[position_N])]
            index_N = chosen[position_N]
            return rendering.jittered(self.policy, some, index_N, strength=amount)

        return Labelled(
            classes,
            "classification",
            self._split.classes,
            render,
            redraw,
            rendering.varied(self.policy),
            shift=shift,
            shifts=rendering.SHIFTS,
            identity=lambda: self._identity(images, rows, chosen),
            split=split,
        )

    def _identity(self, images: Tensor, rows: np.ndarray, chosen: np.ndarray) -> str:
        contents = (images[row].cpu().numpy().tobytes() for row in rows.tolist())
        what = f"{self.policy} {images.dtype} {tuple(images.shape[1:])} {chosen.tolist()}"
        return contents_identity(what, contents)


def array_source(
    images: Any,
    labels: Any = None,
    *,
    test_images: Any = None,
    test_labels: Any = None,
    classes: Sequence[str] | None = None,
    policy: Policy | None = None,
    device: torch.device | str = "cpu",
    name: str = "arrays",
    kind: str = "arrays",
) -> ArraySource:
    """A source of views of images in memory, for ``fit`` and everything else that takes one.

    images: (M, H, W, 3), (M, 3, H, W), (M, H, W), (M, H, W, 1) or (M, 1, H, W) uint8, numpy or
        torch; grey is repeated. Not copied, so do not change them while training.
    labels: (M,) integers from 0; -1 says that an image has no class. Needed for scores alone.
    test_images, test_labels: a split of their own; without it a keyed fifth is held out from the
        scores.
    classes: a name for each label. Default: the numbers.
    policy: default SimCLR's, for views as large as the shorter side of the images.

    ValueError names the array whose dtype, shape or values do not fit.
    """
    train = as_images(images, "images")
    test = None if test_images is None else as_images(test_images, "test_images")
    if (test is None) != (test_labels is None):
        raise ValueError("test_images, test_labels: expected both or neither, received one")
    if test is not None and labels is None:
        raise ValueError("labels: expected labels beside test_labels, received none")
    label_M = _labels(labels, len(train), "labels")
    if test is not None:
        label_M = np.concatenate([label_M, _labels(test_labels, len(test), "test_labels")])
    split = Split(
        np.arange(len(train)),
        np.arange(len(train), len(label_M)),
        label_M,
        _classes(label_M, classes),
    )
    return ArraySource(
        (train, test),
        split,
        policy=policy or simclr(min(train.shape[-2:])),
        device=torch.device(device),
        name=name,
        kind=kind,
    )


def open_arrays(path: str, *, policy: Policy, device: torch.device) -> ArraySource:
    """The arrays ``images``, ``labels``, ``test_images`` and ``test_labels`` of a .npz or
    .safetensors file (``images`` alone is needed), or the one array of a .npy file.

    ValueError names the file, and the key that is missing, unknown or does not fit.
    """
    try:
        arrays = read_arrays(path)
        name = os.path.splitext(os.path.basename(path))[0]
        return array_source(**arrays, policy=policy, device=device, name=name)
    except ValueError as error:
        raise ValueError(f"--data {path}: {error}") from None


def read_arrays(path: str) -> dict[str, Any]:
    """The arrays of a file by their keys; a .npy file is mapped, not read. Nothing is unpickled."""
    try:
        if path.endswith(".npy"):
            return {"images": np.load(path, mmap_mode="c", allow_pickle=False)}
        if path.endswith(".npz"):
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                _check_keys(file.files)
                _check_room(sum(info.file_size for info in file.zip.infolist()))
                return {key: file[key] for key in KEYS if key in file.files}
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            _check_keys(list(file.keys()))
            return {key: file.get_tensor(key) for key in KEYS if key in file.keys()}  # noqa: SIM118
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        kind = path.rpartition(".")[2]
        what = "objects, not numbers" if "Object" in str(error) else f"something else than .{kind}"
        raise ValueError(f"expected arrays of numbers, the file holds {what}") from None
    except Exception as error:  # what a damaged file makes three readers raise
        raise ValueError(f"the file cannot be read ({error})") from None


def as_images(images: Any, what: str) -> Tensor:
    """(M, 3, H, W) uint8, a view of ``images``."""
    if not isinstance(images, np.ndarray | Tensor):
        raise ValueError(f"{what}: expected a numpy array or tensor, received {type(images)}")
    dtype, shape = str(images.dtype).removeprefix("torch."), tuple(images.shape)
    if dtype != "uint8":
        raise ValueError(
            f"{what}: expected uint8 (0 to 255), received {dtype}; values in 0..1 become it by "
            "(255 * images).round().astype('uint8')"
        )
    x = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3):
        x = x.permute(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3) or 0 in shape:
        raise ValueError(
            f"{what}: expected shape (images, height, width, 3), (images, 3, height, width) or "
            f"(images, height, width), received {shape}"
        )
    return x.expand(-1, 3, -1, -1)


def _labels(labels: Any, count: int, what: str) -> np.ndarray:
    if labels is None:
        return np.full(count, -1, dtype=np.int64)
    dtype = str(getattr(labels, "dtype", "")).removeprefix("torch.")
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
        labels = labels.double() if labels.is_floating_point() else labels  # numpy lacks bfloat16
    label_M = np.asarray(labels)
    if label_M.ndim == 2 and label_M.shape[1] == 1:
        label_M = label_M[:, 0]
    integers = label_M.dtype.kind in "iu"
    if label_M.shape != (count,) or not integers or (count and label_M.min() < -1):
        raise ValueError(
            f"{what}: expected {count} integers of at least -1 (no class), received shape "
            f"{label_M.shape}, dtype {dtype or label_M.dtype}"
        )
    check_labels(label_M, what)
    return label_M.astype(np.int64)


def _classes(label_M: np.ndarray, names: Sequence[str] | None) -> tuple[str, ...]:
    most = int(label_M.max(initial=-1))
    if names is not None and len(names) <= most:
        raise ValueError(
            f"classes: expected a name for each of the labels 0 to {most}, received {len(names)}"
        )
    if len(np.unique(label_M[label_M >= 0])) < 2:
        return ()
    return tuple(names) if names is not None else tuple(map(str, range(most + 1)))


def _check_keys(keys: list[str]) -> None:
    unknown = sorted(set(keys) - set(KEYS))
    if "images" not in keys or unknown:
        raise ValueError(
            f"expected the keys {', '.join(KEYS)}, of which images is needed; received "
            f"{', '.join(sorted(keys)) or 'none'}"
        )


def _free_memory() -> int:
    """Bytes that Linux can give without swapping; elsewhere all of the memory."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_room(size: int) -> None:
    """ValueError where arrays of ``size`` bytes do not fit in memory: a few kB can announce TB."""
    free = _free_memory()
    if size > free:
        raise ValueError(
            f"expected arrays that fit in {free:,} bytes of free memory, received {size:,} bytes"
            " (.npy files are mapped, not read)"
        )


def _placed(images: Tensor, device: torch.device) -> Tensor:
    """All images on the device, where they fit."""
    if device.type != "cuda":
        return images
    free, _ = torch.cuda.mem_get_info(device)
    small = images[:, :1] if images.stride(1) == 0 else images  # grey is stored once
    if small.numel() > _DEVICE_SHARE * free:
        return images
    return small.to(device).expand(-1, 3, -1, -1)
