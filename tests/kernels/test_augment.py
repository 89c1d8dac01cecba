"""The promises of the ``augment`` operator: layouts, dtypes, refusals, compilation, transforms."""

# shapes: V views, N samples, S side of a view
from __future__ import annotations

import pytest
import torch

from fastssl.kernels import native as compiled
from fastssl.kernels.augment import reference, spec
from fastssl.kernels.augment.op import augment
from fastssl.kernels.augment.settings import Settings
from fastssl.kernels.augment.spec_refusals import bad_calls
from fastssl.kernels.augment.table import STAGE_BIT, STAGES, Table

SIZES = [(17, 23), (40, 12), (33, 33)]
PHOTOMETRIC = ("jitter", "gray", "blur", "solarize", "erase")


def every_stage(dtype=torch.float32, sizes=SIZES, share=0.5, seed=3) -> Table:
    return spec.drawn(list(sizes), stages=STAGES, share=share, seed=seed, dtype=dtype)


@pytest.mark.parametrize("dtype", spec.DTYPES, ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_table_that_does_nothing_returns_the_image(dtype, interpolation):
    images = torch.stack([spec.picture((20, 20), seed, dtype) for seed in range(3)])
    table = spec.still([(20, 20)] * 3, views=2)
    views = augment(images, table, size=20, settings=Settings(interpolation=interpolation))
    exact = images.to(views.dtype) / 255 if dtype == torch.uint8 else images
    assert torch.equal(views, torch.stack([exact, exact]))


def test_factors_of_one_in_a_jitter_that_runs_return_the_image():
    images = torch.rand(24, 3, 9, 9) * 3 - 1  # no clamp either
    table = spec.still([(9, 9)] * 24)
    table.code("stages").fill_(8)
    table.code("jitter_order").copy_(torch.arange(24))
    for hue in ("hsv", "yiq"):
        assert torch.equal(augment(images, table, size=9, settings=Settings(hue=hue))[0], images)


@pytest.mark.parametrize("dtype", spec.DTYPES, ids=str)
def test_a_list_a_padded_batch_and_single_images_give_the_same_views(dtype):
    images = [spec.picture(size, seed, dtype) for seed, size in enumerate(SIZES)]
    table = every_stage()
    ragged = augment(images, table, size=14)
    batch, sizes_N2 = spec.padded(images)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    close = {"rtol": 0, "atol": tolerance}
    torch.testing.assert_close(augment(batch, table, size=14, sizes_N2=sizes_N2), ragged, **close)
    for sample, image in enumerate(images):
        one = slice(sample, sample + 1)
        own = Table(table.values_VNP[:, one], table.codes_VNC[:, one])
        torch.testing.assert_close(augment(image[None], own, size=14), ragged[:, one], **close)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("layout", ["channels last", "transposed", "sliced", "strided", "expanded"])
def test_images_may_have_any_strides(dtype, layout):
    images = torch.stack([spec.picture((18, 18), seed, dtype) for seed in range(3)])
    laid_out = {
        "channels last": images.to(memory_format=torch.channels_last),
        "transposed": images.mT.contiguous().mT,
        "sliced": torch.cat([images, images], 3)[..., :18],
        "strided": torch.stack([images, 1 - images], -1)[..., 0],
        "expanded": images[:1].expand(3, -1, -1, -1),
    }[layout]
    table = every_stage(sizes=[(18, 18)] * 3)
    expected = augment(laid_out.contiguous(), table, size=11)
    torch.testing.assert_close(augment(laid_out, table, size=11), expected, rtol=0, atol=0)
    listed = augment(list(laid_out), table, size=11)
    torch.testing.assert_close(listed, expected, rtol=0, atol=2e-6)


def test_views_are_laid_out_and_rounded_as_set():
    images = torch.stack([spec.picture((18, 18), seed, torch.uint8) for seed in range(3)])
    table = every_stage(sizes=[(18, 18)] * 3)
    plain = augment(images, table, size=11)
    assert plain.is_contiguous() and plain.shape == (2, 3, 3, 11, 11)
    last = augment(images, table, size=11, settings=Settings(memory_format=torch.channels_last))
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in last)
    assert torch.equal(last, plain)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        settings = Settings(dtype=torch.bfloat16, memory_format=memory_format)
        short = augment(images, table, size=11, settings=settings)
        assert torch.equal(short, plain.bfloat16())


