"""``augment_waveforms``: every view of a batch of clips, from a table of parameters.

Each clip runs its own operators in its own order. Clips that wait for the same operator run it
together, and no others are touched; pitch shift and time stretch wait until nothing else can run,
so that the vocoder, which costs most, sees few and large batches.
"""

# shapes: V views, N samples, R = V N clips (or those that one operator takes), T samples,
#         K operators
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastssl.augment import phase_vocoder
from fastssl.augment.keyed_noise import add_noise
from fastssl.augment.waveform_table import FADE_SHAPES, OPERATORS, WaveformTable

_SLOW = (OPERATORS.index("pitch_shift"), OPERATORS.index("time_stretch"))


def augment_waveforms(x_NT: Tensor, table: WaveformTable) -> Tensor:
    """Views (V, N, T) of the clips (N, T), float32 or float64, on their device.

    Differentiable in ``x_NT``. Raises ValueError for a table of another number of clips, or clips
    shorter than 1,025 samples (half a window of the vocoder).
    """
    num_views, num_samples, _ = table.values_VNP.shape
    if x_NT.ndim != 2 or x_NT.shape[0] != num_samples or not x_NT.is_floating_point():
        raise ValueError(
            f"augment_waveforms: x_NT: expected a floating tensor ({num_samples}, T), as many "
            f"clips as the table has, received {tuple(x_NT.shape)} {x_NT.dtype}"
        )
    if x_NT.shape[1] <= phase_vocoder.N_FFT // 2:
        raise ValueError(
            f"augment_waveforms: x_NT: expected more than {phase_vocoder.N_FFT // 2} samples per "
            f"clip, received {x_NT.shape[1]}"
        )
    values_RP = table.values_VNP.flatten(0, 1)
    codes_RC = table.codes_VNC.flatten(0, 1)
    y_RT = x_NT.repeat(num_views, 1)
    for operator, rows in schedule(table.steps_VNK.flatten(0, 1).cpu().numpy()):
        take = torch.from_numpy(rows)
        chosen = WaveformTable(values_RP[take], codes_RC[take])
        place = take.to(x_NT.device)
        y_RT.index_copy_(0, place, apply(OPERATORS[operator], y_RT[place], chosen))
    return y_RT.view(num_views, num_samples, -1)


