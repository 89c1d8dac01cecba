"""Tones: procedural clips with known, independent factors; the audio counterpart of Spirograph.

  x(t) = g e(t) [sum_h a_h sin(h theta(t) + phi_h) / norm] + noise,   norm^2 = sum_h a_h^2 / 2
  theta(t) = 2 pi f t + vibrato,   f = 440 Hz 2^((octave - 4) + (pitch_class - 9)/12 + c/1200)
An object is six factors, each uniform over its classes (FACTORS). An epoch draws the rest afresh:
phases phi_h in [0, 2 pi), detuning c in +-20 cents, level g in -12..0 dB of 0.25, the noise.
Harmonics h = 1..16 under 0.475 of the sample rate (7.6 kHz of 16 kHz); noise is white, ``noise`` dB
under the whole clip's mean power.
"""

# shapes: N samples, T time, H harmonics, K factors
from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastssl.augment import keyed
from fastssl.augment.keyed_noise import add_noise
from fastssl.data.audio_views import AudioViews
from fastssl.data.batch import Batch, Labelled, check_batch_size, part
from fastssl.data.prefetch import Prefetcher

FACTORS: dict[str, tuple[str, ...]] = {
    # a_h: 1 at h = 1 | 1/h | 1/h, odd h | 1/h^2, odd h | 1/sqrt h | 1 at h = 1, 2, 4, 8 |
    # exp(-((h f - 1200)/500)^2) + 0.05 | 1 at h = 1 and even h, over h^0.7
    "timbre": ("sine", "saw", "square", "triangle", "bright", "organ", "vowel", "even"),
    "pitch_class": ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B"),
    "octave": ("3", "4", "5"),
    # e(t), t in clips: exp(-6 t) | min(1, 1.25 t) | min(1, 20 t, 5 (1 - t)) |
    # 0.5 + 0.5 tanh(10 sin 8 pi t); every envelope begins with 5 ms of rise
    "envelope": ("pluck", "swell", "hold", "pulse"),
    # none | 5.5 Hz, +-40 cents | e(t) (1 + 0.6 sin 2 pi 6.5 t)/1.6
    "modulation": ("none", "vibrato", "tremolo"),
    "noise": ("40 dB", "20 dB", "10 dB"),
}
NUM_TRAIN, NUM_TEST = 50_000, 5_000
NUM_HARMONICS, _HIGHEST = 16, 0.475  # of the sample rate: under Nyquist with room for vibrato
_VIBRATO_HZ, _VIBRATO_CENTS, _TREMOLO_HZ, _TREMOLO = 5.5, 40.0, 6.5, 0.6
_NOISE_DB = np.array([40.0, 20.0, 10.0])
_CHUNK = 8  # clips whose complex carriers stay in the L2 cache


def draw_factors(index_N: np.ndarray, *, seed: int, split: str) -> np.ndarray:
    """(N, 6) int64 classes of the objects of ``split`` ("train" or "test"), columns FACTORS."""
    sizes_K = np.array([len(classes) for classes in FACTORS.values()])
    stream = f"tones/object/{split}"
    unit_NK = keyed.uniform(len(sizes_K), seed=seed, index_N=index_N, stream=stream)
    return (unit_NK * sizes_K).astype(np.int64)


def draw_clips(
    factor_NK: np.ndarray,
    *,
    seed: int,
    epoch: int,
    index_N: np.ndarray,
    samples: int = 16_000,
    sample_rate: int = 16_000,
    stream: str = "view",
    device: torch.device | None = None,
) -> Tensor:
    """(N, samples) float32 clips of the objects ``factor_NK``; the rest is keyed by the index."""
    key: dict[str, Any] = {"seed": seed, "epoch": epoch, "index_N": index_N}
    unit_NH = keyed.uniform(NUM_HARMONICS + 2, stream=f"tones/{stream}", **key)
    word_N = (
        (keyed.bits(1, stream=f"tones/noise/{stream}", **key)[:, 0] >> np.uint64(32))
        .astype(np.uint32)
        .view(np.int32)
    )
    hertz_N = frequency(factor_NK, cents_N=40 * unit_NH[:, -1] - 20)
    gain_N = 0.25 * 10 ** (-12 * unit_NH[:, -2] / 20)
    weight_NH = harmonics(factor_NK[:, 0], hertz_N, sample_rate=sample_rate)
    weight_NH *= (gain_N / np.sqrt(np.square(weight_NH).sum(axis=1) / 2))[:, None]
    turned_NH = weight_NH * np.exp(1j * (2 * math.pi * unit_NH[:, :-2] - math.pi / 2))
    pieces = []
    for begin in range(0, len(factor_NK), _CHUNK):
        rows = slice(begin, begin + _CHUNK)
        time_T = torch.arange(samples, dtype=torch.float64, device=device) / sample_rate
        tone_NT = _carrier(time_T, hertz_N[rows], turned_NH[rows], factor_NK[rows, 4])
        length = samples / sample_rate
        clean_NT = tone_NT * envelope(time_T / length, factor_NK[rows], length=length)
        level_N = torch.from_numpy(_NOISE_DB[factor_NK[rows, 5]]).to(clean_NT)
        key_N = torch.from_numpy(word_N[rows]).to(clean_NT.device)
        pieces.append(add_noise(clean_NT, key_N, level_N, torch.zeros_like(level_N)))
    return torch.cat(pieces)


