"""The moving average: its numbers, its place in checkpoints, and what a skipped step leaves."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fastssl.engine import checkpoint
from fastssl.nn.ema import EMA, constant_momentum, cosine_momentum


@pytest.fixture
def momentum_method(toy):
    """A toy method whose backbone has a slow copy, moved after every step."""

    class MomentumMethod(toy.ToyMethod):
        def __init__(self) -> None:
            super().__init__()
            self.slow = EMA(self.backbone, buffers="average")

        def forward(self, views, table):
            loss, metrics = super().forward(views, table)
            target_NF = self.slow(views[1])
            return loss + 0.01 * (self.backbone(views[0]) - target_NF).square().mean(), metrics

        def after_step(self, step, total):
            super().after_step(step, total)
            self.slow.update(self.backbone, momentum=cosine_momentum(step, base=0.9, total=24))

    def build():
        toy.seeding.seed_everything(0)
        return MomentumMethod()

    return build


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def moved(source):
    """``source`` with every tensor changed in place."""
    with torch.no_grad():
        for tensor in source.state_dict().values():
            tensor.add_(1)
    return source


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_an_update_is_the_equation(buffers):
    source = net()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    ema = EMA(source, buffers=buffers)
    ema.update(moved(source), momentum=0.9)
    for name, after in ema.module.state_dict().items():
        counted = not after.is_floating_point()
        copied = counted or (buffers == "copy" and "running" in name)
        expected = before[name] + (1 if copied else 0.1)
        torch.testing.assert_close(after, expected.to(after.dtype))


def test_many_updates_are_the_weighted_sum_of_the_past():
    source, history = nn.Linear(1, 1, bias=False).double(), []
    ema = EMA(source)
    start = ema.module.weight.item()
    for k in range(20):
        with torch.no_grad():
            source.weight.fill_(math.sin(k))
        history.append(math.sin(k))
        ema.update(source, momentum=0.8)
    expected = 0.8**20 * start
    expected += sum(0.2 * 0.8 ** (19 - k) * value for k, value in enumerate(history))
    assert ema.module.weight.item() == pytest.approx(expected, rel=1e-12)


def test_the_copy_has_no_gradient_no_live_module_and_stable_names():
    source = net()
    ema = EMA(source)
    assert not any(p.requires_grad for p in ema.parameters())
    assert list(ema.state_dict()) == [f"module.{name}" for name in source.state_dict()]
    x = torch.randn(5, 3, requires_grad=True)
    assert not ema(x).requires_grad
    moved(source)
    assert not torch.equal(ema.module[0].weight, source[0].weight)


def test_momentum_of_one_stands_still_and_of_zero_copies():
    source = net()
    ema = EMA(source)
    before = ema.module[0].weight.clone()
    ema.update(moved(source), momentum=1.0)
    assert torch.equal(ema.module[0].weight, before)
    ema.update(source, momentum=0.0)
    assert torch.equal(ema.module[0].weight, source[0].weight)


def test_schedules_are_the_papers():
    assert {constant_momentum(k, base=0.99, total=10) for k in range(11)} == {0.99}
    rising = [cosine_momentum(k, base=0.996, total=10) for k in range(11)]
    assert rising == sorted(rising)
    assert (rising[0], rising[5], rising[10]) == (0.996, pytest.approx(0.998), 1.0)
    assert cosine_momentum(99, base=0.996, total=10) == 1.0


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: EMA(net(), buffers="drop"), "buffers .* received 'drop'"),
        (lambda: EMA(net()).update(net(), momentum=1.1), r"momentum .* received 1.1"),
        (lambda: EMA(net()).update(net()[0], momentum=0.9), "source: .*parameter"),
        (
            lambda: EMA(net()[0]).update(nn.Linear(3, 5), momentum=0.9),
            "source: .*2 differ: bias, weight",
        ),
        (lambda: cosine_momentum(0, base=2.0, total=1), "base .* received 2.0"),
        (lambda: constant_momentum(0, base=0.9, total=0), "total"),
    ],
)
def test_what_cannot_be_averaged_is_refused(call, told):
    with pytest.raises(ValueError, match=f"EMA: {told}"):
        call()


def test_a_run_with_an_average_resumes_to_the_same_bytes(toy, tmp_path, momentum_method):
    toy.train(tmp_path / "whole", method=momentum_method())
    with pytest.raises(RuntimeError, match="went away"):
        toy.train(tmp_path / "cut", method=momentum_method(), source=toy.ToySource(fails_at=10))
    toy.train(tmp_path / "cut", method=momentum_method(), resume=True)
    assert toy.final_bytes(tmp_path / "cut") == toy.final_bytes(tmp_path / "whole")


def slow_tensors(out, step):
    model = checkpoint.read(out / "checkpoints" / f"step-{step:08d}").model
    return {name: tensor for name, tensor in model.items() if name.startswith("slow.")}


def test_a_skipped_step_leaves_the_average_untouched(toy, tmp_path, momentum_method):
    toy.train(
        tmp_path / "run",
        method=momentum_method(),
        source=toy.ToySource(bad_steps=[5]),
        save_every=1,
        keep_checkpoints=30,
    )
    before, after, next_one = (slow_tensors(tmp_path / "run", step) for step in (5, 6, 7))
    assert len(before) == 7
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(after[name], next_one[name]) for name in before)
    assert all(torch.isfinite(tensor).all() for tensor in next_one.values())
