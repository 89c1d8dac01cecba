"""The run folder: refused, continued, replaced; never someone else's files."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from fastssl.engine.run_folder import open_run, read_settings


@pytest.fixture
def opened(toy, tmp_path):
    """A begun run with the toy's settings and the given changes."""

    def open_with(out=tmp_path / "run", **changes):
        run = open_run(toy.settings(replace(toy.CONFIG, out=out, **changes)), name="toy-toy")
        run.begin({"device": "cpu"})
        return run

    return open_with


def test_a_folder_that_holds_a_run_is_refused_and_named(opened, tmp_path):
    opened().close()
    with pytest.raises(ValueError, match=r"out: .*run already holds a run.*--resume.*--overwrite"):
        opened()
    assert (tmp_path / "run/config.yaml").exists()


def test_overwriting_deletes_the_run_and_keeps_files_that_are_not_ours(opened, tmp_path):
    with opened() as run:
        run.metrics_file.write_text('{"step": 1}\n')
        (run.checkpoints / "step-00000001").mkdir()
        (run.path / "thesis.txt").write_text("mine")
    with opened(overwrite=True) as run:
        assert not run.resuming
        assert not run.metrics_file.exists()
        assert not list(run.checkpoints.iterdir())
        assert (run.path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("flag", ["overwrite", "resume"])
def test_a_folder_with_something_else_is_never_touched(opened, tmp_path, flag):
    folder = tmp_path / "photos"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/holiday.jpg").write_text("x")
    (folder / "config.yaml").write_text("a: 1\n")
    with pytest.raises(ValueError, match="holds no fastssl run.*Nothing was touched"):
        opened(folder, **{flag: True})
    assert (folder / "checkpoints/holiday.jpg").exists()
    assert sorted(e.name for e in folder.iterdir()) == ["checkpoints", "config.yaml"]


def test_overwriting_does_not_follow_links(opened, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    with opened() as run:
        run.cache.symlink_to(elsewhere)
    opened(overwrite=True).close()
    assert (elsewhere / "precious").exists()


def test_a_file_in_place_of_the_folder_is_refused(opened, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file"):
        opened(tmp_path / "file")


def test_an_empty_folder_is_accepted(opened, tmp_path):
    (tmp_path / "run").mkdir()
    opened().close()


def test_the_default_name_counts_up(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 3):
        with opened(None) as run:
            assert str(run.path) == f"runs/toy-toy-{number}"
            assert run.settings["train"]["out"] == str(run.path)


def test_resume_needs_out_and_excludes_overwrite(opened):
    with pytest.raises(ValueError, match="--out"):
        opened(None, resume=True)
    with pytest.raises(ValueError, match="one of --resume and --overwrite"):
        opened(resume=True, overwrite=True)


def test_resume_refuses_other_settings_by_name(opened):
    opened().close()
    with pytest.raises(ValueError, match=r"lr was 0.1, now 0.2; seed was 0, now 7"):
        opened(resume=True, lr=0.2, seed=7)


def test_resume_refuses_another_length_and_says_why(opened):
    opened().close()
    with pytest.raises(ValueError, match="max_steps was 24, now 48.*learning rate follows"):
        opened(resume=True, max_steps=48)


def test_resume_accepts_what_does_not_change_the_run(opened):
    opened().close()
    with opened(resume=True, workers=7, save_every=1, log_every=5, keep_checkpoints=9) as run:
        assert run.resuming
    assert read_settings(run.path)["train"]["workers"] == 7


def test_resume_takes_a_run_begun_before_a_setting_existed(opened):
    """The default of a setting is what was done before it; another value is another run."""
    with opened() as run:
        path = run.path
    config = path / "config.yaml"
    config.write_text(re.sub(r"\n  accumulate: .*", "", config.read_text()))
    assert "accumulate" not in read_settings(path)["train"]
    opened(resume=True).close()
    with pytest.raises(ValueError, match="accumulate was 1, now 2"):
        opened(resume=True, accumulate=2)


def test_settings_that_came_later_do_not_tell_runs_apart_at_their_defaults(opened):
    """Checkpoints from before them carry a fingerprint without them."""
    later = {"train.front", "train.schedule", "train.half_period"}
    with opened() as run:
        assert not later & run.identity().keys() and "train.lr" in run.identity()
    with opened(overwrite=True, schedule="oscillating", half_period=7) as run:
        assert later & run.identity().keys() == {"train.schedule", "train.half_period"}


def test_resume_where_nothing_is_starts_a_run(opened):
    with opened(resume=True) as run:
        assert not run.resuming


def test_a_second_process_in_the_same_folder_is_refused(opened, tmp_path):
    refused = pytest.raises(ValueError, match=f"in use by another .*{os.getpid()}")
    with opened(), refused:
        opened(resume=True)
    opened(resume=True).close()


def test_the_lock_dies_with_its_process(opened, tmp_path):
    opened().close()
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'r+');"
        "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run/.lock")], stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match="in use"):
        opened(resume=True)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    opened(resume=True).close()


