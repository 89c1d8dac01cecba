"""torchvision's data sets by name, from a local folder: ``--data torchvision:CIFAR10:/path``.

Nothing is ever downloaded. A set that keeps its pixels in one array (CIFAR, MNIST, SVHN, STL10)
becomes one in memory; of a set of files the files are read; any other is asked image by image.
"""

# shapes: M images
from __future__ import annotations

import difflib
import inspect
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastssl.augment.policy import Policy
from fastssl.data.arrays import ArraySource, array_source
from fastssl.data.decode import rgb, to_bmp
from fastssl.data.encoded import EncodedSource
from fastssl.data.folder_labels import Split, check_labels
from fastssl.data.headers import BadFile, Header
from fastssl.data.scan import check_all
from fastssl.data.store import Store

PREFIX = "torchvision:"
_TRAIN_SPLITS = {"STL10": "train+unlabeled"}  # where it is not the default of the data set's class
_TEST_SPLITS = ("test", "val", "valid")


def open_named(
    data: str,
    *,
    policy: Policy,
    device: torch.device,
    workers: int,
    cache_dir: Path | None,
    scan_budget_s: float | None,
    **options: Any,
) -> ArraySource | EncodedSource:
    """The data set that ``data`` names; ``options``: EncodedSource's.

    ValueError for an unknown name, or where its files are not below the folder.
    """
    name, root = _parsed(data)
    train, test = _opened(data, name, root)
    both = [train] if test is None else [train, test]
    if all(isinstance(getattr(part, "data", None), np.ndarray | Tensor) for part in both):
        tests = {} if test is None else {"test_images": test.data, "test_labels": _labels(test)}
        return array_source(
            train.data,
            _labels(train),
            **tests,
            classes=_names(train),
            policy=policy,
            device=device,
            name=name.lower(),
            kind="torchvision",
        )
    store, label_M, part_M = _store(both, root, workers, cache_dir, scan_budget_s)
    if not len(store.paths):
        raise ValueError(f"--data {data}: none of its files can be used: {store.skipped[:5]}")
    return EncodedSource(
        store,
        _split(label_M, part_M, _names(train), data=data),
        name=name.lower(),
        kind="torchvision",
        policy=policy,
        device=device,
        workers=workers,
        cache_dir=cache_dir,
        **options,
    )


class AskedStore:
    """A data set that hands out PIL images one by one, as encoded ones."""

    unchecked, complete, skipped = 0, True, ()

    def __init__(self, parts: Sequence[Any]) -> None:
        self._items = [(part, index) for part in parts for index in range(len(part))]
        self.paths = [f"image {number}" for number in range(len(self._items))]
        self.headers: list[Header | None] = [None] * len(self._items)

    def read(self, index: int) -> bytes:
        """Image ``index`` as a BMP; BadFile where the data set fails to give one."""
        part, position = self._items[index]
        try:
            image = part[position][0]
        except Exception as error:  # whatever a data set's own code raises
            raise BadFile(f"the data set cannot give it: {type(error).__name__}: {error}") from None
        if not isinstance(image, Image.Image):
            raise BadFile(f"the data set gives {type(image).__name__} instead of an image")
        image.load()
        return to_bmp(rgb(image)).tobytes()

    def stamp(self, index: int) -> str | None:
        """There is no telling."""
        return None


def _parsed(data: str) -> tuple[str, str]:
    name, colon, root = data.removeprefix(PREFIX).partition(":")
    if not colon or not root or not name:
        raise ValueError(f"--data {data}: expected torchvision:NAME:FOLDER, as in "
                         "torchvision:CIFAR10:/data")  # fmt: skip
    if not os.path.isdir(root):
        raise ValueError(f"--data {data}: no such folder: {root} (looked in {os.getcwd()!r})")
    return name, root


def _opened(data: str, name: str, root: str) -> tuple[Any, Any | None]:
    """The training split, and the test split where there is one."""
    from torchvision import datasets

    known = {each.lower(): each for each in datasets.__all__ if _usable(getattr(datasets, each))}
    if name.lower() not in known:
        close = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"; did you mean {known[close[0]]}?" if close else ""
        raise ValueError(
            f"--data {data}: torchvision has no image data set {name!r} that needs nothing but a "
            f"folder{hint}"
        )
    title = known[name.lower()]
    make = getattr(datasets, title)
    takes = inspect.signature(make).parameters
    options = {"download": False} if "download" in takes else {}
    chosen = {"split": _TRAIN_SPLITS[title]} if title in _TRAIN_SPLITS else {}
    try:
        train = make(root, **chosen, **options)
    except Exception as error:  # each data set has its own way to say that files are missing
        raise ValueError(
            f"--data {data}: torchvision.datasets.{title} finds nothing to use below {root} "
            f"({' '.join(str(error).split())}). fastssl never downloads; torchvision does, with "
            f"download=True"
        ) from None
    test, damage = _test_split(make, root, takes, options)
    if damage:
        logging.getLogger("fastssl").warning(
            "--data %s: the test split of torchvision.datasets.%s cannot be used (%s); %s.",
            data, title, damage,
            "a fifth of the training images is held out from the scores instead"
            if test is None else "its validation split stands in",
        )  # fmt: skip
    return train, test


