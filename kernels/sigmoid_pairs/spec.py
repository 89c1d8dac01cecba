"""What tests and benchmarks share about ``sigmoid_pairs``: samples, bad calls, counts."""

# shapes: N queries, K keys, D features
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.kernels.sigmoid_pairs.reference import Problem

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ERROR_RATIO = 2.0
"""Largest error, as a multiple of torch's own at the same dtype, both against float64."""

SIGLIP_SHAPE = (8192, 8192, 512)


@dataclass(frozen=True)
class Sample:
    """One call: N queries, K keys of width D, where partners lie, and how large logits get."""

    name: str
    num_queries: int
    num_keys: int
    embedding: int
    scale: float = 10.0
    bias: float = -10.0
    diagonal: int | None = 0
    unit: bool = True
    transposed: bool = False

    def operands(self, dtype: torch.dtype, key_dtype: torch.dtype | None = None) -> list[Tensor]:
        """Queries and keys, deterministic, rounded to their dtypes."""
        generator = torch.Generator().manual_seed(1000 * self.num_queries + self.num_keys)
        rows = self.num_queries + self.num_keys
        x = torch.randn(rows, self.embedding, generator=generator, dtype=torch.float64)
        x = F.normalize(x, dim=1) if self.unit else x
        q_ND, k_KD = x.split([self.num_queries, self.num_keys])
        if self.transposed:
            q_ND, k_KD = (t.T.contiguous().T for t in (q_ND, k_KD))
        return [q_ND.to(dtype), k_KD.to(key_dtype or dtype)]

    def problem(self, dtype: torch.dtype, key_dtype: torch.dtype | None = None) -> Problem:
        """The same for a backend."""
        q_ND, k_KD = self.operands(dtype, key_dtype)
        scale, bias = (torch.tensor(x, dtype=torch.float64) for x in (self.scale, self.bias))
        return Problem(q_ND, k_KD, scale, bias, self.diagonal)


def samples() -> Iterator[Sample]:
    """Ragged sizes, every place of the diagonal, every regime of the logits."""
    sizes = ((1, 1, 1), (1, 9, 5), (5, 1, 3), (2, 13, 8), (31, 33, 17), (40, 200, 64))
    for num_queries, num_keys, embedding in (*sizes, (200, 40, 128), (70, 410, 130), (33, 35, 515)):
        name = f"{num_queries}x{num_keys}x{embedding}"
        yield Sample(name, num_queries, num_keys, embedding)
    for diagonal in (None, 17, -30, 61, 60, -44, 10**12):
        yield Sample(f"diagonal {diagonal}", 45, 61, 24, diagonal=diagonal, bias=-1.0)
    for scale, bias in ((0.1, 0.0), (100.0, 30.0), (1000.0, -500.0), (-7.0, 2.0), (0.0, -3.0)):
        yield Sample(f"scale {scale} bias {bias}", 37, 50, 24, scale, bias)
    yield Sample("far below", 37, 50, 24, 1.0, -200.0)
    yield Sample("far above", 37, 50, 24, 1.0, 1e5)
    yield Sample("not unit", 37, 50, 24, 1.0, 0.0, unit=False)
    yield Sample("transposed", 21, 40, 33, transposed=True)


@dataclass(frozen=True)
class BadCall:
    """Arguments that must raise ValueError, and what its message must name."""

    name: str
    queries: object
    keys: object
    scale: object = 10.0
    bias: object = -10.0
    options: dict = field(default_factory=dict)
    mentions: tuple[str, ...] = ()


def bad_calls() -> Iterator[BadCall]:
    """Every way this operator can be called wrongly."""
    z = torch.randn(4, 3)
    yield BadCall("not a tensor", z.numpy(), z, mentions=("queries", "ndarray"))
    yield BadCall("one dimension", z[0], z, mentions=("queries", "(3,)"))
    yield BadCall("three dimensions", z, z[None], mentions=("keys", "(1, 4, 3)"))
    yield BadCall("integers", z.long(), z, mentions=("queries", "int64"))
    yield BadCall("no queries", z[:0], z, mentions=("queries", "(0, 3)"))
    yield BadCall("no features", z[:, :0], z[:, :0], mentions=("queries", "(4, 0)"))
    yield BadCall("widths", z, z[:, :2], mentions=("keys", "3", "(4, 2)"))
    yield BadCall("devices", z, z.to("meta"), mentions=("keys", "meta"))
    elsewhere = torch.ones((), device="meta")
    for value, said in (
        (math.nan, "nan"), (math.inf, "inf"), ("10", "str"), (torch.ones(2), "(2,)"),
        (torch.tensor(1), "int64"), (elsewhere, "meta"),
    ):  # fmt: skip
        yield BadCall(f"scale {said}", z, z, scale=value, mentions=("scale", said))
        yield BadCall(f"bias {said}", z, z, bias=value, mentions=("bias", said))
    for place in (0.5, True, "0", 1 << 62):
        wrong = {"diagonal": place}
        yield BadCall(f"diagonal {place}", z, z, options=wrong, mentions=("diagonal", str(place)))


def floor_flops(num_queries: int, num_keys: int, embedding: int) -> float:
    """2 N K D for the products, 2 N K D for each side's gradient."""
    return 6.0 * num_queries * num_keys * embedding
