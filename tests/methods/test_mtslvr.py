"""MT-SLVR's variants: the paper's parameter counts, what is shared, what is a task's own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastssl.methods.mtslvr import MTSLVR, encoder
from fastssl.methods.paper_configs import MTSLVRConfig
from fastssl.nn.backbones import build_backbone
from fastssl.nn.convnet import ConvNet
from tests.methods.papers import SMALL, told

COUNTS = {
    "none": 11_689_512,
    "split": 11_689_512,
    "bn": 11_524_904,
    "series": 14_308_648,
    "parallel": 13_949_736,
}
CONFIG = MTSLVRConfig(**SMALL["mtslvr"])


@pytest.mark.parametrize("adapter", COUNTS)
def test_parameters_are_as_many_as_the_papers(adapter):
    net = encoder(build_backbone("resnet18", 128), MTSLVRConfig(adapter=adapter))
    assert sum(p.numel() for p in net.parameters()) == COUNTS[adapter]
    assert net.eval()(torch.zeros(1, 3, 128, 32)).shape == (1, 1000)


def built(**settings):
    torch.manual_seed(0)
    return MTSLVR(ConvNet(), replace(CONFIG, **settings)).double()


def views(n=6):
    g = torch.Generator().manual_seed(0)
    return tuple(torch.rand(n, 3, 16, 16, generator=g, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("adapter", ["split", "bn", "series", "parallel"])
def test_a_tasks_loss_moves_the_shared_part_and_its_own_alone(adapter):
    method = built(adapter=adapter)
    first = method.backbone.tasks(torch.cat(views()))[0].square().sum()
    names, params = zip(*method.backbone.named_parameters(), strict=True)
    moved = dict(zip(names, torch.autograd.grad(first, params, allow_unused=True), strict=True))
    own = [g for n, g in moved.items() if n.startswith(("outputs.1", "ends.1"))]
    own += [g for n, g in moved.items() if n.startswith("blocks") and n.split(".")[-2] == "1"]
    assert own and all(g is None for g in own)
    assert sum(g is not None for g in moved.values()) > 4


@pytest.mark.parametrize("over", ["simclr", "simsiam"])
def test_both_is_the_sum_of_the_two_losses(over):
    loss, metrics = built(over=over, weight=0.5)(views(), told(6))
    assert loss.item() == pytest.approx(float(metrics["contrast"] + 0.5 * metrics["prediction"]))


@pytest.mark.parametrize(("task", "other"), [("cont", "operators"), ("pred", "projector")])
def test_one_task_alone_has_no_head_of_the_other(task, other):
    method = built(task=task)
    loss, metrics = method(views(), told(6))
    assert not hasattr(method, other) and len(metrics) == 1
    assert loss.item() == pytest.approx(float(next(iter(metrics.values()))))


def test_what_is_shared_runs_once_and_a_tasks_own_once_per_task():
    method, passes = built(), []
    for name, module in method.backbone.named_modules():
        if isinstance(module, torch.nn.Conv2d) and "adapters" not in name:
            module.register_forward_hook(lambda m, x, y, name=name: passes.append(name))
    method(views(), told(6))
    count = {name: passes.count(name) for name in passes}
    assert all(n == (2 if name.startswith("blocks") else 1) for name, n in count.items())


def test_other_operators_than_the_datas_are_refused():
    with pytest.raises(ValueError, match="num_operators: expected 6, .* received 7"):
        built(num_operators=7)(views(), told(6))
