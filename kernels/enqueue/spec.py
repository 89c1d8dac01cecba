"""What tests and benchmarks share about ``enqueue``: samples, bad calls, bench shapes, counts."""

# shapes: N keys of a batch, K rows of the ring, D features
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

BENCH_SHAPES = ((1024, 65536, 128), (256, 65536, 128))
"""(N, K, D) of the benchmark's rows; the first is the headline."""


@dataclass(frozen=True)
class BadCall:
    """Arguments that must raise ValueError, and what its message must name."""

    name: str
    rows: object
    pointer: object
    keys: object
    mentions: tuple[str, ...]


def bad_calls() -> Iterator[BadCall]:
    """Ways to call the operator wrongly."""
    rows, at, keys = torch.randn(8, 3), torch.tensor(0), torch.randn(4, 3)
    yield BadCall("other width", rows, at, keys[:, :2], ("keys", "width 3", "(4, 2)"))
    yield BadCall("no keys", rows, at, keys[:0], ("keys", "(0, 3)"))
    yield BadCall("no rows", rows[:0], at, keys, ("rows", "(0, 3)"))
    yield BadCall("one dimension", rows, at, keys[0], ("keys", "(3,)"))
    yield BadCall("integers", rows, at, keys.long(), ("keys", "int64"))
    yield BadCall("numpy", rows, at, keys.numpy(), ("keys", "ndarray"))
    yield BadCall("transposed rows", torch.randn(3, 8).T, at, keys, ("rows", "contiguous"))
    yield BadCall("learnt rows", rows.clone().requires_grad_(), at, keys, ("rows", "gradient"))
    yield BadCall("integer pointer", rows, 0, keys, ("pointer", "int64"))
    yield BadCall("float pointer", rows, torch.tensor(0.0), keys, ("pointer", "float32"))
    yield BadCall("two pointers", rows, torch.zeros(2).long(), keys, ("pointer", "2"))
    yield BadCall("pointer too far", rows, torch.tensor(8), keys, ("pointer", "between 0 and 7"))
    yield BadCall("pointer below", rows, torch.tensor(-1), keys, ("pointer", "-1"))
    yield BadCall("elsewhere", rows, at, keys.to("meta"), ("keys", "meta"))
    yield BadCall("pointer elsewhere", rows, at.to("meta"), keys, ("pointer", "meta"))


def sample(num_keys: int, width: int, dtype: torch.dtype, *, seed: int = 0) -> Tensor:
    """Raw keys (N, D), deterministic, of very different norms."""
    generator = torch.Generator().manual_seed(1000 * num_keys + width + seed)
    keys_ND = torch.randn(num_keys, width, generator=generator, dtype=torch.float64)
    return (keys_ND * torch.logspace(-2, 2, num_keys, dtype=torch.float64)[:, None]).to(dtype)


def floor_bytes(num_keys: int, width: int, itemsize: int, row_itemsize: int) -> int:
    """Each key read once, each row written once."""
    return num_keys * width * (itemsize + row_itemsize)
