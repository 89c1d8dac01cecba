"""A run that is killed, anywhere, and started again by the same command ends in the same bytes."""

from __future__ import annotations

import random

import pytest

INSIDE_A_SAVE = [
    "checkpoint.begin",
    "checkpoint.mid_file",
    "checkpoint.after_file",
    "checkpoint.after_manifest",
    "checkpoint.before_rename",
    "checkpoint.after_rename",
    "checkpoint.before_prune",
    "checkpoint.mid_prune",
]
# Passage number of each point: one early (no older checkpoint yet), one later.
CASES = [(point, count) for point in INSIDE_A_SAVE for count in (1, 5)]
CASES += [("metrics.before_line", 4), ("loop.after_step", 1), ("loop.after_step", 17)]
SAME_COMMAND = {"config": {"resume": True}}


@pytest.fixture(scope="module")
def undisturbed(forks, toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    answer = forks.run(out, **SAME_COMMAND)
    assert answer["code"] == 0, answer["text"]
    return toy.final_bytes(out), answer["seconds"]


@pytest.mark.parametrize(("point", "count"), CASES)
def test_killed_at_a_fault_point_resumes_to_the_same_bytes(
    forks, toy, tmp_path, undisturbed, point, count
):
    out = tmp_path / "run"
    killed = forks.run(out, env={"FASTSSL_FAULT": f"{point}:kill:{count}"}, **SAME_COMMAND)
    assert killed["code"] == -9, killed["text"]
    again = forks.run(out, **SAME_COMMAND)
    assert again["code"] == 0, again["text"]
    assert toy.final_bytes(out) == undisturbed[0]
    assert not list((out / "checkpoints").glob(".tmp-*")), "leftovers of the killed save"


def kill_at_random_instants(forks, toy, tmp_path, undisturbed, *, kills: int, seed: int) -> None:
    """Kill one run after another, at instants spread over the whole life of the process."""
    expected, seconds = undisturbed
    draw = random.Random(seed)
    for trial in range(kills):
        out = tmp_path / f"run{trial}"
        delay = draw.uniform(0.0, seconds)
        killed = forks.run(out, signals=[(delay, "SIGKILL")], **SAME_COMMAND)
        assert killed["code"] in (-9, 0), killed["text"]
        again = forks.run(out, **SAME_COMMAND)
        assert again["code"] == 0, f"killed after {delay:.3f} s: {again['text']}"
        assert toy.final_bytes(out) == expected, f"killed after {delay:.3f} s"


def test_killed_at_random_instants_resumes_to_the_same_bytes(forks, toy, tmp_path, undisturbed):
    kill_at_random_instants(forks, toy, tmp_path, undisturbed, kills=20, seed=0)


@pytest.mark.slow
def test_killed_at_two_hundred_random_instants_resumes_to_the_same_bytes(
    forks, toy, tmp_path, undisturbed
):
    kill_at_random_instants(forks, toy, tmp_path, undisturbed, kills=200, seed=1)


def test_killed_again_and_again_still_ends_in_the_same_bytes(forks, toy, tmp_path, undisturbed):
    out = tmp_path / "run"
    for _ in range(30):
        answer = forks.run(out, env={"FASTSSL_FAULT": "loop.after_step:kill:4"}, **SAME_COMMAND)
        if answer["code"] == 0:
            break
        assert answer["code"] == -9, answer["text"]
    assert toy.final_bytes(out) == undisturbed[0]


def test_lost_work_is_at_most_one_save_interval(forks, tmp_path):
    out = tmp_path / "run"
    forks.run(out, env={"FASTSSL_FAULT": "loop.after_step:kill:17"}, **SAME_COMMAND)
    again = forks.run(out, **SAME_COMMAND)
    assert "resumed from step 15 of 24" in again["text"]


@pytest.mark.parametrize(
    ("bug", "point", "count"),
    [
        ("saves in place, keeping one", "checkpoint.mid_file", 8),
        ("forgets the random state", "loop.after_step", 17),
        ("starts the data anew", "loop.after_step", 17),
        ("keeps the log as it was", "loop.after_step", 17),
        ("forgets the optimiser", "loop.after_step", 17),
    ],
)
def test_the_alarm_rings_for_a_planted_bug(forks, toy, tmp_path, undisturbed, bug, point, count):
    out = tmp_path / "run"
    fault = {"FASTSSL_FAULT": f"{point}:kill:{count}"}
    killed = forks.run(out, env=fault, plant=bug, **SAME_COMMAND)
    assert killed["code"] == -9, killed["text"]
    again = forks.run(out, plant=bug, **SAME_COMMAND)
    assert again["code"] != 0 or toy.final_bytes(out) != undisturbed[0]
