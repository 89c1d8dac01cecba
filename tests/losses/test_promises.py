"""Every promise of every loss, and the page that lists them."""

from __future__ import annotations

import pytest
import torch

from benchmarks import features
from fastssl.losses import spec

ALL = [(case, promise) for case in spec.CASES for promise in features.PROMISES]


@pytest.mark.parametrize(("case", "promise"), ALL, ids=lambda x: getattr(x, "name", x))
def test_a_promise_is_kept(case, promise):
    assert features.kept(case, promise) == (promise not in dict(case.without))


def test_the_page_of_features_is_what_the_checks_say():
    assert features.PAGE.read_text(encoding="utf-8") == features.page()


def test_a_broken_loss_is_not_listed_as_sound():
    case = next(case for case in spec.CASES if case.name == "dcl_loss")

    def half_of_the_gradient(embeddings, knob, reduction="mean", group=None):
        loss = case.call(embeddings, knob, reduction)
        return (loss + loss.detach()) / 2

    broken = spec.Case(case.loss, "broken", case.names, half_of_the_gradient)
    assert features.reduces(broken)
    assert not features.gradchecks(broken)
    assert not features.learns_its_knob(broken)
    assert not features.differentiates_forward(broken)


def test_a_loss_that_forgets_its_group_is_not_listed_as_joining_ranks():
    case = next(case for case in spec.CASES if case.name == "dcl_loss")

    def each_for_himself(embeddings, knob, reduction="mean", group=None):
        loss = case.call(embeddings, knob, reduction, group)
        return loss if group is None else loss.detach() + 2 * (loss - loss.detach())

    broken = spec.Case(case.loss, "broken", case.names, each_for_himself)
    assert not features.joins_ranks(broken)


def test_reading_a_value_does_not_survive_the_compiler():
    case = next(case for case in spec.CASES if case.name == "dcl_loss")
    broken = spec.Case(
        case.loss,
        "broken",
        case.names,
        lambda embeddings, knob, reduction="mean": case.call(
            embeddings, knob if bool(knob > 0) else -knob, reduction
        ),
    )
    with pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)):
        features.compiles(broken)


@pytest.mark.parametrize("bad", list(spec.bad_calls()), ids=lambda bad: bad.name)
def test_a_bad_call_is_refused_by_name(bad):
    with pytest.raises(ValueError) as refusal:
        bad.call()
    for word in bad.mentions:
        assert word in str(refusal.value)
