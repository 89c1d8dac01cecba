"""Compiles shipped Triton kernels without a GPU and reads what the binary says about itself.

Each kernel is compiled with the arguments that a real call passes, specialised as the JIT would:
without the divisibility attributes the code, and every number here, would be another.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import create_function_from_signature

from fastssl.kernels.augment import configs as augment_configs
from fastssl.kernels.augment import launch as augment_launch
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import CODES, VALUES
from fastssl.kernels.contrast import call as contrast_call
from fastssl.kernels.contrast import configs as contrast_configs
from fastssl.kernels.contrast import launch as contrast_launch
from fastssl.kernels.contrast.reference import Ids
from fastssl.kernels.cuda import ARCHS, Config
from fastssl.kernels.ntxent import configs as ntxent_configs
from fastssl.kernels.ntxent import launch as ntxent_launch
from fastssl.kernels.sigmoid_pairs import configs as sigmoid_configs
from fastssl.kernels.sigmoid_pairs import launch as sigmoid_launch
from fastssl.kernels.sigmoid_pairs.reference import Problem

OF_OPS = (ntxent_configs, contrast_configs, sigmoid_configs, augment_configs)
CONFIGS = tuple(config for configs in OF_OPS for config in configs.CONFIGS)
LAUNCHERS: dict[str, Any] = {
    "ntxent": ntxent_launch,
    "contrast": contrast_call,
    "sigmoid_pairs": sigmoid_launch,
    "augment": augment_launch,
}  # who owns KERNELS and launch
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Chip:
    """Limits of one multiprocessor and peaks of the chip (NVIDIA's data sheets, dense)."""

    name: str
    shared_block: int  # bytes a block may have
    shared_multiprocessor: int
    warps: int
    multiprocessors: int
    clock_ghz: float
    tflops: dict[str, float]  # by Config.dtype
    bytes_per_s: float
    ex2_per_clock: int = 16
    registers: int = 65_536
    blocks: int = 32


def _peaks(half: float, tf32: float, fp32: float) -> dict[str, float]:
    of_one = {"bf16": half, "fp16": half, "tf32": tf32, "fp32": fp32}
    return of_one | {"fp32 bf16": half / 3, "fp32 fp16": half / 6}  # bfloat16 products for one


CHIPS = {
    80: Chip("A100", 166_912, 167_936, 64, 108, 1.41, _peaks(312, 156, 19.5), 2.04e12),
    90: Chip("H100", 232_448, 233_472, 64, 132, 1.83, _peaks(989, 495, 67), 3.35e12),
    100: Chip("B200", 232_448, 233_472, 64, 148, 1.85, _peaks(2250, 1125, 75), 8.0e12),
}


@dataclass(frozen=True)
class Binary:
    """What one compiled kernel uses, per thread (registers, stack) or per block (shared)."""

    config: Config
    arch: int
    registers: int
    stack: int  # bytes of local memory: spills
    shared: int
    mma: int  # tensor-core instructions
    ex2: int

    @property
    def occupancy(self) -> float:
        """Resident warps over the multiprocessor's limit; 0 where a block cannot launch."""
        chip, warps = CHIPS[self.arch], self.config.num_warps
        per_warp = -(-self.registers * 32 // 256) * 256
        by_registers = chip.registers // (per_warp * warps)
        by_shared = chip.shared_multiprocessor // (self.shared + 1024)
        blocks = min(by_registers, by_shared, chip.warps // warps, chip.blocks)
        return blocks * warps / chip.warps if self.shared <= chip.shared_block else 0.0

    @property
    def problem(self) -> str:
        """Why it must not ship, or the empty string."""
        limit = CHIPS[self.arch].shared_block
        if self.shared > limit:
            return f"cannot launch: {self.shared:,} bytes of shared memory, limit {limit:,}"
        if self.stack > 0:
            return f"spills {self.stack} bytes per thread"
        if self.registers < 10:  # seen on sm_100: no error and no code
            return "the compiler has left nothing of it"
        return "" if self.occupancy > 0 else "cannot launch: not one block fits"


def shipped(archs: tuple[int, ...] = ARCHS) -> Iterator[tuple[Config, int]]:
    """Every (config, architecture) that users can get."""
    for arch in archs:
        yield from ((config, arch) for config in CONFIGS if arch in config.archs)


def compile_config(config: Config, arch: int, arguments: tuple | None = None) -> Binary:
    """Compiles one config. ``arguments`` default to those of a real call."""
    function = LAUNCHERS[config.op].KERNELS[config.kernel]
    given = recorded()[_key(config)] if arguments is None else arguments
    return compile_call(config, arch, function, given)


def compile_call(config: Config, arch: int, function, arguments: tuple) -> Binary:
    """Compiles any Triton function for these arguments, specialised as a call of it would be."""
    target = GPUTarget("cuda", arch, 32)
    backend = CUDABackend(target)
    bind = create_function_from_signature(function.signature, function.params, backend)
    bound, specialisation, keywords = bind(*arguments, **config.options())
    packed = function._pack_args(backend, keywords, bound, specialisation, keywords)
    options, signature, constants, attributes = packed
    source = ASTSource(function, signature, constants, attributes)
    compiled = triton.compile(source, target=target, options=options.__dict__)
    return _read(config, arch, compiled)


def _read(config: Config, arch: int, compiled) -> Binary:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", str(cubin))
        code = _run("nvdisasm", "-c", str(cubin))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, f"cuobjdump printed no resource usage for {config}"
    return Binary(
        config=config,
        arch=arch,
        registers=int(found[1]),
        stack=int(found[2]),
        shared=compiled.metadata.shared,
        mma=len(re.findall(r"\b(?:HMMA|HGMMA|UTC\w*MMA)", code)),
        ex2=code.count("MUFU.EX2"),
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [str(_TOOLS / tool), *arguments], check=True, capture_output=True, text=True
    ).stdout


_CALLS: dict[tuple[str, str, str, int], tuple] = {}


def _key(config: Config) -> tuple[str, str, str, int]:
    return config.op, config.kernel, config.dtype, config.depth


def recorded() -> dict[tuple[str, str, str, int], tuple]:
    """The arguments of one call of every shipped config, by (op, kernel, dtype, depth)."""
    if not _CALLS:
        with _recording():
            for dtype, precision in (
                (torch.bfloat16, "highest"),
                (torch.float16, "highest"),
                (torch.float32, "highest"),
                (torch.float32, "high"),
            ):
                torch.set_float32_matmul_precision(precision)
                for embedding in (64, 128, 256, 512):
                    _call_ntxent(dtype, embedding)
                    _call_contrast(dtype, dtype, embedding)
                    _call_sigmoid_pairs(dtype, embedding)
            for embedding in (64, 128, 256, 512):
                _call_contrast(torch.float32, torch.bfloat16, embedding)
                _call_contrast(torch.float32, torch.float16, embedding)
            for dtype in (torch.float32, torch.bfloat16):
                _call_augment(dtype)
    return _CALLS


@contextmanager
def _recording() -> Iterator[None]:
    """Launches are noted instead of run; nothing of the caller's settings is left changed."""
    before = [owner.launch for owner in LAUNCHERS.values()]
    precision = torch.get_float32_matmul_precision()

    def note(config: Config, grid: tuple[int, ...], *arguments: object) -> None:
        _CALLS.setdefault(_key(config), arguments)

    for owner in LAUNCHERS.values():
        owner.launch = note
    try:
        yield
    finally:
        for owner, launch in zip(LAUNCHERS.values(), before, strict=True):
            owner.launch = launch
        torch.set_float32_matmul_precision(precision)


def _call_ntxent(dtype: torch.dtype, embedding: int) -> None:
    views = [torch.zeros(64, embedding, dtype=dtype) for _ in range(2)]
    temperature = torch.tensor(0.1)
    _, *saved = ntxent_launch.forward(views, temperature, "mean", True)
    ntxent_launch.backward(torch.ones(()), views, temperature, "mean", *saved)


def _call_contrast(dtype: torch.dtype, stored: torch.dtype, embedding: int) -> None:
    q, k = (torch.zeros(64, embedding, dtype=x) for x in (dtype, stored))
    given = q, k, torch.tensor(10.0), Ids()
    contrast_launch.forward_mean(*given, 1.0)
    for columns in (False, True):
        rows, cols, *_ = contrast_launch.forward(*given, columns, 1.0, True)
        for wants in ((True, False), (True, True)):
            contrast_launch.backward(rows, cols, *given, rows, cols, rows, 1.0, wants)


def _call_sigmoid_pairs(dtype: torch.dtype, embedding: int) -> None:
    q, k = (torch.zeros(64, embedding, dtype=dtype) for _ in range(2))
    problem = Problem(q, k, torch.tensor(10.0), torch.tensor(-10.0), 0)
    sigmoid_launch.forward(problem, False, False)
    sigmoid_launch.total(problem, (True, True))


def _call_augment(dtype: torch.dtype) -> None:
    """Views of this dtype, from images of either."""
    table = torch.zeros(2, 4, len(VALUES)), torch.zeros(2, 4, len(CODES), dtype=torch.int32)
    for images_dtype in (torch.uint8, torch.float32):
        images = [torch.zeros(4, 3, 32, 32, dtype=images_dtype)]
        augment_launch.forward(images, None, *table, 24, Settings(dtype=dtype))
