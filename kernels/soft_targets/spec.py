"""What tests and benchmarks share about ``soft_targets``: samples, bad calls, counts."""

# shapes: N rows, C outputs, D features
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
ERROR_RATIO = 2.0
"""Largest error, as a multiple of torch's own at the same dtype, both against float64."""

BENCH_SHAPES = ((512, 16384, 512), (64, 65536, 256))
"""(N, C, D) of the benchmark's rows; the first is the headline."""


@dataclass(frozen=True)
class Sample:
    """One call: logits of a student and a teacher, their temperatures, perhaps a centre."""

    name: str
    num_rows: int
    num_outputs: int
    student_temperature: float = 1.0
    teacher_temperature: float = 0.5
    spread: float = 3.0
    shift: float = 0.0
    centred: bool = False
    layout: str = "contiguous"

    def logits(self, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Student and teacher (N, C): deterministic values, rounded to ``dtype``."""
        seed = 1000 * self.num_rows + self.num_outputs
        generator = torch.Generator().manual_seed(seed)
        shape = (2, self.num_rows, self.num_outputs)
        x_2NC = torch.randn(shape, generator=generator, dtype=torch.float64)
        x_2NC = (x_2NC * self.spread + self.shift).to(device=device, dtype=dtype)
        student_NC, teacher_NC = LAYOUTS[self.layout](x_2NC).unbind(0)
        return student_NC, teacher_NC

    def centre(self, dtype: torch.dtype, device: str = "cpu") -> Tensor | None:
        """(C,), or None."""
        if not self.centred:
            return None
        return torch.linspace(-1, 1, self.num_outputs, dtype=dtype, device=device)

    def temperatures(self) -> dict[str, float]:
        """As the operator takes them."""
        return {
            "student_temperature": self.student_temperature,
            "teacher_temperature": self.teacher_temperature,
        }


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "strided": lambda x: torch.stack([x, x], dim=-1)[..., 0],
    "sliced": lambda x: torch.cat([x, x], dim=2)[:, :, : x.shape[2]],
    "expanded": lambda x: x[:, :1].expand(x.shape),
    "uniform": lambda x: x * 0,
}


def samples() -> Iterator[Sample]:
    """Ragged sizes, every layout, every temperature regime."""
    sizes = ((1, 1), (1, 2), (3, 1), (2, 5), (5, 15), (4, 16), (3, 17), (9, 31), (7, 33), (70, 65))
    for num_rows, num_outputs in (*sizes, (3, 1024), (40, 1025), (5, 2100)):
        yield Sample(f"N{num_rows}-C{num_outputs}", num_rows, num_outputs)
    yield Sample("one-row-many-outputs", 1, 70000)
    for student, teacher in ((0.1, 0.04), (0.1, 0.07), (1.0, 0.5), (10.0, 3.0)):
        name = f"tau{student}-{teacher}"
        yield Sample(name, 12, 50, student, teacher, centred=True)
    for layout in LAYOUTS:
        yield Sample(layout, 11, 40, layout=layout, centred=layout == "strided")
    for shift in (-300.0, 300.0):
        yield Sample(f"shift{shift}", 6, 37, shift=shift)
    yield Sample("one-hot", 6, 37, spread=500.0)


@dataclass(frozen=True)
class BadCall:
    """Arguments that must raise ValueError, and what its message must name."""

    name: str
    student: object
    teacher: object
    keywords: dict
    mentions: tuple[str, ...]


def bad_calls() -> Iterator[BadCall]:
    """Ways to call the operator wrongly."""
    x = torch.randn(4, 3)
    yield BadCall("different C", x, x[:, :2], {}, ("teacher", "(4, 2)", "(4, 3)"))
    yield BadCall("different N", x, x[:2], {}, ("teacher", "(2, 3)", "(4, 3)"))
    yield BadCall("different device", x, x.to("meta"), {}, ("teacher", "meta"))
    yield BadCall("integers", x.long(), x, {}, ("student", "int64"))
    yield BadCall("complex", x, x + 0j, {}, ("teacher", "complex64"))
    yield BadCall("one dimension", x[0], x[0], {}, ("student", "(3,)"))
    yield BadCall("empty batch", x[:0], x[:0], {}, ("student", "(0, 3)"))
    yield BadCall("no outputs", x[:, :0], x[:, :0], {}, ("student", "(4, 0)"))
    yield BadCall("numpy", x.numpy(), x, {}, ("student", "ndarray"))
    yield BadCall("None", x, None, {}, ("teacher", "NoneType"))
    for value in (0.0, -0.5, float("nan"), float("inf"), 1e-9, True, "0.1", torch.tensor(0.1)):
        for name in ("student_temperature", "teacher_temperature"):
            yield BadCall(f"{name} {value}", x, x, {name: value}, (name,))
    yield BadCall("short centre", x, x, {"centre": x[0, :2]}, ("centre", "(2,)"))
    yield BadCall("integer centre", x, x, {"centre": torch.ones(3).long()}, ("centre", "int64"))
    learnt = torch.zeros(3, requires_grad=True)
    yield BadCall("learnt centre", x, x, {"centre": learnt}, ("centre", "gradient"))
    yield BadCall("centre elsewhere", x, x, {"centre": x[0].to("meta")}, ("centre", "meta"))


def prototype_flops(num_rows: int, num_outputs: int, width: int) -> float:
    """6 N C D: the logits, and both gradients from them; nothing is taken twice."""
    return 6.0 * num_rows * num_outputs * width


def logit_bytes(num_rows: int, num_outputs: int, itemsize: int = 4) -> int:
    """Bytes of one N x C matrix."""
    return num_rows * num_outputs * itemsize
