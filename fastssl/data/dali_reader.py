"""The views of a batch through DALI, surviving files that DALI cannot decode.

A decode error ends a DALI pipeline for good and need not name the file. So the pipeline is rebuilt,
the batch's files are tried one by one, and the caller learns which slots to refill.
"""

# shapes: N samples, S side
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssl.augment.linear_policy import Policy, ViewParams
from fastssl.data import dali_graph
from fastssl.data.decode import decode, read, to_bmp
from fastssl.data.headers import Header, has_sound_scan
from fastssl.data.torch_reader import Failures, attempt


class DaliReader:
    """Decodes and augments on the CPU, or on the CUDA device ``device_id``."""

    def __init__(
        self,
        policy: Policy,
        *,
        side: int,
        num_views: int,
        workers: int,
        device_id: int | None,
    ) -> None:
        # Imported here, in the caller's thread: DALI's exit handler asserts that no pipeline is
        # left, so it must be registered before the prefetcher's, which then runs first.
        import nvidia.dali  # noqa: F401

        self._policy, self._side, self._num_views = policy, side, num_views
        self._workers, self._device_id = max(1, workers), device_id
        self._pool = ThreadPoolExecutor(max_workers=self._workers)
        self._pipeline: Any = None
        self._batch_size = 0
        self._through_pil: set[str] = set()  # DALI refused them, PIL did not

    def views(
        self, paths: list[str], headers: list[Header], tables: list[ViewParams]
    ) -> tuple[Tensor, ...] | Failures:
        """V tensors (N, 3, S, S), or the slots whose files failed, with the reasons."""
        while True:
            encoded = attempt(
                self._pool.map,
                lambda slot: self._encoded(paths[slot], headers[slot]),
                range(len(paths)),
            )
            if isinstance(encoded, dict):
                return encoded
            try:
                return self._run(encoded, tables)
            except RuntimeError:
                self._pipeline = None
                refused = self._refused(encoded)
                failures = self._hopeless(refused, paths, headers)
                if failures:
                    return failures
                if not refused:
                    raise

    def _encoded(self, path: str, header: Header) -> np.ndarray:
        """What DALI is to decode: the file itself where every decoder agrees on its pixels."""
        content = read(path)
        if header.plain and path not in self._through_pil and has_sound_scan(content):
            return np.frombuffer(content, np.uint8)
        return to_bmp(decode(content, header))

    def _run(self, encoded: list[np.ndarray], tables: list[ViewParams]) -> tuple[Tensor, ...]:
        if self._pipeline is None or self._batch_size != len(encoded):
            self._batch_size = len(encoded)
            self._pipeline = dali_graph.build(
                self._policy,
                side=self._side,
                num_views=self._num_views,
                batch_size=self._batch_size,
                threads=self._workers,
                device_id=self._device_id,
            )
        dali_graph.feed(self._pipeline, encoded, tables, self._policy)
        outputs = self._pipeline.run()
        # The dynamic executor hands its buffers over: each tensor owns its memory, without a copy.
        return tuple(torch.from_dlpack(output.as_tensor()) for output in outputs)

    def _refused(self, encoded: list[np.ndarray]) -> list[int]:
        """Slots that DALI cannot decode on their own."""
        refused = []
        decoder = dali_graph.build_decoder(device_id=self._device_id)
        for slot, content in enumerate(encoded):
            try:
                decoder.feed_input("encoded", [content])
                decoder.run()
            except RuntimeError:
                refused.append(slot)
                decoder = dali_graph.build_decoder(device_id=self._device_id)
        return refused

    def _hopeless(self, refused: list[int], paths: list[str], headers: list[Header]) -> Failures:
        """Of the refused slots those that PIL cannot decode either; the rest goes through PIL."""
        failures = attempt(
            map, lambda slot: decode(read(paths[refused[slot]]), headers[refused[slot]]),
            range(len(refused)),
        )  # fmt: skip
        if isinstance(failures, dict):
            return {refused[slot]: reason for slot, reason in failures.items()}
        self._through_pil.update(paths[slot] for slot in refused)
        return {}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pipeline = None
