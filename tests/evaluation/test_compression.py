"""A stochastic run's export is what evaluation scores; its codes are bits; its cost is reported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastssl import evaluate
from fastssl.evaluation.compression import Form, compression
from fastssl.nn.codes import pack, unpack
from fastssl.nn.latent import BernoulliLatent, CategoricalLatent
from fastssl.recipes import assemble
from fastssl.recipes.catalogue import default_run
from fastssl.recipes.run import read_run


def test_packed_bits_are_numpys_and_come_back():
    code_ND = torch.where(
        torch.randn(7, 19, generator=torch.Generator().manual_seed(0)) > 0, 1.0, -1.0
    )
    packed = pack(code_ND)
    assert packed.dtype == np.uint8 and packed.shape == (7, 3)
    assert (packed == np.packbits((code_ND > 0).numpy(), axis=1)).all()
    assert torch.equal(unpack(packed, 19), code_ND)


@pytest.mark.parametrize("values", [2, 3, 4, 16])
def test_packed_categories_come_back(values):
    index_NG = torch.randint(0, values, (6, 5), generator=torch.Generator().manual_seed(values))
    code_ND = torch.nn.functional.one_hot(index_NG, values).flatten(1).float()
    latent = CategoricalLatent(4, 5 * values, values=values)
    form = {"values": latent.values, "layout": latent.layout}
    packed = pack(code_ND, **form)
    assert packed.shape[1] == -(-latent.code_bits // 8)
    assert torch.equal(unpack(packed, 5 * values, **form), code_ND)


def test_what_is_no_hard_code_is_refused():
    with pytest.raises(ValueError, match="pack: code_ND"):
        pack(torch.tensor([[0.5, -1.0]]))
    with pytest.raises(ValueError, match="values"):
        pack(torch.ones(1, 2), values=0)
    with pytest.raises(ValueError, match="one-hot groups of 3"):
        pack(torch.tensor([[1.0, 1.0, 0.0]]), values=3)
    with pytest.raises(ValueError, match=r"expected -1 and 1.*give the layout of the latent"):
        pack(torch.tensor([[0.0, 1.0]]), values=2)
    with pytest.raises(ValueError, match="layout: signs are of 2 values, received 3"):
        pack(torch.ones(1, 3), values=3, layout="signs")
    with pytest.raises(ValueError, match=r"unpack: packed_NY.*\(N, 2\)"):
        unpack(np.zeros((1, 1), np.uint8), 9)


def test_bits_and_ratios_are_those_of_the_forms():
    x = torch.zeros(2, 3)
    forms = [Form("pixels", 96.0, x, x), Form("code", 3.0, x, x + 1), Form("sample", 0.0, x, x)]
    found = dict(compression(forms, lambda a, b: iter([("moved", float((b - a).sum()))])))
    assert found["bits/code"] == 3 and found["ratio/code"] == 32 and found["moved/code"] == 6
    assert found["ratio/pixels"] == 1 and found["ratio/sample"] == float("inf")
    with pytest.raises(ValueError, match="compression: forms"):
        compression_of_nothing = compression([], lambda a, b: iter(()))
        next(compression_of_nothing)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Blobs in one of four corners: what is told apart in a few steps."""
    g = np.random.default_rng(0)
    label = np.arange(160) % 4
    images = g.integers(0, 60, (160, 16, 16), dtype=np.uint8)
    for image, k in zip(images, label, strict=True):
        image[8 * (k // 2) : 8 * (k // 2) + 8, 8 * (k % 2) : 8 * (k % 2) + 8] += 150
    file = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(file, images=images, labels=label)
    return file


def trained(digits, folder, **settings):
    run = default_run("stochastic", str(digits))
    small = {"latent_dim": 16, "projector_dims": (16, 8), "values": 4, **settings}
    train = replace(
        run.train,
        **{"backbone": "mlp-12", "image_size": 8, "augment": "digits", "batch_size": 32},
        **{"max_steps": 6, "epochs": None, "warmup_steps": 0, "device": "cpu", "out": folder},
    )
    run = replace(run, train=train, method=replace(run.method, **small))
    assert assemble.train(run) == 0
    return run


def scored(folder, *arguments):
    assert evaluate.main([*arguments, "--run", str(folder), "--device", "cpu"]) == 0


@pytest.mark.parametrize("latent", ["gaussian", "bernoulli", "categorical"])
def test_the_card_the_command_and_the_study_agree_on_the_code(latent, digits, tmp_path, capsys):
    import json

    trained(digits, tmp_path, latent=latent)
    scored(tmp_path, "knn")
    scored(
        tmp_path,
        "compression",
        *(() if latent == "gaussian" else ("--codes", str(tmp_path / "c.npz"))),
    )
    lines = (tmp_path / "evaluation" / "scores.jsonl").read_text().splitlines()
    card, command, study = (json.loads(line)["metrics"] for line in lines)
    assert card["knn_top1"] == command["knn_top1"] == study["knn_top1/code"]
    bits = {"gaussian": 16 * 32, "bernoulli": 16, "categorical": 8}[latent]
    assert study["bits/code"] == bits and study["bits/features"] == 12 * 32
    assert study["bits/pixels"] == 3 * 8 * 8 * 8 and study["ratio/code"] == 1536 / bits
    assert study["bits/sample"] > 0
    if latent != "gaussian":
        with np.load(tmp_path / "c.npz") as file:
            assert file["codes"].dtype == np.uint8 and file["codes"].shape[1] == bits // 8
            assert len(file["codes"]) == len(file["labels"])
            assert len(file["test_codes"]) == len(file["test_labels"])


def test_the_rate_is_nothing_where_the_posterior_is_the_prior():
    latent = BernoulliLatent(3, 8)
    torch.nn.init.zeros_(latent.parameters_of.weight)
    torch.nn.init.zeros_(latent.parameters_of.bias)
    assert latent(torch.randn(4, 3)).rate_N.abs().max() < 1e-6


def test_hard_samples_are_as_likely_as_the_rate_supposes():
    latent = BernoulliLatent(1, 1, relaxation=0.7)
    torch.nn.init.constant_(latent.parameters_of.weight, 0.8)
    torch.nn.init.zeros_(latent.parameters_of.bias)
    torch.manual_seed(0)
    bit_ND = latent.hardened(latent(torch.ones(20_000, 1)).sample_ND)
    assert set(bit_ND.unique().tolist()) == {-1.0, 1.0}
    expected = float(torch.sigmoid(torch.tensor(0.8)))
    assert abs(float((bit_ND > 0).double().mean()) - expected) < 4 * 0.5 / 20_000**0.5


def test_codes_are_not_written_of_runs_without_any(digits, tmp_path, capsys):
    trained(digits, tmp_path, latent="gaussian")
    arguments = ["compression", "--run", str(tmp_path), "--codes", str(tmp_path / "c.npz")]
    assert evaluate.main(arguments) == 2
    assert "have no hard codes" in capsys.readouterr().err
    assert read_run(tmp_path).method.latent == "gaussian" and not (tmp_path / "c.npz").exists()


def test_categories_of_two_values_are_written_as_their_bits(digits, tmp_path):
    trained(digits, tmp_path, latent="categorical", values=2)
    scored(tmp_path, "compression", "--codes", str(tmp_path / "c.npz"))
    with np.load(tmp_path / "c.npz") as file:
        codes_NY = file["codes"]
    code_ND = unpack(codes_NY, 16, values=2, layout="one-hot")
    assert codes_NY.shape[1] == 1 and (code_ND.unflatten(1, (8, 2)).sum(2) == 1).all()
