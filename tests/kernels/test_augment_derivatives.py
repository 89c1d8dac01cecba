"""``augment`` differentiates exactly: every stage, image and parameter, backward and forward.

Against finite differences in float64, at points that lie on no kink.
"""

# shapes: V views, N samples, S side of a view; P values, K columns of the values
from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastssl.kernels.augment import spec
from fastssl.kernels.augment.op import augment
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.table import STAGE_BIT, VALUES, Table

# torch's own decompositions for forward mode are compiled with torch.jit at first use
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")

BOX = ("left", "top", "width", "height")
AFFINE = ("angle", "translate_x", "translate_y", "scale", "shear_x", "shear_y")
JITTER = ("brightness", "contrast", "saturation", "hue")
COLOUR = ("erase_red", "erase_green", "erase_blue")
POINT = {
    "left": 1.27, "top": 0.83, "width": 5.4, "height": 6.9, "angle": 17.3, "translate_x": 0.41,
    "translate_y": -0.63, "scale": 1.13, "shear_x": 6.1, "shear_y": -4.7, "brightness": 1.07,
    "contrast": 0.93, "saturation": 1.05, "hue": 0.031, "sigma": 0.83, "solarize": 0.5,
    "erase_left": 1.0, "erase_top": 2.0, "erase_width": 2.0, "erase_height": 1.0,
    "erase_red": 0.3, "erase_green": 0.6, "erase_blue": 0.1,
}  # fmt: skip
SIZE, HEIGHT, WIDTH = 5, 9, 8
SETTINGS = Settings(affine_interpolation="bilinear", blur_window=5, **spec.NORMALISE)

Case = tuple[tuple[str, ...], tuple[str, ...], Settings]
CASES: dict[str, Case] = {
    "crop": ((), BOX, SETTINGS),
    "crop bicubic": ((), BOX, Settings(interpolation="bicubic")),
    "hflip": (("hflip",), BOX, SETTINGS),
    "vflip": (("vflip",), BOX, SETTINGS),
    "affine": (("affine",), AFFINE, SETTINGS),
    "jitter": (("jitter",), JITTER, SETTINGS),
    "jitter yiq": (("jitter",), JITTER, Settings(hue="yiq")),
    "gray": (("gray",), BOX, SETTINGS),
    "blur": (("blur",), ("sigma",), SETTINGS),
    "solarize": (("solarize",), BOX, SETTINGS),
    "erase": (("erase",), COLOUR, SETTINGS),
    "chain": (
        ("hflip", "affine", "jitter", "blur", "solarize", "erase"),
        (*BOX, *AFFINE, *JITTER, "sigma", *COLOUR),
        SETTINGS,
    ),
}
EACH = pytest.mark.parametrize("case", list(CASES.values()), ids=list(CASES))


def leaves_and_views(case: Case, *, views: int = 2):
    """Image and column leaves, and the views as a function of them."""
    stages, names, settings = case
    generator = torch.Generator().manual_seed(7)
    image = 0.3 + 0.4 * torch.rand(1, 3, HEIGHT, WIDTH, generator=generator, dtype=torch.float64)
    table = spec.still([(HEIGHT, WIDTH)], views=views, dtype=torch.float64)
    for name, value in POINT.items():
        table.value(name).fill_(value)
    for view in range(views):  # the views differ
        table.values_VNP[view, :, :4] *= 1 - 0.03 * view
        table.code("jitter_order")[view] = 9 * view
    table.code("stages").fill_(sum(STAGE_BIT[stage] for stage in stages))
    columns = [VALUES.index(name) for name in names]
    leaf_VNK = table.values_VNP[..., columns].clone()

    def render(image: Tensor, columns_VNK: Tensor) -> Tensor:
        index = torch.tensor(columns).expand_as(columns_VNK)
        values_VNP = table.values_VNP.scatter(2, index, columns_VNK)
        return augment(image, Table(values_VNP, table.codes_VNC), size=SIZE, settings=settings)

    return (image.requires_grad_(), leaf_VNK.requires_grad_()), render


@EACH
def test_backward_and_forward_mode_are_exact(case):
    """Along random directions of image and parameters, then entry by entry for the parameters."""
    (image, columns), render = leaves_and_views(case, views=1)
    options = {"check_forward_ad": True, "check_undefined_grad": False, "atol": 1e-6}
    assert torch.autograd.gradcheck(render, (image, columns), fast_mode=True, **options)
    one = leaves_and_views(case, views=1)[0][0].detach()
    assert torch.autograd.gradcheck(lambda c: render(one, c), (columns,), **options)


@EACH
def test_every_parameter_of_the_stage_has_a_gradient(case):
    leaves, render = leaves_and_views(case)
    views = render(*leaves)
    weights = torch.linspace(0.5, 1.5, views.numel(), dtype=views.dtype).view_as(views)
    grad_image, grad_columns = torch.autograd.grad(views, leaves, weights)
    assert grad_image.abs().max() > 1e-3
    assert (grad_columns.abs() > 1e-6).all()


