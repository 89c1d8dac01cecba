"""What tests and benchmarks share about ``ntxent``: samples, bad calls, tolerances, counts."""

# shapes: N samples, V views, M = V * N rows, D embedding
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ERROR_RATIO = 2.0
"""Largest error, as a multiple of torch's own at the same dtype, both against float64."""

BENCH_SHAPES = ((512, 128), (2048, 128), (8192, 128), (32768, 128))
"""(M, D) of the benchmark's headline rows."""
BENCH_EMBEDDINGS = (64, 128, 256, 512, 2048)
"""D of the benchmark's second table, at M = 2048."""


@dataclass(frozen=True)
class Sample:
    """One call: V views of shape (N, D) and a temperature."""

    name: str
    num_samples: int
    embedding: int
    num_views: int = 2
    temperature: float = 0.1
    scale: float = 1.0
    layout: str = "contiguous"

    def views(self, dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
        """Deterministic values, rounded to ``dtype``."""
        seed = 1000 * self.num_samples + self.embedding
        generator = torch.Generator().manual_seed(seed)
        shape = (self.num_views, self.num_samples, self.embedding)
        h_VND = torch.randn(shape, generator=generator, dtype=torch.float64) * self.scale
        h_VND = LAYOUTS[self.layout](h_VND.to(device=device, dtype=dtype))
        return list(h_VND.unbind(0))


def _correlated(h_VND: Tensor) -> Tensor:
    """Views of a sample alike, as after some training."""
    return h_VND * 0.3 + h_VND[:1]


def _with_zero_rows(h_VND: Tensor) -> Tensor:
    h_VND = h_VND.clone()
    h_VND[0, 0] = 0
    h_VND[-1, -1] = 0
    return h_VND


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda h: h,
    "transposed": lambda h: h.transpose(1, 2).contiguous().transpose(1, 2),
    "strided": lambda h: torch.stack([h, h], dim=-1)[..., 0],
    "sliced": lambda h: torch.cat([h, h], dim=2)[:, :, : h.shape[2]],
    "expanded": lambda h: h[:, :1].expand(h.shape),
    "correlated": _correlated,
    "zero_rows": _with_zero_rows,
    "identical": lambda h: h[:1, :1].expand(h.shape).clone(),
}


def samples() -> Iterator[Sample]:
    """Ragged sizes, every layout, every temperature regime."""
    sizes = ((1, 1), (1, 5), (2, 1), (3, 2), (5, 7), (8, 16), (17, 33), (48, 128), (65, 96))
    for num_samples, embedding in (*sizes, (97, 130), (130, 64), (33, 515)):
        yield Sample(f"N{num_samples}-D{embedding}", num_samples, embedding)
    for num_views in (3, 4, 7):
        yield Sample(f"V{num_views}", 13, 19, num_views=num_views)
    for temperature in (0.01, 0.02, 0.025, 0.07, 0.5, 1.0, 10.0, -0.5, -0.02):
        yield Sample(f"tau{temperature}", 37, 24, temperature=temperature, layout="correlated")
    for layout in LAYOUTS:
        yield Sample(layout, 21, 40, layout=layout)
    for scale in (1e-4, 1e4):
        yield Sample(f"scale{scale}", 21, 40, scale=scale)


def samples_for(dtype: torch.dtype) -> Iterator[Sample]:
    """The samples whose values ``dtype`` can hold."""
    for sample in samples():
        if dtype != torch.float16 or sample.scale == 1.0:
            yield sample


@dataclass(frozen=True)
class BadCall:
    """Arguments that must raise ValueError, and what its message must name."""

    name: str
    views: object
    temperature: object = 0.1
    reduction: object = "mean"
    mentions: tuple[str, ...] = ()


def bad_calls() -> Iterator[BadCall]:
    """Every way users are known to call a contrastive loss wrongly."""
    z = torch.randn(4, 3)
    yield BadCall("different N", (z, z[:3]), mentions=("views[1]", "(3, 3)", "(4, 3)"))
    yield BadCall("different D", (z, z[:, :2]), mentions=("views[1]", "(4, 2)"))
    yield BadCall("different dtype", (z, z.double()), mentions=("views[1]", "float64"))
    yield BadCall("different device", (z, z.to("meta")), mentions=("views[1]", "meta"))
    yield BadCall("integers", (z.long(), z.long()), mentions=("views", "int64"))
    yield BadCall("booleans", (z > 0, z > 0), mentions=("views", "bool"))
    yield BadCall("complex", (z + 0j, z + 0j), mentions=("views", "complex64"))
    yield BadCall("three dimensions", (z[None], z[None]), mentions=("views[0]", "(1, 4, 3)"))
    yield BadCall("one dimension", (z[0], z[0]), mentions=("views[0]", "(3,)"))
    yield BadCall("empty batch", (z[:0], z[:0]), mentions=("views", "(0, 3)"))
    yield BadCall("no features", (z[:, :0], z[:, :0]), mentions=("views", "(4, 0)"))
    yield BadCall("one view", (z,), mentions=("views", "1"))
    yield BadCall("no view", (), mentions=("views", "0"))
    yield BadCall("one tensor", z, mentions=("views", "one tensor"))
    yield BadCall("numpy", (z.numpy(), z.numpy()), mentions=("views[0]", "ndarray"))
    yield BadCall("None", (z, None), mentions=("views[1]", "NoneType"))
    for value in (0.0, 0, float("nan"), float("inf"), 1e-9):
        mentions = ("temperature", str(value))
        yield BadCall(f"temperature {value}", (z, z), value, mentions=mentions)
        if isinstance(value, float):
            tensor = torch.tensor(value)
            yield BadCall(f"temperature tensor {value}", (z, z), tensor, mentions=("temperature",))
    yield BadCall("two temperatures", (z, z), torch.ones(2), mentions=("temperature", "(2,)"))
    integer = torch.tensor(1)
    yield BadCall("integer temperature", (z, z), integer, mentions=("temperature", "int64"))
    yield BadCall("string temperature", (z, z), "0.1", mentions=("temperature", "str"))
    yield BadCall("unknown reduction", (z, z), 0.1, "avg", mentions=("reduction", "'avg'"))


def floor_flops(num_rows: int, embedding: int) -> float:
    """3 M^2 D: half the similarities once (symmetry), then one full product for the gradient."""
    return 3.0 * num_rows**2 * embedding


def embedding_bytes(num_rows: int, embedding: int, itemsize: int = 4) -> int:
    """Bytes of the embeddings themselves."""
    return num_rows * embedding * itemsize
