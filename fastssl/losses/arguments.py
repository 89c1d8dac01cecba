"""What a call of a loss may look like: checks that name the loss, the argument and what came."""

# shapes: N rows, D embedding
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastssl.kernels.scalars import is_finite, is_real

REDUCTIONS = ("mean", "sum", "none")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
LEAST_TEMPERATURE = 1e-8


def bad(loss: str, argument: str, expected: str, received: object) -> ValueError:
    """The one form of a refusal."""
    return ValueError(f"{loss}: {argument} must be {expected}; received {received}")


def check_embeddings(loss: str, **embeddings: Tensor) -> None:
    """2-D, non-empty, of a float dtype, and of one width, dtype and device."""
    first_name, first = next(iter(embeddings.items()))
    for name, rows in embeddings.items():
        if not isinstance(rows, Tensor):
            raise bad(loss, name, "a tensor of shape (rows, D)", type(rows).__name__)
        if rows.dim() != 2:
            raise bad(loss, name, "2-D, (rows, D)", f"shape {tuple(rows.shape)}")
        if rows.dtype not in DTYPES:
            raise bad(loss, name, "float16, bfloat16, float32 or float64", rows.dtype)
        if rows.shape[0] < 1 or rows.shape[1] < 1:
            raise bad(loss, name, "non-empty", f"shape {tuple(rows.shape)}")
        if rows.shape[1] != first.shape[1]:
            shapes = f"{tuple(rows.shape)} beside {tuple(first.shape)}"
            raise bad(loss, name, f"of the width of {first_name}", shapes)
        if rows.dtype != first.dtype:
            dtypes = f"{rows.dtype} beside {first.dtype}"
            raise bad(loss, name, f"of the dtype of {first_name}", dtypes)
        if rows.device != first.device:
            devices = f"{rows.device} beside {first.device}"
            raise bad(loss, name, f"on the device of {first_name}", devices)


def check_same_shape(loss: str, **embeddings: Tensor) -> None:
    """``check_embeddings``, and all of one shape."""
    check_embeddings(loss, **embeddings)
    first_name, first = next(iter(embeddings.items()))
    for name, rows in embeddings.items():
        if rows.shape != first.shape:
            shapes = f"{tuple(rows.shape)} beside {tuple(first.shape)}"
            raise bad(loss, name, f"of the shape of {first_name}", shapes)


def checked_ids(loss: str, name: str, ids: Tensor, count: int, like: Tensor) -> Tensor:
    """The ids as int64 of shape (count,) on the device of ``like``."""
    if not isinstance(ids, Tensor):
        raise bad(loss, name, f"an integer tensor of shape ({count},)", type(ids).__name__)
    if ids.dtype not in INTEGERS or ids.shape != (count,):
        received = f"{ids.dtype} {tuple(ids.shape)}"
        raise bad(loss, name, f"an integer tensor of shape ({count},)", received)
    if ids.device != like.device:
        raise bad(loss, name, f"on {like.device} like the embeddings", ids.device)
    return ids.to(torch.int64)


def check_reduction(loss: str, reduction: str) -> None:
    """One of ``REDUCTIONS``."""
    if reduction not in REDUCTIONS:
        raise bad(loss, "reduction", f"one of {REDUCTIONS}", repr(reduction))


def checked_number(loss: str, name: str, value: float | Tensor, like: Tensor) -> float | Tensor:
    """A float, or a one-element floating tensor as a 0-d one, at least float32."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.dtype.is_floating_point:
            raise bad(loss, name, "one floating number", f"{value.dtype} {tuple(value.shape)}")
        if value.device != like.device:
            raise bad(loss, name, f"on {like.device} like the embeddings", value.device)
        wide = torch.float64 if value.dtype == torch.float64 else torch.float32
        return value.reshape(()).to(wide)
    if not is_real(value):
        raise bad(loss, name, "a float or a one-element tensor", type(value).__name__)
    return float(value)


def check_setting(
    loss: str, name: str, value: float, *, above: float = -math.inf, least: float | None = None
) -> None:
    """A finite number, larger than ``above``, at least ``least``."""
    words = ["finite"]
    words += [f"above {above:g}"] if above > -math.inf else []
    words += [f"at least {least:g}"] if least is not None else []
    if not is_real(value):
        raise bad(loss, name, f"a {' and '.join(words)} number", repr(value))
    if not (above < value < math.inf) or (least is not None and value < least):
        raise bad(loss, name, " and ".join(words), value)


def check_count(loss: str, name: str, value: object) -> None:
    """A positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise bad(loss, name, "a positive integer", repr(value))


def hold_temperature(module: nn.Module, temperature: float | Tensor) -> None:
    """As the module's ``temperature``: a parameter is learnt, a tensor is a buffer, not saved."""
    if isinstance(temperature, Tensor) and not isinstance(temperature, nn.Parameter):
        module.register_buffer("temperature", temperature, persistent=False)
    else:
        module.temperature = temperature  # type: ignore[assignment]


def scale_of(loss: str, temperature: float | Tensor, like: Tensor) -> float | Tensor:
    """1 / temperature. The value of a tensor is looked at where that costs no waiting."""
    number = checked_number(loss, "temperature", temperature, like)
    if isinstance(number, float) or is_readable(number):
        value = float(number.detach() if isinstance(number, Tensor) else number)
        if not is_finite(value) or abs(value) < LEAST_TEMPERATURE:
            expected = f"finite and at least {LEAST_TEMPERATURE} in magnitude"
            raise bad(loss, "temperature", expected, value)
    return number.reciprocal() if isinstance(number, Tensor) else 1.0 / number


def is_readable(tensor: Tensor) -> bool:
    """Whether its values can be read now: eager, on the CPU, not a fake or a wrapped tensor."""
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def reduced(loss_N: Tensor, reduction: str) -> Tensor:
    """Mean, sum or the losses themselves."""
    if reduction == "mean":
        return loss_N.mean()
    return loss_N.sum() if reduction == "sum" else loss_N