def frequency(factor_NK: np.ndarray, *, cents_N: np.ndarray | float = 0.0) -> np.ndarray:
    """(N,) fundamental frequencies in Hz, equal temperament on A4 = 440 Hz."""
    octaves = factor_NK[:, 2] + 3 - 4 + (factor_NK[:, 1] - 9) / 12
    return 440.0 * np.exp2(octaves + np.asarray(cents_N) / 1200)


def harmonics(
    timbre_N: np.ndarray, hertz_N: np.ndarray, *, sample_rate: int = 16_000
) -> np.ndarray:
    """(N, 16) amplitudes a_h of the harmonics; 0 from 0.475 of the sample rate on."""
    h = np.arange(1, NUM_HARMONICS + 1)
    odd, even = h % 2 == 1, (h % 2 == 0) | (h == 1)
    vowel_NH = np.exp(-(((h * hertz_N[:, None] - 1200) / 500) ** 2)) + 0.05
    shapes = [h == 1, 1 / h, odd / h, odd / h**2, h**-0.5, np.isin(h, (1, 2, 4, 8)), None]
    shapes.append(even / h**0.7)
    profile = np.stack([np.zeros(len(h)) if s is None else np.asarray(s, float) for s in shapes])
    vowel = FACTORS["timbre"].index("vowel")
    weight_NH = np.where((timbre_N == vowel)[:, None], vowel_NH, profile[timbre_N])
    return weight_NH * (h * hertz_N[:, None] < _HIGHEST * sample_rate)


def envelope(phase_T: Tensor, factor_NK: np.ndarray, *, length: float) -> Tensor:
    """(N, T) float32 gains at the times ``phase_T`` in [0, 1) of clips of ``length`` seconds."""
    second_T = phase_T * length
    shapes = (
        torch.exp(-6 * phase_T),
        (1.25 * phase_T).clamp(max=1),
        torch.minimum((20 * phase_T).clamp(max=1), (5 * (1 - phase_T)).clamp(max=1)),
        0.5 + 0.5 * torch.tanh(10 * torch.sin(8 * math.pi * phase_T)),
    )
    choices = torch.stack(shapes) * (second_T / 0.005).clamp(max=1)
    wobble_T = (1 + _TREMOLO * torch.sin(2 * math.pi * _TREMOLO_HZ * second_T)) / (1 + _TREMOLO)
    tremolo_N1 = torch.from_numpy(factor_NK[:, 4] == 2).to(phase_T.device)[:, None]
    gain_NT = choices[torch.from_numpy(factor_NK[:, 3]).to(phase_T.device)]
    return (gain_NT * torch.where(tremolo_N1, wobble_T, 1.0)).float()


def _carrier(
    time_T: Tensor, hertz_N: np.ndarray, turned_NH: np.ndarray, modulation_N: np.ndarray
) -> Tensor:
    """(N, T) float32 sum of the harmonics: a polynomial in exp(i theta), by Horner's rule."""
    depth_N = np.where(modulation_N == 1, np.exp2(_VIBRATO_CENTS / 1200) - 1, 0.0)
    wave_T = torch.sin(2 * math.pi * _VIBRATO_HZ * time_T) / (2 * math.pi * _VIBRATO_HZ)
    hertz_N1 = torch.from_numpy(hertz_N).to(time_T)[:, None]
    cycle_NT = hertz_N1 * (time_T + torch.from_numpy(depth_N).to(time_T)[:, None] * wave_T)
    angle_NT = (2 * math.pi * (cycle_NT - cycle_NT.floor())).float()
    turn_NT = torch.complex(angle_NT.cos(), angle_NT.sin())
    coefficient_HN1 = torch.from_numpy(turned_NH.T.astype(np.complex64)).to(time_T.device)
    sum_NT = turn_NT * coefficient_HN1[-1][:, None]
    for coefficient_N in coefficient_HN1[:-1].flip(0):
        sum_NT = (sum_NT + coefficient_N[:, None]) * turn_NT
    return sum_NT.real


def _check_factor(factor: str) -> None:
    if factor not in FACTORS:
        raise ValueError(f"--factor: expected one of {', '.join(FACTORS)}, received {factor!r}")


