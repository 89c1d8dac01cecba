"""The compiled CPU library: found, bound to torch's threads, and asked for memory.

It links neither Python nor torch nor an OpenMP runtime, so that one build serves every torch; the
OpenMP runtime that torch itself uses is handed over at load, so that `torch.set_num_threads` holds
and no second pool competes for the cores. FASTSSL_ISA names a lower instruction set to use.
"""

from __future__ import annotations

import ctypes
import os
import warnings
import weakref
from functools import cache
from pathlib import Path

import torch

LIBRARY_PATH = Path(__file__).with_name("_native.so")
POOLED_BYTES = 1 << 18  # smaller buffers come from torch, whose allocator is cheaper to call


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library, or None (said once, as a warning) where it was not built."""
    try:
        loaded = ctypes.CDLL(str(LIBRARY_PATH))
    except OSError as error:
        warnings.warn(
            f"fastssl: the compiled CPU library is not usable ({error}); the plain torch "
            "implementation answers instead, several times slower. Install a C++ compiler and "
            "reinstall fastssl.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    _declare(loaded)
    _share_openmp(loaded)
    select_isa(os.environ.get("FASTSSL_ISA") or instruction_sets(loaded)[0], loaded)
    return loaded


def _declare(loaded: ctypes.CDLL) -> None:
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    signatures = {
        "fastssl_isa": (ctypes.c_char_p, [ctypes.c_int]),
        "fastssl_select_isa": (ctypes.c_int, [ctypes.c_char_p]),
        "fastssl_use_openmp": (None, [pointer, pointer, pointer]),
        "fastssl_acquire": (pointer, [size]),
        "fastssl_release": (None, [pointer]),
        "fastssl_ntxent_forward": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_char_p]),
        "fastssl_ntxent_backward": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_char_p]),
        "fastssl_contrast_forward": (ctypes.c_int, [ctypes.c_char_p]),
        "fastssl_contrast_backward": (ctypes.c_int, [ctypes.c_char_p]),
        "fastssl_soft_targets": (ctypes.c_int, [ctypes.c_int, ctypes.c_char_p]),
        "fastssl_enqueue": (ctypes.c_int, [ctypes.c_char_p]),
        "fastssl_augment_forward": (ctypes.c_int, [ctypes.c_char_p]),
        "fastssl_augment_backward": (ctypes.c_int, [ctypes.c_char_p]),
        "fastssl_pool_usage": (None, [ctypes.POINTER(size), ctypes.POINTER(size)]),
    }
    for name, (restype, argtypes) in signatures.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = restype, argtypes


def _share_openmp(loaded: ctypes.CDLL) -> None:
    """Looks the runtime up through torch's own library, so that it is the one torch calls.

    libiomp5 and libomp export the GOMP names as well. Without any of them the library starts
    threads of its own.
    """
    torch_library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    try:
        runtime = ctypes.CDLL(str(torch_library))
        entries = [ctypes.cast(getattr(runtime, name), ctypes.c_void_p) for name in names]
    except (OSError, AttributeError):
        return
    loaded.fastssl_use_openmp(*entries)


def instruction_sets(loaded: ctypes.CDLL | None = None) -> list[str]:
    """Names of the instruction sets that were built and that this processor runs, best first."""
    loaded = loaded or library()
    if loaded is None:
        return []
    found = (loaded.fastssl_isa(index) for index in range(8))
    return [name.decode() for name in found if name]


def select_isa(name: str, loaded: ctypes.CDLL | None = None) -> None:
    """Uses the named instruction set from now on.

    Raises:
        ValueError: the name is not one of `instruction_sets()`.
    """
    loaded = loaded or library()
    if loaded is None or loaded.fastssl_select_isa(name.encode()):
        raise ValueError(
            f"FASTSSL_ISA: expected one of {instruction_sets(loaded)}, received {name!r}"
        )


def pool_usage() -> tuple[int, int]:
    """Bytes of pooled memory (held free, in use)."""
    loaded = library()
    if loaded is None:
        return 0, 0
    free, used = ctypes.c_size_t(), ctypes.c_size_t()
    loaded.fastssl_pool_usage(free, used)
    return free.value, used.value


@cache
def _bytes_type(size: int) -> type[ctypes.Array]:
    return ctypes.c_char * size


def pooled_empty(loaded: ctypes.CDLL, numel: int, dtype: torch.dtype) -> torch.Tensor:
    """A 1-D tensor; a large one is not initialised and returns to the library's pool when it dies.

    Fresh memory costs a page fault per 4 KiB, as much as a fifth of the work done on it here.
    """
    size = numel * dtype.itemsize
    if size < POOLED_BYTES:
        # zeros: equal calls give equal outputs, gaps included
        return torch.zeros(numel, dtype=dtype, device="cpu")
    address = loaded.fastssl_acquire(size)
    if not address:
        raise MemoryError(f"fastssl: no memory for {size:,} bytes")
    buffer = _bytes_type(size).from_address(address)
    # The tensor's storage holds the buffer alive, and nothing else does.
    weakref.finalize(buffer, loaded.fastssl_release, address).atexit = False
    return torch.frombuffer(buffer, dtype=dtype)
