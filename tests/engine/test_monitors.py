"""Monitors against values known by hand, and their warnings."""

from __future__ import annotations

import math

import pytest
import torch

from fastssl.engine.monitors import alignment, feature_std, measure, rankme, uniformity, warnings


def test_rankme_of_the_identity_is_its_size():
    assert rankme(torch.eye(50)) == pytest.approx(50, rel=1e-3)


def test_rankme_of_one_direction_is_one():
    assert rankme(torch.ones(64, 16)) == pytest.approx(1, abs=0.01)
    assert rankme(torch.zeros(8, 4)) > 0  # finite


def test_rankme_of_two_equal_directions_is_two():
    f = torch.zeros(10, 6)
    f[:5, 0] = f[5:, 1] = 3.0
    assert rankme(f) == pytest.approx(2, abs=0.01)


def test_feature_std_is_one_on_the_sphere_and_zero_when_collapsed():
    torch.manual_seed(0)
    assert feature_std(torch.randn(4096, 64)) == pytest.approx(1, abs=0.02)
    assert feature_std(torch.randn(1, 64).expand(100, 64)) == pytest.approx(0, abs=1e-5)


def test_feature_std_is_lightlys_helper_times_root_of_dimension():
    debug = pytest.importorskip("lightly.utils.debug", reason="lightly is an optional peer")
    f = torch.randn(32, 20, generator=torch.Generator().manual_seed(0))
    expected = float(debug.std_of_l2_normalized(f)) * math.sqrt(20)
    assert feature_std(f) == pytest.approx(expected, rel=1e-5)


def test_alignment_of_equal_and_opposite_views():
    f = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    assert alignment(f, 3 * f) == pytest.approx(0, abs=1e-6)
    assert alignment(f, -f) == pytest.approx(4, rel=1e-5)


def test_uniformity_of_two_opposite_points_and_of_equal_points():
    assert uniformity(torch.tensor([[1.0, 0.0], [-2.0, 0.0]])) == pytest.approx(-8)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-5)


def test_a_collapsed_encoder_is_told_of_and_a_healthy_one_is_not():
    torch.manual_seed(0)
    healthy = measure((torch.randn(128, 32), torch.randn(128, 32)))
    collapsed = measure((torch.ones(128, 32) + 1e-4 * torch.randn(128, 32),))
    assert warnings(healthy) == {}
    assert warnings(collapsed).keys() == {"collapse"}
    assert "--lr" in warnings(collapsed)["collapse"]


def test_an_untrained_relu_encoder_is_not_called_collapsed():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 3, stride=2), torch.nn.BatchNorm2d(64), torch.nn.ReLU(),
        torch.nn.Conv2d(64, 128, 3, stride=2), torch.nn.BatchNorm2d(128), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
    ).eval()  # fmt: skip
    with torch.no_grad():
        assert warnings(measure((net(torch.rand(128, 3, 32, 32)),))) == {}


@pytest.mark.parametrize(("ratio", "told"), [(1.001, True), (0.999, True), (0.9, False)])
def test_a_loss_at_chance_is_told_of(ratio, told):
    assert ("chance" in warnings({"loss_over_chance": ratio})) == told


class Stuck(torch.nn.Module):
    """A method that never learns and whose features are all alike."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Linear(1, 1)

    def forward(self, views, table):
        return self.chance_loss(len(views[0])) + 0 * self.backbone.weight.sum(), {}

    def features(self, x):
        return torch.ones(len(x), 4)

    def chance_loss(self, num_samples: int) -> float:
        return math.log(2 * num_samples - 1)


def test_a_short_run_is_not_called_stuck(toy, tmp_path):
    toy.train(tmp_path / "run", method=Stuck(), readouts=())
    assert "not learning:" not in (tmp_path / "run/train.log").read_text()


def test_a_run_warns_once_of_collapse_and_of_a_stuck_loss(toy, tmp_path):
    result, _ = toy.train(tmp_path / "run", method=Stuck(), readouts=(), max_steps=400)
    log = (tmp_path / "run/train.log").read_text()
    assert log.count("collapse:") == 1 and log.count("not learning:") == 1
    assert result.metrics["loss_over_chance"] == pytest.approx(1)
