"""``fastssl::enqueue``: schema, checks, backends and the public function of the queue write."""

# shapes: N keys of a batch, K rows of the ring, D features
from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.eager import is_transformed
from fastssl.kernels.enqueue import native, reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_library = torch.library.Library("fastssl", "FRAGMENT")
_library.define("enqueue(Tensor(a!) rows, Tensor(b!) pointer, Tensor keys) -> ()")


@torch.no_grad()
def enqueue(rows: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Writes a batch of raw keys, L2-normalised, into a ring, in place.

    Args:
        rows: (K, D), contiguous, any float dtype. Key n goes to row (pointer + n) mod K.
        pointer: int64, one element, on the device of the rows: where the next key goes. It is
            moved on by N; nothing waits for the device.
        keys: (N, D), any float dtype, any strides, any N >= 1; of N > K the last K stay.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Source: the queue of MoCo (He et al. 2020, arXiv:1911.05722, alg. 1).
    """
    check(rows, pointer, keys)
    if is_transformed():
        raise ValueError(
            "enqueue: rows are written in place and must be outside of torch.func transforms and "
            "forward-mode AD; received a call inside of one"
        )
    torch.ops.fastssl.enqueue(rows, pointer, keys.detach())


def _bad(argument: str, expected: str, received: object) -> ValueError:
    return ValueError(f"enqueue: {argument} must be {expected}; received {received}")


def check(rows: Tensor, pointer: Tensor, keys: Tensor) -> None:
    """Refuses what does not fit, by name."""
    for name, value, shape in (("rows", rows, "(K, D)"), ("keys", keys, "(N, D)")):
        if not isinstance(value, Tensor):
            raise _bad(name, f"a tensor of shape {shape}", type(value).__name__)
        if value.dim() != 2:
            raise _bad(name, f"2-D, {shape}", f"shape {tuple(value.shape)}")
        if value.dtype not in DTYPES:
            raise _bad(name, "float16, bfloat16, float32 or float64", value.dtype)
        if value.shape[0] < 1 or value.shape[1] < 1:
            raise _bad(name, "non-empty", f"shape {tuple(value.shape)}")
    if not rows.is_contiguous():
        raise _bad("rows", "contiguous", f"strides {rows.stride()}")
    if rows.requires_grad:
        raise _bad("rows", "without a gradient", "rows.requires_grad = True")
    if keys.shape[1] != rows.shape[1]:
        raise _bad("keys", f"of width {rows.shape[1]} like the rows", tuple(keys.shape))
    if not isinstance(pointer, Tensor) or pointer.dtype != torch.int64 or pointer.numel() != 1:
        what = pointer if not isinstance(pointer, Tensor) else (pointer.dtype, pointer.shape)
        raise _bad("pointer", "an int64 tensor of one element", what)
    for name, value in (("keys", keys), ("pointer", pointer)):
        if value.device != rows.device:
            raise _bad(name, f"on {rows.device} like the rows", value.device)


def _cpu_enqueue(rows: Tensor, pointer: Tensor, keys: Tensor) -> None:
    check(rows, pointer, keys)
    if not 0 <= pointer.item() < len(rows):
        raise _bad("pointer", f"between 0 and {len(rows) - 1}", pointer.item())
    backend = native if compiled.library() is not None else reference
    backend.enqueue(rows, pointer, keys)


@cache
def _cuda_backend():
    """The Triton launcher; imported at the first CUDA call because triton is slow to import."""
    try:
        from fastssl.kernels.enqueue import launch
    except ImportError as error:
        message = f"enqueue: no Triton ({error}); plain torch answers on CUDA, slower"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return reference
    return launch


def _cuda_enqueue(rows: Tensor, pointer: Tensor, keys: Tensor) -> None:
    check(rows, pointer, keys)
    _cuda_backend().enqueue(rows, pointer, keys)


def _fake_enqueue(rows: Tensor, pointer: Tensor, keys: Tensor) -> None:
    check(rows, pointer, keys)


_library.impl("enqueue", _cpu_enqueue, "CPU")
_library.impl("enqueue", _cuda_enqueue, "CUDA")
_library.impl("enqueue", reference.enqueue, "CompositeExplicitAutograd")
torch.library.register_fake("fastssl::enqueue", _fake_enqueue, lib=_library)
