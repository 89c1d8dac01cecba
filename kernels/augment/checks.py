"""What a call of ``augment`` may look like; every refusal names the argument.

Shapes, dtypes and devices are checked everywhere; the numbers in table and sizes on the CPU alone,
because reading them back would stop a device.
"""

# shapes: V views, N samples; P values, C codes
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastssl.kernels.augment import settings as choices
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import CODES, JITTER_ORDERS, STAGE_BIT, STAGES, VALUES, Table

DTYPES = (torch.uint8, torch.float32, torch.float64)
LARGEST_SIDE = 1 << 15
"""Of a view, so that its pixels are counted in 32 bits."""
FLOAT32 = torch.finfo(torch.float32)


def bad(argument: str, expected: str, received: object) -> ValueError:
    """The refusal of ``argument``."""
    return ValueError(f"augment: {argument} must be {expected}; received {received}")


def as_list(images: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """One 4-D tensor, or one 3-D tensor for each sample; ValueError for anything else."""
    if isinstance(images, Tensor):
        _check_image("images", images, 4, "(N, 3, H, W) or a sequence of (3, H, W)")
        return [images]
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise bad("images", "a tensor or a sequence of tensors", type(images).__name__)
    if len(images) == 0:
        raise bad("images", "at least one image", "an empty sequence")
    for position, image in enumerate(images):
        _check_image(f"images[{position}]", image, 3, "(3, H, W)")
        if image.dtype != images[0].dtype:
            raise bad(f"images[{position}]", f"{images[0].dtype} like images[0]", image.dtype)
        if image.device != images[0].device:
            raise bad(f"images[{position}]", f"on {images[0].device}", image.device)
    return list(images)


def _check_image(name: str, image: object, dim: int, shape: str) -> None:
    if not isinstance(image, Tensor):
        raise bad(name, f"a tensor {shape}", type(image).__name__)
    if image.dim() != dim or image.shape[-3] != 3:
        raise bad(name, f"of shape {shape}", f"shape {tuple(image.shape)}")
    if image.dtype not in DTYPES:
        raise bad(name, "uint8, float32 or float64", image.dtype)
    if any(side < 1 for side in image.shape):
        raise bad(name, "non-empty", f"shape {tuple(image.shape)}")


def check(images: list[Tensor], sizes: Tensor | None, table: Table, size: int) -> None:
    """ValueError for shapes, dtypes or devices that do not fit each other."""
    if not isinstance(table, Table):
        raise bad("table", "a Table", type(table).__name__)
    if not isinstance(size, int | torch.SymInt) or isinstance(size, bool) or size < 1:
        raise bad("size", "a whole number of at least 1", repr(size))
    if size > LARGEST_SIDE:
        raise bad("size", f"at most {LARGEST_SIDE}", size)
    num_samples = images[0].shape[0] if images[0].dim() == 4 else len(images)
    values, codes = table.values_VNP, table.codes_VNC
    for name, tensor, columns, dtypes in (
        ("table.values_VNP", values, VALUES, (torch.float32, torch.float64)),
        ("table.codes_VNC", codes, CODES, (torch.int32,)),
    ):
        if not isinstance(tensor, Tensor):
            raise bad(name, "a tensor", type(tensor).__name__)
        if tensor.dim() != 3 or tensor.shape[1] != num_samples or tensor.shape[2] != len(columns):
            expected = f"of shape (V, {num_samples}, {len(columns)})"
            raise bad(name, expected, f"shape {tuple(tensor.shape)}")
        if tensor.dtype not in dtypes:
            raise bad(name, " or ".join(str(dtype) for dtype in dtypes), tensor.dtype)
        if tensor.device != images[0].device:
            raise bad(name, f"on {images[0].device} like the images", tensor.device)
    if values.shape[0] < 1 or codes.shape[0] != values.shape[0]:
        received = f"{values.shape[0]} and {codes.shape[0]}"
        raise bad("table", "of as many views in values as in codes, at least one", received)
    if sizes is not None:
        _check_sizes(sizes, images)


def _check_sizes(sizes: object, images: list[Tensor]) -> None:
    if images[0].dim() != 4:
        raise bad("sizes_N2", "None for a sequence of images", "sizes")
    if not isinstance(sizes, Tensor):
        raise bad("sizes_N2", "an int64 tensor (N, 2)", type(sizes).__name__)
    if sizes.dtype != torch.int64 or sizes.shape != (len(images[0]), 2):
        expected = f"int64 of shape ({len(images[0])}, 2)"
        raise bad("sizes_N2", expected, f"{sizes.dtype} {tuple(sizes.shape)}")
    if sizes.device != images[0].device:
        raise bad("sizes_N2", f"on {images[0].device} like the images", sizes.device)


def recheck(
    images: list[Tensor],
    sizes: Tensor | None,
    values_VNP: Tensor,
    codes_VNC: Tensor,
    size: int,
    settings: Settings,
) -> None:
    """Every check but that of the numbers, for calls of the operator itself: it reads memory."""
    single = len(images) == 1 and images[0].dim() == 4
    images = as_list(images[0] if single else images)
    check_settings(settings)
    check(images, sizes, Table(values_VNP, codes_VNC), size)


def check_grad(
    grad: Tensor, images: list[Tensor], values_VNP: Tensor, size: int, settings: Settings
) -> None:
    """ValueError for a gradient that is not like the views."""
    shape = (*values_VNP.shape[:2], 3, size, size)
    dtype = settings.view_dtype(images[0].dtype)
    if grad.shape != shape or grad.dtype != dtype:
        raise bad("grad", f"{dtype} {shape}", f"{grad.dtype} {tuple(grad.shape)}")


def check_settings(settings: Settings) -> None:
    """ValueError for a choice that does not exist."""
    if not isinstance(settings, Settings):
        raise bad("settings", "Settings", type(settings).__name__)
    for name, allowed in (
        ("interpolation", choices.INTERPOLATIONS),
        ("hue", choices.HUES),
        ("affine_interpolation", choices.AFFINE_INTERPOLATIONS),
        ("dtype", choices.DTYPES),
        ("memory_format", choices.MEMORY_FORMATS),
    ):
        if getattr(settings, name) not in allowed:
            raise bad(f"settings.{name}", f"one of {allowed}", repr(getattr(settings, name)))
    window = settings.blur_window
    if not isinstance(window, int) or window < 1 or window % 2 == 0:
        raise bad("settings.blur_window", "odd and positive", repr(window))
    if window > 2 * LARGEST_SIDE:
        raise bad("settings.blur_window", f"less than {2 * LARGEST_SIDE}", window)
    if (settings.mean is None) != (settings.std is None):
        raise bad("settings.mean and std", "given together", f"{settings.mean}, {settings.std}")
    if settings.mean is None or settings.std is None:
        return
    for name, numbers in (("mean", settings.mean), ("std", settings.std)):
        if len(numbers) != 3 or not all(abs(x) <= FLOAT32.max for x in numbers):
            raise bad(f"settings.{name}", "three finite numbers of float32", numbers)
    if not all(number >= FLOAT32.tiny for number in settings.std):
        raise bad("settings.std", f"positive, at least {FLOAT32.tiny:.3g}", settings.std)


def check_numbers(
    images: list[Tensor],
    sizes_N2: Tensor | None,
    values_VNP: Tensor,
    codes_VNC: Tensor,
    size: int,
    blur_window: int,
) -> None:
    """ValueError for numbers that no view can be made of; reads them (CPU tensors)."""
    table = Table(values_VNP.detach(), codes_VNC)
    if not values_VNP.isfinite().all():
        wrong = ~values_VNP.isfinite()
        _refuse(wrong.any(-1), f"table.{VALUES[int(wrong.nonzero()[0, 2])]}", "finite", wrong)
    limit_N2 = _limits(images, sizes_N2)
    for begin, extent, axis in (("left", "width", 1), ("top", "height", 0)):
        start, length = table.value(begin), table.value(extent)
        _refuse(length <= 0, f"table.{extent}", "positive", length)
        outside = (start >= limit_N2[:, axis]) | (start + length <= 0)
        _refuse(outside, f"table.{begin}", "of a box that overlaps its image", start)
    stages = table.code("stages")
    _refuse((stages < 0) | (stages >= 1 << len(STAGES)), "table.stages", "bits of STAGES", stages)
    in_order, bits = table.code("jitter_order"), table.code("posterize_bits")
    sigma, scale = table.value("sigma"), table.value("scale")
    for stage, name, wrong, expected, received in (
        ("jitter", "jitter_order", (in_order < 0) | (in_order >= len(JITTER_ORDERS)),
         f"an index of JITTER_ORDERS (0 to {len(JITTER_ORDERS) - 1})", in_order),
        ("posterize", "posterize_bits", (bits < 1) | (bits > 8), "1 to 8", bits),
        ("blur", "sigma", sigma <= 0, "positive where blur runs", sigma),
        ("affine", "scale", scale <= 0, "positive where affine runs", scale),
    ):  # fmt: skip
        _refuse(wrong & ((stages & STAGE_BIT[stage]) != 0), f"table.{name}", expected, received)
    if blur_window // 2 >= size and table.runs("blur").any():
        expected = f"less than {2 * size} for views of {size} pixels (reflect padding)"
        raise bad("settings.blur_window", expected, blur_window)


def _limits(images: list[Tensor], sizes_N2: Tensor | None) -> Tensor:
    """(N or 1, 2) height and width of each image."""
    if images[0].dim() == 3:
        return torch.tensor([tuple(image.shape[1:]) for image in images])
    padded = torch.tensor(tuple(images[0].shape[2:]))
    if sizes_N2 is None:
        return padded[None]
    wrong_N = ((sizes_N2 < 1) | (sizes_N2 > padded)).any(1)
    if wrong_N.any():
        sample = int(wrong_N.nonzero()[0])
        expected = f"between 1 and the padded {tuple(padded.tolist())}"
        raise bad(f"sizes_N2[{sample}]", expected, tuple(sizes_N2[sample].tolist()))
    return sizes_N2


def _refuse(wrong_VN: Tensor, name: str, expected: str, received: Tensor) -> None:
    if wrong_VN.any():
        view, sample = wrong_VN.nonzero()[0].tolist()
        found = received[view, sample].tolist() if received.dtype != torch.bool else "NaN or inf"
        raise bad(f"{name}[{view}, {sample}] (view, sample)", expected, found)
