"""Who answers ``contrast`` on which device, and what the answers look like without computing."""

# shapes: N queries, K keys, D features
from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch

from fastssl.kernels import native as compiled
from fastssl.kernels.contrast import native, reference
from fastssl.kernels.contrast.reference import Ids


def _cpu_backend() -> ModuleType:
    """C++ where the library was built; its loader has said so where it was not."""
    return native if compiled.library() is not None else reference


@cache
def _cuda_backend() -> ModuleType:
    """The Triton launcher; imported at the first CUDA call because triton is slow to import."""
    try:
        from fastssl.kernels.contrast import launch
    except ImportError as error:
        message = f"contrast: no Triton ({error}); plain torch answers on CUDA, slower"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return reference
    return launch


def _reference_backend() -> ModuleType:
    return reference


def implementations(backend: Callable[[], ModuleType]) -> dict[str, Callable]:
    """The three operators over a backend module, which is looked up at the first call."""

    def forward(q, k, scale, ql, kl, qr, kr, keep, columns, bound, save):
        ids = Ids(ql, kl, qr, kr, keep)
        return backend().forward(q, k, scale, ids, columns, bound, save)

    def backward(gr, gc, q, k, scale, ql, kl, qr, kr, keep, rows, cols, kept, bound, wq, wk):
        ids = Ids(ql, kl, qr, kr, keep)
        return backend().backward(gr, gc, q, k, scale, ids, rows, cols, kept, bound, (wq, wk))

    def mean(q, k, scale, ql, kl, qr, kr, keep, bound):
        return backend().forward_mean(q, k, scale, Ids(ql, kl, qr, kr, keep), bound)

    return {"contrast": forward, "contrast_backward": backward, "contrast_mean": mean}


def _fake_forward(q, k, scale, ql, kl, qr, kr, keep, columns, bound, save):
    dtype = reference.accumulate_dtype(q.dtype, k.dtype)
    num_kept = 0
    if save and q.device.type in ("cpu", "cuda"):
        backend = _cpu_backend() if q.device.type == "cpu" else _cuda_backend()
        num_kept = backend.kept_numel(q.shape[0], k.shape[0], q.shape[1], dtype)
    rows = q.new_empty(q.shape[0], dtype=dtype)
    cols = q.new_empty(k.shape[0] if columns else 0, dtype=dtype)
    return rows, cols, torch.empty_like(rows), q.new_empty(num_kept, dtype=dtype)


def _fake_backward(gr, gc, q, k, scale, ql, kl, qr, kr, keep, rows, cols, kept, bound, wq, wk):
    dq = q.new_empty(q.shape) if wq else q.new_empty(0)
    dk = k.new_empty(k.shape) if wk else k.new_empty(0)
    return dq, dk, rows.new_empty(())


def _fake_mean(q, k, scale, ql, kl, qr, kr, keep, bound):
    rows = q.new_empty(q.shape[0], dtype=reference.accumulate_dtype(q.dtype, k.dtype))
    return rows, torch.empty_like(rows), rows.new_empty(q.shape)


BACKENDS: dict[str, Callable[[], ModuleType]] = {
    "CPU": _cpu_backend,
    "CUDA": _cuda_backend,
    "CompositeExplicitAutograd": _reference_backend,
}
FAKES = {
    "contrast": _fake_forward,
    "contrast_backward": _fake_backward,
    "contrast_mean": _fake_mean,
}
