"""Coloured noise that is a pure function of a key per clip, the same numbers on every device.

The spectrum is drawn and transformed once: X_k = m_k (u_k + i v_k), u and v uniform in [-1, 1),
from a 32-bit counter hash (Wellons' lowbias32) of the bin and the key; over thousands of bins the
samples are Gaussian. m_k = (1 + k (sqrt(K) - 1)/K)^-decay over the K bins; for one second it is
the curve of torch-audiomentations, from which MT-SLVR takes its noises. No constant part.
"""

# shapes: R clips, K bins, T samples
from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B - (1 << 32)  # the hash's factors, as signed 32-bit


def add_noise(x_RT: Tensor, key_R: Tensor, snr_R: Tensor, decay_R: Tensor) -> Tensor:
    """x plus noise ``snr_R`` dB below its mean power; amplitude falls as frequency^-``decay_R``.

    ``key_R`` (R,) int32. A silent clip stays silent. Differentiable in ``x_RT``.
    """
    noise_RT = coloured_noise(key_R, decay_R.to(x_RT.dtype), x_RT.shape[1])
    power_R1 = noise_RT.square().mean(dim=1, keepdim=True)
    wanted_R1 = x_RT.square().mean(dim=1, keepdim=True) * 10 ** (-snr_R.to(x_RT)[:, None] / 10)
    # The square root of 0 has no derivative, and a silent clip needs one
    factor_R1 = (wanted_R1 / power_R1).clamp(min=torch.finfo(x_RT.dtype).tiny).sqrt()
    return torch.addcmul(x_RT, noise_RT, factor_R1)


def coloured_noise(key_R: Tensor, decay_R: Tensor, length: int) -> Tensor:
    """(R, length) noise of no particular power, in the dtype of ``decay_R``."""
    num_bins = length // 2 + 1
    counter_K, pitch_K = _bins(num_bins, decay_R.dtype, decay_R.device)
    word_RK = _hash(counter_K ^ key_R[:, None])
    halves_RK2 = word_RK.view(torch.int16).view(len(key_R), num_bins, 2).to(decay_R.dtype)
    size_RK1 = torch.exp(pitch_K * -decay_R[:, None]).unsqueeze(-1)
    spectrum_RK = torch.view_as_complex(halves_RK2 * size_RK1)
    spectrum_RK[:, 0] = 0
    return torch.fft.irfft(spectrum_RK, n=length)


@lru_cache(maxsize=8)
def _bins(num_bins: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Hashed bin numbers (int32), and the logarithm of each bin's place on the curve."""
    bin_K = torch.arange(num_bins, dtype=torch.float64)
    curve_K = 1 + bin_K * ((math.sqrt(num_bins) - 1) / num_bins)
    counter_K = _hash(torch.arange(1, num_bins + 1, dtype=torch.int32))
    return counter_K.to(device), curve_K.log().to(device, dtype)


def _hash(word: Tensor) -> Tensor:
    """int32 to int32, uniform over all bits. The shifts are logical: the sign is masked off."""
    word = (word ^ ((word >> 16) & 0xFFFF)) * _FIRST
    word = (word ^ ((word >> 15) & 0x1FFFF)) * _SECOND
    return word ^ ((word >> 16) & 0xFFFF)