def _test_split(make: Any, root: str, takes: Any, options: dict) -> tuple[Any | None, str]:
    """The first split for testing that opens, and what is wrong with those before it."""
    choices: list[dict[str, Any]] = [{"train": False}] if "train" in takes else []
    choices += [{"split": split} for split in _TEST_SPLITS] if "split" in takes else []
    damage = ""
    for choice in choices:
        try:
            return make(root, **choice, **options), damage
        except Exception as error:  # each data set has its own
            if "unknown value" not in str(error).lower():  # as torchvision says: no such split
                damage = damage or " ".join(str(error).split()) or type(error).__name__
    return None, damage


def _usable(make: Any) -> bool:
    """Whether it is made from ``root`` alone."""
    takes = inspect.signature(make).parameters
    needed = [
        p.name for p in takes.values() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD
    ]
    return needed == ["root"]


def _labels(part: Any) -> Any:
    """(M,) integers from whichever attribute has them; None without."""
    for name in ("targets", "labels", "_labels", "y"):  # y: Caltech
        values = getattr(part, name, None)
        if isinstance(values, list | np.ndarray | Tensor) and len(values) == len(part):
            label_M = np.asarray(values)
            if label_M.ndim == 1 and label_M.dtype.kind in "iu":
                return label_M
    return None


def _names(part: Any) -> Any:
    """A name for each class, where the data set has them: Caltech calls them categories."""
    return getattr(part, "classes", getattr(part, "categories", None))


def _files(part: Any) -> list[tuple[str, int]] | None:
    """(path, label) of each image; None where the data set does not tell its files."""
    for name in ("samples", "_samples"):
        pairs = getattr(part, name, None)
        if isinstance(pairs, list) and all(_is_file_and_label(pair) for pair in pairs):
            return [(os.fspath(path), int(label)) for path, label in pairs]
    for name in ("_image_files", "_images"):
        paths = getattr(part, name, None)
        if isinstance(paths, list) and all(isinstance(path, str | Path) for path in paths):
            label_M = _labels(part)
            label_M = np.full(len(paths), -1) if label_M is None else label_M
            if len(label_M) == len(paths) == len(part):
                return list(zip(map(os.fspath, paths), label_M.tolist(), strict=True))
    return None


def _is_file_and_label(pair: Any) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and isinstance(pair[0], str | Path)
        and isinstance(pair[1], int)
    )


def _store(
    parts: list[Any], root: str, workers: int, cache_dir: Path | None, budget_s: float | None
) -> tuple[Store, np.ndarray, np.ndarray]:
    """The images of all parts, the label of each, and the part that it belongs to."""
    files = [_files(part) for part in parts]
    if any(some is None for some in files):
        labels = [_labels(part) for part in parts]
        label_M = np.concatenate(
            [
                np.full(len(part), -1) if label is None else label
                for part, label in zip(parts, labels, strict=True)
            ]
        )
        part_M = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return AskedStore(parts), label_M, part_M
    facts = {
        os.path.relpath(path, root): (label, number)
        for number, some in enumerate(files)
        for path, label in some or []
    }
    store = check_all(
        root, list(facts), workers=max(workers, 4), cache_dir=cache_dir, budget_s=budget_s
    )
    kept = np.array([facts[path] for path in store.paths], dtype=np.int64).reshape(-1, 2)
    return store, kept[:, 0], kept[:, 1]


def _split(label_M: np.ndarray, part_M: np.ndarray, names: Any, *, data: str) -> Split:
    check_labels(label_M, f"--data {data}: labels")
    most = int(label_M.max(initial=-1))
    named = isinstance(names, list | tuple) and len(names) > most
    classes = tuple(str(names[i]) if named else str(i) for i in range(most + 1))
    some = len(np.unique(label_M[label_M >= 0])) > 1
    return Split(
        np.flatnonzero(part_M == 0), np.flatnonzero(part_M == 1), label_M, classes if some else ()
    )
