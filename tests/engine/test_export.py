"""The exported backbone, its card, and the plan of a dry run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import safetensors.torch
import torch

from fastssl.engine.config import TrainConfig
from fastssl.engine.export import Card, Score, export_backbone, read_weights
from fastssl.engine.plan import estimate_memory, plan_lines
from fastssl.engine.run_folder import open_run

CARD = Card(
    method="simclr",
    data="toy",
    steps=24,
    backbone="convnet",
    image_size=6,
    snippet="import torch\nmodel = torch.nn.Identity()",
    scores=[Score("ridge_mse", 0.0191234, "5-fold ridge, alpha 1, features at eval")],
    notes="Made in a test.",
)


@pytest.fixture
def exported(toy, tmp_path):
    method = toy.ToyMethod()
    with open_run(toy.settings(replace(toy.CONFIG, out=tmp_path / "run")), name="x") as run:
        run.begin({})
        return method, export_backbone(run, method.backbone, card=CARD)


def test_the_backbone_loads_into_a_plain_module_by_its_own_keys(toy, exported):
    method, path = exported
    state = safetensors.torch.load_file(path)
    plain = toy.ToyMethod().backbone
    plain.load_state_dict(state, strict=True)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(plain.eval()(x), method.backbone.eval()(x))


def test_the_card_tells_scores_with_protocol_snippet_and_licence(exported):
    card = (exported[1].parent / "README.md").read_text()
    assert "| ridge_mse | 0.01912 | 5-fold ridge, alpha 1, features at eval |" in card
    assert CARD.snippet in card and "these weights are yours" in card and "24 steps" in card


def test_export_again_replaces_and_leaves_no_leftovers(exported):
    assert sorted(p.name for p in exported[1].parent.iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "backbone.safetensors",
    ]


def test_one_flipped_bit_of_an_export_is_refused(exported):
    path = exported[1]
    assert read_weights(path).keys() == safetensors.torch.load_file(path).keys()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # in the tensors: a valid file with another number in it
    path.write_bytes(content)
    with pytest.raises(ValueError, match="SHA-256 differs"):
        read_weights(path)
    path.with_name("SHA256SUMS").unlink()
    assert read_weights(path)


def test_a_wrapped_module_is_not_exported(toy, tmp_path):
    settings = toy.settings(replace(toy.CONFIG, out=tmp_path / "run"))
    with open_run(settings, name="x") as run, pytest.raises(AssertionError, match="wrapped keys"):
        run.begin({})
        export_backbone(run, toy.ToyMethod(), card=CARD)


CONFIG = TrainConfig(batch_size=16, epochs=3, accumulate=2, lr=0.4, optimizer="sgd")


def test_the_plan_tells_views_rate_steps_memory_and_backends(toy):
    lines = plan_lines(
        CONFIG,
        source=toy.ToySource(),
        method=toy.ToyMethod(),
        device=torch.device("cpu"),
        backends={"ntxent": "C++ (AVX2)"},
    )
    text = "\n".join(lines)
    assert "steps             6 (3.00 epochs)" in text
    assert "views per step    64 (32 samples x 2 views)" in text
    assert "lr after scaling  0.05 (0.4 x 32 / 256), sgd" in text
    assert "op ntxent         C++ (AVX2)" in text
    assert "memory estimate" in text and "MiB" in text
    assert "does not enlarge the contrastive batch" in text


def test_the_memory_estimate_is_what_autograd_keeps(toy):
    method = toy.ToyMethod()
    memory = estimate_memory(method, CONFIG, source=toy.ToySource())
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    views = tuple(torch.rand(16, 3, 6, 6) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss, _ = method(views, None)
    loss.backward()
    assert memory.activations == pytest.approx(sum(kept.values()), rel=0.3)
    trained = sum(p.numel() * 4 for p in method.parameters() if p.requires_grad)
    assert memory.gradients == memory.optimizer == trained
    assert memory.total == memory.weights + memory.activations + 2 * trained


def test_a_plan_for_a_larger_batch_needs_more_memory(toy):
    small, large = (
        estimate_memory(toy.ToyMethod(), replace(CONFIG, batch_size=n), source=toy.ToySource())
        for n in (8, 64)
    )
    assert large.activations > 4 * small.activations
