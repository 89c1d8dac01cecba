"""The queue write on the CPU through the compiled library (csrc/enqueue.cpp)."""

# shapes: N keys of a batch, K rows of the ring, D features
from __future__ import annotations

import struct

import torch
from torch import Tensor

from fastssl.kernels import native

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}

# Enqueue of csrc/enqueue.h: keys, N, D, rows, K, pointer, dtypes, threads.
_CALL = struct.Struct("@PqqqqPqPiii")


def enqueue(rows_KD: Tensor, pointer: Tensor, keys_ND: Tensor) -> None:
    """Writes the keys and moves the pointer on, both in place."""
    library = native.library()
    assert library is not None
    call = _CALL.pack(
        keys_ND.data_ptr(),
        *keys_ND.stride(),
        *keys_ND.shape,
        rows_KD.data_ptr(),
        rows_KD.shape[0],
        pointer.data_ptr(),
        DTYPES[keys_ND.dtype],
        DTYPES[rows_KD.dtype],
        torch.get_num_threads(),
    )
    if library.fastssl_enqueue(call):
        raise MemoryError(f"enqueue: no memory for rows of {keys_ND.shape[1]:,} features")
    for written in (rows_KD, pointer):  # torch did not see it: a backward that saved them must
        if not written.is_inference():
            torch.autograd.graph.increment_version(written)
