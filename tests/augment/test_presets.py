"""Each preset draws what its paper prints: frequencies, ranges, orders, filters."""

# shapes: V views, N samples
from __future__ import annotations

import dataclasses

import pytest
import torch

from fastssl.augment import OPERATORS, PRESETS, preset, sample
from fastssl.augment.policy import Ranges
from fastssl.augment.presets import amortised_5, dissl
from fastssl.kernels.augment.op import augment
from fastssl.kernels.augment.table import JITTER_ORDERS, STAGES

N = 4000
FACTORS = ("brightness", "contrast", "saturation", "hue")
# side, then of each view: (crop area), jitter chance and reach, grey, blur, solarize, flip
PUBLISHED = {
    ("simclr", 224): [((0.08, 1), 0.8, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0, 0.5)] * 2,
    ("simclr", 32): [((0.08, 1), 0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0, 0, 0.5)] * 2,
    ("mocov2", 224): [((0.2, 1), 0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0.5, 0, 0.5)] * 2,
    ("invclr", 32): [((0.08, 1), 0.8, (0.4, 0.4, 0.4, 0.1), 0.2, 0, 0, 0.5)] * 2,
    ("swav", 224): [((0.14, 1), 0.8, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0, 0.5)] * 2
    + [((0.05, 0.14), 0.8, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0, 0.5)] * 6,
    ("dissl", 64): [((0.2, 1), 0.8, (0.4, 0.4, 0.4, 0.1), 0.1, 0, 0, 0.5)] * 2,
    ("dissl", 32): [((0.2, 1), 0.8, (0.2, 0.2, 0.2, 0.05), 0.1, 0, 0, 0.5)] * 2,
    ("dissl", 224): [((0.08, 1), 0.8, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0, 0.5)] * 2,
    ("dissl-coarse", 64): [((0.1, 1), 0.8, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0, 0.5)] * 2,
    ("byol", 224): [
        ((0.08, 1), 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 1, 0, 0.5),
        ((0.08, 1), 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2, 0.5),
    ],
    ("byol-1", 224): [((0.08, 1), 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 1, 0, 0.5)] * 2,
    ("byol-2", 224): [((0.08, 1), 0.8, (0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2, 0.5)] * 2,
}


def drawn_of(policy, *, step=0, n=N, side=300):
    sizes_N2 = torch.full((n, 2), side)
    return sample(policy, seed=5, epoch=1, step=step, index_N=torch.arange(n), sizes_N2=sizes_N2)


def frequency(labels_NO, stage):
    return labels_NO[:, OPERATORS.index(stage)].float().mean().item()


@pytest.mark.parametrize(("name", "side"), PUBLISHED)
def test_frequencies_and_ranges_are_the_published_ones(name, side):
    policy = preset(name, image_size=side)
    drawn = drawn_of(policy)
    expected = PUBLISHED[name, side]
    assert policy.num_views == len(expected)
    for view, (area, jitter, reach, gray, blur, solarize, flip) in enumerate(expected):
        labels_NO = drawn.labels_VNO[view]
        chances = {"jitter": jitter, "gray": gray, "blur": blur, "solarize": solarize}
        chances |= {"crop": 1, "hflip": flip}
        for stage in OPERATORS:
            chance = chances.get(stage, 0)
            tolerance = 0.03 if 0 < chance < 1 else 0
            assert abs(frequency(labels_NO, stage) - chance) <= tolerance, (view, stage)
        areas = drawn.value("width")[view] * drawn.value("height")[view] / 300**2
        assert area[0] * 0.97 < areas.min() < area[0] * 1.1 + 0.005
        assert 0.97 * area[1] < areas.max() < area[1] * 1.03
        on_N = labels_NO[:, OPERATORS.index("jitter")].bool()
        for factor, by in zip(FACTORS, reach, strict=True):
            values, neutral = drawn.value(factor)[view], 0 if factor == "hue" else 1
            assert (values[~on_N] == neutral).all()
            within(values[on_N], neutral - by, neutral + by)
        if blur:
            within(drawn.value("sigma")[view][labels_NO[:, OPERATORS.index("blur")].bool()], 0.1, 2)
        if solarize:
            assert set(drawn.value("solarize")[view].tolist()) == {0.0, 0.5}


def within(values, low, high):
    """Uniform on [low, high]: neither beyond the ends nor short of them, and centred."""
    slack = 0.06 * (high - low) if len(values) < 1000 else 0.02 * (high - low)
    assert low - 1e-6 <= values.min() < low + slack
    assert high - slack < values.max() <= high + 1e-6
    assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / (12 * len(values)) ** 0.5


def test_stage_bits_and_labels_tell_the_same():
    for name in PRESETS:
        drawn = drawn_of(preset(name, image_size=64), n=300)
        runs = torch.cat([torch.stack([t.runs(s) for s in STAGES], dim=2) for t in drawn.tables])
        assert torch.equal(drawn.labels_VNO[..., 1:], runs.to(torch.int8))


def test_all_orders_of_the_jitter_are_drawn_and_invclrs_is_fixed():
    order_VN = drawn_of(preset("simclr", image_size=96)).tables[0].code("jitter_order")
    counts = torch.bincount(order_VN.flatten(), minlength=len(JITTER_ORDERS))
    assert len(counts) == 24 and (counts / (2 * N) * 24 - 1).abs().max() < 0.25
    fixed_VN = drawn_of(preset("invclr", image_size=32)).tables[0].code("jitter_order")
    assert JITTER_ORDERS[0] == (0, 1, 2, 3) and (fixed_VN == 0).all()


def test_filters_sizes_and_windows():
    def settings(name, side):
        return preset(name, image_size=side).groups[0].settings

    assert [settings("simclr", s).blur_window for s in (224, 96, 64)] == [23, 9, 7]
    assert settings("byol", 224).blur_window == 23 and settings("mocov2", 224).blur_window == 13
    assert settings("dissl-coarse", 64).blur_window == 7
    assert settings("invclr", 32).hue == "yiq" and settings("simclr", 32).hue == "hsv"
    assert settings("invclr", 32).mean == (0.4914, 0.4822, 0.4465)
    bicubic = {n for n in PRESETS if settings(n, 64).interpolation == "bicubic"}
    assert bicubic == {"invclr", "dissl", "dissl-coarse", "byol", "byol-1", "byol-2"}
    assert preset("swav", image_size=224).sizes == (224, 224, 96, 96, 96, 96, 96, 96)
    assert preset("swav", image_size=32).sizes == (32, 32, 14, 14, 14, 14, 14, 14)


def test_strength_scales_what_the_paper_scales():
    (half,), (whole,) = (set(dissl(64, strength=s).corners[0].views) for s in (0.5, 1.0))
    assert half.scale == (0.4, 1.0) and whole.scale == (0.2, 1.0)
    assert half.gray == 0.05 and half.jitter == whole.jitter == 0.8
    assert half.brightness == (0.8, 1.2) and half.hue == (-0.05, 0.05)
    with pytest.raises(ValueError, match="strength must be positive"):
        dissl(64, strength=0)


def test_one_corner_is_drawn_per_step_and_all_of_them_in_time():
    policy = preset("amortised-2", image_size=96)
    seen = []
    for step in range(300):
        drawn = drawn_of(policy, step=step, n=8)
        other = sample(
            policy, seed=5, epoch=1, step=step, index_N=[900], sizes_N2=[[40, 50]]
        )  # another rank's part of the same step
        assert torch.equal(drawn.bits_K, other.bits_K)
        assert tuple(drawn.bits_K.tolist()) == policy.corners[int(drawn.corner)].bits
        spatial, appearance = drawn.bits_K.tolist()
        cropped = drawn.labels_VNO[..., OPERATORS.index("crop")].float().mean()
        assert cropped == spatial
        coloured = drawn.labels_VNO[..., OPERATORS.index("jitter")].any()
        assert bool(coloured) == bool(appearance)
        if not spatial:
            assert (drawn.value("width") == 300 * 7 / 8).all()
        seen.append(tuple(drawn.bits_K.tolist()))
    counts = [seen.count(corner.bits) for corner in policy.corners]
    assert sum(counts) == 300 and min(counts) > 70


def test_five_bits_decide_which_of_five_operators_run():
    policy = amortised_5(224)
    assert policy.bit_names == ("crop", "jitter", "gray", "blur", "hflip")
    assert len({corner.bits for corner in policy.corners}) == 26
    assert all(sum(corner.bits) >= 2 for corner in policy.corners)
    for corner in policy.corners:
        one = dataclasses.replace(policy, corners=(corner,))
        drawn = drawn_of(one, n=200)
        for bit, stage in zip(corner.bits, policy.bit_names, strict=True):
            assert drawn.labels_VNO[..., OPERATORS.index(stage)].any() == bool(bit)
        assert torch.equal(drawn.bits_K, torch.tensor(corner.bits).float())


def test_an_unknown_name_says_what_may_be_meant():
    with pytest.raises(ValueError, match=r"--augment: expected one of .*did you mean 'simclr'"):
        preset("simcrl", image_size=32)


@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_renders_views_of_a_pixel_or_two(name, side):
    policy = preset(name, image_size=side)
    for step in range(4):
        drawn = drawn_of(policy, step=step, n=16, side=side)
        for group, table in zip(policy.groups, drawn.tables, strict=True):
            images = torch.rand(16, 3, side, side)
            if group.size == side:
                assert augment(images, table, size=side, settings=group.settings).isfinite().all()


def test_sides_of_no_pixel_are_refused_by_the_option():
    with pytest.raises(ValueError, match="^--image-size: .* received 0"):
        preset("simclr", image_size=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("crop", "center"), ("jitter_order", "fixd"), ("sigma", (0.1, float("inf")))],
)
def test_ranges_refuse_unknown_words_and_what_is_not_finite(name, value):
    with pytest.raises(ValueError, match=f"^Ranges: {name} must"):
        Ranges(**{name: value})
