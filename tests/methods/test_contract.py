"""What every method promises. A method joins by being in METHODS; its paper's loops in PAPERS."""

# shapes: N batch, S side
from __future__ import annotations

import copy
import shutil

import pytest
import torch
from torch import nn

from fastssl.engine import monitors
from fastssl.engine.readout import observing
from fastssl.methods import METHODS
from tests.distributed.test_fit import final
from tests.methods.built import (
    assert_gradients_reach,
    build,
    by_loops,
    compiled_whole,
    gradients,
    run,
    table_of,
    two_views,
    without_an_eye,
)
from tests.methods.fitted import STEPS, fitted
from tests.methods.paper_of_sounds import mtslvr
from tests.methods.papers import (
    ASYMMETRIC,
    LEARNED,
    LOWEST,
    OWN_FEATURES,
    RANDOM,
    UNUSED,
)
from tests.methods.papers import (
    PAPERS as IMAGES,
)
from tests.methods.rounded import rounded

PAPERS = IMAGES | {"mtslvr": mtslvr}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def paper(name, method, views):
    return by_loops(PAPERS[name], method, views)


def test_every_method_has_its_paper_written_out():
    assert set(PAPERS) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_loss_equals_the_paper_written_as_loops(name):
    method = build(name).double()
    views = two_views(dtype=torch.float64)
    expected = paper(name, copy.deepcopy(method), views)
    loss, _ = run(method, views)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_equal_the_paper_written_as_loops(name):
    method = build(name).double()
    views = two_views(dtype=torch.float64)
    twin = copy.deepcopy(method)
    ours = gradients(method, run(method, views)[0])
    papers = gradients(twin, paper(name, twin, views))
    largest = max(float(g.abs().max()) for g in papers)
    for mine, theirs in zip(ours, papers, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10 * largest)


@pytest.mark.parametrize("name", METHODS)
def test_all_trained_parameters_get_a_finite_gradient(name):
    method = build(name)
    loss, metrics = run(method, two_views(16))
    assert loss.ndim == 0 and torch.isfinite(loss)
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
    assert_gradients_reach(method, loss, UNUSED.get(name, ""))


@pytest.mark.parametrize("name", METHODS)
def test_overfits_one_batch_without_collapsing(name):
    method = build(name)
    views = two_views(16)
    before = margin(method, views)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    first = None
    for step in range(60):
        loss, metrics = run(method, views)
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(method, "after_step"):
            method.after_step(step, 60)
    best = LOWEST[name](method, 16) if name in LOWEST else 0.0
    if name in LEARNED:
        assert LEARNED[name](loss.item(), metrics, before, margin(method, views))
    else:
        assert loss.item() - best < 0.35 * (first - best)
    method.eval()
    with torch.no_grad():
        unit = nn.functional.normalize(method.features(views[0]), dim=1)
    assert float(unit.std(0).mean()) > 0.01


def margin(method, views):
    """How much nearer a sample's other view is than the nearest other sample, on average."""
    with torch.no_grad():
        z0, z1 = (nn.functional.normalize(copy.deepcopy(method).features(v), dim=1) for v in views)
    s = z0 @ z1.T
    return float((s.diagonal() - s.clone().fill_diagonal_(-1).amax(1)).mean())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ASYMMETRIC])
def test_swapping_the_views_changes_nothing(name):
    method = build(name).double()
    first, second = two_views(dtype=torch.float64)
    there = loss_of(method, (first, second))
    torch.testing.assert_close(there, loss_of(method, (second, first)))


def loss_of(method, views, table=None):
    """The loss, from the state as it is: a copy takes the step."""
    return run(copy.deepcopy(method), views, table)[0].detach()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in RANDOM])
