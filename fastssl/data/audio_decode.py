"""A sound file to mono float samples at one rate: soundfile for anything, DALI for what it knows.

Channels are averaged. The rate is changed by a windowed sinc of 16 zero crossings whose cutoff is
the lower Nyquist frequency. A file that holds fewer samples than its header says is bad.
"""

# shapes: L samples of a file, C channels, W weights, U samples that a block makes, P phases + 1,
# N samples of a chunk
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

from fastssl.data.audio_chunks import check_whole
from fastssl.data.headers import BadFile
from fastssl.data.store import read_file

_DALI_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG")
_CROSSINGS = 16  # of the sinc on each side
_LONGEST_S = 3600.0  # a longer file is refused rather than held in memory
_MOST_SAMPLES = 3600 * 48_000 * 2  # of all channels: an hour of stereo at 48 kHz
_RATES = (4_000, 384_000)  # Hz
_MOST_WEIGHTS = 1 << 20  # of one pair of rates; where more are needed they are interpolated
_PHASES = 512  # between two samples; linear between them: 5e-6 of full scale
_CHUNK = 1 << 21  # weights at a time
_BLOCK = 1 << 18  # frames decoded at a time


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
    if not _RATES[0] <= info.samplerate <= _RATES[1]:
        raise BadFile(f"{info.samplerate} Hz is not within {_RATES[0]} to {_RATES[1]} Hz")
    if info.frames > _LONGEST_S * info.samplerate:
        raise BadFile(f"longer than {_LONGEST_S:g} s")
    if info.frames * info.channels > _MOST_SAMPLES:
        raise BadFile(
            f"{info.frames} x {info.channels} channels are over the limit of {_MOST_SAMPLES} "
            "samples"
        )
    check_whole(content)
    plain = info.format in _DALI_FORMATS and info.subtype != "OPUS"
    return AudioHeader(info.frames, info.samplerate, info.channels, plain)


def decode_audio(path: str, header: AudioHeader, *, rate: int) -> Tensor:
    """(L,) float32 mono samples at ``rate``; else BadFile."""
    try:
        mono_L, found = _mono(read_file(path), header.frames)
        if found != header.rate or len(mono_L) < header.frames:
            raise BadFile(
                f"decodes to {len(mono_L)} samples at {found} Hz, but its header says "
                f"{header.frames} at {header.rate} Hz"
            )
        return finite(resample(mono_L, header.rate, rate))
    except MemoryError:
        raise BadFile("needs more memory than is left") from None
    except RuntimeError as error:  # of libsndfile, or of torch without memory
        raise BadFile(f"cannot be decoded: {_one_line(error)}") from None


def _mono(content: bytes, frames: int) -> tuple[Tensor, int]:
    """(L,) the mean of the channels, at most ``frames`` samples; and the rate."""
    import soundfile

    with soundfile.SoundFile(io.BytesIO(content)) as file:
        blocks = file.blocks(_BLOCK, frames=frames, dtype="float32", always_2d=True)
        means = [block_LC.mean(axis=1) for block_LC in blocks]
        return torch.from_numpy(np.concatenate([*means, np.empty(0, np.float32)])), file.samplerate


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
    if (down + 2 * _edge(down / up)) * up > _MOST_WEIGHTS:
        return _by_phase(sample_L, down, up)
    weight_WU, edge = _weights(down, up)
    length = -(-len(sample_L) * up // down)
    blocks = -(-length // up)
    behind = max(0, (blocks - 1) * down + len(weight_WU) - edge - len(sample_L))
    window_BW = nnf.pad(sample_L, (edge, behind)).unfold(0, len(weight_WU), down)[:blocks]
    return (window_BW @ weight_WU.to(sample_L)).flatten()[:length]


def _by_phase(sample_L: Tensor, down: int, up: int) -> Tensor:
    """The same for rates with a small common divisor: the weights between two tabled phases."""
    table_PW, edge = _phases(down / up)
    width = table_PW.shape[1]
    window_LW = nnf.pad(sample_L, (edge, edge + 1)).unfold(0, width, 1)
    done = []
    for place_N in torch.arange(-(-len(sample_L) * up // down)).split(max(1, _CHUNK // width)):
        phase_N = (place_N * down % up).double() * (_PHASES / up)
        part_N1 = phase_N.frac().to(sample_L)[:, None]
        low_N = phase_N.long()
        weight_NW = torch.lerp(table_PW[low_N], table_PW[low_N + 1], part_N1)
        done.append((weight_NW * window_LW[place_N * down // up]).sum(1))
    return torch.cat(done)


@lru_cache(maxsize=8)
def _phases(ratio: float) -> tuple[Tensor, int]:
    """The weights of a sample that lies between two others, and how far they reach back."""
    edge = _edge(ratio)
    phase_P1 = np.linspace(0, 1, _PHASES + 1)[:, None]
    weight_PW = _sinc(np.arange(2 * edge + 2) - edge - phase_P1, min(1.0, 1 / ratio))
    weight_PW /= weight_PW.sum(axis=1, keepdims=True)
    return torch.from_numpy(weight_PW.astype(np.float32)), edge


@lru_cache(maxsize=16)
def _weights(down: int, up: int) -> tuple[Tensor, int]:
    """The weights of one block of ``up`` samples, and how far they reach back."""
    edge = _edge(down / up)
    centre_U = np.arange(up) * down / up
    away_WU = np.arange(down + 2 * edge + 1)[:, None] - edge - centre_U
    weight_WU = _sinc(away_WU, min(1.0, up / down))
    weight_WU /= weight_WU.sum(axis=0)
    return torch.from_numpy(weight_WU.astype(np.float32)), edge


def _edge(ratio: float) -> int:
    return math.ceil(_CROSSINGS * max(1.0, ratio))


def _sinc(away: np.ndarray, cutoff: float) -> np.ndarray:
    """The windowed sinc at distances in samples; not yet of sum one."""
    inside = np.clip(away * cutoff / _CROSSINGS, -1, 1)
    return np.sinc(away * cutoff) * np.cos(math.pi / 2 * inside) ** 2


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
        except (RuntimeError, MemoryError):
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
