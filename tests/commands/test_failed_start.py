"""A start that fails claims nothing; a signal at any time ends with the shell's status."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import yaml
from safetensors.torch import load_file

from fastssl.evaluate import main as evaluate
from fastssl.recipes import assemble
from fastssl.recipes.assess import RECORDS
from fastssl.train import main


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--data", "typo"], "typo"),
        (["--batch-size", "0"], "batch_size"),
        (["--batch-size", "200000"], "--batch-size is 200000"),
        (["--backbone", "resnet81"], "resnet81"),
        (["--temperature", "0"], "temperature"),
        (["--device", "gpu"], "device"),
        (["--lr", "-1"], "lr"),
        (["--wandb"], 'pip install "fastssl[wandb]"'),
        (["--trackio"], 'pip install "fastssl[trackio]"'),
        (["--tensorboard"], "fastssl[tensorboard]"),
        (["--batch-size", "1"], "batch_size: expected at least 2"),
        (["--temperature", "-1"], "temperature must be positive, received -1"),
        (["--warmup-steps", "50", "--max-steps", "20"], "warmup_steps: expected 0 to 19"),
        (["--max-bad-files", "2"], "max_bad_files: expected a fraction, 0 to 1"),
        (["--max-bad-files", "-1"], "max_bad_files: expected a fraction, 0 to 1"),
        (["--seed", "-1"], "seed: expected at least 0"),
        (["--seed", str(2**63)], "seed: expected 0 to 2**63 - 1"),
    ],
)
@pytest.mark.parametrize("out", ["r1", None])
@pytest.mark.parametrize("how", [[], ["--dry-run"]], ids=["start", "dry-run"])
def test_a_failed_start_leaves_nothing_behind(flags, told, out, how, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for package in ("wandb", "trackio", "torch.utils.tensorboard"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    assert main([*flags, *how, *(["--out", out] if out else [])]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_too_few_good_images_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "text.png").write_text("no image")
    assert main(["--data", "photos", "--out", "r1"]) == 2
    assert "text.png" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("how", [[], ["--dry-run"]], ids=["start", "dry-run"])
@pytest.mark.parametrize(
    ("out", "flags", "told"),
    [
        ("a_file", [], "a_file is a file"),
        ("a_file/run", [], "a_file is a file"),
        ("photos", [], "not empty and holds no fastssl run"),
        ("missing", ["--resume"], "resume: there is no run in missing"),
        ("empty", ["--resume"], "resume: there is no run in empty"),
        ("run", [], "already holds a run"),
        ("run", ["--resume", "--lr", "7"], "made with other settings"),
        ("run", ["--resume", "--overwrite"], "choose one of"),
    ],
)
def test_a_dry_run_refuses_the_folders_that_a_start_refuses(
    out, flags, told, how, finished_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(finished_run)
    (tmp_path / "a_file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.png").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main(["--out", out, *flags, *how]) == 2
    assert told in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"\x93\xff\x00 random", b"# fastssl run\n{", None])
def test_a_damaged_config_is_called_damaged_with_what_is_left(
    content, finished_run, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "config.yaml").unlink()
    if content is not None:
        (run / "config.yaml").write_bytes(content)
    for command in (
        lambda: main(["--out", str(run), "--resume"]),
        lambda: main(["--out", str(run)]),
        lambda: evaluate(["ridge", "--run", str(run)]),
    ):
        assert command() == 2
        told = capsys.readouterr().err
        if content == b"# fastssl run\n{" and "already holds" in told:
            continue  # marked as a run, and not read
        assert "missing" in told if content is None else "damaged" in told
        assert "still there: checkpoints/" in told and "backbone.safetensors" in told


def test_the_recipes_warm_up_is_shortened_with_the_run(finished_run):
    assert "warm-up shortened to 0 of 6 steps" in (finished_run / "train.log").read_text()


def test_a_failed_overwrite_keeps_the_old_run(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(["--out", str(run), "--overwrite", "--batch-size", "0"]) == 2
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert {k: v for k, v in after.items() if k.name != ".lock"} == {
        k: v for k, v in before.items() if k.name != ".lock"
    }


@pytest.fixture
def kill_in(monkeypatch):
    """``kill_in(name, n, signal)``: the n-th call of ``assemble.name`` begins with the signal."""

    def arrange(name, number, sent):
        original, calls = getattr(assemble, name), []

        def wrapped(*arguments, **options):
            calls.append(name)
            if len(calls) == number:
                os.kill(os.getpid(), sent)
            return original(*arguments, **options)

        monkeypatch.setattr(assemble, name, wrapped)

    return arrange


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_yardsticks_exits_with_its_status(
    sent, train, tmp_path, kill_in, capsys
):
    run = tmp_path / "run"
    kill_in("run_readouts", 1, sent)
    assert train("--out", run) == 128 + sent
    assert f"--out {run} --resume" in capsys.readouterr().out
    assert not any((run / "checkpoints").iterdir())


def test_a_signal_while_the_data_are_opened_leaves_nothing(train, tmp_path, kill_in, capsys):
    kill_in("open_source", 1, signal.SIGTERM)
    assert train("--out", tmp_path / "run") == 143
    assert "nothing is left behind" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "number"), [("run_readouts", 2), ("pixels", 1)])
def test_a_signal_during_the_report_can_be_resumed(
    name, number, train, finished_run, tmp_path, kill_in
):
    run = tmp_path / "run"
    kill_in(name, number, signal.SIGTERM)
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert train("--out", run) == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert not (run / "export" / "backbone.safetensors").exists()
    assert main(["--resume", "--out", str(run)]) == 0
    ours, theirs = (load_file(r / "export" / "backbone.safetensors") for r in (run, finished_run))
    assert all((ours[key] == theirs[key]).all() for key in theirs)


def test_a_finished_run_that_is_resumed_is_not_scored_twice(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = (run / RECORDS).read_text()
    assert main(["--resume", "--out", str(run)]) == 0
    assert (run / RECORDS).read_text() == before


def test_a_run_from_another_device_is_resumed_and_says_where_it_runs_now(finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config = run / "config.yaml"
    before = yaml.safe_load(config.read_text())["resolved"]
    config.write_text(config.read_text().replace("device: cpu", "device: cuda:3"))
    assert yaml.safe_load(config.read_text())["resolved"]["device"] == "cuda:3"
    assert main(["--resume", "--out", str(run)]) == 0
    assert yaml.safe_load(config.read_text())["resolved"] == before


def test_a_full_disk_at_the_export_is_told_with_step_file_and_what_next(
    train, tmp_path, monkeypatch, capsys
):
    run = tmp_path / "run"

    def full(*arguments, **options):
        raise OSError(28, "No space left on device", str(run / "export" / "backbone.safetensors"))

    monkeypatch.setattr(assemble, "export_backbone", full)
    assert train("--out", run) == 2
    told = capsys.readouterr().err
    for part in ("step 6", "backbone.safetensors", "No space left", f"--out {run} --resume"):
        assert part in told
    assert "the training is done (and saved)" in told


def test_a_disk_that_is_always_full_is_not_called_saved(train, tmp_path, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "here")

    monkeypatch.setattr("fastssl.engine.checkpoint.save", full)
    assert train("--out", tmp_path / "run") == 0
    assert "warning: no checkpoint could be saved" in capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr(assemble, "export_backbone", full)
    assert train("--out", tmp_path / "other") == 2
    assert "the training is done (no checkpoint could be saved)" in capsys.readouterr().err


def test_a_disk_too_full_for_a_start_is_named_and_nothing_is_left(tmp_path, monkeypatch, capsys):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastssl.engine.files.os.fsync", full)
    assert main(["--out", str(tmp_path / "a" / "run"), "--max-steps", "1"]) == 2
    told = capsys.readouterr().err
    assert "a/run/config.yaml" in told and "make room" in told
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told_by_its_flag(tmp_path, capsys):
    assert main(["--out", "/proc/nowhere/run", "--max-steps", "1"]) == 2
    assert "out: /proc/nowhere/run cannot be made: No such file" in capsys.readouterr().err
