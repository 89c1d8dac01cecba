"""A sound of any length as windows of one length, as Heggan et al. 2023 evaluate on them.

windows = max(1, ceil(length / samples));  what is left in the last one is repeated from its start
"""

# shapes: L samples of a sound, W windows, T samples of a window
from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Normalise = Literal["clip", "none"]


def count_windows(length: int, samples: int) -> int:
    """Windows of ``samples`` that a sound of ``length`` samples is cut into; at least one."""
    return max(1, -(-length // samples))


def cut(sound_L: Tensor, *, length: int, samples: int) -> Tensor:
    """(W, samples): the sound in windows, the last one filled by repeating what it holds.

    length: the number of samples that the sound should have; decoders differ by one, and a sound
    that is shorter goes on from its start.
    """
    if len(sound_L) < length:
        sound_L = sound_L.repeat(-(-length // len(sound_L)))
    sound_L = sound_L[:length]
    whole = (count_windows(length, samples) - 1) * samples
    rest_R = sound_L[whole:]
    last_T = rest_R.repeat(-(-samples // len(rest_R)))[:samples]
    return torch.cat([sound_L[:whole], last_T]).view(-1, samples)


def normalised(sound_L: Tensor, how: Normalise) -> Tensor:
    """ "clip": less its mean, over its deviation; silence stays silent. "none": as it is."""
    if how == "none":
        return sound_L
    centred_L = sound_L - sound_L.mean()
    return centred_L / centred_L.square().mean().sqrt().clamp(min=1e-8)
