"""Policies for waveforms: which operators run, in which order, with which parameters.

mtslvr           Heggan et al. 2023 (arXiv:2305.17191), their aug_params.yaml: k ~ U{1..7} operators
                 in random order, the same for all views; parameters are drawn per view.
clar             Al-Tahan and Mohsenzadeh 2021 (arXiv:2010.09542): the same ranges (MT-SLVR has them
                 from there); an ordered pair of operators per view, our reading of their study.
amortised-audio  four groups of operators, each switched by a bit (Chavhan et al. 2023, whose audio
                 groups are not published: these are ours), drawn per view.
"""

# shapes: N samples, V views, K operators, G groups
from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from fastssl.augment import keyed
from fastssl.augment.waveform_table import (
    CODES,
    FADE_SHAPES,
    FIRST_STEP,
    IDENTITY,
    NUM_LABELS,
    OPERATORS,
    VALUES,
    WaveformTable,
)

_OWNERS = {
    "semitones": "pitch_shift",
    **dict.fromkeys(("fade_in", "fade_out"), "fade"),
    **dict.fromkeys(("white_snr", "white_decay"), "white_noise"),
    **dict.fromkeys(("mixed_snr", "mixed_decay"), "mixed_noise"),
    "rate": "time_stretch",
    **dict.fromkeys(("mask_start", "mask_length"), "time_mask"),
    "shift": "time_shift",
    "gain": "gain",
}
"""The operator that each value belongs to."""


