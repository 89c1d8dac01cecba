"""The images of a batch through PIL, in threads. What PIL cannot decode is bad everywhere."""

# shapes: N samples, H and W height and width of each
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssl.data.decode import decode
from fastssl.data.headers import BadFile
from fastssl.data.store import Encoded

Failures = dict[int, str]  # slot -> reason


class PilDecoder:
    """Decodes in the threads of ``pool``, which is the caller's."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool

    def images(self, encoded: Sequence[Encoded]) -> list[Tensor] | Failures:
        """N tensors (3, H, W) uint8, channels last in memory; or the slots that failed, and why."""
        return attempt(self._pool.map, lambda slot: pixels(encoded[slot]), range(len(encoded)))

    def close(self) -> None:
        """Nothing is held."""


def pixels(encoded: Encoded) -> Tensor:
    """(3, H, W) uint8, channels last in memory."""
    image = decode(encoded.content, encoded.header)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def attempt(run_all: Callable, one: Callable[[int], Any], slots: Iterable[int]) -> Any:
    """``one(slot)`` of every slot as a list; or {slot: reason} where any raised BadFile."""

    def caught(slot: int) -> Any:
        try:
            return one(slot)
        except BadFile as bad:
            return bad

    results = list(run_all(caught, slots))
    failures = {slot: str(r) for slot, r in enumerate(results) if isinstance(r, BadFile)}
    return failures or results
