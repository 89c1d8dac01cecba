"""A table is a function of (seed, epoch, step, index): splits, order and time change nothing."""

# shapes: V views, N samples, S side
from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from fastssl.augment import (
    PRESETS,
    Corner,
    Group,
    Policy,
    Ranges,
    Settings,
    alike,
    alpha_of,
    differentiable,
    preset,
    render,
    rerender,
    sample,
    views_of,
    with_base,
)
from fastssl.kernels.augment import checks

SHAPES = ((40, 60), (33, 20), (64, 64), (50, 9), (17, 31))
SIZES = torch.tensor(SHAPES)
INDEX = torch.tensor([7, 3, 10**12, 0, 8])


def images(dtype=torch.uint8):
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randint(0, 256, (3, *s), generator=generator) for s in SHAPES]
    return [p.to(torch.uint8) if dtype == torch.uint8 else p.to(dtype) / 255 for p in pixels]


def draw(policy, *, rows=slice(None), **changes):
    key = {"seed": 1, "epoch": 2, "step": 3, **changes}
    return sample(policy, index_N=INDEX[rows], sizes_N2=SIZES[rows], **key)


def tensors(drawn):
    tables = [t for table in drawn.tables for t in (table.values_VNP, table.codes_VNC)]
    return [drawn.labels_VNO, drawn.bits_K, drawn.corner, *tables]


def equal(a, b):
    return all(map(torch.equal, tensors(a), tensors(b)))


@pytest.mark.parametrize("name", PRESETS)
def test_the_table_is_the_same_for_any_split_of_the_batch(name):
    policy = preset(name, image_size=64)
    whole = draw(policy)
    assert equal(draw(policy), whole)
    for part in (slice(0, 2), slice(2, 5), slice(4, 5)):
        rows = torch.arange(5)[part]
        assert equal(draw(policy, rows=rows), whole.rows(rows))
    order = torch.tensor([4, 1, 0, 3, 2])
    assert equal(draw(policy, rows=order), whole.rows(order))


@pytest.mark.parametrize("change", [{"seed": 2}, {"epoch": 3}])
def test_seed_and_epoch_change_every_row_and_views_differ(change):
    policy = preset("simclr", image_size=64)
    (table,), (other,) = draw(policy).tables, draw(policy, **change).tables
    assert (table.values_VNP != other.values_VNP).any(dim=2).all()
    assert (table.values_VNP[0] != table.values_VNP[1]).any(dim=1).all()


def test_a_step_changes_the_corner_alone():
    policy = preset("amortised-2", image_size=64)
    steps = [draw(policy, step=step) for step in range(20)]
    for drawn in steps[1:]:
        same = torch.equal(drawn.bits_K, steps[0].bits_K)
        assert equal(drawn, steps[0]) == same
    assert len({int(drawn.corner) for drawn in steps}) == 3


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("side", [32, 64])
def test_every_table_passes_the_operators_checks_and_renders(name, side):
    policy = preset(name, image_size=side)
    drawn = draw(policy)
    for group, table in zip(policy.groups, drawn.tables, strict=True):
        numbers = (table.values_VNP, table.codes_VNC)
        checks.check_numbers(images(), None, *numbers, group.size, group.settings.blur_window)
    views = render(policy, images(), drawn)
    assert [tuple(v.shape) for v in views] == [(5, 3, s, s) for s in policy.sizes]
    assert all(view.isfinite().all() for view in views)
    plain = render(policy.without_normalisation(), images(), drawn)
    if policy.groups[0].settings.hue == "hsv":  # a YIQ rotation is not clamped
        assert all(view.min() >= -1e-6 and view.max() <= 1 + 1e-6 for view in plain)


