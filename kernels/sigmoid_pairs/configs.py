"""What of ``sigmoid_pairs`` is shipped for CUDA: one line per binary."""

from __future__ import annotations

from fastssl.kernels.cuda import Config, best


def _configs(dtype: str, precision: str, block: int, depth: int, stages: int) -> list[Config]:
    """Losses alone, and losses with the weights that two GEMMs read; any depth."""
    tile = {"BI": block, "BJ": 64, "BK": depth, "PRECISION": precision}
    # FMA products keep their operands in registers: beside the sums of rows, only half as deep
    shallow = dict(tile, BK=16) if precision == "ieee" else tile
    return [
        Config(kernel, dtype, 0, 8, stages, shallow, op="sigmoid_pairs")
        for kernel in ("rows", "weights")
    ]


CONFIGS: tuple[Config, ...] = (
    *_configs("bf16", "tf32", 128, 64, 3),
    *_configs("fp16", "tf32", 128, 64, 3),
    *_configs("fp32", "ieee", 64, 32, 2),
    *_configs("tf32", "tf32", 128, 32, 3),
)


def serving(kernel: str, dtype: str, depth: int, arch: int) -> Config | None:
    """The shipped config for a padded depth; None where none serves."""
    return best(CONFIGS, kernel, dtype, depth, arch)
