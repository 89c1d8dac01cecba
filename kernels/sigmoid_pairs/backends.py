"""Who answers ``sigmoid_pairs`` on which device, and what the answers look like."""

# shapes: N queries, K keys, D features
from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType

from fastssl.kernels import native as compiled
from fastssl.kernels.sigmoid_pairs import native, reference
from fastssl.kernels.sigmoid_pairs.reference import Problem


def _cpu_backend() -> ModuleType:
    """C++ where the library was built; its loader has said so where it was not."""
    return native if compiled.library() is not None else reference


@cache
def _cuda_backend() -> ModuleType:
    """The Triton launcher; imported at the first CUDA call because triton is slow to import."""
    try:
        from fastssl.kernels.sigmoid_pairs import launch
    except ImportError as error:
        message = f"sigmoid_pairs: no Triton ({error}); plain torch answers on CUDA, slower"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return reference
    return launch


def _reference_backend() -> ModuleType:
    return reference


def implementations(backend: Callable[[], ModuleType]) -> dict[str, Callable]:
    """The three operators over a backend module, which is looked up at the first call."""

    def forward(q, k, scale, bias, diagonal, save, want_q):
        return tuple(backend().forward(Problem(q, k, scale, bias, diagonal), save, want_q))

    def keys(g, q, k, scale, bias, diagonal):
        return backend().pull_keys(Problem(q, k, scale, bias, diagonal), g)

    def total(q, k, scale, bias, diagonal, want_q, want_k):
        problem = Problem(q, k, scale, bias, diagonal)
        parts, dk = backend().total(problem, (want_q, want_k))
        return (*parts, dk)

    return {"sigmoid_pairs": forward, "sigmoid_pairs_keys": keys, "sigmoid_pairs_sum": total}


def _fake_forward(q, k, scale, bias, diagonal, save, want_q):
    dtype = Problem(q, k, scale, bias, diagonal).dtype
    rows, by_scale, by_bias = (
        q.new_empty(q.shape[0] if wanted else 0, dtype=dtype) for wanted in (True, save, save)
    )
    dq = q.new_empty(q.shape if save and want_q else (0,), dtype=dtype)
    return rows, by_scale, by_bias, dq


def _fake_keys(g, q, k, scale, bias, diagonal):
    return k.new_empty(k.shape)


def _fake_total(q, k, scale, bias, diagonal, want_q, want_k):
    dtype = Problem(q, k, scale, bias, diagonal).dtype
    sums = [q.new_empty((), dtype=dtype) for _ in range(3)]
    dq, dk = (
        x.new_empty(x.shape if want else (0,), dtype=dtype)
        for x, want in ((q, want_q), (k, want_k))
    )
    return (*sums, dq, dk)


BACKENDS: dict[str, Callable[[], ModuleType]] = {
    "CPU": _cpu_backend,
    "CUDA": _cuda_backend,
    "CompositeExplicitAutograd": _reference_backend,
}
FAKES = {
    "sigmoid_pairs": _fake_forward,
    "sigmoid_pairs_keys": _fake_keys,
    "sigmoid_pairs_sum": _fake_total,
}