def test_reordering_the_batch_changes_nothing(name):
    method = build(name).double()
    views = two_views(dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    table = table_of(method, views)
    reordered = loss_of(method, tuple(v[order] for v in views), table.rows(order))
    torch.testing.assert_close(loss_of(method, views), reordered)
    mixed = loss_of(method, (views[0], views[1][order]))
    assert abs((mixed - loss_of(method, views)).item()) > 1e-6, "pairs must matter"


@pytest.mark.parametrize("name", METHODS)
def test_state_dict_round_trip_gives_the_same_loss(name):
    method, other = build(name, seed=0), build(name, seed=7)
    views = two_views()
    run(method, views)  # moves the running statistics off their initial values
    other.load_state_dict(method.state_dict())
    assert torch.equal(loss_of(method, views), loss_of(other, views))


@pytest.mark.parametrize("name", METHODS)
def test_features_are_the_backbones_and_come_without_the_projector(name):
    method = build(name).eval()
    x = two_views()[0]
    if name in OWN_FEATURES:
        assert method.features(x).shape == (len(x), OWN_FEATURES[name](method))
    else:
        assert torch.equal(method.features(x), method.backbone(x))
        assert method.features(x).shape == (len(x), method.backbone.num_features)


@pytest.mark.parametrize("name", METHODS)
def test_chance_loss_is_the_loss_of_identical_embeddings(name):
    method = build(name).double()
    if not hasattr(method, "chance_loss"):
        pytest.skip("chance_loss is optional, and this method has none")
    same = torch.rand(1, 3, 16, 16, dtype=torch.float64).expand(6, -1, -1, -1)
    method.eval()  # batch normalisation would divide by the zero deviation of equal rows
    if hasattr(method, "queue"):
        method.queue.enqueue(method.keys(same[:1]).repeat(len(method.queue.rows), 1))
    assert run(method, (same, same))[0].item() == pytest.approx(method.chance_loss(6), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_wrong_numbers_or_shapes_of_views_are_refused(name):
    method = build(name)
    view = two_views()[0]
    for views in [(view,), (view, view[:, :, :8, :8])]:
        with pytest.raises(ValueError, match=f"{name}: expected"):
            run(method, views)


IN_BFLOAT16 = [
    *((name, {}) for name in METHODS if name != "invclr"),
    ("invclr", {"expectation": "closed"}),  # a network in forward mode is not called as one
    ("mtslvr", {"over": "simsiam", "predictor_hidden_dim": 16}),
    ("amortised", {"over": "mocov2", "queue_size": 16, "bn_splits": 4}),
    ("amortised", {"over": "mocov3", "predictor_hidden_dims": (8,)}),
]


@pytest.mark.parametrize("name, settings", IN_BFLOAT16)
def test_autocast_reaches_the_networks_and_no_loss(name, settings):
    """Of one set of bfloat16 embeddings: the loss under autocast is the loss in float32."""
    losses, grads = [], []
    for dtype in (torch.float32, torch.bfloat16):
        method, views = rounded(build(name, **settings), dtype), two_views(64)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss, _ = run(method, views)
        losses.append(loss)
        grads.append(torch.cat([g.flatten() for g in gradients(method, loss)]))
    assert losses[1].dtype is torch.float32
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0.0)
    # what is left is the sum of two heads' gradients of the bfloat16 features
    assert (grads[1] - grads[0]).norm() < 0.004 * grads[0].norm()


@pytest.mark.parametrize("name", METHODS)
def test_forward_is_one_graph_and_is_compiled_once(name):
    """fullgraph refuses graph breaks; the counting backend sees one forward and no recompile."""
    method = build(name)
    step, compiler = compiled_whole(method)
    for seed in range(3):
        views = two_views(seed=seed)
        reference = loss_of(method, views)
        table = table_of(method, views)
        torch.manual_seed(3)
        loss, _ = step(views, table)
        if name not in RANDOM:  # the compiler's generator draws other numbers
            torch.testing.assert_close(loss, reference)
        loss.backward()
    assert len(compiler.graphs) == 1


@pytest.mark.parametrize("name", METHODS)
def test_training_resumed_in_a_fresh_object_ends_in_the_same_bytes(name, tmp_path):
    """The object that goes on has other weights, queues, teachers and counters when it is made."""
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    fitted(name, whole)
    shutil.copytree(whole, halved)
    shutil.rmtree(halved / "checkpoints" / f"step-{STEPS:08d}")
    resumed = fitted(name, halved, seed=7, resume=True)
    assert f"resumed from step {STEPS // 2} of {STEPS}" in resumed["said"]
    assert final(halved) == final(whole)


@pytest.mark.parametrize("name", METHODS)
def test_a_collapse_is_seen_by_the_monitor_and_health_is_not_taken_for_it(name):
    gain = 3 * torch.rand(16, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    views = tuple(gain * view for view in two_views(16))  # images that differ as pictures do
    for method, expected in ((build(name), set()), (without_an_eye(build(name)), {"collapse"})):
        with observing(method, torch.device("cpu")), torch.no_grad():
            values = monitors.measure(tuple(method.features(view) for view in views))
        assert monitors.warnings(values).keys() == expected, values
