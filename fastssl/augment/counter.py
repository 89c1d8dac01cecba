"""The random numbers of ``keyed`` as tensors on any device: the same 64-bit words, bit for bit.

torch has no unsigned 64-bit arithmetic everywhere, so a word is held in an int64 of the same bits:
products and sums wrap alike, and a logical shift is the arithmetic one with the copies of the sign
masked off. One call draws for several streams at once.
"""

# shapes: V streams, N samples, K draws per sample and stream
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.augment.keyed import GOLDEN, chain, stream_key

_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def bits(count: int, *, seed: int, epoch: int, index_N: Tensor, streams: Sequence[str]) -> Tensor:
    """(V, N, count) int64 on the device of ``index_N`` (int64): words uniform over all 64 bits.

    [v] holds the bits of ``keyed.bits(count, ..., stream=streams[v])``.
    """
    device = index_N.device
    keys = [_signed(chain(seed, epoch, stream_key(stream))) for stream in streams]
    key_V11 = torch.tensor(keys, dtype=torch.int64, device=device)[:, None, None]
    row_VN1 = _mix(key_V11 + ((index_N + 1) * _signed(GOLDEN))[:, None])
    column_K = torch.arange(1, count + 1, device=device) * _signed(GOLDEN)
    return _mix(row_VN1 + column_K)


def uniform(
    count: int, *, seed: int, epoch: int, index_N: Tensor, streams: Sequence[str]
) -> Tensor:
    """(V, N, count) float64 in [0, 1), the values of ``keyed.uniform``."""
    word_VNK = bits(count, seed=seed, epoch=epoch, index_N=index_N, streams=streams)
    return _shifted(word_VNK, 11).to(torch.float64) * 2.0**-53


def _mix(word: Tensor) -> Tensor:
    word = (word ^ _shifted(word, 30)) * _signed(_MULTIPLIERS[0])
    word = (word ^ _shifted(word, 27)) * _signed(_MULTIPLIERS[1])
    return word ^ _shifted(word, 31)


def _shifted(word: Tensor, places: int) -> Tensor:
    """``word`` as an unsigned number, divided by 2^places."""
    return (word >> places) & ((1 << (64 - places)) - 1)


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned word."""
    return word - (1 << 64) if word >= 1 << 63 else word
