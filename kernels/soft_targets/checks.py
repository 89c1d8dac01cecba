"""What a call of the soft-target operators may look like; every refusal names the argument.

shapes: N rows, C outputs, D features
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastssl.kernels.scalars import is_real

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REDUCTIONS = ("mean", "sum", "none")


def bad(argument: str, expected: str, received: object) -> ValueError:
    """The refusal of an argument."""
    return ValueError(f"soft_targets: {argument} must be {expected}; received {received}")


def check_matrix(name: str, value: object, shape: str) -> None:
    """A non-empty 2-D tensor of a float dtype."""
    if not isinstance(value, Tensor):
        raise bad(name, f"a tensor of shape {shape}", type(value).__name__)
    if value.dim() != 2:
        raise bad(name, f"2-D, {shape}", f"shape {tuple(value.shape)}")
    if value.dtype not in DTYPES:
        raise bad(name, "float16, bfloat16, float32 or float64", value.dtype)
    if value.shape[0] < 1 or value.shape[1] < 1:
        raise bad(name, "non-empty", f"shape {tuple(value.shape)}")


def check_pair(names: tuple[str, str], first: Tensor, second: Tensor) -> None:
    """Two (N, C) matrices of one shape on one device."""
    for name, value in zip(names, (first, second), strict=True):
        check_matrix(name, value, "(N, C)")
    if first.shape != second.shape:
        shapes = f"{tuple(second.shape)} beside {tuple(first.shape)}"
        raise bad(names[1], f"of the shape of {names[0]}", shapes)
    check_device(names, first, second)


def check_device(names: tuple[str, str], first: Tensor, second: Tensor) -> None:
    """Both on one device."""
    if first.device != second.device:
        devices = f"{second.device} beside {first.device}"
        raise bad(names[1], f"on the device of {names[0]}", devices)


def check_centre(centre: Tensor | None, teacher: Tensor) -> None:
    """(C,) without a gradient."""
    if centre is None:
        return
    if not isinstance(centre, Tensor):
        raise bad("centre", "a tensor of shape (C,) or None", type(centre).__name__)
    if centre.shape != teacher.shape[1:] or centre.dtype not in DTYPES:
        received = f"{centre.dtype} {tuple(centre.shape)}"
        raise bad("centre", f"floating, of shape ({teacher.shape[1]},)", received)
    if centre.requires_grad:
        raise bad("centre", "without a gradient", "centre.requires_grad = True")
    check_device(("teacher", "centre"), teacher, centre)


def check_targets(targets: Tensor) -> None:
    """Given targets are constants."""
    if targets.requires_grad:
        raise bad("targets", "without a gradient", "targets.requires_grad = True")


def reciprocal(name: str, temperature: float) -> float:
    """1 / temperature of a positive, finite temperature."""
    if not is_real(temperature):
        raise bad(name, "a float", type(temperature).__name__)
    if not 1e-8 <= temperature < math.inf:  # isfinite cannot be traced
        raise bad(name, "finite and at least 1e-8", temperature)
    return 1.0 / float(temperature)


def check_reduction(reduction: str) -> None:
    """One of REDUCTIONS."""
    if reduction not in REDUCTIONS:
        raise bad("reduction", f"one of {REDUCTIONS}", repr(reduction))
