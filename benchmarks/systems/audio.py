"""Log-mel views per second of MT-SLVR's policy: here, in audiomentations and in torchaudio.

All render the same clips (one second at 16 kHz) with the same table: the operators, their order and
their parameters are read from it. The peers go clip by clip, in one process with the other core for
whatever of it is threaded; audiomentations' own default vocoder (Signalsmith) is used, torchaudio's
pitch shift takes the nearest whole semitone, whose kernel it keeps. Times are per view.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torchaudio
from torch import Tensor

from benchmarks.clock import as_record, race
from benchmarks.machine import describe, facts
from benchmarks.targets import at_least, conclude, keep
from fastssl.augment.audio_policies import AUDIO_POLICIES, draw_waveforms
from fastssl.augment.waveform import augment_waveforms
from fastssl.augment.waveform_table import FADE_SHAPES, OPERATORS, VALUES, WaveformTable
from fastssl.data.tones import draw_clips, draw_factors
from fastssl.nn.logmel import LogMel

RATE, BATCH, PEER_CLIPS = 16_000, 128, 16
AUDIOMENTATIONS, TORCHAUDIO = 5.0, 3.0  # targets: times as fast
Clip = Callable[[np.ndarray, dict[str, float], tuple[int, int]], np.ndarray]


def run(options: argparse.Namespace) -> int:
    """The benchmark; returns the exit code."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    machine = facts(threads=options.threads)
    print(describe(machine))
    count = 16 if options.quick else BATCH
    peers = min(count, 4 if options.quick else PEER_CLIPS)
    index_N = np.arange(count)
    factor_NK = draw_factors(index_N, seed=0, split="train")
    clip_NT = draw_clips(factor_NK, seed=0, epoch=0, index_N=index_N)
    policy, front = AUDIO_POLICIES["mtslvr"], LogMel()

    def ours() -> Tensor:
        table = draw_waveforms(policy, seed=0, epoch=0, index_N=index_N)
        return front(augment_waveforms(clip_NT, table).flatten(0, 1))

    table = draw_waveforms(policy, seed=0, epoch=0, index_N=index_N)
    contestants: dict[str, Callable[[], object]] = {
        "fastssl": ours,
        "audiomentations": lambda: looped(clip_NT, table, peers, audiomentations_step, front),
        "torchaudio": lambda: looped(clip_NT, table, peers, torchaudio_step, front),
    }
    views = {"fastssl": 2 * count, "audiomentations": 2 * peers, "torchaudio": 2 * peers}
    timings = race(contestants, rounds=3 if options.quick else 7, slice_s=0.1, budget_s=120)
    for name, timing in timings.items():
        print(f"{name:<16} {timing}  {views[name] / timing.median:,.0f} views/s", flush=True)
    speed = {name: views[name] / timing.median for name, timing in timings.items()}
    verdicts = [
        at_least("views/s over audiomentations", speed["fastssl"] / speed["audiomentations"],
                 AUDIOMENTATIONS, "x"),
        at_least("views/s over torchaudio", speed["fastssl"] / speed["torchaudio"],
                 TORCHAUDIO, "x"),
    ]  # fmt: skip
    verdicts = [] if options.quick else verdicts
    rows = {n: {**as_record(t), "views": views[n]} for n, t in timings.items()}
    keep(options.json, {"machine": machine, "rows": rows}, verdicts)
    return conclude(verdicts) if verdicts else 0


def looped(
    clip_NT: Tensor, table: WaveformTable, count: int, step: Clip, front: LogMel
) -> list[Tensor]:
    """Both views of the first ``count`` clips, one after another."""
    views = []
    for view in range(2):
        for n in range(count):
            x_T = clip_NT[n].numpy()
            value = dict(zip(VALUES, table.values_VNP[view, n].tolist(), strict=True))
            shapes = tuple(table.codes_VNC[view, n, :2].tolist())
            for operator in table.steps_VNK[view, n].tolist():
                if operator >= 0:
                    x_T = step(x_T, {**value, "operator": operator}, shapes)
            views.append(front(torch.as_tensor(x_T)[None]))
    return views


def audiomentations_step(x_T: np.ndarray, value: dict, shapes: tuple[int, int]) -> np.ndarray:
    """One operator by audiomentations, whose ranges are closed around the parameter."""
    import audiomentations as am

    name = OPERATORS[value["operator"]]
    if name == "fade":  # it has none: torchaudio's
        return torchaudio_step(x_T, value, shapes)
    if name == "pitch_shift":
        made = am.PitchShift(value["semitones"], value["semitones"], p=1.0)
    elif name == "time_stretch":
        made = am.TimeStretch(value["rate"], value["rate"], p=1.0)
    elif name == "white_noise":
        made = am.AddGaussianSNR(value["white_snr"], value["white_snr"], p=1.0)
    elif name == "mixed_noise":
        decibels = 6 * value["mixed_decay"]  # per octave
        made = am.AddColorNoise(value["mixed_snr"], value["mixed_snr"], decibels, decibels, p=1.0)
    elif name == "time_mask":
        made = am.TimeMask(value["mask_length"], value["mask_length"], p=1.0)
    else:
        made = am.Shift(value["shift"], value["shift"], fade_duration=0.0, p=1.0)
    return made(x_T, RATE)


def torchaudio_step(x_T: np.ndarray, value: dict, shapes: tuple[int, int]) -> np.ndarray:
    """One operator by torchaudio's transforms, and by torch where it has none."""
    name, x_1T = OPERATORS[value["operator"]], torch.as_tensor(x_T)[None]
    length = x_1T.shape[1]
    if name == "pitch_shift":
        shifted = pitch_module(round(value["semitones"]))(x_1T)[0].detach()
        return shifted.numpy()
    if name == "time_stretch":
        spectrum, stretch, inverse = stretch_modules()
        y_T = inverse(stretch(spectrum(x_1T), value["rate"]))[0]
        return y_T.repeat(-(-length // len(y_T)))[:length].numpy()
    if name in ("white_noise", "mixed_noise"):
        snr = torch.tensor([value["white_snr" if name == "white_noise" else "mixed_snr"]])
        noise_1T = torch.randn_like(x_1T)
        return torchaudio.functional.add_noise(x_1T, noise_1T, snr)[0].numpy()
    if name == "time_mask":
        y_1T, begin = x_1T.clone(), int(value["mask_start"] * length)
        y_1T[:, begin : begin + int(value["mask_length"] * length)] = 0
        return y_1T[0].numpy()
    if name == "time_shift":
        return x_1T.roll(round(value["shift"] * length), 1)[0].numpy()
    for end, shape in zip(("fade_in", "fade_out"), shapes, strict=True):
        sizes = {f"{end}_len": int(value[end] * length)}
        x_1T = torchaudio.transforms.Fade(**sizes, fade_shape=FADE_SHAPES[shape])(x_1T)
    return x_1T[0].numpy()


@lru_cache(maxsize=64)
def pitch_module(semitones: int) -> torch.nn.Module:
    """torchaudio's, which keeps its resampling kernel."""
    return torchaudio.transforms.PitchShift(RATE, semitones, n_fft=2048, hop_length=512)


@lru_cache(maxsize=1)
def stretch_modules() -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """Spectrogram, stretch and back."""
    forward = torchaudio.transforms.Spectrogram(2048, hop_length=512, power=None)
    back = torchaudio.transforms.InverseSpectrogram(2048, hop_length=512)
    return forward, torchaudio.transforms.TimeStretch(512, 1025), back
