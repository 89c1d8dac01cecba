"""Splits and classes that the layout of a folder tells.

train/dog/1.jpg, val/dog/2.jpg      splits, where no other folder stands beside them; classes below
train/1.jpg, car/2.jpg, cat/3.jpg   classes (train is a vehicle); a keyed fifth is for testing
1.jpg, a/b/2.jpg                    fewer than two first folders: no classes
An image outside the class folders is trained on and has no class; one beside train/ is not used.
"""

# shapes: N images, M labels
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastssl.augment import keyed

_TRAIN = ("train", "training")
_TEST = ("val", "valid", "validation", "test", "testing")
TEST_FRACTION = 0.2
MOST_CLASSES = 1 << 20  # each label up to the largest is a class: 10**12 would never end


@dataclass(frozen=True)
class Split:
    """Indices into the scanned files, and a class for each file (-1: none)."""

    train: np.ndarray  # (n,) int64
    test: np.ndarray  # (m,) int64, empty where the folder has no test split of its own
    label: np.ndarray  # (N,) int64
    classes: tuple[str, ...]


def check_labels(label_M: np.ndarray, what: str) -> None:
    """ValueError where a label (M,) cannot be the number of a class."""
    most = int(label_M.max()) if len(label_M) else -1
    if most >= MOST_CLASSES:
        raise ValueError(
            f"{what}: expected numbers of classes below {MOST_CLASSES}, received {most}; "
            "np.unique(labels, return_inverse=True)[1] numbers them from 0"
        )


def find_split(paths: tuple[str, ...]) -> Split:
    """Reads splits and classes from relative paths."""
    parts = [path.split("/") for path in paths]
    tops = {part[0].lower() for part in parts if len(part) > 1}
    has_splits = bool(tops & set(_TRAIN)) and tops <= {*_TRAIN, *_TEST}
    if has_splits:
        below = [part[0].lower() if len(part) > 1 else "" for part in parts]
        train = [i for i, top in enumerate(below) if top in _TRAIN]
        test = [i for i, top in enumerate(below) if top in _TEST]
        used = sorted(train + test)
    else:
        train, test = list(range(len(parts))), []
        used = train
    depth = 1 if has_splits else 0
    label, classes = _labels(parts, used, depth)
    return Split(np.array(train), np.array(test, dtype=np.int64), label, classes)


def _labels(
    parts: list[list[str]], used: list[int], depth: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    label = np.full(len(parts), -1, dtype=np.int64)
    filed = [i for i in used if len(parts[i]) >= depth + 2]
    classes = sorted({parts[i][depth] for i in filed})
    if len(classes) < 2:
        return label, ()
    number = {name: position for position, name in enumerate(classes)}
    for i in filed:
        label[i] = number[parts[i][depth]]
    return label, tuple(classes)


def labelled_indices(split: Split, name: str, *, limit: int | None) -> np.ndarray | None:
    """Files of the readout split "train" or "test", in a keyed order, at most ``limit``.

    The same for every run on the same files, whatever its seed: their scores can be compared.
    """
    if name not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', received {name!r}")
    if not split.classes:
        return None
    if len(split.test):
        chosen = split.train if name == "train" else split.test
    else:
        filed = split.train[split.label[split.train] >= 0]
        shuffled = filed[keyed.permutation(len(filed), seed=0, epoch=0, stream="readout split")]
        num_test = round(TEST_FRACTION * len(filed))
        chosen = np.sort(shuffled[:num_test] if name == "test" else shuffled[num_test:])
    chosen = chosen[split.label[chosen] >= 0]
    order = keyed.permutation(len(chosen), seed=0, epoch=0, stream=f"readout {name}")
    return chosen[order[:limit]]
