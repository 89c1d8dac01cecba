"""What of ``contrast`` is shipped for CUDA: one line per binary, read by launcher and gates."""

from __future__ import annotations

from typing import Any

from fastssl.kernels.cuda import ARCHS, Config, best


def _config(
    kernel: str, dtype: str, depth: int, shape: tuple[int, int], constants: dict[str, Any],
    archs: tuple[int, ...] = ARCHS,
) -> Config:  # fmt: skip
    """shape: warps and pipeline stages."""
    return Config(kernel, dtype, depth, *shape, constants, archs, "contrast")


def _denominators(
    dtype: str, depth: int, shape: tuple[int, int], tile: dict[str, Any], resident: bool
) -> list[Config]:
    """The forward pass without and with column sums."""
    rows, columns = (dict(tile, RESIDENT=resident, COLUMNS=columns) for columns in (False, True))
    found = [_config("rows", dtype, depth, shape, rows)]
    if dtype.startswith("fp32"):  # left to itself, the assembler spills to fit two blocks
        columns["maxnreg"] = 168
    elif depth in (64, 128):  # two blocks on a multiprocessor, without a spill, where they fit
        halved = dict(columns, maxnreg=128)
        found.append(_config("columns", dtype, depth, shape, halved, (90,)))
        return [*found, _config("columns", dtype, depth, shape, columns, (80, 100))]
    return [*found, _config("columns", dtype, depth, shape, columns)]


def _whole_depth(dtype: str) -> list[Config]:
    """Kernels that hold a row's whole depth at once: D <= 256 in 16 bits.

    "mean" and "pull" keep a block's (rows, D) sum in registers as well, which leaves room for 32
    columns at a time at depth 256 and, from sm_100 on, at every depth.
    """
    found = []
    for depth in (64, 128, 256):
        shape = (8, 3 if depth < 256 else 2)
        tile = {"BI": 128, "BJ": 64, "BK": depth, "PRECISION": "tf32"}
        found += _denominators(dtype, depth, shape, tile, True)
        for kernel in ("mean", "pull"):
            narrow = dict(tile, BJ=32)
            if depth < 256:
                found.append(_config(kernel, dtype, depth, shape, tile, (80, 90)))
                found.append(_config(kernel, dtype, depth, shape, narrow, (100,)))
            else:
                found.append(_config(kernel, dtype, depth, shape, narrow))
    return found


def _any_depth(dtype: str, precision: str, block: int, depth: int, stages: int) -> list[Config]:
    warps = 8 if block == 128 else 4
    tile = {"BI": block, "BJ": 64, "BK": depth, "PRECISION": precision}
    # FMA products keep their operands in registers: beside row sums, only half as deep
    shallow = dict(tile, BK=16) if precision == "ieee" else tile
    return [
        *_denominators(dtype, 0, (8, stages), shallow, False),
        _config("weights", dtype, 0, (warps, stages), tile),
    ]


def _single_pass(
    dtype: str, depth: int, block: tuple[int, int], archs: tuple[int, ...] = ARCHS
) -> Config:
    """ "mean" where its sum needs smaller blocks than those of 16 bits and D <= 256."""
    precision = "ieee" if dtype == "fp32" else "tf32"
    tile = {"BI": block[0], "BJ": block[1], "BK": depth, "PRECISION": precision}
    return _config("mean", dtype, depth, (8, 1 if dtype == "fp32" else 2), tile, archs)


def _row_kernels(dtype: str) -> list[Config]:
    return [
        _config("merge", dtype, 0, (4, 1), {"ROWS": 32, "SLOTS": 64}),
        _config("state", dtype, 0, (4, 1), {"ROWS": 128}),
        _config("finish", dtype, 0, (4, 1), {"ROWS": 8, "BK": 32}),
        _config("average", dtype, 0, (4, 1), {"ROWS": 8, "BK": 64}),
    ]


def _narrow_keys(dtype: str) -> list[Config]:
    """float32 queries, keys stored in 16 bits and widened in registers: three or six products."""
    tile = {"BI": 64, "BJ": 32, "BK": 32, "PRECISION": "ieee"}
    found = [
        *_denominators(dtype, 0, (4, 2), tile, False),
        _config("weights", dtype, 0, (4, 2), tile),
        *_row_kernels(dtype),
    ]
    whole = [(64, (64, 32), ARCHS), (128, (64, 32), ARCHS), (256, (32, 16), ARCHS)]
    # twice the terms: deeper sums spill, and at 128 sm_100's compiler leaves no code
    halves = [(64, (64, 32), ARCHS), (128, (64, 32), (80, 90))]
    for depth, (rows, columns), archs in whole if dtype == "fp32 bf16" else halves:
        constants = dict(tile, BI=rows, BJ=columns, BK=depth)
        found.append(_config("mean", dtype, depth, (8, 2), constants, archs))
    return found


CONFIGS: tuple[Config, ...] = (
    *_whole_depth("bf16"),
    *_whole_depth("fp16"),
    *_any_depth("bf16", "tf32", 128, 64, 3),
    *_any_depth("fp16", "tf32", 128, 64, 3),
    *_any_depth("fp32", "ieee", 64, 32, 2),
    *_any_depth("tf32", "tf32", 128, 32, 3),
    *_row_kernels("bf16"),
    *_row_kernels("fp16"),
    *_row_kernels("fp32"),
    *_row_kernels("tf32"),
    _single_pass("bf16", 512, (64, 32)),
    _single_pass("fp16", 512, (64, 32)),
    *(_single_pass("fp32", depth, (32, 16)) for depth in (64, 128, 256)),
    _single_pass("tf32", 64, (64, 32)),
    _single_pass("tf32", 128, (64, 32), (80, 90)),
    _single_pass("tf32", 128, (32, 16), (100,)),
    _single_pass("tf32", 256, (32, 16)),
    *_narrow_keys("fp32 bf16"),
    *_narrow_keys("fp32 fp16"),
)


def serving(kernel: str, dtype: str, depth: int, arch: int) -> Config | None:
    """The shipped config for a padded depth, the one made for it first; None where none serves."""
    return best(CONFIGS, kernel, dtype, depth, arch)
