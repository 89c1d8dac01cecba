"""Log-mel spectrograms, and MT-SLVR's three channels of them, from waveforms on any device.

The power spectrogram is torchaudio's MelSpectrogram (Hann window, centred, reflected edges, HTK mel
scale, triangles of height 1) to float rounding, in real arithmetic: it stays in one compiled graph.
"""

# shapes: N clips, T samples, M mel bands, F frames, B frequency bins, W window
from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

_EPS = 2.0**-52  # MT-SLVR's floor of the logarithm


class LogMel(nn.Module):
    """Waveforms (N, T) to 10 log10(mel power + 2^-52), (N, 1, M, 1 + T // hop), in decibels.

    Raises ValueError where the window does not fit the clip or a band would be empty of range.
    """

    channels = 1

    def __init__(
        self, *, sample_rate: int = 16_000, n_fft: int = 1024, hop: int = 512, n_mels: int = 128
    ) -> None:
        super().__init__()
        if min(sample_rate, n_fft, hop, n_mels) < 1:
            raise ValueError(
                f"{type(self).__name__}: sample_rate, n_fft, hop and n_mels: expected positive "
                f"integers, received {sample_rate}, {n_fft}, {hop}, {n_mels}"
            )
        self.n_fft, self.hop = n_fft, hop
        bank_BM = mel_filterbank(sample_rate=sample_rate, n_fft=n_fft, n_mels=n_mels)
        self.bank_BM: Tensor
        self.window_W: Tensor
        self.register_buffer("bank_BM", torch.from_numpy(bank_BM).float(), persistent=False)
        self.register_buffer("window_W", torch.hann_window(n_fft), persistent=False)

    def forward(self, x_NT: Tensor) -> Tensor:
        """(N, 1, M, F) from (N, T); T must be over half a window."""
        spectrum_NFB2 = self._spectrum(x_NT, self.window_W)
        return self._decibels(spectrum_NFB2)[:, None]

    def _spectrum(self, x_NT: Tensor, window_W: Tensor) -> Tensor:
        """(N, F, B, 2) real and imaginary parts."""
        edge = self.n_fft // 2
        if x_NT.ndim != 2 or x_NT.shape[1] <= edge:
            raise ValueError(
                f"{type(self).__name__}: x_NT: expected (N, T) with T over {edge}, received "
                f"{tuple(x_NT.shape)}"
            )
        padded_NT = nnf.pad(x_NT[:, None], (edge, edge), mode="reflect")[:, 0]
        frames_NFW = padded_NT.unfold(1, self.n_fft, self.hop) * window_W
        return torch.view_as_real(torch.fft.rfft(frames_NFW))

    def _decibels(self, spectrum_NFB2: Tensor) -> Tensor:
        re, im = spectrum_NFB2.unbind(-1)
        mel_NFM = (re.square() + im.square()) @ self.bank_BM
        return (10 * torch.log10(mel_NFM + _EPS)).transpose(1, 2)


class MelMagnitudePhase(LogMel):
    """MT-SLVR's input (Heggan et al. 2023): (N, 3, M, F) log-mel, log magnitude, phase.

    re, im = mel projections of the two parts of the spectrum, which the authors' code takes without
    a window; channel 1 is 10 log10(sqrt(re^2 + im^2) + eps), channel 2 atan2(im, re) in radians.
    """

    channels = 3

    def __init__(
        self, *, sample_rate: int = 16_000, n_fft: int = 1024, hop: int = 512, n_mels: int = 128
    ) -> None:
        super().__init__(sample_rate=sample_rate, n_fft=n_fft, hop=hop, n_mels=n_mels)
        self.rectangle_W: Tensor
        self.register_buffer("rectangle_W", torch.ones(n_fft), persistent=False)

    def forward(self, x_NT: Tensor) -> Tensor:
        """(N, 3, M, F) from (N, T)."""
        bare_NFB2 = self._spectrum(x_NT, self.rectangle_W)
        re, im = (part @ self.bank_BM for part in bare_NFB2.unbind(-1))
        size_NFM = (re.square() + im.square()).sqrt()
        magnitude, phase = 10 * torch.log10(size_NFM + _EPS), torch.atan2(im, re)
        decibels = self._decibels(self._spectrum(x_NT, self.window_W))
        return torch.stack([decibels, magnitude.transpose(1, 2), phase.transpose(1, 2)], dim=1)


def mel_filterbank(*, sample_rate: int, n_fft: int, n_mels: int) -> np.ndarray:
    """(B, M) float64 triangles, equally spaced in 2595 log10(1 + f/700) from 0 to Nyquist."""
    frequency_B = np.linspace(0, sample_rate // 2, n_fft // 2 + 1)
    top = 2595 * math.log10(1 + (sample_rate // 2) / 700)
    corner = 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)
    slope_BM = corner - frequency_B[:, None]
    width = np.diff(corner)
    rising, falling = -slope_BM[:, :-2] / width[:-1], slope_BM[:, 2:] / width[1:]
    return np.maximum(0.0, np.minimum(rising, falling))
