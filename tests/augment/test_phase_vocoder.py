"""The vocoder is torchaudio's, the pitch is where it should be, and nothing changes in length."""

# shapes: R clips, T samples
from __future__ import annotations

import numpy as np
import pytest
import torch
import torchaudio.functional as taf

from fastssl.augment import phase_vocoder

RATES = np.array([0.5, 0.77, 1.0, 1.13, 1.5, 1.0])


def noise(rows: int, length: int = 16_000) -> torch.Tensor:
    return torch.randn(rows, length, generator=torch.manual_seed(0), dtype=torch.float64)


def torchaudios(x_T: torch.Tensor, rate: float, length: int) -> torch.Tensor:
    window = torch.hann_window(2048, dtype=torch.float64)
    spectrum = torch.stft(x_T, 2048, 512, window=window, return_complex=True)
    advance = torch.linspace(0, torch.pi * 512, 1025, dtype=torch.float64)[:, None]
    stretched = taf.phase_vocoder(spectrum, rate, advance)
    return torch.istft(stretched, 2048, 512, window=window, length=length)


def test_each_clip_equals_torchaudios_vocoder_at_its_own_rate():
    x_RT = noise(len(RATES))
    length_R = np.ceil(16_000 / RATES).astype(np.int64)
    y_RL = phase_vocoder.stretch(x_RT, RATES, length_R=length_R)
    for x_T, y_L, rate, length in zip(x_RT, y_RL, RATES, length_R, strict=True):
        expected = torchaudios(x_T, float(rate), int(length))
        # 64 products of phasors against a sum of angles, in float64
        torch.testing.assert_close(y_L[:length], expected, atol=1e-9, rtol=0)
        assert (y_L[length:] == 0).all()


def test_float32_rounds_no_worse_than_torchaudio_does():
    x_RT = noise(len(RATES))
    length_R = np.full(len(RATES), 16_000)
    exact_RT = phase_vocoder.stretch(x_RT, RATES, length_R=length_R)
    ours_RT = phase_vocoder.stretch(x_RT.float(), RATES, length_R=length_R)
    for row, rate in enumerate(RATES):
        x_T = x_RT[row].float()
        window = torch.hann_window(2048)
        spectrum = torch.stft(x_T, 2048, 512, window=window, return_complex=True)
        advance = torch.linspace(0, torch.pi * 512, 1025)[:, None]
        stretched = taf.phase_vocoder(spectrum, float(rate), advance)
        lasts = min(16_000, int(16_000 / rate))
        theirs_T = torch.istft(stretched, 2048, 512, window=window, length=lasts)
        errors = [(y[:lasts] - exact_RT[row, :lasts]).std() for y in (ours_RT[row], theirs_T)]
        # up to 64 phasors are multiplied: as many roundings of size and angle, 2^-24 each
        assert errors[0] <= 1.5 * errors[1] + (2 * 64) ** 0.5 * 2**-24


def test_more_clips_than_a_chunk_in_any_order_and_silence_among_them():
    x_RT = noise(phase_vocoder._CHUNK + 3)
    x_RT[4] = 0
    x_RT[5, 3000:9000] = 0
    rate_R = np.linspace(0.5, 1.5, len(x_RT))
    length_R = np.full(len(x_RT), 16_000)
    whole = phase_vocoder.stretch(x_RT, rate_R, length_R=length_R)
    for row in (0, 4, 5, len(x_RT) - 1):
        alone = phase_vocoder.stretch(
            x_RT[row : row + 1], rate_R[row : row + 1], length_R=length_R[:1]
        )
        torch.testing.assert_close(whole[row], alone[0], atol=1e-12, rtol=0)
    assert whole[4].abs().max() < 1e-12 and torch.isfinite(whole).all()


@pytest.mark.parametrize("hertz", [220.0, 1000.0])
def test_a_sine_moves_by_its_semitones_and_lasts_as_long(hertz):
    semitones = np.array([-15.0, -7.31, -1.0, 0.0, 0.4, 5.0, 11.77, 15.0])
    time_T = torch.arange(16_000, dtype=torch.float64) / 16_000
    x_RT = torch.sin(2 * torch.pi * hertz * time_T).repeat(len(semitones), 1)
    y_RT = phase_vocoder.pitch_shift(x_RT, semitones)
    assert y_RT.shape == x_RT.shape
    for y_T, shift in zip(y_RT, semitones, strict=True):
        cents = 1200 * np.log2(peak_hertz(y_T) / (hertz * 2 ** (shift / 12)))
        assert abs(cents) < 5, (shift, cents)
        assert y_T[-2000:].square().mean() > 0.1 * y_T[6000:10_000].square().mean()
    assert y_RT[3].sub(x_RT[3]).abs().max() < 1e-3  # no shift: the sine itself


def peak_hertz(y_T: torch.Tensor) -> float:
    middle = y_T[3000:13_000].double() * torch.hann_window(10_000, dtype=torch.float64)
    return torch.fft.rfft(middle, n=1 << 20).abs().argmax().item() * 16_000 / (1 << 20)


def test_nothing_that_would_pass_nyquist_folds_back():
    time_T = torch.arange(16_000, dtype=torch.float64) / 16_000
    high = torch.sin(2 * torch.pi * 6000 * time_T)[None]
    up = phase_vocoder.pitch_shift(high, np.array([12.0]))  # to 12 kHz: there is no such thing
    assert up[:, 2000:-2000].square().mean() < 1e-5


def test_the_waveform_gets_a_gradient():
    x_RT = noise(2, 4096).requires_grad_()
    y_RT = phase_vocoder.pitch_shift(x_RT, np.array([3.0, -4.0]))
    (grad,) = torch.autograd.grad(y_RT.square().sum(), x_RT)
    assert torch.isfinite(grad).all() and (grad != 0).float().mean() > 0.99
    step = 1e-6 * torch.sign(grad)
    ahead, behind = (
        phase_vocoder.pitch_shift((x_RT + s * step).detach(), np.array([3.0, -4.0])).square().sum()
        for s in (1, -1)
    )
    torch.testing.assert_close((ahead - behind) / 2, (grad * step).sum(), rtol=1e-4, atol=1e-9)
