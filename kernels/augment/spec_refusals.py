"""Calls of ``augment`` that must raise ValueError, and what the message must name."""

# shapes: V views, N samples; P values, C codes
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.spec import still
from fastssl.kernels.augment.table import STAGE_BIT, STAGES, VALUES, Table


@dataclass(frozen=True)
class BadCall:
    """Arguments that must raise ValueError, and what its message must name."""

    name: str
    images: object
    table: object
    mentions: tuple[str, ...]
    options: dict = field(default_factory=dict)


def bad_calls() -> Iterator[BadCall]:
    """Every way this operator can be called wrongly."""
    x, table = torch.rand(2, 3, 6, 8), still([(6, 8)] * 2)
    for name, images, mentions in (
        ("numpy", x.numpy(), ("images", "ndarray")),
        ("one image", x[0], ("images", "(3, 6, 8)")),
        ("grey images", x[:, :1], ("images", "(2, 1, 6, 8)")),
        ("integers", x.long(), ("images", "int64")),
        ("half", x.half(), ("images", "float16")),
        ("no samples", x[:0], ("images", "(0, 3, 6, 8)")),
        ("no pixels", x[..., :0], ("images", "(2, 3, 6, 0)")),
        ("empty list", [], ("images", "empty")),
        ("text", "images", ("images", "str")),
        ("list of arrays", [x[0].numpy()], ("images[0]", "ndarray")),
        ("batches in a list", [x, x], ("images[0]", "(2, 3, 6, 8)")),
        ("mixed dtypes", [x[0], x[1].double()], ("images[1]", "float32", "float64")),
        ("mixed devices", [x[0], x[1].to("meta")], ("images[1]", "cpu", "meta")),
        ("too many", torch.rand(3, 3, 6, 8), ("table.values_VNP", "(V, 3, 23)")),
        ("elsewhere", x.to("meta"), ("table.values_VNP", "meta")),
    ):
        yield BadCall(name, images, table, mentions)
    values, codes = table.values_VNP, table.codes_VNC
    for name, wrong, mentions in (
        ("no table", values, ("table", "Table")),
        ("one view", Table(values[0], codes), ("table.values_VNP", "(2, 23)")),
        ("few columns", Table(values[..., :3], codes), ("table.values_VNP", "(1, 2, 3)")),
        ("half values", Table(values.half(), codes), ("table.values_VNP", "float16")),
        ("long codes", Table(values, codes.long()), ("table.codes_VNC", "int64")),
        ("code columns", Table(values, codes[..., :1]), ("table.codes_VNC", "(1, 2, 1)")),
        ("views differ", Table(values, codes.repeat(2, 1, 1)), ("table", "1 and 2")),
        ("no views", Table(values[:0], codes[:0]), ("table", "0 and 0")),
        ("codes elsewhere", Table(values, codes.to("meta")), ("table.codes_VNC", "meta")),
        ("not a tensor", Table(values.numpy(), codes), ("table.values_VNP", "ndarray")),
    ):  # type: ignore[misc]
        yield BadCall(name, x, wrong, mentions)
    yield from _bad_numbers(x, table)
    yield from _bad_options(x, table)


