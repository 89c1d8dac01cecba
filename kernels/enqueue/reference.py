"""The queue write in plain torch: any float dtype, any device.

    k_n = h_n / max(|h_n|, eps)                      rows[(pointer + n) mod K] = k_n
    pointer = (pointer + N) mod K

Of N > K keys the last K stay, as they would if the keys came one by one. Nothing waits for the
device: the pointer is read where it lies.
"""

# shapes: N keys of a batch, K rows of the ring, D features
from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-12  # of torch.nn.functional.normalize


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays float64, everything narrower is normalised in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def unit_rows(keys_ND: Tensor) -> Tensor:
    """Keys of length one; the length in float64, which a row of 1e30 does not overflow."""
    wide_ND = keys_ND.double()
    norm_N1 = torch.linalg.vector_norm(wide_ND, dim=1, keepdim=True)
    return (wide_ND / norm_N1.clamp_min(EPS)).to(accumulate_dtype(keys_ND.dtype))


def enqueue(rows_KD: Tensor, pointer: Tensor, keys_ND: Tensor) -> None:
    """Writes the keys and moves the pointer on, both in place."""
    capacity, count = rows_KD.shape[0], keys_ND.shape[0]
    first = max(count - capacity, 0)
    unit_ND = unit_rows(keys_ND[first:])
    places_N = torch.arange(first, count, device=pointer.device) + pointer
    rows_KD.index_copy_(0, places_N.remainder(capacity), unit_ND.to(rows_KD.dtype))
    pointer.add_(count).remainder_(capacity)
