"""What a run exports loads again by the lines of its card, conditioned and widened encoders too."""

from __future__ import annotations

import importlib
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastssl.methods import METHODS
from fastssl.nn.backbones import build_backbone
from fastssl.recipes.catalogue import default_run
from fastssl.recipes.encoders import build_encoder, by_default, load_encoder, snippet_of

CASES = {
    "plain": ("simclr", "convnet", {}),
    "full": ("amortised", "convnet", {"num_bits": 2, "projector_dims": (8, 8)}),
    "low-rank": ("amortised", "resnet18", {"generator": "low-rank", "rank": 3, "num_bits": 5}),
    "prompt": ("amortised", "vit_b_16", {"prompt_networks": 2, "projector_dims": (8, 8)}),
    "cissl": ("cissl", "convnet", {"dim": 160, "projector_dims": (8, 8)}),
    "bits": ("stochastic", "convnet", {"latent_dim": 24, "projector_dims": (8, 8)}),
    "categories": (
        "stochastic",
        "convnet",
        {"latent": "categorical", "latent_dim": 24, "values": 8, "projector_dims": (8, 8)},
    ),
    "mlp": ("simclr", "mlp-12", {}),
    "dissl": ("dissl", "resnet18", {"dim": 1024, "num_outputs": 8, "bottleneck_dim": 4}),
}


def made(case):
    name, backbone, settings = CASES[case]
    run = default_run(name, "spirograph")
    train = replace(run.train, backbone=backbone, image_size=32)
    run = replace(run, train=train, method=replace(run.method, **settings))
    module, _, cls = METHODS[name][1].partition(":")
    torch.manual_seed(0)
    method = getattr(importlib.import_module(module), cls)(build_backbone(backbone, 32), run.method)
    return run, method.eval()


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c == "prompt" else c for c in CASES]
)
def test_the_card_and_the_command_load_what_was_exported(case, tmp_path, monkeypatch):
    run, method = made(case)
    (tmp_path / "export").mkdir()
    state = {k: v.contiguous().clone() for k, v in method.backbone.state_dict().items()}
    save_file(state, tmp_path / "export" / "backbone.safetensors")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = method.features(x)
        loaded = by_default(load_encoder(tmp_path, run)).eval()
        assert torch.equal(loaded(x), expected)
        monkeypatch.chdir(tmp_path)
        model = run_lines(snippet_of(run, build_encoder(run))).eval()
        bits = getattr(model, "num_bits", 0)
        assert torch.equal(model(x, torch.ones(bits)) if bits else model(x), expected)


def run_lines(source):
    """The ``model`` that the lines leave, run in the current folder as a reader would."""
    Path("card.py").write_text(source)
    return runpy.run_path("card.py")["model"]


def test_another_vector_gives_other_features_after_loading():
    run, method = made("full")
    encoder = build_encoder(run)
    encoder.load_state_dict(method.backbone.state_dict())
    x, bits = torch.rand(2, 3, 32, 32), torch.tensor([1.0, 0.0])
    with torch.no_grad():
        assert torch.equal(encoder.eval()(x, bits), method.features(x, bits))
        assert not torch.equal(encoder(x, bits), by_default(encoder)(x))
