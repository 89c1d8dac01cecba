"""What ``benchmarks.micro.augment`` races: images, tables, peers with the same policy, the gate.

The policy is SimCLR's (Chen et al. 2020, appendix A): crop 0.08 to 1, flip, jitter 0.8 (0.8 0.8 0.8
0.2), grey 0.2, blur 0.5 with sigma 0.1 to 2, normalise. Everybody draws within the timed call.
"""

# shapes: N samples, S side of a view
from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastssl.kernels.augment import reference
from fastssl.kernels.augment.op import augment
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.spec import NORMALISE, picture, still
from fastssl.kernels.augment.table import JITTER_ORDERS, STAGE_BIT, Table

Step = Callable[[], object]
JITTER = (0.8, 0.8, 0.8, 0.2)
SHARES = {"hflip": 0.5, "jitter": 0.8, "gray": 0.2, "blur": 0.5}
STAGE_ROWS = ("hflip", "affine", "jitter", "gray", "blur", "solarize", "posterize", "equalize")
VALUE_ERROR = 2e-4  # of normalised views against float64, 99.5 % of the values
GRADIENT_ERROR = 1e-2  # of a parameter's gradient, in units of the column's largest
PEERS = {"torchvision v2": "torchvision", "kornia": "kornia", "DALI": "nvidia.dali"}


@dataclass(frozen=True)
class Shape:
    """Square images of ``side`` pixels to views of ``size``, a batch of them."""

    samples: int
    side: int
    size: int
    window: int  # of the blur

    def images(self) -> Tensor:
        """(N, 3, side, side) uint8."""
        few = [picture((self.side, self.side), seed, torch.uint8) for seed in range(8)]
        return torch.stack([few[n % 8].roll(n, 2) for n in range(self.samples)])

    def settings(self) -> Settings:
        return Settings(blur_window=self.window, **NORMALISE)


def draw(shape: Shape, generator: torch.Generator) -> Table:
    """SimCLR's table: one vectorised draw; a crop is redrawn smaller rather than rejected."""
    num, side = shape.samples, float(shape.side)
    u = torch.rand(16, num, generator=generator)
    table = still([(shape.side, shape.side)] * num)
    area, ratio = 0.08 + 0.92 * u[0], ((2 * u[1] - 1) * math.log(4 / 3)).exp()
    width = (side * (area * ratio).sqrt()).round().clamp(1, side)
    height = (side * (area / ratio).sqrt()).round().clamp(1, side)
    columns = {"width": width, "height": height, "sigma": 0.1 + 1.9 * u[4]}
    columns["left"] = (u[2] * (side - width + 1)).floor().clamp(max=side - 1)
    columns["top"] = (u[3] * (side - height + 1)).floor().clamp(max=side - 1)
    names = ("brightness", "contrast", "saturation", "hue")
    for row, (name, strength) in enumerate(zip(names, JITTER, strict=True), start=5):
        columns[name] = strength * (2 * u[row] - 1) + (name != "hue")
    for name, column in columns.items():
        table.value(name)[0] = column
    stages = torch.zeros(num, dtype=torch.int32)
    for row, (stage, share) in enumerate(SHARES.items(), start=9):
        stages |= (u[row] < share).int() * STAGE_BIT[stage]
    table.code("stages")[0] = stages
    table.code("jitter_order")[0] = (u[13] * len(JITTER_ORDERS)).int()
    return table


def policy_steps(shape: Shape) -> dict[str, Step]:
    """One batch of views each; peers that are not installed are left out (the caller says so)."""
    images, settings = shape.images(), shape.settings()
    generator = torch.Generator().manual_seed(0)
    steps: dict[str, Step] = {
        "ours": lambda: augment(images, draw(shape, generator), size=shape.size, settings=settings),
        "ours, table given": given_step(shape),
    }
    makers = {"torchvision v2": torchvision_step, "kornia": kornia_step, "DALI": dali_step}
    for name, make in makers.items():
        if installed(name):
            steps[name] = make(shape, images)
    return steps


def installed(peer: str) -> bool:
    """Whether the peer can be imported."""
    package = PEERS[peer]
    outer = package.split(".")[0]
    return importlib.util.find_spec(outer) is not None and (
        importlib.util.find_spec(package) is not None
    )


