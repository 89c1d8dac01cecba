"""The claims: rules that can fail, and a page that says what the records say."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks import machine
from benchmarks.claims import mtslvr, report, rows, seeds, sounds, trained
from benchmarks.claims.__main__ import CLAIMS
from benchmarks.claims.seeds import by_name, claim_module
from benchmarks.claims.trained import with_method
from fastssl.augment.audio_policies import AUDIO_POLICIES
from fastssl.engine.config import as_plain
from fastssl.engine.export import read_weights
from fastssl.engine.run_folder import open_run
from fastssl.recipes.catalogue import default_run


def test_the_page_is_the_records():
    assert report.PAGE.read_text(encoding="utf-8") == report.page(report.records())


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_has_its_parts(name):
    claim = claim_module(name)
    assert claim.TITLE and claim.PAPER and callable(claim.one_seed)


@pytest.mark.parametrize("record", report.records(), ids=lambda r: f"{r['claim']}-{r['length']}")
def test_a_record_holds_what_its_seeds_measured(record):
    """Three seeds or more, and the lines that the claim makes of their figures."""
    assert len(record["seeds"]) >= 3
    again = claim_module(record["claim"]).rows(by_name(record["seeds"]))
    assert [(row.figure, row.holds) for row in again] == [
        (row["figure"], row["holds"]) for row in record["rows"]
    ]
    assert all("+changes" not in seed["commit"] for seed in record["seeds"])


def test_the_error_is_that_of_the_mean():
    mean, error = rows.mean_and_error([1.0, 2.0, 3.0])
    assert (mean, error) == (2.0, pytest.approx(1 / math.sqrt(3)))
    assert rows.mean_and_error([1.0])[1] == math.inf


@pytest.mark.parametrize("better", [0.1, 0.5])
def test_lower_asks_for_the_paired_difference(better):
    """Seeds that differ much from each other, but each by the same, count as a difference."""
    others = [1.0, 5.0, 9.0]
    same = [value - better for value in others]
    assert rows.lower("", same, others, errors=2).holds
    assert not rows.lower("", others, same, errors=2).holds
    noisy = [0.9, 5.2, 8.9]
    assert not rows.lower("", noisy, others, errors=2).holds


def test_nothing_holds_of_nan():
    nan = [math.nan] * 3
    assert not rows.at_most("", nan, 1).holds
    assert not rows.at_least("", nan, 1).holds
    assert not rows.lower("", nan, [1.0] * 3, errors=0).holds
    assert not rows.falling("", [nan, nan]).holds


def test_runs_trained_together_are_what_each_is_alone(tmp_path):
    plain = sounds.run_of("mtslvr", 100, 2)
    runs = {name: with_method(plain, **mtslvr.VARIANTS[name]) for name in ("cont", "bn")}

    def weights(names, folder):
        source = sounds.heard(100, AUDIO_POLICIES["mtslvr"])
        nets = sounds.together({name: runs[name] for name in names}, source, tmp_path / folder)
        return {name: net.state_dict() for name, net in nets.items()}

    both, alone = weights(("cont", "bn"), "both"), weights(("bn",), "alone")
    assert all(torch.equal(both["bn"][name], t) for name, t in alone["bn"].items())
    kept = read_weights(tmp_path / "both" / "cont.safetensors")
    assert all(torch.equal(kept[name], t) for name, t in both["cont"].items())


def test_ranks_of_equals_are_equal():
    """Of every factor: parallel the best, two second, the others fourth."""
    score = dict.fromkeys(mtslvr.VARIANTS, 30.0) | {"parallel": 50.0, "bn": 40.0, "pred": 40.0}
    figures = {f"{name}/{f}": [s] for name, s in score.items() for f in mtslvr.FACTORS}
    found = mtslvr.ranks(figures)
    assert (found["parallel"], found["bn"], found["pred"]) == ([1.0], [2.0], [2.0])
    assert found["cont"] == [4.0]


NOW = "abc1234"
RUN = default_run("simclr", "spirograph")


@pytest.fixture
def at_a_commit(monkeypatch):
    for module in (trained, seeds):
        monkeypatch.setattr(module, "commit", lambda: NOW)
    monkeypatch.setattr(trained.assemble, "train", _no_training)


def _no_training(run):
    raise AssertionError(f"trains again in {run.train.out}")


def encoder_in(folder: Path, run=RUN, *, commit=NOW) -> Path:
    """A folder as training leaves it, without having trained."""
    written = dataclasses.replace(run.train, out=folder, device="cpu")
    with open_run(as_plain(dataclasses.replace(run, train=written)), name="fake") as made:
        made.begin({})
    (folder / "export" / "backbone.safetensors").touch()
    if commit is not None:
        trained.commit_file(folder).write_text(f"{commit}\n")
    return folder


def test_an_encoder_of_these_settings_and_this_commit_is_used_again(at_a_commit, tmp_path):
    folder = encoder_in(tmp_path / "encoder")
    assert trained.trained(RUN, folder) == folder
    elsewhere = trained.with_train(RUN, out=tmp_path / "other", resume=True, device="cuda")
    assert trained.trained(elsewhere, folder) == folder


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("asked", "commit", "told"),
    [
        (trained.with_train(RUN, max_steps=7), NOW, r"train\.max_steps is \w+, now 7"),
        (trained.with_method(RUN, temperature=0.9), NOW, r"method\.temperature is .*, now 0.9"),
        (default_run("byol", "spirograph"), NOW, r"train\.method is 'simclr', now 'byol'"),
        (RUN, "fed4321", r"commit is 'fed4321', now 'abc1234'"),
        (RUN, None, r"commit is None, now 'abc1234'"),
    ],
    ids=["loop", "method", "another-method", "commit", "no-commit"],
)
def test_an_encoder_of_another_run_is_refused(at_a_commit, tmp_path, asked, commit, told, finished):
    folder = encoder_in(tmp_path / "encoder", commit=commit)
    if not finished:
        (folder / "export" / "backbone.safetensors").unlink()
    with pytest.raises(RuntimeError, match=f"encoder: kept .*{told}.*Remove it .* --work"):
        trained.trained(asked, folder)


def test_an_encoder_whose_settings_cannot_be_read_is_refused(at_a_commit, tmp_path):
    folder = encoder_in(tmp_path / "encoder")
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("temperature:", "warmth:"))
    with pytest.raises(RuntimeError, match="unknown settings warmth.*--work"):
        trained.trained(RUN, folder)


def test_the_commit_is_kept_from_the_start_of_the_training(monkeypatch, tmp_path):
    monkeypatch.setattr(trained, "commit", lambda: NOW)
    seen = []

    def stopped(run):
        seen.append(trained.commit_file(run.train.out).read_text().strip())
        return 143

    monkeypatch.setattr(trained.assemble, "train", stopped)
    with pytest.raises(RuntimeError, match="status 143"):
        trained.trained(RUN, tmp_path / "encoder")
    assert seen == [NOW]


def seed_in(folder: Path, **changes) -> dict:
    kept = {"seed": 0, "claim": "issl", "length": "quick", "commit": NOW, "minutes": 1.0}
    kept = {**kept, "figures": {"accuracy": 0.5}, **changes}
    folder.mkdir(exist_ok=True)
    (folder / "seed0.json").write_text(json.dumps(kept))
    return kept


def measured(folder: Path) -> list:
    return seeds.measure_all("issl", [0], length="quick", folder=folder, jobs=1, threads=1)


def test_a_seed_of_this_claim_length_and_commit_is_kept(at_a_commit, tmp_path):
    kept = seed_in(tmp_path)
    assert measured(tmp_path) == [kept]


@pytest.mark.parametrize(
    "changes", [{"claim": "invclr"}, {"length": "full"}, {"commit": "fed4321"}, {"commit": None}]
)
def test_a_seed_of_another_claim_length_or_commit_is_refused(at_a_commit, tmp_path, changes):
    seed_in(tmp_path, **changes)
    ((name, value),) = changes.items()
    with pytest.raises(RuntimeError, match=f"seed0.json: kept .*{name} is {value!r}, .*--work"):
        measured(tmp_path)


def test_a_measured_seed_says_what_made_it(at_a_commit, monkeypatch, tmp_path):
    claim = type("Claim", (), {"one_seed": staticmethod(lambda *_, **__: {"accuracy": 0.5})})
    monkeypatch.setattr(seeds, "claim_module", lambda name: claim)
    monkeypatch.setattr(seeds.torch, "set_num_threads", lambda count: None)
    seeds.measure_here("issl", 0, length="quick", folder=tmp_path, threads=1)
    assert measured(tmp_path)[0]["figures"] == {"accuracy": 0.5}


def test_records_that_a_command_writes_are_no_change_of_the_code(monkeypatch):
    asked = []
    monkeypatch.setattr(machine, "_git", lambda arguments: asked.append(arguments) or "")
    machine.commit.__wrapped__()
    status = next(arguments for arguments in asked if arguments[0] == "status")
    written = [report.RECORDS.parent.relative_to(report.ROOT), report.PAGE.relative_to(report.ROOT)]
    assert status[-2:] == [f":(top,exclude){path.as_posix()}" for path in written]
