"""``augment`` on CUDA: scratch memory and the five launches of its kernels.

crop [-> tone] [-> blur rows -> blur columns] [-> equalize]; each sample leaves at the first one
that has nothing to wait for. No launch waits for the device. float64 images, and every gradient,
are the plain-torch reference's.
"""

# shapes: V views, N samples, M = V N, S side of a view, H x W an image; P values, C codes
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastssl.kernels.augment import kernel, kernel_tone, reference
from fastssl.kernels.augment.configs import BLOCK, serving
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.cuda import Config, architecture, on_device, serves

KERNELS = {
    "crop_uint8": kernel.augment_crop_kernel,
    "crop_float": kernel.augment_crop_kernel,
    "tone": kernel_tone.augment_tone_kernel,
    "blur_rows": kernel_tone.augment_blur_rows_kernel,
    "blur_columns": kernel_tone.augment_blur_columns_kernel,
    "equalize": kernel_tone.augment_equalize_kernel,
}
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
LEVELS = 256
backward = reference.backward


@dataclass(frozen=True)
class Scratch:
    """Planes between launches (y: of the blur alone), grey of each block, tables of equalize."""

    x_M3SS: Tensor
    y_M3SS: Tensor
    parts_MT: Tensor
    luts_M3L: Tensor


def forward(
    images: list[Tensor],
    sizes_N2: Tensor | None,
    values_VNP: Tensor,
    codes_VNC: Tensor,
    size: int,
    settings: Settings,
) -> Tensor:
    """(V, N, 3, S, S) in ``settings.dtype``."""
    if images[0].dtype == torch.float64 or not serves(images[0].device, "augment"):
        return reference.forward(images, sizes_N2, values_VNP, codes_VNC, size, settings)
    values_VNP = values_VNP.detach().to(torch.float32).contiguous()
    codes_VNC = codes_VNC.contiguous()
    last = settings.memory_format == torch.channels_last
    shape = (size, size, 3) if last else (3, size, size)
    shape = (*values_VNP.shape[:2], *shape)
    out = allocate(shape, settings.dtype, images[0].device)
    out_VN3SS = out.movedim(-1, 2) if last else out
    with on_device(images[0]):
        _render(images, sizes_N2, values_VNP, codes_VNC, out_VN3SS, settings)
    return out_VN3SS


def _render(images, sizes_N2, values_VNP, codes_VNC, out_VN3SS, settings: Settings) -> None:
    size, device = out_VN3SS.shape[-1], out_VN3SS.device
    M, tiles = out_VN3SS.shape[0] * out_VN3SS.shape[1], -(-size * size // BLOCK)
    half = settings.blur_window // 2
    planes = (M, 3, size, size)
    scratch = Scratch(
        allocate(planes, torch.float32, device),
        allocate(planes if half else (1,), torch.float32, device),
        allocate((M, tiles), torch.float32, device),
        allocate((M, 3, LEVELS), torch.float32, device),
    )
    table = (values_VNP, codes_VNC)
    x, blurs, yiq = scratch.x_M3SS, int(half > 0), int(settings.hue == "yiq")
    colours = (*(settings.mean or (0.0, 0.0, 0.0)), *(settings.std or (1.0, 1.0, 1.0)))
    end = (*colours, *out_VN3SS.stride()[1:])

    def run(name: str, programs: int, *arguments: object) -> None:
        config = serving(name, NAMES[settings.dtype], architecture(device))
        assert config is not None
        launch(config, (programs,), *arguments)

    run(
        "crop_uint8" if images[0].dtype == torch.uint8 else "crop_float", M * tiles,
        *_source(images, sizes_N2, device), *table, x, scratch.parts_MT, out_VN3SS,
        *_image(images), int(images[0].dim() == 3), int(sizes_N2 is not None),
        out_VN3SS.shape[1], size, tiles, int(settings.interpolation == "bicubic"), yiq,
        int(settings.affine_interpolation == "nearest"), blurs, *end,
    )  # fmt: skip
    run("tone", M * tiles, *table, x, scratch.parts_MT, out_VN3SS, size, tiles, yiq, blurs, *end)
    if half:
        run("blur_rows", M * tiles, *table, x, scratch.y_M3SS, size, tiles, half)
        run(
            "blur_columns", M * tiles, *table, x, scratch.y_M3SS, out_VN3SS, size, tiles, half, *end
        )
    run("equalize", M, *table, x, scratch.luts_M3L, out_VN3SS, size, *end)


def _source(images: list[Tensor], sizes_N2: Tensor | None, device) -> tuple[Tensor, Tensor]:
    """Where a ragged list lies, int64 (N, 6), and the sizes; memory that is never read if none."""
    nothing = torch.empty(1, dtype=torch.int64, device=device)
    sizes = nothing if sizes_N2 is None else sizes_N2.contiguous()
    if images[0].dim() == 4:
        return nothing, sizes
    rows = [(x.data_ptr(), *x.stride(), *x.shape[1:]) for x in images]
    table_N6 = torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda")
    return table_N6.to(device, non_blocking=True), sizes


def _image(images: list[Tensor]) -> tuple[int, ...]:
    """Address, steps of sample, channel, row and column, height and width of a batch."""
    if images[0].dim() == 3:
        return (0,) * 7
    return (images[0].data_ptr(), *images[0].stride(), *images[0].shape[2:])


def allocate(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Every scratch and output tensor of this module, so that tests can guard them all."""
    return torch.empty(shape, dtype=dtype, device=device)


def launch(config: Config, grid: tuple[int, ...], *arguments: object) -> None:
    """Every kernel launch of this module, so that the compile gate can record them all."""
    KERNELS[config.kernel][grid](*arguments, **config.options())
