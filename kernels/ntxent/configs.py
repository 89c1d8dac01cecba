"""What of NT-Xent is shipped for CUDA: one line per binary, read by the launcher and the gates."""

from __future__ import annotations

from fastssl.kernels.cuda import Config, best


def _whole_depth(dtype: str) -> list[Config]:
    """Kernels that hold a row's whole depth at once: D <= 256 in 16 bits.

    The backward keeps dz in registers: 64 columns at a time spill at depth 256, and from sm_100 on
    at every depth.
    """
    rows = []
    for depth in (64, 128, 256):
        stages = 3 if depth < 256 else 2
        tile = {"BI": 128, "BJ": 64, "BK": depth, "PRECISION": "tf32"}
        narrow = dict(tile, BJ=32)
        rows.append(Config("forward", dtype, depth, 8, stages, dict(tile, RESIDENT=True)))
        if depth < 256:
            rows.append(Config("backward", dtype, depth, 8, stages, tile, archs=(80, 90)))
            rows.append(Config("backward", dtype, depth, 8, stages, narrow, archs=(100,)))
        else:
            rows.append(Config("backward", dtype, depth, 8, stages, narrow))
    return rows


def _any_depth(dtype: str, precision: str, block: int, depth: int, stages: int) -> list[Config]:
    warps = 8 if block == 128 else 4
    tile = {"BI": block, "BJ": 64, "BK": depth, "PRECISION": precision}
    return [
        Config("forward", dtype, 0, warps, stages, dict(tile, RESIDENT=False)),
        Config("weights", dtype, 0, warps, stages, tile),
    ]


def _row_kernels(dtype: str) -> list[Config]:
    return [
        Config("prepare", dtype, 0, 4, 1, {"ROWS": 16, "BK": 64}),
        Config("state", dtype, 0, 4, 1, {"ROWS": 128}),
        # left to itself, sm_100's assembler spills fp16 to 40 registers to fit more blocks
        Config("project", dtype, 0, 4, 1, {"ROWS": 8, "BK": 64, "maxnreg": 64}),
        *(
            Config("merge", dtype, 0, 4, 1, {"BLOCK": block, "ROWS": 32, "SLOTS": 64, "BK": 64})
            for block in ((64,) if dtype == "fp32" else (128,))
        ),
    ]


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
)


def serving(kernel: str, dtype: str, depth: int, arch: int) -> Config | None:
    """The shipped config for a padded depth, the one made for it first; None where none serves."""
    return best(CONFIGS, kernel, dtype, depth, arch)