def schedule(steps_RK: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """(operator, clips) in an order that keeps each clip's own: ready clips run together."""
    position_R = np.zeros(len(steps_RK), dtype=np.int64)
    padded_RK = np.pad(steps_RK, ((0, 0), (0, 1)), constant_values=-1)
    groups: list[tuple[int, np.ndarray]] = []
    while True:
        next_R = padded_RK[np.arange(len(steps_RK)), position_R]
        waiting = np.bincount(next_R[next_R >= 0], minlength=len(OPERATORS))
        if not waiting.any():
            return groups
        fast = waiting.copy()
        fast[list(_SLOW)] = 0
        operator = int((fast if fast.any() else waiting).argmax())
        rows = np.flatnonzero(next_R == operator)
        groups.append((operator, rows))
        position_R[rows] += 1


def apply(operator: str, x_RT: Tensor, table: WaveformTable) -> Tensor:
    """One operator on the clips (R, T), with the R rows of ``table``."""
    return _APPLY[operator](x_RT, table)


def fade(x_RT: Tensor, table: WaveformTable) -> Tensor:
    """torchaudio's Fade: int(length T) samples at each end, by the shape that the codes name."""
    curve_RT = _rise(x_RT, table.value("fade_in"), table.code("fade_in_shape"))
    fall_RT = _rise(x_RT, table.value("fade_out"), table.code("fade_out_shape")).flip(1)
    return x_RT * (curve_RT * fall_RT)


def _rise(x_RT: Tensor, length_R: Tensor, shape_R: Tensor) -> Tensor:
    """Gains (R, T) that rise from 0 to 1 (logarithmic: from 10^-1 up) over a part of the clip."""
    samples_R1 = (length_R.double() * x_RT.shape[1]).floor()[:, None].to(x_RT.device)
    time_T = torch.arange(x_RT.shape[1], dtype=x_RT.dtype, device=x_RT.device)
    part_RT = (time_T / (samples_R1 - 1).clamp(min=1).to(x_RT.dtype)).clamp_(max=1)
    gain_RT = part_RT.clone()
    for name in ("logarithmic", "exponential"):
        rows = (shape_R == FADE_SHAPES.index(name)).nonzero()[:, 0].to(x_RT.device)
        gain_RT[rows] = _CURVES[name](part_RT[rows])
    return torch.where(time_T < samples_R1, gain_RT, 1.0)


def time_mask(x_RT: Tensor, table: WaveformTable) -> Tensor:
    """Silence of int(length T) samples from int(start T) on."""
    length = x_RT.shape[1]
    time_T = torch.arange(length)
    begin_R1 = (table.value("mask_start").double() * length).long()[:, None]
    end_R1 = begin_R1 + (table.value("mask_length").double() * length).long()[:, None]
    masked_RT = (time_T >= begin_R1) & (time_T < end_R1)
    return x_RT.masked_fill(masked_RT.to(x_RT.device), 0.0)


def time_shift(x_RT: Tensor, table: WaveformTable) -> Tensor:
    """Each clip turned to the right by round(shift T) samples; what leaves enters on the left."""
    length = x_RT.shape[1]
    start_R = -(table.value("shift").double() * length).round().long() % length
    return _circular(x_RT, start_R, torch.full_like(start_R, length), length)


def time_stretch(x_RT: Tensor, table: WaveformTable) -> Tensor:
    """Played at ``rate`` by the phase vocoder; repeated from the start, or cut, to the length."""
    length = x_RT.shape[1]
    rate_R = table.value("rate").double().cpu().numpy()
    lasting_R = np.rint(length / rate_R).astype(np.int64)
    y_RL = phase_vocoder.stretch(x_RT, rate_R, length_R=np.minimum(lasting_R, length))
    period_R = torch.from_numpy(lasting_R)
    return _circular(y_RL, torch.zeros_like(period_R), period_R, length)


def _circular(x_RL: Tensor, start_R: Tensor, period_R: Tensor, length: int) -> Tensor:
    """(R, length): from ``start_R`` on, beginning again after ``period_R`` samples."""
    rows = []
    for x_L, start, period in zip(x_RL, start_R.tolist(), period_R.tolist(), strict=True):
        pieces, missing = [x_L[start : min(period, start + length)]], length
        missing -= len(pieces[0])
        while missing > 0:
            pieces.append(x_L[: min(period, missing)])
            missing -= len(pieces[-1])
        rows.append(torch.cat(pieces))
    return torch.stack(rows)


def _noise(kind: str) -> Callable[[Tensor, WaveformTable], Tensor]:
    def noisy(x_RT: Tensor, table: WaveformTable) -> Tensor:
        names = (table.code(f"{kind}_key"), *(table.value(f"{kind}_{v}") for v in ("snr", "decay")))
        return add_noise(x_RT, *(column.to(x_RT.device) for column in names))

    return noisy


def _pitch(x_RT: Tensor, table: WaveformTable) -> Tensor:
    return phase_vocoder.pitch_shift(x_RT, table.value("semitones").cpu().numpy())


def _gain(x_RT: Tensor, table: WaveformTable) -> Tensor:
    return x_RT * 10 ** (table.value("gain").to(x_RT)[:, None] / 20)


_CURVES = {
    "logarithmic": lambda part: (torch.log10(0.1 + part) + 1).clamp(0, 1),
    "exponential": lambda part: torch.exp2(part - 1) * part,
}
_APPLY = {
    "pitch_shift": _pitch,
    "fade": fade,
    "white_noise": _noise("white"),
    "mixed_noise": _noise("mixed"),
    "time_stretch": time_stretch,
    "time_mask": time_mask,
    "time_shift": time_shift,
    "gain": _gain,
}
