"""The parameter table of the waveform operators: what is done to each clip of each view.

``values_VNP`` holds the continuous parameters, ``codes_VNC`` the shapes of the fades, the keys of
the noises and, in the columns ``step0``, ``step1``, ..., the operators in the order in which they
run (-1: none). A value is the identity where its operator does not run.
"""

# shapes: V views, N samples, P values, C codes, K operators
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

OPERATORS = (
    *("pitch_shift", "fade", "white_noise", "mixed_noise"),
    *("time_stretch", "time_mask", "time_shift", "gain"),
)
"""The first seven in MT-SLVR's label order; gain, which no preset draws, after them."""
NUM_LABELS = 7
VALUES = (
    "semitones",  # pitch shift
    *("fade_in", "fade_out"),  # lengths, fractions of the clip
    *("white_snr", "white_decay"),  # dB over the noise; amplitude falls as frequency^-decay
    *("mixed_snr", "mixed_decay"),
    "rate",  # of the time stretch: 2 plays twice as fast
    *("mask_start", "mask_length"),  # fractions of the clip
    "shift",  # fraction of the clip, to the right, circular
    "gain",  # dB
)
IDENTITY = {"rate": 1.0, "white_snr": float("inf"), "mixed_snr": float("inf")}
"""Values that change nothing, where that is not 0."""
CODES = (
    *("fade_in_shape", "fade_out_shape", "white_key", "mixed_key"),
    *(f"step{position}" for position in range(len(OPERATORS))),
)
FADE_SHAPES = ("linear", "logarithmic", "exponential")
FIRST_STEP = CODES.index("step0")


@dataclass(frozen=True)
class WaveformTable:
    """Parameters of V views of N clips; it stays on the CPU until an operator takes its values."""

    values_VNP: Tensor  # float32, columns VALUES
    codes_VNC: Tensor  # int32, columns CODES

    def value(self, name: str) -> Tensor:
        """(V, N): one column of the values, a view of the table."""
        return self.values_VNP[..., VALUES.index(name)]

    def code(self, name: str) -> Tensor:
        """(V, N) int32: one column of the codes, a view of the table."""
        return self.codes_VNC[..., CODES.index(name)]

    @property
    def steps_VNK(self) -> Tensor:
        """(V, N, 8) int32: numbers into OPERATORS in the order of their running, then -1."""
        return self.codes_VNC[..., FIRST_STEP:]

    def runs(self, operator: str) -> Tensor:
        """(V, N) booleans: whether the operator runs."""
        return (self.steps_VNK == OPERATORS.index(operator)).any(dim=-1)

    def labels(self) -> Tensor:
        """(V, N, 7) float32, 1 where an operator runs: MT-SLVR's targets, in its order."""
        return torch.stack([self.runs(name) for name in OPERATORS[:NUM_LABELS]], dim=-1).float()

    def rows(self, chosen_n: Tensor) -> WaveformTable:
        """The table of the samples at the positions ``chosen_n`` (n,) int64."""
        return WaveformTable(self.values_VNP[:, chosen_n], self.codes_VNC[:, chosen_n])

    def to(self, device: torch.device) -> WaveformTable:
        """The same table on ``device``."""
        return WaveformTable(
            self.values_VNP.to(device, non_blocking=True),
            self.codes_VNC.to(device, non_blocking=True),
        )
