"""A sound file to mono float samples at one rate: soundfile for anything, DALI for what it knows.

Channels are averaged. The rate is changed by a windowed sinc of 16 zero crossings whose cutoff is
the lower Nyquist frequency. A file that holds fewer samples than its header says is bad.
"""

# shapes: L samples of a file, C channels, W weights, U samples that a block makes
from __future__ import annotations

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

from fastssl.data.headers import BadFile
from fastssl.data.store import read_file

_DALI_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG")
_CROSSINGS = 16  # of the sinc on each side
_LONGEST_S = 3600.0  # a longer file is refused rather than held in memory


@dataclass(frozen=True)
class AudioHeader:
    """What a file says of itself, before it is decoded."""

    frames: int
    rate: int
    channels: int
    plain: bool  # DALI decodes this format

    def length_at(self, rate: int) -> int:
        """Samples after the change to ``rate``."""
        return -(-self.frames * rate // self.rate)


def check_audio(path: str) -> AudioHeader:
    """The header of the file at ``path``; BadFile says why it cannot be used."""
    import soundfile

    content = read_file(path)
    if not content:
        raise BadFile("the file is empty (0 bytes)")
    try:
        info = soundfile.info(io.BytesIO(content))
    except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
        raise BadFile(f"not a sound file: {_one_line(error)}") from None
    if info.frames < 1 or info.samplerate < 1 or info.channels < 1:
        raise BadFile(f"the header says {info.frames} samples at {info.samplerate} Hz")
    if info.frames > _LONGEST_S * info.samplerate:
        raise BadFile(f"longer than {_LONGEST_S:g} s")
    plain = info.format in _DALI_FORMATS and info.subtype != "OPUS"
    return AudioHeader(info.frames, info.samplerate, info.channels, plain)


def decode_audio(path: str, header: AudioHeader, *, rate: int) -> Tensor:
    """(L,) float32 mono samples at ``rate``; else BadFile."""
    import soundfile

    try:
        sample_LC, found = soundfile.read(
            io.BytesIO(read_file(path)), dtype="float32", always_2d=True
        )
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise BadFile(f"cannot be decoded: {_one_line(error)}") from None
    if found != header.rate or len(sample_LC) < header.frames:
        raise BadFile(
            f"decodes to {len(sample_LC)} samples at {found} Hz, but its header says "
            f"{header.frames} at {header.rate} Hz"
        )
    mono_L = torch.from_numpy(sample_LC.mean(axis=1))
    return finite(resample(mono_L, header.rate, rate))


def finite(sample_L: Tensor) -> Tensor:
    """The same; BadFile where a sample is not a number."""
    if not torch.isfinite(sample_L).all():
        raise BadFile("holds samples that are not finite numbers")
    return sample_L


def resample(sample_L: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """ceil(L to/from) samples: as torchaudio's, the weights repeat, so it is a matrix product."""
    if from_rate == to_rate:
        return sample_L
    shared = math.gcd(from_rate, to_rate)
    down, up = from_rate // shared, to_rate // shared
    weight_WU, edge = _weights(down, up)
    length = -(-len(sample_L) * up // down)
    blocks = -(-length // up)
    behind = max(0, (blocks - 1) * down + len(weight_WU) - edge - len(sample_L))
    window_BW = nnf.pad(sample_L, (edge, behind)).unfold(0, len(weight_WU), down)[:blocks]
    return (window_BW @ weight_WU.to(sample_L)).flatten()[:length]


@lru_cache(maxsize=32)
def _weights(down: int, up: int) -> tuple[Tensor, int]:
    """The weights of one block of ``up`` samples, and how far they reach back."""
    cutoff = min(1.0, up / down)
    edge = math.ceil(_CROSSINGS / cutoff)
    centre_U = np.arange(up) * down / up
    away_WU = np.arange(down + 2 * edge + 1)[:, None] - edge - centre_U
    inside_WU = np.clip(away_WU * cutoff / _CROSSINGS, -1, 1)
    weight_WU = np.sinc(away_WU * cutoff) * np.cos(math.pi / 2 * inside_WU) ** 2
    weight_WU /= weight_WU.sum(axis=0)
    return torch.from_numpy(weight_WU.astype(np.float32)), edge


class DaliAudio:
    """``decoders.audio`` of DALI on the CPU for a batch of files; None for those it refuses."""

    def __init__(self, *, rate: int, workers: int) -> None:
        import nvidia.dali  # noqa: F401  (in the caller's thread: see DaliReader)

        self._rate, self._workers = rate, max(1, workers)
        self._pipelines: dict[int, Any] = {}

    def decode(self, contents: list[bytes]) -> list[Tensor | None]:
        """(L,) float32 mono samples of each. An error ends a pipeline: then one file at a time."""
        try:
            return self._run(contents)
        except RuntimeError:
            self._pipelines.pop(len(contents), None)
        if len(contents) == 1:
            return [None]
        return [self.decode([content])[0] for content in contents]

    def _run(self, contents: list[bytes]) -> list[Tensor | None]:
        if len(contents) not in self._pipelines:
            self._pipelines[len(contents)] = self._build(len(contents))
        pipeline = self._pipelines[len(contents)]
        pipeline.feed_input("encoded", [np.frombuffer(c, np.uint8) for c in contents])
        (output,) = pipeline.run()
        return [torch.from_numpy(np.array(output.at(i))) for i in range(len(contents))]

    def _build(self, batch_size: int) -> Any:
        import nvidia.dali.fn as fn
        from nvidia.dali import Pipeline, types

        pipeline = Pipeline(batch_size, self._workers, None, prefetch_queue_depth=1)
        with pipeline:
            encoded = fn.external_source(name="encoded", device="cpu")
            sample, _ = fn.decoders.audio(
                encoded,
                dtype=types.FLOAT,
                downmix=True,
                sample_rate=self._rate,
                quality=50,
            )
            pipeline.set_outputs(sample)
        pipeline.build()
        return pipeline

    def close(self) -> None:
        self._pipelines.clear()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
