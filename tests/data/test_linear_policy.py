"""The SimCLR parameter table: pure, drawn from the published ranges, and torchvision's colours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from fastssl.augment import linear_policy as policy
from fastssl.augment.linear_policy import Policy, ViewParams

N = 4000


def table(*, index=None, width=500, height=375, settings=None, view=0, epoch=0) -> ViewParams:
    index = np.arange(N) if index is None else index
    sizes = {"width_N": np.full(len(index), width), "height_N": np.full(len(index), height)}
    chosen = settings or Policy()
    return policy.draw(chosen, seed=3, epoch=epoch, index_N=index, view=view, **sizes)


def neutral(**changes) -> ViewParams:
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    plain = ViewParams(np.zeros((1, 4), np.float32), zero > 0, one, one, one, zero, zero > 0, zero)
    return dataclasses.replace(plain, **changes)


def recoloured(image: torch.Tensor, params: ViewParams) -> torch.Tensor:
    pixel_map, mean_map = (torch.from_numpy(a[0]).double() for a in policy.colour_maps(params))
    flat = image.flatten(1)
    return (pixel_map @ flat + (mean_map @ flat.mean(1))[:, None]).view_as(image)


def test_a_row_depends_on_its_own_key_alone():
    whole, order = table(), np.random.default_rng(0).permutation(N)
    for name, values in dataclasses.asdict(table(index=order)).items():
        assert np.array_equal(values, getattr(whole, name)[order]), name
    for other in (table(view=1), table(epoch=1)):
        assert np.mean(np.all(other.box_N4 == whole.box_N4, axis=1)) < 0.01


@pytest.mark.parametrize(("width", "height"), [(500, 375), (90, 400), (30, 31)])
def test_crops_are_distributed_like_torchvisions(width, height):
    box_N4 = table(width=width, height=height).box_N4
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(N)]
    top, left, h, w = np.array(theirs, dtype=np.float64).T
    for ours, reference in zip(box_N4.T, (left, top, w, h), strict=True):
        error = np.hypot(ours.std(), reference.std()) / np.sqrt(N) + 1e-9
        assert abs(ours.mean() - reference.mean()) < 5 * error
        assert abs(ours.std() - reference.std()) < 5 * error
    assert (box_N4[:, :2] >= 0).all() and (box_N4[:, 2:] >= 1).all()
    assert (box_N4[:, 0] + box_N4[:, 2] <= width).all()
    assert (box_N4[:, 1] + box_N4[:, 3] <= height).all()


def test_every_place_of_a_crop_is_equally_likely():
    quarter = Policy(scale=(0.25, 0.25), ratio=(1.0, 1.0))
    box_N4 = table(width=4, height=4, settings=quarter).box_N4
    assert (box_N4[:, 2:] == 2).all()
    places = np.bincount((3 * box_N4[:, 0] + box_N4[:, 1]).astype(int))
    assert len(places) == 9 and np.abs(places / N - 1 / 9).max() < 0.025


def test_a_shape_that_no_try_fits_gets_the_centre():
    box_N4 = table(width=3, height=900, settings=Policy(scale=(0.5, 1.0))).box_N4
    assert (box_N4 == [0, 448, 3, 4]).all()


def test_probabilities_and_ranges_are_simclrs():
    params = table()
    jittered = params.brightness_N != 1
    assert abs(jittered.mean() - 0.8) < 0.03
    assert abs(params.flip_N.mean() - 0.5) < 0.03
    assert abs(params.gray_N.mean() - 0.2) < 0.03
    assert abs((params.sigma_N > 0).mean() - 0.5) < 0.03
    for values in (params.brightness_N, params.contrast_N, params.saturation_N):
        assert 0.2 <= values.min() < 0.22 and 1.78 < values.max() <= 1.8
    assert -0.2 <= params.hue_N.min() < -0.19 and 0.19 < params.hue_N.max() <= 0.2
    assert params.sigma_N[params.sigma_N > 0].min() >= 0.1 and params.sigma_N.max() <= 2.0
    assert (table(settings=policy.simclr(32)).sigma_N == 0).all()


def test_single_colour_changes_equal_torchvisions():
    image = 0.4 + 0.2 * torch.rand(3, 9, 11, generator=torch.manual_seed(0)).double()
    factor = np.array([1.3], np.float32)
    cases = [
        (neutral(), image),
        (neutral(brightness_N=factor), tv.adjust_brightness(image, 1.3)),
        (neutral(contrast_N=factor), tv.adjust_contrast(image, 1.3)),
        (neutral(saturation_N=factor), tv.adjust_saturation(image, 1.3)),
        (neutral(gray_N=np.array([True])), tv.rgb_to_grayscale(image, 3)),
    ]
    for params, expected in cases:
        torch.testing.assert_close(recoloured(image, params), expected, atol=2e-4, rtol=0)


def test_hue_turns_colours_and_leaves_grey_and_luma():
    turn = neutral(hue_N=np.array([0.1], np.float32))
    grey = torch.full((3, 2, 2), 0.4).double()
    torch.testing.assert_close(recoloured(grey, turn), grey, atol=2e-3, rtol=0)
    image = 0.3 + 0.4 * torch.rand(3, 8, 8, generator=torch.manual_seed(1)).double()
    luma = torch.tensor(policy.LUMA)
    changed = recoloured(image, turn)
    torch.testing.assert_close(
        torch.tensordot(luma, changed, 1), torch.tensordot(luma, image, 1), atol=1e-6, rtol=0
    )
    assert (changed - image).abs().mean() > 0.02
    back = recoloured(changed, neutral(hue_N=np.array([-0.1], np.float32)))
    torch.testing.assert_close(back, image, atol=1e-5, rtol=0)