def test_normalisation_comes_last():
    images = torch.rand(3, 3, 18, 18)
    table = every_stage(sizes=[(18, 18)] * 3)
    mean, std = (torch.tensor(spec.NORMALISE[key])[:, None, None] for key in ("mean", "std"))
    found = augment(images, table, size=11, settings=Settings(**spec.NORMALISE))
    expected = (augment(images, table, size=11) - mean) / std
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_equal_calls_give_equal_bits_whatever_the_number_of_threads():
    images = [spec.picture(size, seed, torch.uint8) for seed, size in enumerate(SIZES * 3)]
    table = every_stage(sizes=SIZES * 3)
    views = [augment(images, table, size=16) for _ in range(2)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        views.append(augment(images, table, size=16))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(views[0], views[1]) and torch.equal(views[0], views[2])


def test_a_sample_does_not_see_the_others():
    images = torch.rand(3, 3, 18, 18)
    table = every_stage(sizes=[(18, 18)] * 3, share=0.7)
    whole = augment(images, table, size=11)
    others = images.clone()
    others[0], others[2] = 0.5, 0.25
    torch.testing.assert_close(augment(others, table, size=11)[:, 1], whole[:, 1], rtol=0, atol=0)


def test_a_box_is_clipped_to_its_image():
    images = torch.rand(1, 3, 12, 10)
    table = spec.still([(12, 10)], views=2)
    table.value("left")[:, 0] = torch.tensor([-4.0, 0.0])
    table.value("width")[:, 0] = torch.tensor([9.0, 5.0])
    table.value("top")[:, 0] = torch.tensor([7.0, 7.0])
    table.value("height")[:, 0] = torch.tensor([99.0, 5.0])
    first, second = augment(images, table, size=6)
    assert torch.equal(first, second)


def test_rounding_of_a_box_adds_no_pixel():
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1e6  # just outside the box
    table = spec.still([(8, 8)])
    for noise in (-1e-5, 0.0, 1e-5):
        table.value("width").fill_(4 + noise)
        assert augment(image, table, size=4).abs().max() == 0


@pytest.mark.parametrize("bad", list(bad_calls()), ids=lambda bad: bad.name)
def test_a_bad_call_is_refused_by_name(bad):
    with pytest.raises(ValueError, match="^augment: ") as refusal:
        augment(bad.images, bad.table, **{"size": 4, **bad.options})
    for word in bad.mentions:
        assert word in str(refusal.value)


def test_numbers_of_stages_that_do_not_run_are_free():
    table = spec.still([(6, 8)] * 2)
    table.value("sigma").fill_(-1.0)
    table.code("posterize_bits").fill_(0)
    table.code("jitter_order").fill_(99)
    augment(torch.rand(2, 3, 6, 8), table, size=4, settings=Settings(blur_window=23))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's
@pytest.mark.parametrize("form", ["one tensor", "padded", "list"])
def test_opcheck_passes_all_four(form):
    images = [spec.picture(size, seed, torch.float32) for seed, size in enumerate(SIZES)]
    batch, sizes_N2 = spec.padded(images)
    listed, sizes_N2 = {
        "one tensor": ([batch.nan_to_num()], None),
        "padded": ([batch.nan_to_num()], sizes_N2),
        "list": (images, None),
    }[form]
    listed = [image.requires_grad_() for image in listed]
    table = every_stage()
    table.values_VNP.requires_grad_()
    settings = Settings(memory_format=torch.channels_last, **spec.NORMALISE)
    call = (listed, sizes_N2, table.values_VNP, table.codes_VNC, 9, *settings.flat())
    found = torch.library.opcheck(torch.ops.fastssl.augment.default, call)
    assert set(found.values()) == {"SUCCESS"} and len(found) == 4
    plain = [[image.detach() for image in listed], sizes_N2, table.values_VNP.detach(), *call[3:]]
    grad = torch.ones(2, 3, 3, 9, 9)
    found = torch.library.opcheck(torch.ops.fastssl.augment_backward.default, (grad, *plain, True))
    assert set(found.values()) == {"SUCCESS"} and len(found) == 4


def test_compiles_to_one_graph_with_any_batch_and_size():
    def step(images, values, codes, size):
        views = augment(images * 0.5, Table(values * 1.0, codes), size=size)
        return (views * views.detach()).sum()

    fast = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_samples, size in ((3, 9), (5, 12)):
        images = torch.rand(num_samples, 3, 14, 15, requires_grad=True)
        table = every_stage(sizes=[(14, 15)] * num_samples)
        leaves = (images, table.values_VNP.requires_grad_())
        ours, truth = fast(*leaves, table.codes_VNC, size), step(*leaves, table.codes_VNC, size)
        assert ours == truth
        for found, expected in zip(
            torch.autograd.grad(ours, leaves), torch.autograd.grad(truth, leaves), strict=True
        ):
            torch.testing.assert_close(found, expected)


def test_compiles_with_a_list_of_images():
    images = [spec.picture(size, seed, torch.uint8) for seed, size in enumerate(SIZES)]
    table = every_stage()

    def step(images, values, codes):
        return augment(images, Table(values, codes), size=8).sum(0)

    fast = torch.compile(step, fullgraph=True, backend="aot_eager")
    arguments = (images, table.values_VNP, table.codes_VNC)
    assert torch.equal(fast(*arguments), step(*arguments))


def test_vmap_over_images_is_a_loop():
    images = torch.rand(4, 2, 3, 12, 12)
    table = every_stage(sizes=[(12, 12)] * 2)
    found = torch.func.vmap(lambda x: augment(x, table, size=7))(images)
    loop = torch.stack([augment(x, table, size=7) for x in images])
    torch.testing.assert_close(found, loop, rtol=0, atol=2e-6)


def test_vmap_over_codes_is_refused_and_over_values_is_a_loop():
    images, table = torch.rand(2, 3, 12, 12), every_stage(sizes=[(12, 12)] * 2)
    values = torch.stack([table.values_VNP, table.values_VNP])
    found = torch.func.vmap(lambda v: augment(images, Table(v, table.codes_VNC), size=7))(values)
    torch.testing.assert_close(found[1], augment(images, table, size=7), rtol=0, atol=2e-6)
    codes = torch.stack([table.codes_VNC, table.codes_VNC])
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda c: augment(images, Table(table.values_VNP, c), size=7))(codes)


