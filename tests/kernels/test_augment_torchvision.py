"""Every stage of ``augment`` is torchvision.transforms.v2.functional with the same parameters.

Floats agree to 1e-5. uint8 agrees to 1/255, torchvision's own rounding of every result; where it
rounds inside a stage as well the bound says so.
"""

# shapes: N samples, S side of a view
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastssl.kernels.augment import spec
from fastssl.kernels.augment.op import augment
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import JITTER_ORDERS, STAGE_BIT, Table

tv = pytest.importorskip("torchvision.transforms.v2.functional", reason="the peer")
MODES = pytest.importorskip("torchvision.transforms", reason="the peer").InterpolationMode

SIDE = 26
PLAIN = Settings()
FLOAT, LEVEL = 1e-5, 1 / 255 + 1e-6
DTYPES = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64], ids=str)


def rendered(
    stage: str | None, dtype: torch.dtype, settings: Settings = PLAIN, **values: object
) -> tuple[list[Tensor], Tensor]:
    """Images, and their views with only this stage at these values (one for each sample)."""
    count = max((len(v) for v in values.values() if isinstance(v, list)), default=2)
    images = [spec.picture((SIDE, SIDE), seed, dtype) for seed in range(count)]
    table = spec.still([(SIDE, SIDE)] * count, dtype=torch.float64)
    for name, value in values.items():
        column_VN = table.code(name) if name.startswith(("jitter_", "posterize_")) else None
        column_VN = table.value(name) if column_VN is None else column_VN
        column_VN.copy_(torch.as_tensor(value, dtype=column_VN.dtype))
    if stage is not None:
        table.code("stages").fill_(STAGE_BIT[stage])
    float_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    table = Table(table.values_VNP.to(float_dtype), table.codes_VNC)
    return images, augment(images, table, size=SIDE, settings=settings)[0]


def assert_same(
    found: Tensor, image: Tensor, peer: Callable, *arguments: object, level: float = LEVEL
) -> None:
    """uint8 to ``level``, floats to 1e-5 against torchvision in their own dtype."""
    expected = peer(image, *arguments)
    if image.dtype == torch.uint8:
        error = (found - expected / 255).abs().max().item()
        assert error <= level, f"{error * 255:.3f} levels"
        image = image / 255
        expected = peer(image, *arguments)
    error = (found - expected).abs().max().item()
    assert error <= FLOAT, error


BOXES = [(3, 2, 20, 17), (0, 0, 26, 26), (5, 9, 4, 6), (20, 1, 6, 25), (11, 11, 2, 1)]