def test_config_yaml_is_complete_and_plain(opened, toy):
    with opened() as run:
        stored = yaml.safe_load(run.config_file.read_text())
        assert stored == {**run.settings, "resolved": {"device": "cpu"}}
    assert stored["train"].keys() == toy.settings(toy.CONFIG)["train"].keys()
    assert stored["method"] == {"width": 6}


@pytest.mark.parametrize(
    "text",
    [
        "a: &x [1]\nb: *x\n",
        "train: !!python/object/apply:os.system [true]\n",
        "[" * 5000,
        "train: 7\n",
        "\x00\x01",
    ],
)
def test_a_hostile_config_is_refused(opened, text):
    opened().close()
    with opened(resume=True) as run:
        run.config_file.write_text("# fastssl run\n" + text)
    with pytest.raises(ValueError, match="run: "):
        read_settings(run.path)


def test_a_run_killed_while_it_was_set_up_can_be_repeated(opened, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").write_text("pid 1")
    (folder / ".tmp-config.yaml-1").write_text("half")
    with opened():
        assert not (folder / ".tmp-config.yaml-1").exists()


@pytest.fixture
def locked(toy):
    """A run folder that was opened and not begun."""
    return lambda out, **changes: open_run(
        toy.settings(replace(toy.CONFIG, out=out, **changes)), name="toy-toy"
    )


def test_a_start_that_comes_to_nothing_leaves_nothing(locked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for out in (tmp_path / "deep" / "er" / "run", None):
        with locked(out) as run:
            run.cache.mkdir()
            (run.cache / "image-headers.jsonl").write_text("")
        assert list(tmp_path.iterdir()) == []


def test_a_start_that_comes_to_nothing_keeps_a_folder_that_was_there(locked, tmp_path):
    (tmp_path / "run").mkdir()
    locked(tmp_path / "run").close()
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("flag", ["overwrite", "resume"])
def test_a_start_that_comes_to_nothing_keeps_the_run_before_it(locked, opened, tmp_path, flag):
    with opened() as run:
        run.metrics_file.write_text("kept")
        config = run.config_file.read_text()
    locked(tmp_path / "run", **{flag: True}).close()
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "kept"
    assert (tmp_path / "run" / "config.yaml").read_text() == config


def test_a_start_killed_while_it_looked_at_the_data_can_be_repeated(opened, locked, tmp_path):
    run = locked(tmp_path / "run")
    run.cache.mkdir()
    (run.cache / "image-headers.jsonl").write_text("[]")
    os.close(run._lock)  # as the kernel does
    with opened() as run:
        assert (run.cache / "image-headers.jsonl").read_text() == "[]"
    assert (tmp_path / "run" / "config.yaml").exists()


def test_a_lock_that_was_given_up_meanwhile_is_no_lock(locked, tmp_path, monkeypatch):
    flock = fcntl.flock

    def just_given_up(handle, how):
        (tmp_path / "run" / ".lock").unlink()
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", just_given_up)
    with pytest.raises(ValueError, match="in use by another"):
        locked(tmp_path / "run")


def test_what_a_start_resolved_may_differ_when_it_is_resumed(opened, locked, tmp_path):
    opened().close()
    with locked(tmp_path / "run", resume=True) as run:
        identity = run.identity()
        run.begin({"device": "cuda:0"})
    assert read_settings(tmp_path / "run")["resolved"] == {"device": "cuda:0"}
    with opened(resume=True) as run:
        assert run.identity() == identity


def test_environment_names_versions_and_no_person(opened):
    with opened() as run:
        environment = json.loads((run.path / "environment.json").read_text())
    assert {"fastssl", "python", "packages", "cpu", "threads", "gpus"} <= environment.keys()
    assert os.uname().nodename not in json.dumps(environment)


def test_reading_settings_of_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(ValueError, match="holds no fastssl run"):
        read_settings(tmp_path)


def test_flock_is_what_the_lock_uses(opened):
    """A canary for the two lock tests: without flock they could pass by accident."""
    with opened() as run:
        other = os.open(run.path / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(other)
