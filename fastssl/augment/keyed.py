"""Counter-based random numbers: every draw is a pure function of (seed, epoch, index, stream).

The 64-bit finaliser of SplitMix (Stafford's variant 13; Steele, Lea, Flood, OOPSLA 2014) is
chained over seed, epoch, stream name, index and column. There is no state: worker count, order
of the calls and restarts cannot change a draw. Integers, uniforms and permutations are the same
bits on every platform; ``normal`` goes through log and cos, so it may differ in the last place.
"""

# shapes: N samples, K draws per sample
from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def bits(
    count: int, *, seed: int, epoch: int, index_N: NDArray[np.integer], stream: str
) -> NDArray[np.uint64]:
    """(N, count) uint64 words, uniform over all 64 bits.

    ``seed`` and ``epoch`` are any Python integers (taken modulo 2^64), ``index_N`` any integers
    (sample numbers, steps), ``stream`` names what the draw is for; different names are
    independent.
    """
    key = chain(seed, epoch, stream_key(stream))
    index = np.asarray(index_N)
    assert index.ndim == 1, "index_N is one-dimensional"
    golden = np.uint64(GOLDEN)
    with np.errstate(over="ignore"):
        row_N1 = _mix(np.uint64(key) + (index.astype(np.uint64)[:, None] + np.uint64(1)) * golden)
        column_K = np.arange(1, count + 1, dtype=np.uint64) * golden
        return _mix(row_N1 + column_K)


def uniform(
    count: int,
    *,
    seed: int,
    epoch: int = 0,
    index_N: NDArray[np.integer],
    stream: str,
    low: float | NDArray = 0.0,
    high: float | NDArray = 1.0,
) -> NDArray[np.float64]:
    """(N, count) float64 in [low, high); ``low`` and ``high`` broadcast against (count,)."""
    word_NK = bits(count, seed=seed, epoch=epoch, index_N=index_N, stream=stream)
    unit_NK = (word_NK >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return low + (np.asarray(high) - low) * unit_NK


def normal(
    count: int, *, seed: int, epoch: int = 0, index_N: NDArray[np.integer], stream: str
) -> NDArray[np.float64]:
    """(N, count) float64 standard normals (Box and Muller 1958)."""
    unit = uniform(2 * count, seed=seed, epoch=epoch, index_N=index_N, stream=stream)
    radius_NK = np.sqrt(-2.0 * np.log1p(-unit[:, :count]))
    return radius_NK * np.cos(2.0 * np.pi * unit[:, count:])


def bernoulli(
    probability: float,
    count: int,
    *,
    seed: int,
    epoch: int = 0,
    index_N: NDArray[np.integer],
    stream: str,
) -> NDArray[np.bool_]:
    """(N, count) booleans, each true with ``probability``."""
    return uniform(count, seed=seed, epoch=epoch, index_N=index_N, stream=stream) < probability


def rademacher(
    count: int, *, seed: int, epoch: int = 0, index_N: NDArray[np.integer], stream: str
) -> NDArray[np.float32]:
    """(N, count) float32 signs, -1 or +1 with equal probability."""
    word_NK = bits(count, seed=seed, epoch=epoch, index_N=index_N, stream=stream)
    return np.where(word_NK >> np.uint64(63), np.float32(1), np.float32(-1))


def permutation(n: int, *, seed: int, epoch: int, stream: str = "permutation") -> NDArray[np.int64]:
    """(n,) int64: the order of 0..n-1 for this seed and epoch."""
    word_N1 = bits(1, seed=seed, epoch=epoch, index_N=np.arange(n), stream=stream)
    return np.argsort(word_N1[:, 0], kind="stable").astype(np.int64)


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@lru_cache(maxsize=4096)
def chain(seed: int, epoch: int, stream: int) -> int:
    """The key, 64 bits, of all draws of a stream in an epoch; any integers, modulo 2^64."""
    key = 0
    for part in (int(seed) & _MASK, int(epoch) & _MASK, stream):
        word = (key * 5 + part + GOLDEN) & _MASK
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
        key = word ^ (word >> 31)
    return key


@lru_cache(maxsize=1024)
def stream_key(stream: str) -> int:
    """64 bits of a stream's name."""
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")