@DTYPES
@pytest.mark.parametrize("size", [2, 7, 26, 41])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_crop_is_resized_crop(dtype, mode, size):
    """uint8 bicubic: torchvision clamps between its two passes, so only images without
    overshoots agree there to a level (of rounding after each pass).
    """
    images = [spec.picture((SIDE, SIDE), seed, dtype) for seed in range(len(BOXES))]
    table = spec.still([(SIDE, SIDE)] * len(BOXES))
    table.values_VNP[0, :, :4] = torch.tensor(BOXES, dtype=torch.float32)
    if mode == "bicubic" and dtype == torch.uint8:
        images = [64 + image // 2 for image in images]
    views = augment(images, table, size=size, settings=Settings(interpolation=mode))[0]
    for view, image, (left, top, width, height) in zip(views, images, BOXES, strict=True):
        box = (top, left, height, width)
        level = LEVEL if mode == "bilinear" else 1.6 / 255
        crop = (*box, [size, size], MODES(mode), True)
        assert_same(view, image, tv.resized_crop, *crop, level=level)


def test_bicubic_overshoots_are_clamped_for_uint8_alone():
    levels = spec.picture((SIDE, SIDE), 1, torch.uint8)
    settings = Settings(interpolation="bicubic")
    table = spec.still([(SIDE, SIDE)])
    whole = augment(levels[None], table, size=41, settings=settings)
    free = augment(levels[None] / 255, table, size=41, settings=settings)
    assert free.min() < 0 and free.max() > 1
    torch.testing.assert_close(whole, free.clamp(0, 1), rtol=0, atol=FLOAT)


@DTYPES
def test_flips(dtype):
    for stage, peer in (("hflip", tv.horizontal_flip), ("vflip", tv.vertical_flip)):
        images, views = rendered(stage, dtype)
        for view, image in zip(views, images, strict=True):
            expected = peer(image)
            exact = expected / 255 if dtype == torch.uint8 else expected
            assert torch.equal(view, exact)


AFFINE = {
    "angle": [0.0, 31.3, -120.7, 10.1, 5.5], "translate_x": [0.0, 2.2, -5.1, 0.3, 0.0],
    "translate_y": [0.0, -1.7, 3.3, 9.2, 0.0], "scale": [1.0, 0.63, 1.9, 1.1, 1.0],
    "shear_x": [0.0, 11.0, 0.0, -24.0, 30.0], "shear_y": [0.0, 0.0, 7.0, 13.0, -8.0],
}  # fmt: skip


@DTYPES
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_affine(dtype, mode):
    images, views = rendered("affine", dtype, Settings(affine_interpolation=mode), **AFFINE)
    for n, (view, image) in enumerate(zip(views, images, strict=True)):
        angle, x, y, scale, *shear = (column[n] for column in AFFINE.values())
        assert_same(view, image, tv.affine, angle, [x, y], scale, shear, MODES(mode))


FACTORS = [0.0, 0.4, 0.93, 1.0, 1.8]


@DTYPES
def test_brightness(dtype):
    images, views = rendered("jitter", dtype, brightness=FACTORS)
    for view, image, factor in zip(views, images, FACTORS, strict=True):
        assert_same(view, image, tv.adjust_brightness, factor)


@DTYPES
@pytest.mark.parametrize("name", ["contrast", "saturation"])
def test_contrast_and_saturation(dtype, name):
    """torchvision rounds grey values of uint8 down before it mixes them: up to |1 - f| more."""
    images, views = rendered("jitter", dtype, **{name: FACTORS})
    peer = getattr(tv, f"adjust_{name}")
    for view, image, factor in zip(views, images, FACTORS, strict=True):
        level = LEVEL * (1 + abs(1 - factor))
        assert_same(view, image, peer, factor, level=level)


@DTYPES
def test_hue(dtype):
    turns = [-0.5, -0.21, 0.0, 0.07, 0.33, 0.5]
    images, views = rendered("jitter", dtype, hue=turns)
    for view, image, turn in zip(views, images, turns, strict=True):
        assert_same(view, image, tv.adjust_hue, turn)


def test_hue_of_grey_and_of_primary_colours():
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 0.5, 1.0])] * 3).T.reshape(3, 1, 27)
    image = corners.expand(3, 27, 27).clone()
    table = spec.still([(27, 27)])
    table.value("hue").fill_(0.137)
    table.code("stages").fill_(STAGE_BIT["jitter"])
    found = augment(image[None], table, size=27)[0, 0]
    torch.testing.assert_close(found, tv.adjust_hue(image, 0.137), rtol=0, atol=FLOAT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_jitter_follows_the_order_of_each_sample(dtype):
    """Not for uint8, which torchvision rounds after each step."""
    orders = list(range(len(JITTER_ORDERS)))
    factors = {"brightness": 1.3, "contrast": 0.6, "saturation": 1.5, "hue": 0.11}
    images, views = rendered("jitter", dtype, jitter_order=orders, **factors)
    for view, image, order in zip(views, images, JITTER_ORDERS, strict=True):

        def peer(x, order=order):
            for step in order:
                name, factor = list(factors.items())[step]
                x = getattr(tv, f"adjust_{name}")(x, factor)
            return x

        assert_same(view, image, peer)


@DTYPES
def test_gray(dtype):
    images, views = rendered("gray", dtype)
    for view, image in zip(views, images, strict=True):
        assert_same(view, image, tv.rgb_to_grayscale, 3)


@DTYPES
@pytest.mark.parametrize("window", [1, 3, 9, 23, 51])
def test_blur(dtype, window):
    sigmas = [0.1, 0.7, 2.0]
    images, views = rendered("blur", dtype, Settings(blur_window=window), sigma=sigmas)
    for view, image, sigma in zip(views, images, sigmas, strict=True):
        assert_same(view, image, tv.gaussian_blur, [window, window], [sigma, sigma])


@DTYPES
def test_solarize(dtype):
    levels = [0, 100, 128, 255]
    images, views = rendered("solarize", dtype, solarize=[level / 255 for level in levels])
    for view, image, level in zip(views, images, levels, strict=True):
        assert_same(view, image, _solarize, level)


def _solarize(x: Tensor, level: int) -> Tensor:
    if x.dtype == torch.uint8:
        return tv.solarize(x, level)
    return tv.solarize(x, (torch.tensor(float(level), dtype=x.dtype) / 255).item())


@DTYPES
def test_posterize(dtype):
    bits = list(range(1, 9))
    images, views = rendered("posterize", dtype, posterize_bits=bits)
    for view, image, count in zip(views, images, bits, strict=True):
        assert_same(view, image, tv.posterize, count)


@DTYPES
def test_equalize(dtype):
    images, views = rendered("equalize", dtype)
    for view, image in zip(views, images, strict=True):
        assert_same(view, image, tv.equalize)


def test_equalize_of_few_levels():
    flat = torch.full((3, SIDE, SIDE), 0.3)
    flat[1, 0, 0], flat[2, :13] = 0.9, 0.1
    table = spec.still([(SIDE, SIDE)])
    table.code("stages").fill_(STAGE_BIT["equalize"])
    found = augment(flat[None], table, size=SIDE)[0, 0]
    torch.testing.assert_close(found, tv.equalize(flat), rtol=0, atol=FLOAT)


@DTYPES
def test_erase(dtype):
    boxes = [(2, 3, 7, 5), (0, 0, 26, 26), (20, 22, 6, 4), (4, 4, 0, 9)]
    columns = dict(zip(("left", "top", "width", "height"), zip(*boxes, strict=True), strict=True))
    colour = {"erase_red": 51 / 255, "erase_green": 204 / 255, "erase_blue": 0.0}
    sides = {f"erase_{name}": [float(x) for x in column] for name, column in columns.items()}
    images, views = rendered("erase", dtype, **sides, **colour)
    for view, image, (left, top, width, height) in zip(views, images, boxes, strict=True):

        def peer(x, box=(top, left, height, width)):
            fill = torch.tensor([51.0, 204.0, 0.0])[:, None, None]
            fill = fill.to(x.dtype) if x.dtype == torch.uint8 else (fill / 255).to(x.dtype)
            return tv.erase(x, *box, fill)

        assert_same(view, image, peer)


def test_erase_rounds_its_edges():
    table = spec.still([(8, 8)])
    for name, value in (("left", 1.5), ("top", 2.4), ("width", 3.2), ("height", 3.2)):
        table.value(f"erase_{name}").fill_(value)
    table.code("stages").fill_(STAGE_BIT["erase"])
    found = augment(torch.ones(1, 3, 8, 8), table, size=8)[0, 0, 0]
    expected = torch.ones(8, 8)
    expected[2:6, 2:5] = 0  # rows floor(2.9) to floor(6.1), columns floor(2) to floor(5.2)
    assert torch.equal(found, expected)


def test_normalise():
    settings = Settings(**spec.NORMALISE)
    images, views = rendered(None, torch.float32, settings)
    for view, image in zip(views, images, strict=True):
        expected = tv.normalize(image, list(settings.mean), list(settings.std))
        torch.testing.assert_close(view, expected, rtol=0, atol=FLOAT)


def test_stages_follow_each_other_in_the_table_s_order():
    """All of them, in float64, where no rounding hides a swap."""
    image = spec.picture((SIDE, SIDE), 5, torch.float64)
    table = spec.still([(SIDE, SIDE)], dtype=torch.float64)
    for name, value in (
        ("angle", 12.3), ("translate_x", 1.2), ("translate_y", -0.7), ("scale", 0.9),
        ("shear_x", 4.0), ("shear_y", -3.0), ("brightness", 1.2), ("contrast", 0.8),
        ("saturation", 1.1), ("hue", 0.06), ("sigma", 0.6), ("solarize", 0.55),
        ("erase_left", 3), ("erase_top", 4), ("erase_width", 5), ("erase_height", 6),
        ("erase_red", 0.2),
    ):  # fmt: skip
        table.value(name).fill_(value)
    table.code("posterize_bits").fill_(5)
    without_gray = sum(STAGE_BIT.values()) - STAGE_BIT["gray"]
    table.code("stages").fill_(without_gray)
    settings = Settings(affine_interpolation="bilinear", blur_window=5)
    found = augment(image[None], table, size=SIDE, settings=settings)[0, 0]
    y = tv.vertical_flip(tv.horizontal_flip(image))
    y = tv.affine(y, 12.3, [1.2, -0.7], 0.9, [4.0, -3.0], MODES("bilinear"))
    y = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(y, 1.2), 0.8), 1.1)
    y = tv.solarize(tv.gaussian_blur(tv.adjust_hue(y, 0.06), [5, 5], [0.6, 0.6]), 0.55)
    y = tv.equalize(tv.posterize(y, 5))
    y[:, 4:10, 3:8] = torch.tensor([0.2, 0.0, 0.0], dtype=y.dtype)[:, None, None]
    # torchvision's hue is float32: a few pixels cross a level of posterize
    assert ((found - y).abs() > FLOAT).double().mean() < spec.JUMPED
