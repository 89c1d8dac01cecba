"""Flags: fast help, every option explained, typos caught, errors of the user's in one line."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import resource
import subprocess
import sys

import pytest

from fastssl import _extras, evaluate
from fastssl.engine.config import TrainConfig
from fastssl.methods import METHODS
from fastssl.train import main


def cpu_seconds(run):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, result


@pytest.mark.parametrize("flags", [("train", "--help"), ("evaluate", "knn", "--help")])
def test_help_takes_under_half_a_second_and_imports_no_torch(command, flags):
    timings = [cpu_seconds(lambda: command(*flags)) for _ in range(4)]
    assert all(result.returncode == 0 for _, result in timings)
    assert min(seconds for seconds, _ in timings) < 0.5
    traced = command(*flags, python=["-X", "importtime"]).stderr
    imported = {line.rpartition("|")[2].strip() for line in traced.splitlines()}
    assert "tyro" in imported
    assert not imported & {"torch", "numpy", "torchvision", "nvidia.dali"}


METHODS_SHOWN = ("simclr", "dino", "amortised")


def test_help_lists_every_setting_and_the_recipes_defaults(command):
    text = command("train", "--help").stdout
    texts = {name: command("train", "--help", "--method", name).stdout for name in METHODS_SHOWN}
    for name in METHODS_SHOWN:
        for cls in (TrainConfig, METHODS[name][0]):
            for field in dataclasses.fields(cls):
                assert f"--{field.name.replace('_', '-')}" in texts[name], (name, field.name)
    folder = command("train", "--help", "--data", "photos").stdout
    assert "(default: convnet)" in text and "(default: resnet18)" in folder
    assert "(default: photos)" in folder


@pytest.mark.parametrize(
    "config_class",
    [TrainConfig, evaluate.Common, evaluate.Knn, *(config for config, _ in METHODS.values())],
)
def test_every_setting_is_explained(config_class):
    (tree,) = ast.parse(inspect.getsource(config_class)).body
    for statement, following in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            explained = isinstance(following, ast.Expr) and isinstance(
                following.value, ast.Constant
            )
            assert explained, f"{statement.target.id} has no help text below it"


@pytest.mark.parametrize(
    ("typed", "meant"), [("--batchsize", "--batch-size"), ("--temprature", "--temperature")]
)
def test_a_typo_is_refused_with_what_was_meant(typed, meant, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([typed, "3"])
    assert stopped.value.code == 2
    told = "".join(capsys.readouterr())
    assert typed in told and meant in told


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--method", "simclrr"], "--method: expected one of simclr"),
        (["--data", "/nowhere/photos"], "--data /nowhere/photos: no such folder"),
        (["--backbone", "resnet81", "--dry-run"], "did you mean"),
        (["--batch-size", "0", "--dry-run"], "batch_size"),
        (["--temperature", "0", "--max-steps", "1", "--dry-run"], "temperature"),
        (["--device", "gpu", "--dry-run"], "device"),
        (["--resume"], "--out"),
    ],
)
def test_an_error_of_the_users_is_one_line_and_exit_status_2(
    flags, told, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("fastssl: ") and told in line
    assert "Traceback" not in line


def test_a_reader_that_leaves_early_sees_no_error():
    code = (
        "import os, sys; from fastssl._cli import guarded\n"
        "def tell(): print('x' * 200000, flush=True); return 0\n"
        "sys.stdin.read(); sys.exit(guarded(tell))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()  # before the child starts to write, which it does at the end of stdin
    process.stdin.close()
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141 and told == ""


def test_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("FASTSSL_TRACEBACK", "1")
    with pytest.raises(ValueError, match="--method"):
        main(["--method", "simclrr"])


@pytest.mark.parametrize("run", [main, evaluate.main])
def test_without_the_extra_the_command_says_how_to_install_it(run, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        _extras.importlib.util, "find_spec", lambda n: None if n == "tyro" else found(n)
    )
    assert run(["--help"]) == 2
    told = capsys.readouterr().err
    assert "tyro" in told and 'pip install "fastssl[train]"' in told
    assert len(told.strip().splitlines()) == 1


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(_extras.MissingExtra, match=r'nothing_like_it.*"fastssl\[audio\]"'):
        _extras.require("nothing_like_it", extra="audio")
    assert _extras.require("json", extra="audio").dumps([1]) == "[1]"


def test_dry_run_prints_the_plan_quickly_and_writes_nothing(command, tmp_path):
    seconds, result = cpu_seconds(lambda: command("train", "--dry-run", "--batch-size", "64"))
    assert result.returncode == 0, result.stderr
    assert seconds < 6
    for fact in ("views per step", "lr after scaling", "steps", "memory estimate", "op ntxent"):
        assert fact in result.stdout
    assert "128" in result.stdout, "64 samples make 128 views"
    assert not list(tmp_path.iterdir())


def test_epochs_asked_for_win_over_the_recipes_steps(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--epochs", "3", "--batch-size", "1000", "--dry-run"]) == 0
    assert "300 (3.00 epochs)" in capsys.readouterr().out


def test_every_method_and_kind_of_data_has_a_recipe_that_builds(tmp_path):
    from fastssl.recipes.catalogue import RECIPES, default_run

    (tmp_path / "one.wav").touch()
    data = {"folder": "some/path", "sounds": str(tmp_path)}
    assert {method for method, _ in RECIPES} == set(METHODS)
    for method, kind in RECIPES:
        run = default_run(method, data.get(kind, kind))
        assert run.train.method == method
        assert isinstance(run.method, METHODS[method][0])
        assert run.train.data == data.get(kind, kind)