def test_without_a_gradient_nothing_is_kept_and_inference_mode_works():
    images, table = torch.rand(2, 3, 12, 12), every_stage(sizes=[(12, 12)] * 2)
    plain = augment(images, table, size=7)
    assert plain.grad_fn is None
    with torch.inference_mode():
        assert torch.equal(augment(images, table, size=7), plain)


def test_only_the_inputs_are_kept_for_the_backward():
    images, table = torch.rand(2, 3, 12, 12), every_stage(sizes=[(12, 12)] * 2)
    values_VNP = table.values_VNP.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        augment(images, Table(values_VNP, table.codes_VNC), size=7)
    addresses = {x.data_ptr() for x in kept}
    assert addresses == {images.data_ptr(), values_VNP.data_ptr(), table.codes_VNC.data_ptr()}


def test_the_reference_answers_where_there_is_no_library(monkeypatch, tmp_path):
    images, table = torch.rand(2, 3, 12, 12), every_stage(sizes=[(12, 12)] * 2)
    exact = reference.forward([images], None, table.values_VNP, table.codes_VNC, 7, Settings())
    monkeypatch.setattr(compiled, "LIBRARY_PATH", tmp_path / "missing.so")
    compiled.library.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="not usable"):
            assert torch.equal(augment(images, table, size=7), exact)
    finally:
        compiled.library.cache_clear()


def test_the_operator_itself_refuses_what_it_would_read_wrongly():
    image, table = torch.rand(1, 3, 12, 12), every_stage(sizes=[(12, 12)] * 64)
    values_VNP, codes_VNC = table.values_VNP[:, :1], table.codes_VNC[:, :1]
    flat, size = Settings().flat(), 7
    for values, codes, name in (
        (table.values_VNP, table.codes_VNC, "table.values_VNP"),
        (values_VNP, codes_VNC.long(), "table.codes_VNC"),
        (values_VNP, table.codes_VNC, "table.codes_VNC"),
    ):
        with pytest.raises(ValueError, match=f"^augment: {name}"):
            torch.ops.fastssl.augment([image], None, values, codes, size, *flat)
    short = torch.ones(2, 1, 3, 6, 6)
    with pytest.raises(ValueError, match="^augment: grad"):
        torch.ops.fastssl.augment_backward(
            short, [image], None, values_VNP, codes_VNC, size, *flat, True
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_sliver_at_the_edge_of_its_image_is_its_last_pixel(interpolation, dtype):
    image = torch.rand(1, 3, 32, 32, dtype=dtype)
    table = spec.still([(32, 32)], dtype=dtype)
    for begin, extent in (("left", "width"), ("top", "height")):
        table.value(begin).fill_(31.9999)
        table.value(extent).fill_(1e-3)
    settings = Settings(interpolation=interpolation)
    corner = image[..., -1:, -1:].expand(1, 3, 4, 4)
    views = augment(image, table, size=4, settings=settings)[0]
    torch.testing.assert_close(views, corner, rtol=0, atol=1e-6)
    exact = reference.forward([image], None, table.values_VNP, table.codes_VNC, 4, settings)
    torch.testing.assert_close(exact[0], corner, rtol=0, atol=1e-6)


def test_equalize_takes_nan_as_the_darkest_level():
    image = torch.rand(1, 3, 12, 12)
    image[0, 1, 3:5, 2] = torch.nan
    table = spec.still([(12, 12)])
    table.code("stages").fill_(STAGE_BIT["equalize"])
    views = augment(image, table, size=12)
    exact = reference.forward([image], None, table.values_VNP, table.codes_VNC, 12, Settings())
    assert exact.isfinite().all()
    torch.testing.assert_close(views[:, :, [0, 2]], exact[:, :, [0, 2]])
