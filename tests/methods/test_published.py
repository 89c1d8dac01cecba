"""``--recipe``: every line of the table is a run that its method, policy and optimiser accept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastssl.augment.presets import preset
from fastssl.engine.optim import build_optimizer
from fastssl.engine.plan import check
from fastssl.methods import METHODS
from fastssl.recipes.catalogue import default_run
from fastssl.recipes.encoders import build_method
from fastssl.recipes.published import PUBLISHED
from fastssl.train import main

EVERY = sorted({(recipe, method) for recipe, lines in PUBLISHED.items() for method in lines})


@pytest.mark.parametrize("recipe, method", EVERY)
def test_every_published_recipe_builds_its_network_and_optimiser(recipe, method):
    run = default_run(method, "photos", recipe)
    check(run.train)
    assert (run.train.recipe, run.train.data) == (recipe, "photos")
    assert isinstance(run.method, METHODS[method][0])
    policy = preset(run.train.augment, image_size=run.train.image_size)
    assert sum(group.num_views for group in policy.groups) >= 2
    with torch.device("meta"):  # a thirty-fold ResNet-50 takes no memory there
        built = build_method(run)
        build_optimizer(built, run.train)
    assert next(built.parameters()).is_meta


def test_the_recipes_cover_each_papers_own_sets():
    has = {name: {r for r, lines in PUBLISHED.items() if name in lines} for name in METHODS}
    assert has["invclr"] >= {"cifar10", "cifar100"}
    assert has["cissl"] & has["dissl"] >= {"tinyimagenet", "imagenet"}
    assert has["amortised"] >= {"imagenet100", "imagenet"}
    assert all("cifar10" in sets for name, sets in has.items() if name != "mtslvr")


def test_the_page_shows_the_table_as_it_is():
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    for recipe, lines in PUBLISHED.items():
        for method, x in lines.items():
            shown = "CIFAR-10/100" if recipe.startswith("cifar") else recipe
            cells = (
                f"{shown} | `{method}` | {x.backbone} | {x.optimizer} {x.lr:g} | "
                f"{x.weight_decay:g} | {x.batch} | {x.epochs}, {x.warmup} | "
                f"{x.augment} | {x.source}"
            )
            assert f"| {cells} |" in page, cells


def test_only_what_was_compared_with_the_authors_code_is_called_the_papers():
    """InvCLR's, CISSL's, DISSL's and Amortised's lines, and TinyImageNet's, whose code has four."""
    compared = {"invclr", "cissl", "dissl", "amortised"}
    for recipe, lines in PUBLISHED.items():
        for method, line in lines.items():
            if line.source == "paper":
                assert method in compared or recipe == "tinyimagenet", (recipe, method)


def test_learning_rates_are_the_papers_after_scaling():
    def scaled(method, recipe):
        train = default_run(method, "photos", recipe).train
        return train.lr * train.batch_size / 256

    assert scaled("invclr", "cifar10") == 3.0
    assert scaled("cissl", "tinyimagenet") == scaled("dissl", "tinyimagenet") == 2e-3
    assert scaled("amortised", "imagenet100") == 5e-4
    assert scaled("swav", "imagenet") == pytest.approx(4.8)


def test_a_published_recipe_plans_from_the_command_line(tmp_path, capsys):
    import numpy as np

    file = tmp_path / "images.npz"
    np.savez(file, images=np.zeros((600, 32, 32, 3), np.uint8), labels=np.arange(600) % 3)
    flags = ["--method", "simsiam", "--recipe", "cifar10", "--data", str(file), "--dry-run"]
    assert main(flags) == 0
    told = capsys.readouterr().out
    assert "0.06" in told and "resnet18" in told and "800" in told


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--recipe", "cifar11", "--data", "."], "expected one of cifar10"),
        (["--method", "invclr", "--recipe", "imagenet", "--data", "."], "has cifar10, cifar100"),
        (["--method", "mtslvr", "--recipe", "imagenet", "--data", "."], "has none"),
        (["--recipe", "cifar10"], "needs --data"),
    ],
)
def test_a_recipe_that_is_not_there_is_refused_in_one_line(flags, told, capsys):
    assert main(flags) == 2
    assert told in capsys.readouterr().err