@dataclass(frozen=True, kw_only=True)
class AudioPolicy:
    """Ranges that the parameters are drawn from, uniformly. The defaults are MT-SLVR's."""

    operators: tuple[str, ...] = OPERATORS[:NUM_LABELS]  # that can be drawn
    groups: tuple[tuple[str, ...], ...] = ()  # switched by the bits given to draw_waveforms
    corners: tuple[tuple[int, ...], ...] = ()  # the bits that a step may have; () without groups
    least: int = 1  # operators per view; k is uniform over least..most
    most: int = NUM_LABELS
    same_operators: bool = True  # all views of a clip run the same ones, in the same order
    semitones: tuple[float, float] = (-15.0, 15.0)
    fade: tuple[float, float] = (0.0, 0.5)  # lengths at both ends, of the clip
    snr: tuple[float, float] = (3.0, 30.0)  # dB, both noises
    white_decay: tuple[float, float] = (-1.0, 0.0)
    mixed_decay: tuple[float, float] = (-2.0, 2.0)
    rate: tuple[float, float] = (0.5, 1.5)  # rounded to hundredths
    mask: tuple[float, float] = (0.0, 0.125)  # length, of the clip; the place is uniform
    shift: tuple[float, float] = (-0.5, 0.5)  # of the clip
    gain: tuple[float, float] = (-6.0, 6.0)  # dB; drawn by no preset

    def __post_init__(self) -> None:
        named = {*self.operators, *(name for group in self.groups for name in group)}
        unknown = sorted(named - set(OPERATORS))
        if unknown:
            raise ValueError(
                f"AudioPolicy: operators, groups: expected names of {', '.join(OPERATORS)}, "
                f"received {', '.join(unknown)}"
            )

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Lowest and highest of each value of the table."""
        return {
            "semitones": self.semitones,
            **dict.fromkeys(("fade_in", "fade_out"), self.fade),
            **dict.fromkeys(("white_snr", "mixed_snr"), self.snr),
            "white_decay": self.white_decay,
            "mixed_decay": self.mixed_decay,
            "rate": self.rate,
            "mask_start": (0.0, 1.0),  # of what the mask leaves free
            "mask_length": self.mask,
            "shift": self.shift,
            "gain": self.gain,
        }


AUDIO_POLICIES = {
    "mtslvr": AudioPolicy(),
    "clar": AudioPolicy(least=2, most=2, same_operators=False),
    "amortised-audio": AudioPolicy(
        groups=(
            ("pitch_shift",),
            ("time_stretch", "time_shift", "time_mask"),
            ("fade",),
            ("white_noise", "mixed_noise"),
        ),
        corners=tuple(bits for bits in product((0, 1), repeat=4) if any(bits)),
        same_operators=False,
    ),
}


def audio_policy(name: str) -> AudioPolicy:
    """The policy that --augment names for sounds. ValueError names the known ones."""
    if name not in AUDIO_POLICIES:
        close = difflib.get_close_matches(name, AUDIO_POLICIES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"--augment: expected one of {', '.join(AUDIO_POLICIES)} for sounds, received "
            f"{name!r}{hint}"
        )
    return AUDIO_POLICIES[name]


def draw_waveforms(
    policy: AudioPolicy,
    *,
    seed: int,
    epoch: int,
    index_N: np.ndarray,
    num_views: int = 2,
    bits_G: Sequence[int] | None = None,
) -> WaveformTable:
    """The table of the clips ``index_N``: a pure function of (seed, epoch, index), row by row.

    ``bits_G``, one per group of the policy, leaves out the operators of the groups whose bit is 0;
    k is then at most the number of those left. None: all groups are on.
    Raises ValueError for a number of bits that is not that of the groups.
    """
    allowed = _allowed(policy, bits_G)
    key = {"seed": seed, "epoch": epoch, "index_N": np.asarray(index_N)}
    values, codes = [], []
    for view in range(num_views):
        shared = "" if policy.same_operators else f"/view{view}"
        steps_NK = _draw_steps(policy, allowed, key, f"waveform/operators{shared}")
        values.append(_draw_values(policy, steps_NK, key, f"waveform/values/view{view}"))
        codes.append(_draw_codes(steps_NK, key, f"waveform/codes/view{view}"))
    return WaveformTable(torch.from_numpy(np.stack(values)), torch.from_numpy(np.stack(codes)))


def _draw_steps(policy: AudioPolicy, allowed: list[int], key: dict, stream: str) -> np.ndarray:
    """(N, 8) int32: an ordered subset of the allowed operators, then -1."""
    unit_NK = keyed.uniform(1 + len(OPERATORS), stream=stream, **key)
    most, least = min(policy.most, len(allowed)), min(policy.least, len(allowed))
    count_N = least + np.floor(unit_NK[:, 0] * (most - least + 1)).astype(np.int64)
    rank_NK = np.full((len(unit_NK), len(OPERATORS)), 2.0)
    rank_NK[:, allowed] = unit_NK[:, 1:][:, allowed]
    order_NK = np.argsort(rank_NK, axis=1, kind="stable")
    runs_NK = np.arange(len(OPERATORS)) < count_N[:, None]
    return np.where(runs_NK, order_NK, -1).astype(np.int32)


def _draw_values(policy: AudioPolicy, steps_NK: np.ndarray, key: dict, stream: str) -> np.ndarray:
    low, high = np.array([policy.ranges()[name] for name in VALUES]).T
    value_NP = keyed.uniform(len(VALUES), stream=stream, low=low, high=high, **key)
    column = {name: VALUES.index(name) for name in VALUES}
    value_NP[:, column["rate"]] = value_NP[:, column["rate"]].round(2)
    value_NP[:, column["mask_start"]] *= 1 - value_NP[:, column["mask_length"]]
    for name, position in column.items():
        runs_N = (steps_NK == OPERATORS.index(_OWNERS[name])).any(axis=1)
        value_NP[~runs_N, position] = IDENTITY.get(name, 0.0)
    return value_NP.astype(np.float32)


def _draw_codes(steps_NK: np.ndarray, key: dict, stream: str) -> np.ndarray:
    word_NC = keyed.bits(FIRST_STEP, stream=stream, **key)
    code_NC = (word_NC >> np.uint64(32)).astype(np.uint32).view(np.int32)
    shapes = slice(0, CODES.index("white_key"))
    spread = np.uint64(len(FADE_SHAPES))
    code_NC[:, shapes] = ((word_NC[:, shapes] >> np.uint64(40)) * spread) >> np.uint64(24)
    return np.concatenate([code_NC, steps_NK], axis=1)


def _allowed(policy: AudioPolicy, bits_G: Sequence[int] | None) -> list[int]:
    if bits_G is None:
        return [OPERATORS.index(name) for name in policy.operators]
    if len(bits_G) != len(policy.groups):
        raise ValueError(
            f"draw_waveforms: bits_G: expected {len(policy.groups)} bits, one per group of the "
            f"policy, received {len(bits_G)}"
        )
    groups = zip(bits_G, policy.groups, strict=True)
    off = {name for bit, group in groups if not bit for name in group}
    return [OPERATORS.index(name) for name in policy.operators if name not in off]