def test_a_padded_batch_gives_the_views_of_its_images():
    policy = preset("simclr", image_size=32)
    padded = torch.full((5, 3, 64, 64), 255, dtype=torch.uint8)
    for slot, image in zip(padded, images(), strict=True):
        slot[:, : image.shape[1], : image.shape[2]] = image
    key = {"seed": 1, "epoch": 2, "step": 3, "index_N": INDEX, "sizes_N2": SIZES}
    views, drawn = views_of(policy, padded, **key)
    expected, same = views_of(policy, images(), **key)
    assert equal(drawn, same)
    for ours, theirs in zip(views, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_invclrs_views_are_the_same_in_one_call_and_from_their_base(dtype):
    policy = preset("invclr", image_size=32)
    drawn = draw(policy)
    whole = render(policy, images(dtype), drawn)
    based = with_base(policy, images(dtype), drawn)
    assert [tuple(base.shape) for base in based.base] == [(5, 3, 32, 32)] * 2
    for view, (ours, theirs) in enumerate(
        zip(render(policy, images(dtype), based), whole, strict=True)
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        again = rerender(policy, based, view, alpha_of(policy, based, view))
        torch.testing.assert_close(again, theirs, rtol=0, atol=1e-6)


def test_the_method_makes_invclrs_views_anew_as_they_were_rendered_and_in_one_graph():
    policy = preset("invclr", image_size=32)
    drawn = with_base(policy, images(), draw(policy))
    again = torch.compile(differentiable.rerender, fullgraph=True, backend="aot_eager")
    for view, expected in enumerate(render(policy, images(), drawn)):
        alpha_NA = differentiable.alpha_of(drawn, view)
        assert torch.equal(alpha_NA, alpha_of(policy, drawn, view))
        found = again(drawn, view, alpha_NA, side=32)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_view_is_differentiable_twice_in_its_parameters():
    policy = preset("invclr", image_size=8)
    always = dataclasses.replace(policy.corners[0].views[0], jitter=1.0, gray=0.0)
    policy = dataclasses.replace(policy, corners=(Corner(views=(always,) * 2),))
    drawn = with_base(policy, images(torch.float64), draw(policy))
    alpha_NA = alpha_of(policy, drawn, 1).double().requires_grad_()
    double = dataclasses.replace(
        drawn,
        tables=tuple(
            dataclasses.replace(t, values_VNP=t.values_VNP.double()) for t in drawn.tables
        ),
    )

    def mean_square(alpha):
        return rerender(policy, double, 1, alpha).square().mean(dim=(1, 2, 3))

    assert torch.autograd.gradcheck(mean_square, (alpha_NA,), eps=1e-7, atol=1e-5)
    (gradient,) = torch.autograd.grad(mean_square(alpha_NA).sum(), alpha_NA, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), alpha_NA)
    assert torch.isfinite(second).all() and (second != 0).any(dim=1).all()


def test_a_table_moves_copies_and_picks_views():
    drawn = with_base(
        preset("invclr", image_size=8), images(), draw(preset("invclr", image_size=8))
    )
    assert equal(drawn.to(torch.device("cpu")), drawn) and equal(copy.deepcopy(drawn), drawn)
    swapped = drawn.views(torch.tensor([1, 0]))
    assert torch.equal(swapped.labels_VNO, drawn.labels_VNO.flip(0))
    assert torch.equal(swapped.value("hue"), drawn.value("hue").flip(0))
    assert torch.equal(swapped.base[0], drawn.base[1])
    assert drawn.to(torch.device("meta")).tables[0].codes_VNC.device.type == "meta"


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match="Ranges: hue must lie in -0.5..0.5"):
        Ranges(hue=(-0.6, 0.6))
    with pytest.raises(ValueError, match="Ranges: scale .* received 0, 1"):
        Ranges(scale=(0.0, 1.0))
    with pytest.raises(ValueError, match="Ranges: brightness .* received 2, 1"):
        Ranges(brightness=(2.0, 1.0))
    with pytest.raises(ValueError, match="Group: expected size"):
        Group(size=0, num_views=2)
    group = Group(size=8, num_views=2, settings=Settings())
    with pytest.raises(ValueError, match="expected 2 views and 0 bits in each corner"):
        Policy(name="mine", groups=(group,), corners=(Corner(views=(Ranges(),)),))
    with pytest.raises(ValueError, match="alpha may name"):
        policy = alike("mine", Ranges(), group, alpha=("left",))
        with_base(policy, images(), draw(policy))
    for sizes in (torch.tensor([[3, 4]]), torch.zeros(5, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="sample: expected index_N"):
            sample(
                preset("simclr", image_size=8),
                seed=0, epoch=0, step=0, index_N=INDEX, sizes_N2=sizes,
            )  # fmt: skip
