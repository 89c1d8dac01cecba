"""A CUDA device draws the table that the CPU draws, to the last bit."""

from __future__ import annotations

import pytest
import torch

from fastssl.augment import PRESETS, preset, sample


@pytest.mark.gpu
@pytest.mark.parametrize("name", PRESETS)
def test_the_device_draws_the_table_of_the_cpu(name):
    n = 20_000
    generator = torch.Generator().manual_seed(0)
    sizes_N2 = torch.randint(1, 700, (n, 2), generator=generator)
    for seed, step in ((0, 0), (2**62 + 5, 7)):
        key = {"seed": seed, "epoch": 3, "step": step, "index_N": torch.arange(n)}
        key["sizes_N2"] = sizes_N2
        here = sample(preset(name, image_size=64), **key)
        there = sample(preset(name, image_size=64), **key, device="cuda").to(torch.device("cpu"))
        assert torch.equal(here.labels_VNO, there.labels_VNO)
        for ours, theirs in zip(here.tables, there.tables, strict=True):
            assert torch.equal(ours.values_VNP, theirs.values_VNP)
            assert torch.equal(ours.codes_VNC, theirs.codes_VNC)
