"""Time stretch and pitch shift by a batched phase vocoder with one rate per clip.

Flanagan and Golden 1966. Output frame j reads the spectrogram at time j rate: the magnitude is
interpolated, the phase advances by that of two neighbouring input frames, whose hop is the output's
too. So the phase is a running product of unit phasors, and neither atan2 nor cos is needed:
  U = X/|X|,  D_i = U_(i+1) conj(U_i),  P_0 = U_0,  P_(j+1) = P_j D_floor(j rate),
  Y_j = ((1-a)|X_i| + a|X_(i+1)|) P_j,  i = floor(j rate),  a = j rate - i.
"""

# shapes: R clips, F input frames, B bins, G output frames, T samples, L longest output,
#         H hop, Q overlapping hops, P phases, K taps
from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

N_FFT, HOP = 2048, 512  # MT-SLVR's time stretch; also torchaudio's and librosa's proportion
_OVERLAP = N_FFT // HOP
_CHUNK = 8  # clips whose spectrograms stay in the cache together
_TAPS = 8  # of the interpolating sinc
_MOST_DOWN = 200  # largest denominator of a reading speed
_SQUARES = 1.5  # sum of the squared Hann windows that overlap at a sample
_TINY = 1e-17  # gives a bin that is 0 the phase 0; far below the rounding of any sound


