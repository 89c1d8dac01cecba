"""The benchmarks measure what they say, and refuse to time wrong answers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import clock, machine, memory, targets
from benchmarks.micro.ntxent_gate import TEMPERATURE, gate, inputs, truth
from benchmarks.peers import ntxent_peers
from benchmarks.systems import few_shot, mtslvr_passes
from fastssl.evaluation.few_shot import draw_episodes
from fastssl.kernels.ntxent import reference
from fastssl.kernels.ntxent.op import ntxent
from tests.house.tree import ROOT

SHAPE = (96, 24)


def right(z0_ND, z1_ND, tau):
    return ntxent([z0_ND, z1_ND], tau)


def with_self_pairs(z0_ND, z1_ND, tau):
    z_MD = torch.nn.functional.normalize(torch.cat([z0_ND, z1_ND]))
    positive_M = (z_MD * z_MD.roll(len(z0_ND), 0)).sum(1) / tau
    return ((z_MD @ z_MD.T / tau).logsumexp(1) - positive_M).mean()


def with_half_the_gradient(z0_ND, z1_ND, tau):
    loss = right(z0_ND, z1_ND, tau)
    return (loss + loss.detach()) / 2


def with_a_constant_temperature(z0_ND, z1_ND, tau):
    return right(z0_ND, z1_ND, tau.detach()) + 0 * tau


def with_a_little_noise(z0_ND, z1_ND, tau):
    return right(z0_ND, z1_ND, tau) * (1 + 1e-4)


def test_the_gate_is_green_for_the_operator_and_its_peers():
    assert gate(right, ntxent_peers(TEMPERATURE), SHAPE) == []
    assert gate(right, {}, SHAPE, dtype=torch.bfloat16) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (with_self_pairs, "loss"),
        (with_half_the_gradient, "gradient"),
        (with_a_constant_temperature, "temperature gradient"),
        (with_a_little_noise, "loss"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_gate_is_red_for_a_wrong_loss(wrong, named):
    assert any(mistake.startswith(f"{named}:") for mistake in gate(wrong, {}, SHAPE))


def test_the_gate_is_red_where_a_peer_disagrees():
    other = {"other temperature": ntxent_peers(TEMPERATURE * 1.01)["naive"]}
    assert any("other temperature" in mistake for mistake in gate(right, other, SHAPE))


def test_the_truth_in_blocks_is_the_reference():
    views = [view.detach().double().requires_grad_() for view in inputs(*SHAPE)]
    tau = torch.tensor(TEMPERATURE, dtype=torch.float64, requires_grad=True)
    loss = reference.ntxent(views, tau, "mean")
    *dviews, dtau = torch.autograd.grad(loss, [*views, tau])
    exact = truth(torch.cat(views).detach(), TEMPERATURE, num_rows=10, block=17)
    torch.testing.assert_close(exact.loss, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(exact.dh, torch.cat(dviews)[exact.rows], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(exact.dtemperature, dtau, rtol=1e-10, atol=1e-14)


def test_contestants_take_turns():
    calls = []
    contestants = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    timings = clock.race(contestants, rounds=4, slice_s=0.0, warmup_s=0.0)
    assert calls[4:] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert {timing.calls for timing in timings.values()} == {4}


def test_a_timing_is_the_median_and_its_quartiles():
    timing = clock.summarise([5.0, 1.0, 2.0, 3.0, 100.0])
    assert timing == clock.Timing(median=3.0, best=1.0, q1=2.0, q3=5.0, calls=5)


def test_a_short_target_fails_the_command(capsys):
    met = [targets.at_least("a", 2.0, 2.0), targets.at_most("b", 2.0, 2.0)]
    assert targets.conclude(met) == 0
    short = [targets.at_least("a", 1.9, 2.0), targets.at_most("b", 2.1, 2.0)]
    for verdict in [*short, targets.at_least("c", float("nan"), 0.0)]:
        assert targets.conclude([*met, verdict]) == 1
    assert capsys.readouterr().out.count(" short") == 3


def touch(*, megabytes):
    return lambda: bytearray(b"x" * (megabytes * 1_000_000))


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_memory_is_what_the_step_touches():
    found = memory.extra_peak_bytes("tests.house.test_benchmarks:touch", megabytes=60)
    assert 118e6 <= found <= 125e6  # the bytes and their copy, to within a few pages


def test_the_peak_is_one_a_processor_can_have():
    peak = machine.fma_peak(threads=1, seconds=0.05)
    assert 1 < peak.gflops < 1000


def test_the_peak_says_when_it_is_only_a_bound(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    peak = machine.fma_peak(threads=1, seconds=0.05)
    assert "lower bound" in peak.how
    assert peak.gflops > 0


def test_the_command_runs_and_keeps_its_record(tmp_path):
    kept = tmp_path / "record.json"
    command = [sys.executable, "-m", "benchmarks.micro", "ntxent", "--quick", "--json", str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gate      green" in done.stdout
    record = json.loads(kept.read_text())
    assert record["machine"]["versions"]["torch"] == torch.__version__.split("+")[0]
    for row in record["rows"].values():
        assert 0 < row["ours"]["best"] <= row["ours"]["median"]
    assert record["extra_bytes"]["1024"] > 0


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")  # of NearestCentroid
def test_the_gate_of_few_shot_is_red_where_the_batch_answers_otherwise(monkeypatch, capsys):
    features, label = few_shot.problem()
    chosen = draw_episodes(label, ways=5, samples=16, episodes=6)
    agreement = few_shot.compare(features, chosen)
    assert few_shot.gate_is_green(agreement) and "green" in capsys.readouterr().out
    right = few_shot.scores
    monkeypatch.setattr(few_shot, "scores", lambda *a: {n: -s for n, s in right(*a).items()})
    assert not few_shot.gate_is_green(few_shot.compare(features, chosen))
    assert capsys.readouterr().out.count("wrong ") == 3


def test_the_gate_of_passes_is_red_where_they_are_not_as_said(monkeypatch, capsys):
    assert mtslvr_passes.gate_is_green() and "green" in capsys.readouterr().out
    monkeypatch.setitem(mtslvr_passes.OURS, "bn", (2, 2))
    monkeypatch.setattr(mtslvr_passes, "AUTHORS", {"bn": 4, "split": 2})
    assert not mtslvr_passes.gate_is_green()
    said = capsys.readouterr().out
    assert "bn: passes through stem and last stage {'ours': (2, 4), 'authors': (4, 4)}" in said
    assert "split: features differ" in said


@pytest.mark.slow
@pytest.mark.parametrize("system", ["startup", "loader", "step", "few_shot", "mtslvr_passes"])
def test_a_system_benchmark_runs_and_keeps_its_record(system, tmp_path):
    kept = tmp_path / "record.json"
    command = [sys.executable, "-m", "benchmarks.systems", system, "--quick", "--json", str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(kept.read_text())["rows"]
    assert len(rows) >= 2
    if system in ("few_shot", "mtslvr_passes"):
        rows = {f"{n} {who}": row[who] for n, row in rows.items() for who in list(row)[:2]}
    assert all(0 < row["best"] <= row["median"] for row in rows.values())