@pytest.mark.parametrize("name", ["jitter", "jitter yiq", "crop", "blur"])
def test_second_derivatives_are_exact(name):
    leaves, render = leaves_and_views(CASES[name], views=1)
    assert torch.autograd.gradgradcheck(render, leaves, fast_mode=True, atol=1e-6, rtol=1e-5)


def test_a_gradient_penalty_reaches_the_parameters():
    """InvCLR's shape: d/d(something) of |d s / d alpha|^2 through the views."""
    (image, columns), render = leaves_and_views(CASES["jitter yiq"])
    weight = torch.randn(3, 1, 1, dtype=torch.float64, requires_grad=True)
    score = (render(image.detach(), columns) * weight).tanh().sum()
    (slope,) = torch.autograd.grad(score, columns, create_graph=True)
    (grad,) = torch.autograd.grad(slope.square().sum(), weight)
    assert grad.isfinite().all() and (grad != 0).all()


def test_the_graph_of_a_gradient_gives_the_same_gradient():
    for name in ("chain", "crop bicubic", "jitter yiq"):
        leaves, render = leaves_and_views(CASES[name])
        views = render(*leaves)
        weights = torch.linspace(0.5, 1.5, views.numel(), dtype=views.dtype).view_as(views)
        plain = torch.autograd.grad(views, leaves, weights, retain_graph=True)
        kept = torch.autograd.grad(views, leaves, weights, create_graph=True)
        for found, expected in zip(kept, plain, strict=True):
            assert found.requires_grad
            torch.testing.assert_close(found.detach(), expected, rtol=1e-12, atol=1e-12)


def test_forward_mode_is_the_jvp_of_torch_func():
    leaves, render = leaves_and_views(CASES["chain"])
    primals = tuple(leaf.detach() for leaf in leaves)
    tangents = tuple(torch.ones_like(leaf) for leaf in primals)
    _, expected = torch.func.jvp(render, primals, tangents)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
        tangent = forward_ad.unpack_dual(render(*duals)).tangent
    torch.testing.assert_close(tangent, expected)


def test_an_unchanged_factor_still_has_its_derivative():
    """At factor 1 (hue 0) the value is the image's and the slope the step's."""
    for hue in ("hsv", "yiq"):
        stages, names, _ = CASES["jitter"]
        leaves, render = leaves_and_views((stages, names, Settings(hue=hue)), views=1)
        neutral = torch.tensor([1.0, 1.0, 1.0, 0.0], dtype=torch.float64)
        columns = neutral.expand_as(leaves[1]).clone().requires_grad_()
        views = render(leaves[0], columns)
        weights = torch.linspace(0.5, 1.5, views.numel(), dtype=views.dtype).view_as(views)
        (found,) = torch.autograd.grad(views, columns, weights)
        step = 1e-6
        for number in range(4):
            moved = [neutral.expand_as(columns).clone() for _ in range(2)]
            moved[0][..., number] += step
            moved[1][..., number] -= step
            up, down = (render(leaves[0], column) for column in moved)
            slope = ((up - down) * weights).sum() / (2 * step)
            if (hue, number) == ("yiq", 3):
                continue  # its two matrices are inverse to three digits: the value jumps at 0
            torch.testing.assert_close(found[0, 0, number], slope, rtol=1e-5, atol=1e-6)


def test_steps_without_a_slope_have_none():
    """Nearest affine, posterize's levels, equalize, solarize's threshold, erase's rectangle."""
    (image, _), _ = leaves_and_views(CASES["crop"])
    for stage, names in (
        ("affine", AFFINE), ("posterize", ()), ("equalize", ()), ("solarize", ("solarize",)),
        ("erase", ("erase_left", "erase_top", "erase_width", "erase_height")),
    ):  # fmt: skip
        table = spec.still([(HEIGHT, WIDTH)], dtype=torch.float64)
        for name, value in POINT.items():
            table.value(name).fill_(value)
        table.code("stages").fill_(STAGE_BIT[stage])
        table.values_VNP.requires_grad_()
        leaves = (image, table.values_VNP)
        grad_image, grad_values = torch.autograd.grad(
            augment(image, table, size=SIZE).square().sum(), leaves
        )
        for name in names:
            assert grad_values[..., VALUES.index(name)].abs().max() == 0
        flat = stage in ("posterize", "equalize")
        assert (grad_image.abs().max() == 0) == flat


