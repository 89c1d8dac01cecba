"""What a method's settings must have in common with the rest of a run, asked before it starts.

A method does not see the policy that it is trained under: this room knows both.
"""

# shapes: K bits
from __future__ import annotations

from fastssl.augment import spirograph
from fastssl.augment.audio_policies import AUDIO_POLICIES
from fastssl.augment.presets import PRESETS, preset
from fastssl.engine.config import TrainConfig
from fastssl.methods.paper_configs import AmortisedConfig
from fastssl.recipes.run import Run


def check_agreement(run: Run) -> None:
    """Raise ValueError, naming the flag, for settings that do not go together."""
    if isinstance(run.method, AmortisedConfig):
        _check_corners(run.method, run.train)


def corners_of(train: TrainConfig) -> list[tuple[int, ...]]:
    """The invariance vectors (K,) of the run's policy; none where it has no groups.

    Raises ValueError for a policy that is not known.
    """
    if train.augment in AUDIO_POLICIES:
        return list(AUDIO_POLICIES[train.augment].corners)
    if train.augment in spirograph.PRESETS:
        return [bits for bits in spirograph.PRESETS[train.augment].corners if bits]
    policy = preset(train.augment, image_size=train.image_size)
    return [corner.bits for corner in policy.corners if corner.bits]


def _check_corners(method: AmortisedConfig, train: TrainConfig) -> None:
    if train.augment not in {*AUDIO_POLICIES, *spirograph.PRESETS, *PRESETS}:
        return  # the data know which of them they can have, and say so
    corners = corners_of(train)
    if not corners:
        raise ValueError(
            f"--augment {train.augment}: has no groups of augmentations to be invariant to or not; "
            "give one with groups, such as spirograph-2, amortised-2 or amortised-audio"
        )
    for flag, received, has in (
        ("--num-bits", method.num_bits, len(corners[0])),
        ("--num-corners", method.num_corners, len(corners)),
    ):
        if received != has:
            raise ValueError(
                f"{flag}: expected {has}, as --augment {train.augment} has, received {received}"
            )
