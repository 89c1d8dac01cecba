"""SIGTERM and SIGINT: finish the step, save, exit with the shell's code, lose nothing."""

from __future__ import annotations

import signal

import pytest

SAME_COMMAND = {"config": {"resume": True}}


@pytest.fixture(scope="module")
def undisturbed(forks, toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert forks.run(out, **SAME_COMMAND)["code"] == 0
    return toy.final_bytes(out)


@pytest.mark.parametrize(("action", "code"), [("term", 143), ("int", 130)])
@pytest.mark.parametrize("step", [1, 8, 17])
def test_a_signal_saves_the_step_and_the_run_continues_exactly(
    forks, toy, tmp_path, undisturbed, action, code, step
):
    out = tmp_path / "run"
    stopped = forks.run(out, env={"FASTSSL_FAULT": f"loop.after_step:{action}:{step}"})
    assert stopped["code"] == code, stopped["text"]
    assert f"at step {step}/24, saved at step {step}" in stopped["text"]
    assert "--resume" in stopped["text"]
    assert (out / "checkpoints" / f"step-{step:08d}").is_dir()
    again = forks.run(out, **SAME_COMMAND)
    assert again["code"] == 0, again["text"]
    assert toy.final_bytes(out) == undisturbed


def test_a_signal_inside_a_save_does_not_disturb_it(forks, toy, tmp_path, undisturbed):
    out = tmp_path / "run"
    stopped = forks.run(out, env={"FASTSSL_FAULT": "checkpoint.mid_file:term:5"})
    assert stopped["code"] == 143, stopped["text"]
    assert forks.run(out, **SAME_COMMAND)["code"] == 0
    assert toy.final_bytes(out) == undisturbed


def test_a_signal_in_the_last_step_is_a_finished_run(forks, tmp_path):
    out = tmp_path / "run"
    assert forks.run(out, env={"FASTSSL_FAULT": "loop.after_step:term:24"})["code"] == 0


def test_a_second_interrupt_ends_the_process_at_once(forks, tmp_path):
    out = tmp_path / "run"
    answer = forks.run(out, delay=30.0, signals=[(0.6, "SIGINT"), (1.2, "SIGINT")], **SAME_COMMAND)
    assert answer["code"] == -signal.SIGINT
    assert answer["seconds"] < 10


def test_handlers_are_as_before_afterwards(toy, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    toy.train(tmp_path / "run", max_steps=2)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