def stretch(
    x_RT: Tensor, rate_R: np.ndarray, *, length_R: np.ndarray, cutoff_R: np.ndarray | None = None
) -> Tensor:
    """Clips played ``rate_R`` times as fast at the same pitch: (R, longest), zeros behind each end.

    ``length_R`` (int64) is how many samples of each are wanted; what a clip does not last is zero.
    ``cutoff_R`` in (0, 1], a fraction of Nyquist: what lies above is left out. Differentiable in
    ``x_RT``. Equals ISTFT(phase_vocoder(STFT(x))) of torchaudio: Hann window, reflected edges.
    """
    count_R = num_frames(x_RT.shape[1], rate_R, length_R)
    longest_first = np.argsort(-count_R, kind="stable")
    y_RL = x_RT.new_zeros(len(x_RT), int(length_R.max()))
    for begin in range(0, len(x_RT), _CHUNK):
        rows = longest_first[begin : begin + _CHUNK]
        place = torch.from_numpy(rows).to(x_RT.device)
        keep = None if cutoff_R is None else cutoff_R[rows]
        spectrum_RFB = _spectrogram(x_RT[place])
        if keep is not None:  # what goes to zero anyway is not computed
            spectrum_RFB = spectrum_RFB[
                ..., : math.ceil(keep.max() * (N_FFT // 2)) + 1
            ].contiguous()
        frames_GB = _advance(spectrum_RFB, rate_R[rows], count_R[rows], keep)
        piece = _overlap_add(frames_GB, count_R[rows])[:, : y_RL.shape[1]]
        y_RL[place, : piece.shape[1]] = piece
    inside_RL = torch.arange(y_RL.shape[1]) < torch.from_numpy(length_R)[:, None]
    return y_RL * inside_RL.to(y_RL.device)


def pitch_shift(x_RT: Tensor, semitones_R: np.ndarray) -> Tensor:
    """Clips (R, T) with every frequency multiplied by 2^(semitones/12), duration unchanged.

    Stretched by the vocoder, then read at that speed through an 8-tap windowed sinc. Frequencies
    that would rise over Nyquist are left out in the vocoder. The factor is taken as a fraction of
    whole numbers up to about 500/200, which is within 5 cents of it, for most within half a cent.
    """
    ratio_R2 = _ratios(np.exp2(semitones_R.astype(np.float64) / 12))
    factor_R = ratio_R2[:, 0] / ratio_R2[:, 1]
    length = x_RT.shape[1]
    longer_R = np.ceil(length * factor_R).astype(np.int64) + _TAPS
    cutoff_R = np.minimum(1.0, 1.0 / factor_R)
    slow_RL = stretch(x_RT, 1 / factor_R, length_R=longer_R, cutoff_R=cutoff_R)
    rows = [
        read_at_speed(slow_L, up, down, length=length)
        for slow_L, (up, down) in zip(slow_RL, ratio_R2.tolist(), strict=True)
    ]
    return torch.stack(rows)


def num_frames(length: int, rate_R: np.ndarray, length_R: np.ndarray) -> np.ndarray:
    """(R,) int64: the output frames of each clip; those that touch no wanted sample are spared."""
    lasting_R = np.ceil((1 + length // HOP) / rate_R)
    wanted_R = np.ceil((length_R + N_FFT // 2) / HOP)
    return np.minimum(lasting_R, wanted_R).astype(np.int64)


def read_at_speed(x_L: Tensor, up: int, down: int, *, length: int) -> Tensor:
    """(length,): sample t is x at time t up/down, through a Hann-windowed sinc of 8 taps.

    ``down`` samples repeat their 8 weights ``up`` samples later, so a block of them is one row of
    a matrix product, which is ten times as fast as gathering. x is zero outside.
    """
    time_D = np.arange(down) * up
    tap_DK = (time_D // down)[:, None] + np.arange(_TAPS)
    weight_WD = np.zeros((int(tap_DK.max()) + 1, down), np.float32)
    weight_WD[tap_DK, np.arange(down)[:, None]] = _sinc(time_D % down / down)
    blocks = -(-length // down)
    missing = (blocks - 1) * up + len(weight_WD) - (_TAPS // 2 - 1) - len(x_L)
    x_L = nnf.pad(x_L, (_TAPS // 2 - 1, max(0, missing)))
    window_BW = x_L.unfold(0, len(weight_WD), up)[:blocks]
    return (window_BW @ torch.from_numpy(weight_WD).to(x_L)).flatten()[:length]


def _spectrogram(x_RT: Tensor) -> Tensor:
    """(R, F, B) complex: torch.stft's, frames before bins, and two frames of zeros behind."""
    padded_RT = nnf.pad(x_RT[:, None], (N_FFT // 2, N_FFT // 2), mode="reflect")[:, 0]
    frames = padded_RT.unfold(1, N_FFT, HOP) * _window(x_RT.dtype, x_RT.device)
    frames[..., 0] = _TINY  # where the window is 0: a pulse there adds as much to every bin
    return nnf.pad(torch.fft.rfft(frames), (0, 0, 0, 2), value=_TINY)


def _advance(
    spectrum_RFB: Tensor, rate_R: np.ndarray, count_R: np.ndarray, cutoff_R: np.ndarray | None
) -> list[Tensor]:
    """Output frames j of the clips that last so long, (R_j, B) complex; longest clips first."""
    power_RFB = (spectrum_RFB * spectrum_RFB.conj()).real.contiguous()
    # A bin that cancels to 0, or whose square underflows, has no phase: it gets that of the pulse
    silent_RFB = power_RFB < torch.finfo(power_RFB.dtype).tiny
    spectrum_RFB = torch.where(silent_RFB, _TINY, spectrum_RFB)
    power_RFB = torch.where(silent_RFB, _TINY**2, power_RFB)
    inverse_RFB = power_RFB.rsqrt()
    unit_RFB = spectrum_RFB * inverse_RFB
    turn_RFB = unit_RFB[:, 1:] * unit_RFB[:, :-1].conj()
    size_RFB = power_RFB * inverse_RFB
    if cutoff_R is not None:
        size_RFB = size_RFB * _lowpass(cutoff_R, size_RFB)[:, None]
    device, last = spectrum_RFB.device, spectrum_RFB.shape[1] - 2
    time_GR = np.arange(count_R.max())[:, None] * rate_R
    frame_GR = np.minimum(np.floor(time_GR), last).astype(np.int64)
    share_GR = torch.from_numpy(time_GR - np.floor(time_GR)).to(device, size_RFB.dtype)
    at_GR = torch.from_numpy(frame_GR).to(device)
    row_R = torch.arange(len(rate_R), device=device)
    phase_RB, out = unit_RFB[:, 0], []
    for j, alive in enumerate((count_R[None] > np.arange(count_R.max())[:, None]).sum(axis=1)):
        row, at = row_R[:alive], at_GR[j, :alive]
        before, behind = size_RFB[row, at], size_RFB[row, at + 1]
        phase_RB = phase_RB[:alive]
        out.append(phase_RB * torch.lerp(before, behind, share_GR[j, :alive, None]))
        phase_RB = phase_RB * turn_RFB[row, at]
    return out


def _overlap_add(frames_GB: list[Tensor], count_R: np.ndarray) -> Tensor:
    """(R, L) samples from centred frames, divided by the sum of the squared windows."""
    packed_GB = torch.cat(frames_GB)
    window_QH = _window(packed_GB.real.dtype, packed_GB.device).view(_OVERLAP, HOP)
    frames_GQH = torch.fft.irfft(packed_GB, n=N_FFT).view(-1, _OVERLAP, HOP)
    frames_GQH = frames_GQH * (window_QH / _SQUARES)
    sum_RGH = frames_GQH.new_zeros(len(count_R), len(frames_GB) + _OVERLAP - 1, HOP)
    begin = 0
    for j, frames in enumerate(frames_GB):
        end = begin + len(frames)
        sum_RGH[: len(frames), j : j + _OVERLAP] += frames_GQH[begin:end]
        begin = end
    present_RG = (np.arange(len(frames_GB)) < count_R[:, None]).astype(np.float64)
    present_RG = np.pad(present_RG, ((0, 0), (_OVERLAP - 1, _OVERLAP - 1)))
    thin_R, thin_G = np.nonzero(_windowed(present_RG).sum(axis=-1) % _OVERLAP)  # some are missing
    squares_QH = window_QH.square().flip(0) / _SQUARES
    share_XQ = torch.from_numpy(_windowed(present_RG)[thin_R, thin_G]).to(squares_QH)
    where = (torch.from_numpy(thin_R), torch.from_numpy(thin_G))
    sum_RGH[where] /= (share_XQ @ squares_QH).clamp(min=1e-9)
    return sum_RGH.flatten(1)[:, N_FFT // 2 :]


def _windowed(present_RG: np.ndarray) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(present_RG, _OVERLAP, axis=1)


def _ratios(factor_R: np.ndarray) -> np.ndarray:
    """(R, 2) int64: the numerator and the denominator, at most 200, nearest to each factor."""
    down_D = np.arange(_MOST_DOWN // 2, _MOST_DOWN + 1)
    up_RD = np.rint(factor_R[:, None] * down_D)
    best_R = np.abs(up_RD / down_D - factor_R[:, None]).argmin(axis=1)
    return np.stack([up_RD[np.arange(len(factor_R)), best_R], down_D[best_R]], 1).astype(np.int64)


def _lowpass(cutoff_R: np.ndarray, like: Tensor) -> Tensor:
    """(R, B) gains: 1 below the cutoff, a raised cosine over its last tenth, 0 above."""
    bins_B = np.arange(like.shape[-1]) / (N_FFT // 2)
    above_RB = np.clip((bins_B / cutoff_R[:, None] - 0.9) / 0.1, 0.0, 1.0)
    gain_RB = np.where(cutoff_R[:, None] < 1, 0.5 + 0.5 * np.cos(math.pi * above_RB), 1.0)
    return torch.from_numpy(gain_RB).to(like.device, like.dtype)


@lru_cache(maxsize=8)
def _window(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.hann_window(N_FFT, dtype=torch.float64).to(device, dtype)


def _sinc(phase_D: np.ndarray) -> np.ndarray:
    """(D, 8): the weights of the samples -3..4 for a time ``phase`` in [0, 1) after sample 0."""
    away_DK = np.arange(_TAPS) - (_TAPS // 2 - 1) - phase_D[:, None]
    weight_DK = np.sinc(away_DK) * np.cos(math.pi * away_DK / _TAPS) ** 2
    return weight_DK / weight_DK.sum(axis=1, keepdims=True)
