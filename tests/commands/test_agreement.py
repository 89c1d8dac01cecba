"""Settings of a method that do not fit the run are refused before it starts, by their flag."""

from __future__ import annotations

import dataclasses

import pytest

from fastssl.recipes.agreement import check_agreement
from fastssl.recipes.catalogue import RECIPES, default_run
from fastssl.recipes.published import PUBLISHED, published_run
from fastssl.train import main


def amortised(augment, **settings):
    run = default_run("amortised", "spirograph")
    train = dataclasses.replace(run.train, augment=augment)
    return dataclasses.replace(run, train=train, method=dataclasses.replace(run.method, **settings))


@pytest.mark.parametrize(
    "augment, settings, told",
    [
        ("spirograph", {}, "--augment spirograph: has no groups"),
        ("simclr", {}, "--augment simclr: has no groups"),
        ("clar", {}, "--augment clar: has no groups"),
        (
            "spirograph-2",
            {"num_bits": 5, "num_corners": 26},
            "--num-bits: expected 2, .*received 5",
        ),
        ("spirograph-2", {"num_corners": 1}, "--num-corners: expected 3, .*received 1"),
        ("spirograph-2", {"num_corners": 9}, "--num-corners: expected 3, .*received 9"),
        ("amortised-5", {"num_bits": 5}, "--num-corners: expected 26, .*received 3"),
        ("amortised-audio", {"num_bits": 4}, "--num-corners: expected 15, .*received 3"),
    ],
)
def test_bits_and_corners_are_the_policys(augment, settings, told):
    with pytest.raises(ValueError, match=told):
        check_agreement(amortised(augment, **settings))


def test_every_recipe_agrees_with_itself():
    runs = [recipe() for recipe in RECIPES.values()]
    runs += [published_run(name, recipe) for recipe, of in PUBLISHED.items() for name in of]
    for run in runs:
        check_agreement(run)


@pytest.mark.parametrize("how", [[], ["--dry-run"]], ids=["start", "dry-run"])
def test_the_command_refuses_and_leaves_nothing_behind(how, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--method", "amortised", "--num-corners", "9", *how]) == 2
    assert "--num-corners: expected 3" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
