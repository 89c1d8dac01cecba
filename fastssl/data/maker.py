"""Makes the batches of an encoded source: read, decode, draw, render; again without what is bad."""

# shapes: N batch, V views
from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from fastssl.augment.policy import Policy
from fastssl.data import rendering
from fastssl.data.batch import Batch, part
from fastssl.data.dali_decoder import DaliDecoder
from fastssl.data.pil_decoder import Failures, PilDecoder, attempt
from fastssl.data.roster import Roster
from fastssl.data.store import Encoded, Store, fetch

Decoded = Literal["whole", "regions"]


class BatchMaker:
    """Create it in the thread that will train; ``batch`` may run in another one.

    shard: (rank, ranks), whose part of each batch is made. seed: of everything that is drawn.
    """

    def __init__(
        self,
        store: Store,
        roster: Roster,
        policy: Policy,
        *,
        stage: rendering.Stage,
        workers: int,
        backend: str,
        decoded: Decoded,
        seed: int,
        shard: tuple[int, int],
    ) -> None:
        self._store, self._roster, self._policy = store, roster, policy
        self._stage, self._seed, self._shard, self._decoded = stage, seed, shard, decoded
        self._pool = ThreadPoolExecutor(max_workers=workers)
        self._decoder: DaliDecoder | PilDecoder = PilDecoder(self._pool)
        if backend == "dali":
            device = stage.device
            device_id = (device.index or 0) if device.type == "cuda" else None
            self._decoder = DaliDecoder(self._pool, threads=workers, device_id=device_id)

    def batch(self, batch_N: np.ndarray, *, epoch: int, step: int) -> Batch:
        """This rank's part of the batch of the images ``batch_N``, bad ones replaced."""
        wanted_N = part(batch_N, self._shard)
        while True:
            refilled_N = self._roster.refilled(batch_N, seed=self._seed, epoch=epoch)
            index_N = part(refilled_N, self._shard)
            made = self._made(index_N, wanted_N, epoch=epoch, step=step)
            if isinstance(made, Batch):
                return made
            self._roster.exclude({int(index_N[slot]): reason for slot, reason in made.items()})

    def _made(
        self, index_N: np.ndarray, wanted_N: np.ndarray, *, epoch: int, step: int
    ) -> Batch | Failures:
        encoded = attempt(self._pool.map, lambda i: fetch(self._store, int(i)), index_N)
        if isinstance(encoded, dict):
            return encoded
        draw = rendering.Draw(
            seed=self._seed,
            epoch=epoch,
            step=step,
            index_N=wanted_N,  # the slot's own: a file that stands in twice varies
            sizes_N2=np.array([(one.header.height, one.header.width) for one in encoded]),
        )
        return self._stage.run(lambda: self._rendered(encoded, index_N, draw))

    def _rendered(
        self, encoded: Sequence[Encoded], index_N: np.ndarray, draw: rendering.Draw
    ) -> Batch | Failures:
        decoder = self._decoder
        if self._decoded == "whole":
            images = decoder.images(encoded)
            if isinstance(images, dict):
                return images
            return rendering.batch_of(self._policy, images, index_N, draw)
        assert isinstance(decoder, DaliDecoder)
        return rendering.batch_of_regions(
            self._policy,
            lambda region_VN4: decoder.regions(encoded, region_VN4),
            index_N,
            draw,
            self._stage.device,
        )

    def close(self) -> None:
        """Stop the threads, drop DALI's pipeline."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._decoder.close()
