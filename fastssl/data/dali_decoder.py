"""The images of a batch through DALI, surviving files that DALI cannot decode.

DALI gets the files of which every decoder makes the same pixels; PIL gets the others. A decode
error ends a DALI pipeline for good and need not name the file: then the pipeline is rebuilt, the
batch's files are tried one by one, and PIL has the last word on those that DALI refuses.
"""

# shapes: N samples, V views, H and W height and width of each
from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssl.data import dali_graph
from fastssl.data.decode import decode, to_bmp
from fastssl.data.headers import has_sound_scan
from fastssl.data.pil_decoder import Failures, PilDecoder, attempt
from fastssl.data.store import Encoded


class DaliDecoder:
    """Decodes on the CPU, or on the CUDA device ``device_id``; ``pool`` is the caller's."""

    def __init__(self, pool: Executor, *, threads: int, device_id: int | None) -> None:
        # Imported here, in the caller's thread: DALI's exit handler asserts that no pipeline is
        # left, so it must be registered before the prefetcher's, which then runs first.
        import nvidia.dali  # noqa: F401

        self._pool, self._threads, self._device_id = pool, max(1, threads), device_id
        self._pil = PilDecoder(pool)
        self._through_pil: set[str] = set()  # DALI refused them, PIL perhaps does not
        self._pipeline: Any = None
        self._built_for: tuple[int, int | None] = (0, None)

    def images(self, encoded: Sequence[Encoded]) -> list[Tensor] | Failures:
        """N tensors (3, H, W) uint8, channels last in memory; or the slots that failed, and why."""
        return self._surviving(self._images, encoded)

    def regions(
        self, encoded: Sequence[Encoded], region_VN4: np.ndarray
    ) -> list[list[Tensor]] | Failures:
        """Of each view the N regions (3, H, W) uint8, decoded in part; or the failures.

        region_VN4: int64 (left, top, width, height), inside the images.
        """
        return self._surviving(lambda some: self._regions(some, region_VN4), encoded)

    def _surviving(
        self, decode_all: Callable[[Sequence[Encoded]], Any], encoded: Sequence[Encoded]
    ) -> Any:
        while True:
            try:
                return decode_all(encoded)
            except RuntimeError:
                self._pipeline = None
                refused = self._refused(encoded)
                if not refused:
                    raise
                self._through_pil |= refused

    def _images(self, encoded: Sequence[Encoded]) -> list[Tensor] | Failures:
        fit_N = list(self._pool.map(self._fits_dali, encoded))
        ours = [slot for slot, fit in enumerate(fit_N) if fit]
        others = [slot for slot, fit in enumerate(fit_N) if not fit]
        rest = self._pil.images([encoded[slot] for slot in others])
        if isinstance(rest, dict):
            return {others[slot]: reason for slot, reason in rest.items()}
        images: dict[int, Tensor] = dict(zip(others, map(self._placed, rest), strict=True))
        if ours:
            (decoded,) = self._run(
                {"encoded": [_bytes(encoded[slot]) for slot in ours]}, len(encoded)
            )
            images |= zip(ours, _tensors(decoded), strict=True)
        return [images[slot] for slot in range(len(encoded))]

    def _regions(
        self, encoded: Sequence[Encoded], region_VN4: np.ndarray
    ) -> list[list[Tensor]] | Failures:
        def form(slot: int) -> np.ndarray:
            one = encoded[slot]
            return _bytes(one) if self._fits_dali(one) else to_bmp(decode(one.content, one.header))

        contents = attempt(self._pool.map, form, range(len(encoded)))
        if isinstance(contents, dict):
            return contents
        inputs: dict[str, Any] = {"encoded": contents}
        for view, region_N4 in enumerate(region_VN4.astype(np.float32)):
            inputs[f"start{view}"] = np.ascontiguousarray(region_N4[:, [1, 0]])
            inputs[f"shape{view}"] = np.ascontiguousarray(region_N4[:, [3, 2]])
        views = self._run(inputs, len(encoded), num_regions=len(region_VN4))
        return [_tensors(view) for view in views]

    def _fits_dali(self, one: Encoded) -> bool:
        return (
            one.header.plain and one.name not in self._through_pil and has_sound_scan(one.content)
        )

    def _placed(self, image: Tensor) -> Tensor:
        return image if self._device_id is None else image.to(f"cuda:{self._device_id}")

    def _run(
        self, inputs: dict[str, Any], batch_size: int, *, num_regions: int | None = None
    ) -> tuple[Any, ...]:
        wanted = (batch_size, num_regions)
        if self._pipeline is None or self._built_for != wanted:
            self._built_for = wanted
            self._pipeline = dali_graph.build(
                batch_size=batch_size,
                threads=self._threads,
                device_id=self._device_id,
                num_regions=num_regions,
            )
        for name, values in inputs.items():
            self._pipeline.feed_input(name, values)
        return self._pipeline.run()

    def _refused(self, encoded: Sequence[Encoded]) -> set[str]:
        """Names of those that DALI was to decode and cannot decode on their own."""
        refused = set()
        pipeline = None
        for one in encoded:
            if not self._fits_dali(one):
                continue
            try:
                pipeline = pipeline or dali_graph.build(
                    batch_size=1, threads=1, device_id=self._device_id
                )
                pipeline.feed_input("encoded", [_bytes(one)])
                pipeline.run()
            except RuntimeError:
                refused.add(one.name)
                pipeline = None
        return refused

    def close(self) -> None:
        """Drop the pipeline."""
        self._pipeline = None


def _bytes(one: Encoded) -> np.ndarray:
    return np.frombuffer(one.content, np.uint8)


def _tensors(decoded: Any) -> list[Tensor]:
    """(3, H, W) views. The dynamic executor hands its buffers over: shared memory, no copy."""
    return [torch.from_dlpack(decoded[slot]).permute(2, 0, 1) for slot in range(len(decoded))]
