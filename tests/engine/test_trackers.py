"""Weights & Biases and trackio as sinks: the same numbers, nothing outside the run folder."""

from __future__ import annotations

import importlib.machinery
import io
import os
import sys
import types

import pytest

from fastssl import _extras
from fastssl.engine.config import TrainConfig
from fastssl.engine.console import Console
from fastssl.engine.trackers import check_trackers, open_trackers

VARIABLES = ("WANDB_MODE", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR")
VARIABLES += ("WANDB_PROJECT", "TRACKIO_DIR")


class FakeRun:
    """What both packages' ``init`` return, as far as it is used."""

    def __init__(self, arguments: dict, *, fails: bool) -> None:
        self.arguments, self.fails = arguments, fails
        self.environment = {name: os.environ.get(name) for name in VARIABLES}
        self.logged: list[tuple[int, dict]] = []
        self.finished = False

    def log(self, values, step):
        if self.fails:
            raise RuntimeError("the server is away")
        self.logged.append((step, values))

    def finish(self):
        self.finished = True
        if self.fails:
            raise RuntimeError("the server is still away")


@pytest.fixture
def fake(monkeypatch):
    """``fake(name)`` puts a module of that name in place; its runs are collected in a list."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def put(name, *, fails=False):
        runs = []

        def init(**arguments):
            runs.append(FakeRun(arguments, fails=fails))
            return runs[-1]

        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.init, module.Settings = init, lambda **options: options
        monkeypatch.setitem(sys.modules, name, module)
        return runs

    return put


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_receives_the_numbers_of_metrics_jsonl(name, fake, toy, tmp_path):
    runs = fake(name)
    toy.train(tmp_path / "run", **{name: True})
    (run,) = runs
    seen = {(step, key) for step, values in run.logged for key in values}
    assert {(24, "loss"), (24, "monitor/rankme"), (24, "readout/norm"), (2, "loss")} <= seen
    assert all(type(value) in (int, float) for _, values in run.logged for value in values.values())
    assert run.finished
    assert (run.arguments["project"], run.arguments["name"]) == ("fastssl", "run")
    assert run.arguments["config"]["train"]["max_steps"] == 24


def test_wandb_is_offline_in_the_run_folder_unless_the_user_said_otherwise(
    fake, toy, tmp_path, monkeypatch
):
    runs = fake("wandb")
    toy.train(tmp_path / "run", max_steps=2, wandb=True)
    assert runs[0].environment["WANDB_MODE"] == "offline"
    assert runs[0].environment["WANDB_DIR"] == str(tmp_path / "run")
    for name in ("CACHE", "CONFIG", "DATA"):
        assert runs[0].environment[f"WANDB_{name}_DIR"].startswith(str(tmp_path / "run" / "wandb"))
    assert not any(name in os.environ for name in VARIABLES), "the environment is as before"
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    toy.train(tmp_path / "other", max_steps=2, wandb=True)
    assert runs[1].environment["WANDB_MODE"] == os.environ["WANDB_MODE"] == "online"
    assert runs[1].arguments["project"] == "mine"


def test_trackio_writes_into_the_run_folder_unless_the_user_said_otherwise(
    fake, toy, tmp_path, monkeypatch
):
    runs = fake("trackio")
    toy.train(tmp_path / "run", max_steps=2, trackio=True)
    assert runs[0].environment["TRACKIO_DIR"] == str(tmp_path / "run" / "trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    toy.train(tmp_path / "other", max_steps=2, trackio=True)
    assert runs[1].environment["TRACKIO_DIR"] == str(tmp_path)


def test_a_resumed_run_is_the_same_run_and_another_one_is_another(fake, toy, tmp_path):
    runs = fake("wandb")
    toy.train(tmp_path / "run", wandb=True)
    toy.train(tmp_path / "run", wandb=True, resume=True)
    toy.train(tmp_path / "other", wandb=True)
    first, resumed, other = (run.arguments["id"] for run in runs)
    assert first == resumed != other
    assert all(run.arguments["resume"] == "allow" for run in runs)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_that_fails_is_told_and_changes_nothing(name, fake, toy, tmp_path, caplog):
    fake(name, fails=True)
    text = io.StringIO()
    toy.train(tmp_path / "run", console=Console(text), **{name: True})
    assert f"metrics not written ({name}: the server is away)" in text.getvalue()
    assert f"{name} did not end well: the server is still away" in caplog.text
    toy.train(tmp_path / "plain")
    assert toy.final_bytes(tmp_path / "run") == toy.final_bytes(tmp_path / "plain")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_missing_tracker_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(_extras.MissingExtra, match=rf'pip install "fastssl\[{name}\]"'):
        check_trackers(TrainConfig(**{name: True}))


def test_trackers_are_off_by_default():
    assert open_trackers(TrainConfig(), None, keep_through=0) == []
