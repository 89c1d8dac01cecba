"""Crop boxes: torchvision's distribution, never outside the image, one answer on every device."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from fastssl.augment import Group, Ranges, alike, sample
from fastssl.augment.crop import exact_exp

N = 4000


def boxes(height, width, n=N, **ranges):
    policy = alike("crops", Ranges(**ranges), Group(size=32, num_views=2))
    sizes_N2 = torch.tensor([[height, width]]).expand(n, 2)
    drawn = sample(policy, seed=3, epoch=0, step=0, index_N=torch.arange(n), sizes_N2=sizes_N2)
    return drawn.tables[0].values_VNP[..., :4].double().numpy()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (400, 90), (31, 30)])
def test_crops_are_distributed_like_torchvisions(height, width):
    box_N4 = boxes(height, width)[1]
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(N)]
    top, left, h, w = np.array(theirs, dtype=np.float64).T
    for ours, reference in zip(box_N4.T, (left, top, w, h), strict=True):
        error = np.hypot(ours.std(), reference.std()) / np.sqrt(N) + 1e-9
        assert abs(ours.mean() - reference.mean()) < 5 * error
        assert abs(ours.std() - reference.std()) < 5 * error


@pytest.mark.parametrize("scale", [(0.05, 0.14), (0.08, 1.0), (0.9, 1.0)])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 2), (700, 3), (32, 32), (64, 1000)])
def test_a_crop_is_whole_pixels_inside_the_image(height, width, scale):
    box_VN4 = boxes(height, width, 500, scale=scale)
    left, top, w, h = np.moveaxis(box_VN4, 2, 0)
    assert (box_VN4 == np.rint(box_VN4)).all()
    assert (left >= 0).all() and (top >= 0).all() and (w >= 1).all() and (h >= 1).all()
    assert (left + w <= width).all() and (top + h <= height).all()


def test_every_place_of_a_small_crop_is_equally_likely():
    box_N4 = boxes(4, 4, scale=(0.25, 0.25), ratio=(1.0, 1.0))[0]
    assert (box_N4[:, 2:] == 2).all()
    places = np.bincount((3 * box_N4[:, 0] + box_N4[:, 1]).astype(int))
    assert len(places) == 9 and np.abs(places / N - 1 / 9).max() < 0.025


def test_a_shape_that_no_try_fits_gets_the_centre():
    assert (boxes(900, 3, 50, scale=(0.5, 1.0)) == [0, 448, 3, 4]).all()


def test_the_middle_of_an_image():
    box_VN4 = boxes(256, 512, 3, crop="centre", kept=7 / 8)
    assert (box_VN4 == [32, 16, 448, 224]).all()


def test_the_exponential_is_right_to_the_last_places():
    x = torch.linspace(-2, 2, 20001, dtype=torch.float64)
    exact = torch.tensor([math.exp(value) for value in x.tolist()], dtype=torch.float64)
    assert ((exact_exp(x) - exact).abs() / exact).max() < 4e-15
    assert exact_exp(torch.zeros(1, dtype=torch.float64)) == 1
