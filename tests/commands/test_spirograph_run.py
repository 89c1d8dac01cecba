"""The commands end to end on the embedded data: train, score, export, evaluate, resume."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fastssl.evaluate import main as evaluate
from fastssl.recipes.assess import RECORDS
from fastssl.recipes.run import read_run, run_from_settings

IMAGES = ["--train-images", "300", "--test-images", "100"]


def records(run):
    return [json.loads(line) for line in (run / RECORDS).read_text().splitlines()]


def weights(run):
    return (run / "export" / "backbone.safetensors").read_bytes()


def test_run_folder_holds_everything_a_reader_needs(finished_run):
    for name in ("config.yaml", "metrics.jsonl", "train.log", "environment.json", RECORDS):
        assert (finished_run / name).stat().st_size > 0
    assert load_file(finished_run / "export" / "backbone.safetensors")
    card = (finished_run / "export" / "README.md").read_text()
    assert "load_state_dict" in card and "mse" in card


def test_config_is_fully_resolved_and_gives_the_run_back(finished_run):
    settings = yaml.safe_load((finished_run / "config.yaml").read_text())
    assert settings["train"]["max_steps"] == 6 and settings["train"]["batch_size"] == 16
    assert settings["method"]["temperature"] == read_run(finished_run).method.temperature
    assert isinstance(read_run(finished_run).method.projector_dims, tuple)
    resolved = settings["resolved"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert resolved["device"] == device
    assert resolved["precision"] == {"cuda": "bf16", "cpu": "fp32"}[device]
    assert (resolved["total_steps"], resolved["epochs"]) == (6, 0.001)
    assert resolved["lr_after_scaling"] == pytest.approx(settings["train"]["lr"] / 16)
    assert resolved["readout_every"] == 1


def test_report_ends_with_score_three_yardsticks_folder_and_next_command(train, tmp_path, capsys):
    assert train("--out", tmp_path / "run") == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("score"))
    told = "\n".join(lines[start:])
    for part in ("mse", "mean predictor", "raw pixels", "untrained encoder", "per target"):
        assert part in told
    assert lines[-1].split() == (
        f"next python -m fastssl.evaluate ridge --run {tmp_path / 'run'}".split()
    )


def test_evaluate_repeats_the_score_from_export_and_config_alone(finished_run, tmp_path, capsys):
    run = tmp_path / "carried away"
    (run / "export").mkdir(parents=True)
    for name in ("config.yaml", "export/backbone.safetensors"):
        shutil.copy(finished_run / name, run / name)
    assert evaluate(["ridge", "--run", str(run), *IMAGES]) == 0
    told = capsys.readouterr().out
    (record,) = records(run)
    trained = records(finished_run)[0]
    assert record["metrics"] == pytest.approx(trained["metrics"], rel=1e-6)
    assert record["protocol"] == trained["protocol"]
    protocol = record["protocol"]
    for key in ("batch_norm", "stem", "crop", "train_images", "test_images", "lambdas"):
        assert key in protocol and f"{key}: " in told
    assert evaluate(["ridge", "--run", str(run), *IMAGES]) == 0
    assert len(records(run)) == 2, "a second evaluation is appended"


def test_evaluate_refuses_a_readout_that_does_not_fit_the_labels(finished_run, capsys):
    assert evaluate(["knn", "--run", str(finished_run)]) == 2
    assert "regression targets; use ridge" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no config", "foreign", "alias", "truncated", "other", "type"])
def test_damaged_or_foreign_folders_are_refused_in_one_line(damage, finished_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    config, export = run / "config.yaml", run / "export" / "backbone.safetensors"
    text = config.read_text()
    if damage == "no config":
        config.unlink()
    elif damage == "foreign":
        config.write_text("hello: world\n")
    elif damage == "alias":
        config.write_text(text.replace("method: simclr", "method: !!python/name:os.system"))
    elif damage == "truncated":
        export.write_bytes(export.read_bytes()[:-100])
    elif damage == "other":
        config.write_text(text.replace("backbone: convnet", "backbone: resnet18"))
    else:
        config.write_text(text.replace("image_size: 32", "image_size: huge"))
    assert text != (config.read_text() if config.exists() else "") or damage == "truncated"
    assert evaluate(["ridge", "--run", str(run), *IMAGES]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("fastssl: ") and len(told.splitlines()) == 1
    assert str(run) in told or "config.yaml" in told


@pytest.mark.parametrize("entry", [("lr", "fast"), ("workers", 1.5), ("compile", 1), ("zzz", 1)])
def test_wrongly_typed_or_unknown_settings_are_refused(entry):
    settings = {"train": {"method": "simclr"}, "method": {}}
    assert run_from_settings(settings, origin="c").train.method == "simclr"
    settings["train"][entry[0]] = entry[1]
    with pytest.raises(ValueError, match=entry[0]):
        run_from_settings(settings, origin="c")


def test_existing_run_is_refused_unless_overwritten(train, finished_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = weights(run)
    assert train("--out", run) == 2
    assert "--resume" in capsys.readouterr().err
    assert weights(run) == before
    assert train("--out", run, "--overwrite", "--seed", "1") == 0
    assert weights(run) != before
    assert len(records(run)) == 1, "the old run's scores are gone"


def test_same_seed_gives_the_same_bytes(train, finished_run, tmp_path):
    assert train("--out", tmp_path / "again") == 0
    assert weights(tmp_path / "again") == weights(finished_run)


def test_resume_needs_only_the_folder_and_ends_in_the_same_bytes(
    small_readouts, finished_run, tmp_path, capsys
):
    from fastssl.train import main

    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    shutil.rmtree(run / "export")
    assert main(["--resume", "--out", str(run)]) == 0
    assert "resumed from step 3" in capsys.readouterr().out
    assert weights(run) == weights(finished_run)


def test_resume_refuses_changed_settings(train, finished_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert train("--resume", "--out", run, "--temperature", "0.9") == 2
    assert "temperature" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_says_how_to_go_on_and_exits_with_its_status(number, tmp_path):
    run = tmp_path / "run"
    flags = ["--max-steps", "100000", "--batch-size", "16", "--log-every", "1", "--out", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "fastssl.train", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        metrics = run / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
        process.send_signal(number)
        told, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, told
    assert "--resume" in told and "Traceback" not in told
    assert any((run / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("verb", "flags", "metric"),
    [
        ("averaging", ["--averages", "1", "2"], "mse@2"),
        ("meter", ["--draws", "2"], "variance_ratio"),
        ("alpha", [], "alpha_mse/h"),
    ],
)
def test_studies_score_and_record_with_their_protocol(verb, flags, metric, finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / RECORDS).unlink()
    assert evaluate([verb, "--run", str(run), *IMAGES, *flags]) == 0
    (record,) = records(run)
    assert record["readout"] == verb and record["metrics"][metric] > 0
    assert record["protocol"]["train_images"] == 300


def test_an_amortised_run_is_scored_under_every_vector_from_its_export(train, tmp_path, capsys):
    run = tmp_path / "run"
    heads = ["--projector-dims", "8", "8"]
    assert train("--method", "amortised", *heads, "--generator", "low-rank", "--out", run) == 0
    assert "HyperEncoder" in (run / "export" / "README.md").read_text()
    trained = records(run)[0]["metrics"]["mse"]
    few = ["--train-images", "60", "--test-images", "20", "--steps", "1", "--targets", "nuisances"]
    few += ["--start", "half", "--rate", "0.25"]
    assert evaluate(["ridge", "--run", str(run), *IMAGES]) == 0
    assert records(run)[1]["metrics"]["mse"] == pytest.approx(trained, rel=1e-4)
    assert evaluate(["invariance", "--run", str(run), *IMAGES, "--steps", "3"]) == 0
    found = records(run)[2]["metrics"]
    assert found["mse@11"] == found["mse@default"] == pytest.approx(trained, rel=1e-4)
    assert {"mse@00", "mse@01", "mse@10", "mse@learned", "mse@rounded"} < found.keys()
    assert 0 <= found["bit/0"] <= 1 and found["bit/0"] != 0.5
    assert evaluate(["invariance", "--run", str(run), *few]) == 0
    found, protocol = records(run)[3]["metrics"], records(run)[3]["protocol"]
    assert "mse/h@learned" in found and abs(found["bit/0"] - 0.5) == pytest.approx(0.25, rel=1e-3)
    assert (protocol["start"], protocol["rate"]) == ("half", 0.25)


def test_invariance_is_refused_for_a_run_that_is_told_no_vector(finished_run, capsys):
    assert evaluate(["invariance", "--run", str(finished_run), *IMAGES]) == 2
    assert "amortised" in capsys.readouterr().err
