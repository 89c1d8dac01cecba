"""What tests and benchmarks share about ``contrast``: samples, bad calls, tolerances, counts."""

# shapes: N queries, K keys, D features
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.kernels.contrast.checks import Pairs
from fastssl.kernels.contrast.reference import Ids

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ERROR_RATIO = 2.0
"""Largest error, as a multiple of torch's own at the same dtype, both against float64."""

MOCO_SHAPE = (256, 65536, 128)
CLIP_SHAPE = (8192, 8192, 512)


@dataclass(frozen=True)
class Sample:
    """One call: N queries, K keys of width D, which pairs count, and how large logits get."""

    name: str
    num_queries: int
    num_keys: int
    embedding: int
    scale: float = 10.0
    keep: str = "all"
    with_rows: bool = False
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

    def pairs(self) -> Pairs:
        """The rule with its ids."""
        generator = torch.Generator().manual_seed(self.num_queries)
        sizes = (self.num_queries, self.num_keys)
        labels = tuple(torch.randint(0, 4, (n,), generator=generator) for n in sizes)
        rows = tuple(torch.arange(n) for n in sizes) if self.with_rows else None
        return Pairs(self.keep, labels if self.keep != "all" else None, rows)  # type: ignore[arg-type]

    def ids(self) -> Ids:
        """The same for a backend."""
        pairs = self.pairs()
        q_label, k_label = pairs.labels or (None, None)
        q_row, k_row = pairs.rows or (None, None)
        return Ids(q_label, k_label, q_row, k_row, self.keep)

    @property
    def bound(self) -> float:
        """What a caller with unit rows vouches for; rounding lengthens rows."""
        return 1.02 if self.unit else math.inf


def samples() -> Iterator[Sample]:
    """Ragged sizes, every rule, every regime of the logits."""
    sizes = ((1, 1, 1), (1, 9, 5), (5, 1, 3), (2, 13, 8), (31, 33, 17), (40, 200, 64))
    for num_queries, num_keys, embedding in (*sizes, (200, 40, 128), (70, 410, 130), (33, 35, 515)):
        name = f"{num_queries}x{num_keys}x{embedding}"
        yield Sample(name, num_queries, num_keys, embedding)
    for keep in ("all", "same", "different"):
        for with_rows in (False, True):
            name = f"{keep}{'-rows' if with_rows else ''}"
            yield Sample(name, 45, 61, 24, keep=keep, with_rows=with_rows)
            yield Sample(f"{name}-online", 45, 61, 24, 100.0, keep, with_rows)
    for scale in (0.1, 1.0, 39.0, 100.0, 1000.0, -7.0, -200.0):
        yield Sample(f"scale{scale}", 37, 50, 24, scale)
    yield Sample("not unit", 37, 50, 24, 1.0, unit=False)
    yield Sample("transposed", 21, 40, 33, transposed=True)


@dataclass(frozen=True)
class BadCall:
    """Arguments that must raise ValueError, and what its message must name."""

    name: str
    queries: object
    keys: object
    scale: object = 10.0
    options: dict = field(default_factory=dict)
    mentions: tuple[str, ...] = ()


def bad_calls() -> Iterator[BadCall]:
    """Every way this operator can be called wrongly."""
    z = torch.randn(4, 3)
    ids = torch.arange(4)
    yield BadCall("not a tensor", z.numpy(), z, mentions=("queries", "ndarray"))
    yield BadCall("one dimension", z[0], z, mentions=("queries", "(3,)"))
    yield BadCall("three dimensions", z, z[None], mentions=("keys", "(1, 4, 3)"))
    yield BadCall("integers", z.long(), z, mentions=("queries", "int64"))
    yield BadCall("no queries", z[:0], z, mentions=("queries", "(0, 3)"))
    yield BadCall("no features", z[:, :0], z[:, :0], mentions=("queries", "(4, 0)"))
    yield BadCall("widths", z, z[:, :2], mentions=("keys", "3", "(4, 2)"))
    yield BadCall("devices", z, z.to("meta"), mentions=("keys", "meta"))
    for scale in (math.nan, math.inf):
        yield BadCall(f"scale {scale}", z, z, scale, mentions=("scale", str(scale)))
    yield BadCall("scale text", z, z, "10", mentions=("scale", "str"))
    yield BadCall("two scales", z, z, torch.ones(2), mentions=("scale", "(2,)"))
    yield BadCall("integer scale", z, z, torch.tensor(1), mentions=("scale", "int64"))
    yield BadCall("bound", z, z, options={"bound": 0.0}, mentions=("bound", "0.0"))
    unknown, missing = {"pairs": Pairs("other")}, {"pairs": Pairs("same")}
    yield BadCall("rule", z, z, options=unknown, mentions=("pairs.keep", "'other'"))
    yield BadCall("no labels", z, z, options=missing, mentions=("pairs.labels", "'same'"))
    short = {"pairs": Pairs("same", (ids, ids[:2]))}
    yield BadCall("short labels", z, z, options=short, mentions=("pairs.labels[1]", "(4,)"))
    floats = {"pairs": Pairs(rows=(ids.float(), ids))}
    yield BadCall("float rows", z, z, options=floats, mentions=("pairs.rows[0]", "float32"))


def floor_flops(num_queries: int, num_keys: int, embedding: int, *, key_gradient: bool) -> float:
    """2 N K D for the products, 2 N K D for each side's gradient."""
    return (6.0 if key_gradient else 4.0) * num_queries * num_keys * embedding