class TonesSource:
    """Endless batches of Tones. ``seed`` keys the objects; ``batches(seed=)`` order and views.

    ``factor`` is the one that ``labelled`` hands out where none is named.

    The 5,000 test objects come from a stream of their own and are never trained on.
    """

    name = kind = "tones"
    task = "classification"

    def __init__(
        self, *, seed: int = 0, views: AudioViews | None = None, factor: str = "timbre"
    ) -> None:
        _check_factor(factor)
        self.factor = factor
        self.views = views or AudioViews()
        self.num_samples, self.num_views = NUM_TRAIN, self.views.num_views
        self.image_shape = self.views.shape
        self._seed = seed
        self._kept: dict[str, dict[int, Tensor]] = {"train": {}, "test": {}}

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in one pass; the incomplete last one is dropped."""
        check_batch_size(batch_size, self.num_samples, self.name)
        return self.num_samples // batch_size

    def batches(
        self,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        device: torch.device,
        shard: tuple[int, int] = (0, 1),
    ) -> Prefetcher[Batch]:
        """Endless iterator; batch t depends on (seed, t) alone. ``shard``: (rank, ranks)."""
        per_epoch = self.steps_per_epoch(batch_size)
        order = lru_cache(maxsize=2)(
            lambda epoch: keyed.permutation(self.num_samples, seed=seed, epoch=epoch)
        )

        def make(step: int) -> Batch:
            epoch, position = divmod(step, per_epoch)
            index_N = order(epoch)[position * batch_size : (position + 1) * batch_size]
            mine_N = part(index_N, shard)
            return self.batch(mine_N, seed=seed, epoch=epoch, step=step, device=device)

        return Prefetcher(make, start=start_step)

    def batch(
        self,
        index_N: np.ndarray,
        *,
        seed: int,
        epoch: int,
        step: int = 0,
        device: torch.device | None = None,
    ) -> Batch:
        """All views of the training objects ``index_N``; ``table.waveforms`` is theirs."""
        clips_NT = self.clips(index_N, split="train", seed=seed, epoch=epoch, device=device)
        return self.views.batch(
            clips_NT, slot_N=index_N, index_N=index_N, seed=seed, epoch=epoch, step=step
        )

    def clips(
        self,
        index_N: np.ndarray,
        *,
        split: str,
        seed: int,
        epoch: int = 0,
        stream: str = "train",
        device: torch.device | None = None,
    ) -> Tensor:
        """(N, T) clips of the objects, before any augmentation."""
        return draw_clips(
            draw_factors(index_N, seed=self._seed, split=split),
            seed=seed,
            epoch=epoch,
            index_N=index_N,
            samples=self.views.samples,
            sample_rate=self.views.sample_rate,
            stream=stream,
            device=device,
        )

    def rehearsal(self, num_samples: int) -> Batch:
        """A batch of any clips with a table that fits: to try a method on."""
        return self.batch(np.arange(num_samples), seed=0, epoch=0)

    def heard(self, count: int, *, seed: int) -> tuple[Tensor, tuple[str, ...]]:
        """The first ``count`` training clips (N, T) and what they are, to look at."""
        index_N = np.arange(min(count, self.num_samples))
        factor_NK = draw_factors(index_N, seed=self._seed, split="train")
        names = [[c[k] for c, k in zip(FACTORS.values(), row, strict=True)] for row in factor_NK]
        return self.clips(index_N, split="train", seed=seed), tuple(map(", ".join, names))

    def report(self) -> dict:
        """Nothing can be skipped here."""
        return {"skipped": []}

    def labelled(
        self, split: str, limit: int | None = None, *, factor: str | None = None
    ) -> Labelled:
        """The first ``limit`` objects of "train" or "test" with their class of one of FACTORS."""
        factor = factor or self.factor
        _check_factor(factor)
        sizes = {"train": NUM_TRAIN, "test": NUM_TEST}
        if split not in sizes:
            raise ValueError(f"labelled: split: expected 'train' or 'test', received {split!r}")
        index_n = np.arange(min(limit or sizes[split], sizes[split]))
        class_nK = draw_factors(index_n, seed=self._seed, split=split)
        target_n = torch.from_numpy(class_nK[:, list(FACTORS).index(factor)].copy())

        def images(position_N: np.ndarray) -> Tensor:
            wanted = index_n[position_N].tolist()
            kept = self._kept[split]  # 16 kB each: every readout of a run looks at the same ones
            new_N = np.array([i for i in wanted if i not in kept], dtype=np.int64)
            if len(new_N):
                stream = f"readout/{split}"
                clip_NT = self.clips(new_N, split=split, seed=self._seed, stream=stream)
                kept.update(zip(new_N.tolist(), self.views.clean(clip_NT), strict=True))
            return torch.stack([kept[i] for i in wanted])

        def redraw(position_N: np.ndarray, draw: int, only: str | None) -> Tensor:
            index_N, stream = index_n[position_N], f"readout/{split}"
            clip_NT = self.clips(index_N, split=split, seed=self._seed, stream=stream)
            return self.views.redrawn(clip_NT, index_N, draw=draw, only=only)

        views = self.views
        what = f"tones {self._seed} {split} {len(index_n)} {views.policy} {views.samples}"
        return Labelled(
            target_n,
            "classification",
            FACTORS[factor],
            images,
            redraw,
            views.varied,
            identity=lambda: f"{what} {views.sample_rate} {views.front}",
            split=split,
        )
