"""What of ``augment`` is shipped for CUDA: one line per binary, read by launcher and gates."""

from __future__ import annotations

from typing import Any

from fastssl.kernels.cuda import ARCHS, Config, best

BLOCK = 128  # pixels of a program: one a thread; two cost the crop half of its occupancy


def _config(
    kernel: str,
    dtype: str,
    constants: dict[str, Any],
    warps: int = 4,
    archs: tuple[int, ...] = ARCHS,
) -> Config:
    """dtype: of the views."""
    return Config(kernel, dtype, 0, warps, 1, constants, archs, "augment")


def _family(dtype: str) -> list[Config]:
    tile = {"B": BLOCK}
    return [
        _config("crop_uint8", dtype, dict(tile, UINT8=True)),
        # left alone, the assembler aims at 64 registers for sm_80 and spills two
        _config("crop_float", dtype, dict(tile, UINT8=False, maxnreg=72), archs=(80,)),
        _config("crop_float", dtype, dict(tile, UINT8=False), archs=(90, 100)),
        _config("tone", dtype, dict(tile, PARTS=128)),
        _config("blur_rows", dtype, tile),
        _config("blur_columns", dtype, tile),
        _config("equalize", dtype, {"B": 1024}, warps=8),
    ]


CONFIGS: tuple[Config, ...] = (*_family("fp32"), *_family("bf16"))


def serving(kernel: str, dtype: str, arch: int) -> Config | None:
    """The shipped config for views of this dtype."""
    return best(CONFIGS, kernel, dtype, 0, arch)
