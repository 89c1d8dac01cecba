"""The crops of a batch as lists of logits, and the pairs of a teacher's and a student's crop."""

# shapes: N samples, C outputs
from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor


def crop_list(loss: str, name: str, crops: Sequence[Tensor], *, at_least: int) -> list[Tensor]:
    """The crops as a list of (N, C) tensors.

    Raises:
        ValueError: not a sequence of tensors, too few, or of different shapes.
    """
    what = f"{loss}: {name} must be a list or tuple of at least {at_least} (N, C) tensors"
    if isinstance(crops, Tensor) or not isinstance(crops, Sequence):
        raise ValueError(f"{what}; received {type(crops).__name__}")
    if len(crops) < at_least:
        raise ValueError(f"{what}; received {len(crops)}")
    for position, crop in enumerate(crops):
        if not isinstance(crop, Tensor) or crop.dim() != 2:
            received = tuple(crop.shape) if isinstance(crop, Tensor) else type(crop).__name__
            raise ValueError(f"{what}; received {received} at position {position}")
        if crop.shape != crops[0].shape:
            shapes = f"{tuple(crop.shape)} beside {tuple(crops[0].shape)}"
            raise ValueError(f"{what}, of one shape; received {shapes} at position {position}")
    return list(crops)


def check_students(loss: str, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> None:
    """The student sees every crop of the teacher, first and in the same order, and maybe more."""
    if len(students) < len(teachers):
        raise ValueError(
            f"{loss}: students must be at least the {len(teachers)} crops of the teachers, in "
            f"their order; received {len(students)}"
        )


def other_crops(position: int, crops: Sequence[Tensor]) -> Iterator[Tensor]:
    """Every crop but the one at ``position``."""
    return (crop for other, crop in enumerate(crops) if other != position)