def test_levels_get_no_gradient_but_their_parameters_do():
    """uint8 images, as they come from a decoder."""
    images = torch.stack([spec.picture((16, 16), seed, torch.uint8) for seed in range(3)])
    table = spec.drawn([(16, 16)] * 3, stages=("jitter", "blur"), dtype=torch.float32)
    values_VNP = table.values_VNP.requires_grad_()
    views = augment(images, Table(values_VNP, table.codes_VNC), size=9)
    (grad,) = torch.autograd.grad(views.square().sum(), values_VNP)
    exact = values_VNP.detach().double().requires_grad_()
    views = augment(images.double() / 255, Table(exact, table.codes_VNC), size=9)
    (truth,) = torch.autograd.grad(views.square().sum(), exact)
    torch.testing.assert_close(grad.double(), truth, rtol=1e-3, atol=1e-3 * truth.abs().max())


@pytest.mark.parametrize("form", ["padded", "list"])
def test_ragged_images_get_their_own_gradients(form):
    images = [spec.picture(size, 0, torch.float64) for size in ((9, 12), (14, 7))]
    table = spec.drawn([(9, 12), (14, 7)], stages=("jitter", "hflip"), dtype=torch.float64)
    weights = torch.rand(2, 2, 3, 6, 6, dtype=torch.float64)
    listed = [image.requires_grad_() for image in images]
    truth = [
        torch.autograd.grad(
            augment(
                image[None],
                Table(table.values_VNP[:, [n]], table.codes_VNC[:, [n]]),
                size=6,
            ),
            image,
            weights[:, [n]],
        )[0]
        for n, image in enumerate(listed)
    ]
    if form == "list":
        found = torch.autograd.grad(augment(listed, table, size=6), listed, weights)
    else:
        batch, sizes_N2 = spec.padded([image.detach() for image in images])
        batch.requires_grad_()
        views = augment(batch, table, size=6, sizes_N2=sizes_N2)
        (grad,) = torch.autograd.grad(views, batch, weights)
        found = [g[:, :height, :width] for g, (height, width) in zip(grad, sizes_N2, strict=True)]
        outside = grad.clone()
        for g, (height, width) in zip(outside, sizes_N2, strict=True):
            g[:, :height, :width] = 0
        assert outside.abs().max() == 0
    for ours, exact in zip(found, truth, strict=True):
        torch.testing.assert_close(ours, exact)


def test_invclr_s_jitter_is_exact():
    """Foster et al. 2021: brightness, contrast, saturation, hue in YIQ, gray; their constants."""
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
    to_rgb = torch.tensor([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.107, 1.705]])
    to_yiq, to_rgb = to_yiq.double(), to_rgb.double()
    factors = torch.tensor([[1.31, 0.62, 1.4, 0.083], [0.7, 1.35, 0.61, -0.1]]).double()
    images = torch.stack([spec.picture((12, 12), seed, torch.float64) for seed in range(2)])
    table = spec.still([(12, 12)] * 2, dtype=torch.float64)
    for number, name in enumerate(JITTER):
        table.value(name)[0] = factors[:, number]
    table.code("stages")[0] = torch.tensor([8, 8 | STAGE_BIT["gray"]])
    found = augment(images, table, size=12, settings=Settings(hue="yiq"))[0]

    def luma(x: Tensor) -> Tensor:
        return (to_yiq[0][:, None, None] * x).sum(0)

    for n, (b, c, s, h) in enumerate(factors.tolist()):
        x = (b * images[n]).clamp(0, 1)
        x = (c * x + (1 - c) * luma(x).mean()).clamp(0, 1)
        x = (s * x + (1 - s) * luma(x)).clamp(0, 1)
        turn = 2 * math.pi * h
        rotation = torch.tensor(
            [
                [1.0, 0.0, 0.0],
                [0.0, math.cos(turn), -math.sin(turn)],
                [0.0, math.sin(turn), math.cos(turn)],
            ]
        ).double()
        x = torch.einsum("ij,jhw->ihw", to_rgb @ rotation @ to_yiq, x)
        x = luma(x).expand(3, -1, -1) if n == 1 else x
        torch.testing.assert_close(found[n], x, rtol=1e-6, atol=1e-7)


def test_a_box_that_touches_the_edge_has_the_same_gradient_with_and_without_a_graph():
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(1, 3, WIDTH, WIDTH, generator=generator)
    weights = torch.rand(1, 1, 3, SIZE, SIZE, generator=generator)
    table = spec.still([(WIDTH, WIDTH)])  # whole: four edges touch, no tap at a kink
    values = table.values_VNP.requires_grad_()
    views = augment(image, Table(values, table.codes_VNC), size=SIZE)
    for_once, graph = (
        torch.autograd.grad(views, values, weights, retain_graph=True, create_graph=again)[0]
        for again in (False, True)
    )
    assert for_once[..., :4].abs().min() > 1e-3
    torch.testing.assert_close(graph, for_once, rtol=1e-4, atol=1e-5)
