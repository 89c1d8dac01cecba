"""Which images of a store may be used, and which one stands in for one that cannot be decoded.

A stand-in is the first good file of a sequence keyed by the bad one's own index, whenever and by
whomever the damage is found out. What was found is kept in the run folder for a resumed run.
"""

# shapes: N batch, K candidates
from __future__ import annotations

import json
import logging
import threading
from itertools import chain
from pathlib import Path

import numpy as np

from fastssl.augment import keyed
from fastssl.data.scan import cached_lines
from fastssl.data.store import Store, num_files, printable

_REFILLS = 64  # candidates for one slot; after them the files in turn
_MANY = 0.05  # of the files: worth a warning of its own
_NOTES = "undecodable.jsonl"


class TooManyBadFiles(ValueError):
    """More files than ``--max-bad-files`` allows cannot be used."""


class Roster:
    """The usable ones of ``store``; ``train_M`` are the numbers that may stand in."""

    def __init__(
        self,
        store: Store,
        train_M: np.ndarray,
        *,
        name: str,
        max_bad: float | None,
        cache_dir: Path | None,
    ) -> None:
        self._store, self._train, self._name = store, train_M, name
        self._max_bad, self._cache_dir = max_bad, cache_dir
        self._bad = _noted(store, cache_dir)  # index -> reason, seen in decoding
        self._lock = threading.Lock()
        self._warned = False
        self._weigh()

    def usable(self, index_N: np.ndarray) -> np.ndarray:
        """Those of ``index_N`` that nothing is known against."""
        return np.array([i for i in index_N.tolist() if i not in self._bad], dtype=np.int64)

    def refilled(self, wanted_N: np.ndarray, *, seed: int, epoch: int) -> np.ndarray:
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
        train, count = self._train, len(self._train)
        position_K = (unit_K * count).astype(np.int64)
        turn = (train[i % count] for i in range(position_K[-1], 2 * count))
        first = None  # of the good ones, should all of them be in the batch already
        for candidate in map(int, chain(train[position_K], turn)):
            if candidate not in self._bad:
                if candidate not in taken:
                    return candidate
                first = candidate if first is None else first
        if first is None:
            raise TooManyBadFiles(f"--data: no usable image is left; {self.bad_files()}")
        return first

    def exclude(self, found: dict[int, str]) -> None:
        """From now on the files ``found`` (index -> reason) are bad."""
        with self._lock:
            for index, reason in found.items():
                if index not in self._bad:
                    self._bad[index] = reason
                    self._note(index, reason)
                    path = printable(self._store.paths[index])
                    logging.getLogger("fastssl").warning("skipped %s: %s", path, reason)
        self._weigh()

    def skipped(self) -> list[tuple[str, str]]:
        """(path, reason) of every file that is not used, sorted by path."""
        decoded = [(self._store.paths[index], reason) for index, reason in self._bad.items()]
        return sorted([*self._store.skipped, *decoded])

    def bad_files(self, named: int = 3) -> str:
        """How many cannot be used, and the first of them."""
        skipped = self.skipped()
        listed = "\n  ".join(f"{printable(path)}: {reason}" for path, reason in skipped[:named])
        return (
            f"{len(skipped)} of {num_files(self._store)} files cannot be used, the first ones:"
            f"\n  {listed}"
        )

    def _weigh(self) -> None:
        """Refuse what the user's limit forbids; warn once where the bad files are many."""
        share = (len(self._store.skipped) + len(self._bad)) / num_files(self._store)
        if self._max_bad is not None and share > self._max_bad:
            raise TooManyBadFiles(
                f"--data {self._name}: more than --max-bad-files {self._max_bad:g} allows; raise "
                f"it, leave it out or remove them: {self.bad_files(10)}"
            )
        if share > _MANY and not self._warned:
            self._warned = True
            logging.getLogger("fastssl").warning(
                "%s: many bad files; the run goes on without them: %s",
                self._name,
                self.bad_files(),
            )

    def _note(self, index: int, reason: str) -> None:
        """Keeps for a resumed run that this file has a good header and bad contents."""
        stamp = self._store.stamp(index)
        if self._cache_dir is None or stamp is None:
            return
        try:
            self._cache_dir.mkdir(parents=True, exist_ok=True)
            with open(self._cache_dir / _NOTES, "a", encoding="utf-8") as file:
                file.write(json.dumps([*json.loads(stamp), reason]) + "\n")
        except OSError:
            return  # the next start finds it out again


def _noted(store: Store, cache_dir: Path | None) -> dict[int, str]:
    """Index -> reason, as an earlier start noted it of the same files."""
    noted: dict[str, str] = {}
    for line in cached_lines(cache_dir, _NOTES):
        try:
            *stamp, reason = json.loads(line)
        except (ValueError, TypeError):
            continue
        noted[json.dumps(stamp)] = str(reason)
    if not noted:
        return {}
    stamps = [store.stamp(index) for index in range(len(store.paths))]
    return {index: noted[stamp] for index, stamp in enumerate(stamps) if stamp in noted}