def _bad_numbers(x: Tensor, table: Table) -> Iterator[BadCall]:
    """Numbers in the second sample of the table, with the stage that reads them."""
    for column, number, stage, words in (
        ("left", math.nan, None, ("table.left[0, 1]", "finite")),
        ("hue", math.inf, None, ("table.hue[0, 1]", "finite")),
        ("width", 0.0, None, ("table.width[0, 1]", "positive", "0.0")),
        ("height", -2.0, None, ("table.height[0, 1]", "-2.0")),
        ("left", 8.0, None, ("table.left[0, 1]", "overlaps", "8.0")),
        ("top", -6.0, None, ("table.top[0, 1]", "overlaps")),
        ("sigma", 0.0, "blur", ("table.sigma[0, 1]", "0.0")),
        ("scale", 0.0, "affine", ("table.scale[0, 1]", "positive")),
        ("stages", 1 << len(STAGES), None, ("table.stages[0, 1]", "1024")),
        ("stages", -1, None, ("table.stages[0, 1]", "-1")),
        ("jitter_order", 24, "jitter", ("table.jitter_order[0, 1]", "24")),
        ("jitter_order", -1, "jitter", ("table.jitter_order[0, 1]", "-1")),
        ("posterize_bits", 0, "posterize", ("table.posterize_bits[0, 1]", "1 to 8", "0")),
        ("posterize_bits", 9, "posterize", ("table.posterize_bits[0, 1]", "9")),
    ):
        wrong = Table(table.values_VNP.clone(), table.codes_VNC.clone())
        column_VN = wrong.value(column) if column in VALUES else wrong.code(column)
        column_VN[0, 1] = number
        if stage is not None:
            wrong.code("stages")[0, 1] = STAGE_BIT[stage]
        yield BadCall(f"{column} {number}", x, wrong, words)


def _bad_options(x: Tensor, table: Table) -> Iterator[BadCall]:
    base = Settings()
    for size in (0, -3, 2.5, True, "8"):
        yield BadCall(f"size {size!r}", x, table, ("size", repr(size)), {"size": size})
    yield BadCall("huge size", x, table, ("size", "2147483648"), {"size": 1 << 31})
    for name, value in (
        ("interpolation", "lanczos"), ("hue", "lab"), ("affine_interpolation", "bicubic"),
        ("dtype", torch.float16), ("memory_format", torch.preserve_format), ("blur_window", 4),
        ("blur_window", -1), ("blur_window", 3.0), ("blur_window", (1 << 31) + 1),
        ("mean", (0.5, 0.5, 0.5)),
    ):  # fmt: skip
        words = (f"settings.{name}", str(value))
        changed: dict[str, Any] = {name: value}
        wrong = {"settings": replace(base, **changed)}
        yield BadCall(f"{name} {value}", x, table, words, wrong)
    for name, mean, std in (
        ("mean", (0.5, 0.5), (1.0, 1.0, 1.0)), ("std", (0.5, 0.5, 0.5), (1.0, 0.0, 1.0)),
        ("mean", (0.5, math.nan, 0.5), (1.0, 1.0, 1.0)),
        ("mean", (0.5, 1e300, 0.5), (1.0, 1.0, 1.0)), ("std", (0.5, 0.5, 0.5), (1.0, 1e-50, 1.0)),
    ):  # fmt: skip
        wrong = {"settings": replace(base, mean=mean, std=std)}  # type: ignore[arg-type]
        yield BadCall(f"{name} {mean} {std}", x, table, (f"settings.{name}",), wrong)
    yield BadCall("no settings", x, table, ("settings", "dict"), {"settings": {}})
    blurred = Table(table.values_VNP.clone(), table.codes_VNC.clone())
    blurred.value("sigma").fill_(1.0)
    blurred.code("stages").fill_(STAGE_BIT["blur"])
    wide = {"settings": Settings(blur_window=9), "size": 4}
    yield BadCall("wide window", x, blurred, ("settings.blur_window", "less than 8"), wide)
    sizes = torch.tensor([[6, 8], [6, 9]])
    for name, images, wrong_sizes, mentions in (
        ("sizes too large", x, sizes, ("sizes_N2[1]", "(6, 8)", "(6, 9)")),
        ("sizes of nothing", x, sizes * 0, ("sizes_N2[0]", "(0, 0)")),
        ("sizes of a list", list(x), sizes, ("sizes_N2", "None")),
        ("float sizes", x, sizes.float(), ("sizes_N2", "float32")),
        ("one size", x, sizes[:1], ("sizes_N2", "(1, 2)")),
        ("list of sizes", x, [[6, 8]] * 2, ("sizes_N2", "list")),
        ("sizes elsewhere", x, sizes.to("meta"), ("sizes_N2", "meta")),
    ):  # type: ignore[assignment]
        yield BadCall(name, images, table, mentions, {"sizes_N2": wrong_sizes})
