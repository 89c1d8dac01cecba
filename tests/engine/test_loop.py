"""The loop: exact resume, observers that change nothing, sources that fail, what it reports."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch

from fastssl.engine.config import TrainConfig
from fastssl.engine.console import Console
from fastssl.engine.device import resolve_device
from fastssl.engine.plan import total_steps
from fastssl.engine.readout import observing, run_readouts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def undisturbed(toy, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    result, _ = toy.train(out)
    return out, result, toy.final_bytes(out)


def test_two_runs_are_equal_byte_for_byte(toy, tmp_path, undisturbed):
    toy.train(tmp_path / "run")
    assert toy.final_bytes(tmp_path / "run") == undisturbed[2]


def test_another_seed_is_another_run(toy, tmp_path, undisturbed):
    toy.train(tmp_path / "run", seed=1)
    assert toy.final_bytes(tmp_path / "run")["model"] != undisturbed[2]["model"]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("step", [1, 5, 23])
def test_training_resumed_at_any_step_ends_in_the_same_bytes(toy, tmp_path, optimizer, step):
    toy.train(tmp_path / "whole", optimizer=optimizer)
    with pytest.raises(RuntimeError, match="went away"):
        toy.train(tmp_path / "cut", optimizer=optimizer, source=toy.ToySource(fails_at=step))
    assert toy.final_bytes(tmp_path / "cut")["step"] == f"step-{step:08d}"
    toy.train(tmp_path / "cut", optimizer=optimizer, resume=True)
    assert toy.final_bytes(tmp_path / "cut") == toy.final_bytes(tmp_path / "whole")


def test_readouts_and_monitors_do_not_change_the_weights(toy, tmp_path, undisturbed):
    toy.train(tmp_path / "run", readouts=(), readout_every=0)
    toy.train(tmp_path / "often", readout_every=1)
    for name in ("run", "often"):
        assert toy.final_bytes(tmp_path / name)["model"] == undisturbed[2]["model"]


def test_saving_and_logging_do_not_change_the_weights(toy, tmp_path, undisturbed):
    toy.train(tmp_path / "run", save_every=1, log_every=7)
    assert toy.final_bytes(tmp_path / "run")["model"] == undisturbed[2]["model"]


def test_what_the_caller_draws_before_does_not_change_the_run(toy, tmp_path, undisturbed):
    toy.seeding.seed_everything(0)
    method = toy.ToyMethod()
    torch.rand(1000)
    toy.train(tmp_path / "run", method=method)
    assert toy.final_bytes(tmp_path / "run")["model"] == undisturbed[2]["model"]


def test_a_finished_run_resumed_does_nothing_and_reports_the_same(toy, tmp_path, undisturbed):
    toy.train(tmp_path / "run")
    result, _ = toy.train(tmp_path / "run", resume=True)
    assert result.finished and result.exit_code == 0
    assert (result.metrics, result.readouts) == (undisturbed[1].metrics, undisturbed[1].readouts)
    assert toy.final_bytes(tmp_path / "run") == undisturbed[2]


def test_a_run_resumed_with_another_save_interval_is_the_same_run(toy, tmp_path, undisturbed):
    with pytest.raises(RuntimeError):
        toy.train(tmp_path / "run", source=toy.ToySource(fails_at=10))
    toy.train(tmp_path / "run", resume=True, save_every=5, workers=9)
    assert toy.final_bytes(tmp_path / "run") == undisturbed[2]


def test_a_failing_source_saves_says_so_and_raises_its_own_error(toy, tmp_path):
    text = io.StringIO()
    with pytest.raises(RuntimeError, match="toy source: the disk with the images went away"):
        toy.train(tmp_path / "run", source=toy.ToySource(fails_at=10), console=Console(text))
    assert "the data source failed at step 10" in text.getvalue()
    assert "saved at step 10" in text.getvalue() and "--resume" in text.getvalue()


def test_the_loader_is_closed_however_the_run_ends(toy, tmp_path, monkeypatch):
    opened = []
    init = toy.ToyBatches.__init__

    def remembering(self, *arguments):
        init(self, *arguments)
        opened.append(self)

    monkeypatch.setattr(toy.ToyBatches, "__init__", remembering)
    toy.train(tmp_path / "good")
    with pytest.raises(RuntimeError):
        toy.train(tmp_path / "bad", source=toy.ToySource(fails_at=2))
    assert len(opened) == 2 and all(batches.closed for batches in opened)


def test_the_log_has_every_number_that_was_promised(toy, undisturbed):
    lines = undisturbed[2]["metrics"]
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [1, *range(2, 25, 2)]
    assert {"loss", "lr", "grad_norm", "positive", "skipped", "epoch"} <= trained[0].keys()
    assert [line["step"] for line in lines if "readout" in line] == [4, 8, 12, 16, 20, 24]
    monitored = [line["monitor"] for line in lines if "monitor" in line]
    assert monitored[0].keys() == {"feature_std", "rankme", "uniformity", "alignment"}
    wall = json.loads((undisturbed[0] / "metrics.jsonl").read_text().splitlines()[0])["wall"]
    assert {"seconds", "views_per_second", "data_wait"} == wall.keys()


@pytest.mark.parametrize(
    ("kind", "slow", "times"), [("folder", 1e9, 1), ("folder", 0.0, 0), ("toy", 1e9, 0)]
)
def test_a_slow_run_over_a_folder_says_once_what_is_faster(
    toy, tmp_path, monkeypatch, kind, slow, times
):
    monkeypatch.setattr("fastssl.engine.pace.SLOW", slow)
    source, said = toy.ToySource(), io.StringIO()
    source.kind = kind
    toy.train(tmp_path / "run", source=source, console=Console(said), image_size=96)
    assert said.getvalue().count("is faster") == times
    assert said.getvalue().count("views/s at --image-size 96") == times


def test_the_result_tells_throughput_and_data_wait_truly(toy, tmp_path):
    slow, _ = toy.train(tmp_path / "slow", source=toy.ToySource(delay=0.02), readouts=())
    assert slow.data_wait > 0.5
    assert slow.views_per_second < 8 / 0.02
    fast, _ = toy.train(tmp_path / "fast", readouts=())
    assert fast.data_wait < slow.data_wait
    assert fast.steps == fast.total_steps == 24 and fast.stopped_by == "end"


def test_total_steps_follow_epochs_accumulation_and_max_steps(toy):
    source = toy.ToySource()
    config = TrainConfig(batch_size=16, epochs=5)
    assert total_steps(source, config) == 20
    assert total_steps(source, replace(config, accumulate=2)) == 10
    assert total_steps(source, replace(config, max_steps=7)) == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": None}, "epochs, max_steps: set one of them"),
        ({"batch_size": 65}, "batch_size: 65 is more than the 64 samples of toy"),
        ({"batch_size": 0}, "batch_size: expected at least 2, received 0"),
        ({"accumulate": 0}, "accumulate: expected at least 1"),
        ({"keep_checkpoints": 1}, "keep_checkpoints: expected at least 2"),
        ({"epochs": 0}, "epochs: expected at least 1"),
        ({"max_steps": -1}, "max_steps: expected at least 1"),
        ({"lr": float("nan")}, "lr: expected a positive number, received nan"),
        ({"weight_decay": -1.0}, "weight_decay: expected zero or more"),
        ({"save_every": 0}, "save_every: expected at least 1"),
    ],
)
def test_settings_that_no_run_can_have_are_named(toy, changes, message):
    with pytest.raises(ValueError, match=message):
        total_steps(toy.ToySource(), replace(TrainConfig(batch_size=16, epochs=5), **changes))


def test_observing_restores_modes_and_random_state(toy):
    method = toy.ToyMethod().train()
    method.head.eval()
    state = torch.get_rng_state()
    with observing(method, CPU):
        assert not any(module.training for module in method.modules())
        torch.rand(10)
    assert torch.equal(torch.get_rng_state(), state)
    assert method.training and method.backbone.training and not method.head[0].training


def test_a_readout_that_fails_leaves_the_modes_as_they_were(toy):
    method = toy.ToyMethod().train()

    def failing(features_fn):
        raise RuntimeError("no labels")
        yield

    with pytest.raises(RuntimeError, match="no labels"):
        run_readouts(method, [failing], device=CPU)
    assert all(module.training for module in method.modules())


def test_readouts_get_float32_features_without_gradients(toy):
    seen = []

    def readout(features_fn):
        seen.append(features_fn(torch.ones(4, 3, 6, 6)))
        yield "size", 1.0

    assert run_readouts(toy.ToyMethod(), [readout], device=CPU) == {"size": 1.0}
    assert seen[0].dtype == torch.float32 and not seen[0].requires_grad
    assert seen[0].shape == (4, 96)


def test_devices_by_name():
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    for name in ("gpu", "mps", "cuda:99"):
        with pytest.raises(ValueError, match=f"device: .*{name}"):
            resolve_device(name)


def test_tensorboard_is_optional_and_its_absence_is_explained(toy, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'fastssl\[tensorboard\]'"):
        toy.train(tmp_path / "run", tensorboard=True)


def test_tensorboard_receives_the_same_numbers(toy, tmp_path, monkeypatch):
    import sys
    import types

    written, purged = [], []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            purged.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def flush(self):
            written.append(("flush", 0))

        close = flush

    fake = types.SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    toy.train(tmp_path / "run", tensorboard=True)
    assert {("loss", 24), ("monitor/rankme", 24), ("readout/norm", 24)} <= set(written)
    assert purged == [(str(tmp_path / "run/tensorboard"), 1)]


def test_nothing_is_written_outside_the_run_folder_and_nothing_connects(forks, tmp_path):
    answer = forks.run(tmp_path / "run", watch=True)
    assert answer["code"] == 0, answer["text"]
    heard = [line for line in answer["text"].splitlines() if line.startswith("audit ")]
    assert heard == ["audit open " + str(tmp_path / "canary")]