def torchvision_step(shape: Shape, images: Tensor) -> Step:
    """Image by image on uint8 tensors, as a data set does."""
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomResizedCrop(shape.size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(shape.window, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(**NORMALISE),
        ]
    )
    return lambda: torch.stack([transform(image) for image in images])


def kornia_step(shape: Shape, images: Tensor) -> Step:
    """The whole batch at once, on floats."""
    import kornia.augmentation as K

    mean, std = (torch.tensor(NORMALISE[name]) for name in ("mean", "std"))
    transform = torch.nn.Sequential(
        K.RandomResizedCrop((shape.size, shape.size), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*JITTER, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((shape.window, shape.window), (0.1, 2.0), p=0.5),
        K.Normalize(mean, std),
    )

    def step() -> Tensor:
        with torch.no_grad():
            return transform(images.float() / 255)

    return step


def dali_step(shape: Shape, images: Tensor) -> Step:
    """Its CPU operators over images in memory (HWC), on as many threads as torch."""
    from nvidia.dali import fn, pipeline_def, types

    arrays = [np.ascontiguousarray(image.permute(1, 2, 0).numpy()) for image in images]
    scaled = {key: [255 * number for number in NORMALISE[key]] for key in ("mean", "std")}

    @pipeline_def(
        batch_size=shape.samples,
        num_threads=torch.get_num_threads(),
        device_id=None,
        enable_conditionals=True,
    )
    def pipeline():
        x = fn.external_source(lambda: arrays, layout="HWC")
        x = fn.random_resized_crop(
            x, size=shape.size, random_area=(0.08, 1.0), random_aspect_ratio=(3 / 4, 4 / 3),
            antialias=True,
        )  # fmt: skip
        if fn.random.coin_flip(probability=0.8, dtype=types.BOOL):
            b, c, s = (fn.random.uniform(range=(0.2, 1.8)) for _ in range(3))
            hue = fn.random.uniform(range=(-72.0, 72.0))
            x = fn.color_twist(x, brightness=b, contrast=c, saturation=s, hue=hue)
        if fn.random.coin_flip(probability=0.2, dtype=types.BOOL):
            x = fn.hsv(x, saturation=0.0)
        if fn.random.coin_flip(probability=0.5, dtype=types.BOOL):
            x = fn.gaussian_blur(
                x, window_size=shape.window, sigma=fn.random.uniform(range=(0.1, 2.0))
            )
        return fn.crop_mirror_normalize(
            x, mirror=fn.random.coin_flip(), output_layout="CHW", dtype=types.FLOAT, **scaled
        )

    built = pipeline(prefetch_queue_depth=1)
    built.build()
    return lambda: torch.from_numpy(built.run()[0].as_array())


def backward_steps(shape: Shape) -> dict[str, Step]:
    """Views by crop and jitter in the fixed order, and the gradient of every parameter."""
    images = shape.images().float() / 255
    table = jittered(shape)
    weights = torch.rand(1, shape.samples, 3, shape.size, shape.size)
    values = table.values_VNP.clone().requires_grad_()

    def ours() -> Tensor:
        views = augment(images, Table(values, table.codes_VNC), size=shape.size)
        return torch.autograd.grad(views, values, weights)[0]

    steps: dict[str, Step] = {"ours": ours}
    if installed("kornia"):
        steps["kornia"] = kornia_backward(shape, images, table, weights[0])
    return steps


def jittered(shape: Shape) -> Table:
    """SimCLR's boxes and factors; every sample is jittered and nothing else."""
    table = draw(shape, torch.Generator().manual_seed(1))
    table.code("stages").fill_(STAGE_BIT["jitter"])
    table.code("jitter_order").zero_()
    return table


def kornia_backward(shape: Shape, images: Tensor, table: Table, weights: Tensor) -> Step:
    """Its differentiable crop (no antialias) and the four adjustments."""
    from kornia.enhance import (
        adjust_brightness_accumulative,
        adjust_contrast_with_mean_subtraction,
        adjust_hue,
        adjust_saturation_with_gray_subtraction,
    )
    from kornia.geometry.transform import crop_and_resize

    left, top, width, height = (
        table.value(name)[0].clone() for name in ("left", "top", "width", "height")
    )
    factors = [
        table.value(name)[0].clone().requires_grad_()
        for name in ("brightness", "contrast", "saturation", "hue")
    ]
    box = torch.stack([left, top, width, height], dim=1).requires_grad_()

    def step() -> tuple[Tensor, ...]:
        x0, y0, w, h = box.unbind(1)
        x1, y1 = x0 + w - 1, y0 + h - 1
        corners = torch.stack([x0, y0, x1, y0, x1, y1, x0, y1], dim=1).view(-1, 4, 2)
        x = crop_and_resize(images, corners, (shape.size, shape.size))
        x = adjust_brightness_accumulative(x, factors[0])
        x = adjust_contrast_with_mean_subtraction(x, factors[1])
        x = adjust_saturation_with_gray_subtraction(x, factors[2])
        x = adjust_hue(x, 2 * math.pi * factors[3])
        return torch.autograd.grad(x, [box, *factors], weights)

    return step


def stage_steps(shape: Shape) -> dict[str, Step]:
    """The crop alone, then the crop and one stage on every sample."""
    images, settings = shape.images(), shape.settings()
    steps: dict[str, Step] = {}
    for stage in ("crop", *STAGE_ROWS):
        table = draw(shape, torch.Generator().manual_seed(2))
        table.code("stages").fill_(STAGE_BIT.get(stage, 0))
        table.value("angle").fill_(20.0)
        table.value("solarize").fill_(0.5)
        table.code("posterize_bits").fill_(4)
        steps[stage] = lambda table=table: augment(
            images, table, size=shape.size, settings=settings
        )
    return steps


def gate(shape: Shape) -> list[str]:
    """Views and parameter gradients against float64; peers by shape and normalised range."""
    images, settings = shape.images(), shape.settings()
    table = draw(shape, torch.Generator().manual_seed(3))
    arguments = ([images], None, table.values_VNP, table.codes_VNC, shape.size, settings)
    exact = reference.render(*arguments, dtype=torch.float64)
    views = augment(images, table, size=shape.size, settings=settings)
    error = (views - exact).abs().flatten().kthvalue(int(0.995 * views.numel())).values.item()
    wrong = [] if error <= VALUE_ERROR else [f"views: error {error:.2g} against float64"]
    wrong += gradient_errors(shape)
    for name, step in policy_steps(shape).items():
        made = step()
        assert isinstance(made, Tensor)
        made = made.reshape(-1, 3, shape.size, shape.size)
        if len(made) != shape.samples or not -2.3 <= made.min() < made.max() <= 2.8:
            wrong.append(f"{name}: {tuple(made.shape)} from {made.min():.2f} to {made.max():.2f}")
    return wrong


def gradient_errors(shape: Shape) -> list[str]:
    """The parameter gradients of the raced backward against float64, away from kinks.

    Whole boxes, equal channels and values of 0 or 1 have several right slopes.
    """
    images, table = shape.images().float() / 255, jittered(shape)
    images = 0.1 + 0.8 * images + 1e-3 * torch.rand(images.shape)
    table.values_VNP[..., :4] = 0.93 * table.values_VNP[..., :4] + 0.071
    weights = torch.rand(1, shape.samples, 3, shape.size, shape.size)
    gradients = []
    for dtype in (torch.float64, torch.float32):
        values = table.values_VNP.to(dtype).requires_grad_()
        made = Table(values, table.codes_VNC)
        views = augment(images.to(dtype), made, size=shape.size)
        gradients.append(torch.autograd.grad(views, values, weights.to(dtype))[0])
    exact, found = gradients
    scale = exact.abs().amax((0, 1)).clamp_min(1e-3)
    error = ((found - exact).abs() / scale).flatten()
    worst = error.kthvalue(int(0.995 * error.numel())).values.item()
    return [] if worst <= GRADIENT_ERROR else [f"gradient: error {worst:.2g} against float64"]


def memory_step(*, samples: int, side: int, size: int, window: int) -> Step:
    """What benchmarks.memory measures, in its own process."""
    shape = Shape(samples, side, size, window)
    given_step(Shape(8, 24, 16, 3))()  # threads, buffers of the library, imports
    return given_step(shape)


def given_step(shape: Shape) -> Step:
    """Our step with a given table."""
    images, settings = shape.images(), shape.settings()
    table = draw(shape, torch.Generator().manual_seed(0))
    return lambda: augment(images, table, size=shape.size, settings=settings)
