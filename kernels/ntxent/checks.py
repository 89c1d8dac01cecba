"""What ``ntxent`` refuses, by name: shapes, dtypes, devices, temperature, reduction."""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

REDUCTIONS = ("mean", "sum", "none")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def bad(argument: str, expected: str, received: object) -> ValueError:
    """The error that names the argument, what was expected and what came."""
    return ValueError(f"ntxent: {argument} must be {expected}; received {received}")


def check_temperature_value(value: float) -> None:
    """ValueError for a temperature that cannot be divided by.

    Comparisons alone, which nan fails: a compiler can trace them where the value is symbolic.
    """
    if not (1e-8 <= abs(value) < math.inf):
        raise bad("temperature", "finite and at least 1e-8 in magnitude", value)


def check(views: Sequence[Tensor], temperature: Tensor, reduction: str) -> None:
    """ValueError for whatever the backends could not read; the temperature's value is not read."""
    if len(views) < 2:
        raise bad("views", "at least two (N, D) tensors", f"{len(views)}")
    first = views[0]
    shape, dtype, device = first.shape, first.dtype, first.device
    for position, view in enumerate(views):
        if len(view.shape) != 2:
            raise bad(f"views[{position}]", "2-D, (N, D)", f"shape {tuple(view.shape)}")
        if view.shape != shape:
            shapes = f"{tuple(view.shape)} beside {tuple(shape)}"
            raise bad(f"views[{position}]", "of the same shape as views[0]", shapes)
        if view.dtype != dtype:
            dtypes = f"{view.dtype} beside {dtype}"
            raise bad(f"views[{position}]", "of the same dtype as views[0]", dtypes)
        if view.device != device:
            devices = f"{view.device} beside {device}"
            raise bad(f"views[{position}]", "on the same device as views[0]", devices)
    if dtype not in DTYPES:
        raise bad("views", "float16, bfloat16, float32 or float64", dtype)
    if shape[0] < 1 or shape[1] < 1:
        raise bad("views", "non-empty, N >= 1 and D >= 1", f"shape {tuple(shape)}")
    if reduction not in REDUCTIONS:
        raise bad("reduction", "one of 'mean', 'sum', 'none'", repr(reduction))
    _check_temperature(temperature, first)


def _check_temperature(temperature: Tensor, first: Tensor) -> None:
    if temperature.numel() != 1:
        raise bad("temperature", "one number", f"shape {tuple(temperature.shape)}")
    if not temperature.dtype.is_floating_point:
        raise bad("temperature", "of a floating dtype", temperature.dtype)
    if temperature.device != first.device:
        devices = f"{temperature.device} beside {first.device}"
        raise bad("temperature", "on the device of the views", devices)


def check_saved(
    grad: Tensor, views: Sequence[Tensor], reduction: str, saved: Sequence[Tensor]
) -> None:
    """ValueError where a gradient, or what a forward pass saved, does not belong to this call."""
    first = views[0]
    rows = (len(views) * first.shape[0],)
    exact = torch.float64 if first.dtype == torch.float64 else torch.float32
    named = dict(zip(("grad", "lse", "rnorm", "kept"), (grad, *saved), strict=True))
    shapes = {"grad": rows if reduction == "none" else (), "lse": rows, "rnorm": rows}
    for name, tensor in named.items():
        if name in shapes and tensor.shape != shapes[name]:
            raise bad(name, f"of shape {shapes[name]}", f"shape {tuple(tensor.shape)}")
        if name != "grad" and tensor.dtype != exact:
            raise bad(name, f"of dtype {exact}", tensor.dtype)
        if tensor.device != first.device:
            raise bad(name, f"on {first.device}, as the views", tensor.device)
    if named["kept"].dim() != 1:
        raise bad("kept", "1-D", f"shape {tuple(named['kept'].shape)}")
