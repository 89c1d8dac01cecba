"""The claims: rules that can fail, and a page that says what the records say."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.claims import mtslvr, report, rows, sounds
from benchmarks.claims.__main__ import CLAIMS
from benchmarks.claims.seeds import by_name, claim_module
from benchmarks.claims.trained import with_method
from fastssl.augment.audio_policies import AUDIO_POLICIES
from fastssl.engine.export import read_weights


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
