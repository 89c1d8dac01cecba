"""What every method promises. A method joins by being in METHODS; its paper's loops in PAPERS."""

# shapes: N batch, S side
from __future__ import annotations

import copy
import importlib
import math

import pytest
import torch
from torch import nn

from fastssl.augment.presets import preset
from fastssl.augment.sampling import sample
from fastssl.methods import METHODS
from fastssl.nn.convnet import ConvNet

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(name, seed=0):
    config_class, path = METHODS[name]
    module, _, cls = path.partition(":")
    torch.manual_seed(seed)
    return getattr(importlib.import_module(module), cls)(ConvNet(), config_class())


def two_views(n=6, seed=1, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    base = torch.rand(n, 3, 16, 16, generator=g, dtype=dtype)
    noise = [0.1 * torch.rand(n, 3, 16, 16, generator=g, dtype=dtype) for _ in range(2)]
    return tuple(base + part for part in noise)


def table_of(views, seed=0):
    """A table that fits the views: two of each sample, as the loaders hand it over."""
    n, side = views[0].shape[0], views[0].shape[-1]
    policy = preset("simclr", image_size=side)
    sizes_N2 = torch.full((n, 2), side)
    return sample(policy, seed=seed, epoch=0, step=0, index_N=torch.arange(n), sizes_N2=sizes_N2)


def simclr_by_loops(method, views):
    """Eq. 1 and algorithm 1 of Chen et al. 2020, pair by pair, positives at 2k and 2k + 1."""
    n, tau = len(views[0]), method.loss.temperature
    z = method.projector(method.backbone(torch.cat(views)))
    rows = [z[half * n + k] for k in range(n) for half in (0, 1)]

    def s(i, j):
        return torch.dot(rows[i], rows[j]) / (rows[i].norm() * rows[j].norm())

    def pair(i, j):
        denominator = sum(torch.exp(s(i, k) / tau) for k in range(2 * n) if k != i)
        return -torch.log(torch.exp(s(i, j) / tau) / denominator)

    total = sum(pair(2 * k, 2 * k + 1) + pair(2 * k + 1, 2 * k) for k in range(n))
    return total / (2 * n)


PAPERS = {"simclr": simclr_by_loops}


def test_every_method_has_its_paper_written_out():
    assert set(PAPERS) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_loss_equals_the_paper_written_as_loops(name):
    method = build(name).double()
    views = two_views(dtype=torch.float64)
    loss, _ = method(views, table_of(views))
    paper = PAPERS[name](method, views)
    assert loss.item() == pytest.approx(paper.item(), rel=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_gradients_equal_the_paper_written_as_loops(name):
    method = build(name).double()
    views = two_views(dtype=torch.float64)
    params = [p for p in method.parameters() if p.requires_grad]
    ours = torch.autograd.grad(method(views, table_of(views))[0], params)
    papers = torch.autograd.grad(PAPERS[name](method, views), params)
    for mine, theirs in zip(ours, papers, strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-10 * scale)


@pytest.mark.parametrize("name", METHODS)
def test_all_trained_parameters_get_a_finite_gradient(name):
    method = build(name)
    views = two_views(16)
    loss, metrics = method(views, table_of(views))
    loss.backward()
    assert loss.ndim == 0 and torch.isfinite(loss)
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", METHODS)
def test_overfits_one_batch_without_collapsing(name):
    method = build(name)
    views = two_views(16)
    optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
    first = None
    for _ in range(60):
        loss, _ = method(views, table_of(views))
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(method, "after_step"):
            method.after_step(0)
    best = lowest_possible(method, 16)
    assert loss.item() - best < 0.35 * (first - best)
    method.eval()
    with torch.no_grad():
        unit = nn.functional.normalize(method.features(views[0]), dim=1)
    assert float(unit.std(0).mean()) > 0.01


def lowest_possible(method, n):
    """A bound on the loss where positives coincide and negatives spread as far as 2N rows can."""
    tau = method.loss.temperature
    negatives = (2 * n - 2) * math.exp((-1 / (n - 1)) / tau)
    return math.log(math.exp(1 / tau) + negatives) - 1 / tau


@pytest.mark.parametrize("name", METHODS)
def test_swapping_the_views_changes_nothing(name):
    method = build(name).double()
    first, second = two_views(dtype=torch.float64)
    table = table_of((first, second))
    swapped = table.views(torch.tensor([1, 0]))
    torch.testing.assert_close(
        method((first, second), table)[0], method((second, first), swapped)[0]
    )


@pytest.mark.parametrize("name", METHODS)
def test_reordering_the_batch_changes_nothing(name):
    method = build(name).double()
    views = two_views(dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    table = table_of(views)
    loss = method(views, table)[0]
    reordered = method(tuple(v[order] for v in views), table.rows(order))[0]
    torch.testing.assert_close(loss, reordered)
    mixed = (views[0], views[1][order])
    assert abs((method(mixed, table)[0] - loss).item()) > 1e-6, "pairs must matter"


@pytest.mark.parametrize("name", METHODS)
def test_state_dict_round_trip_gives_the_same_loss(name):
    method, other = build(name, seed=0), build(name, seed=7)
    views = two_views()
    method(views, table_of(views))  # moves the running statistics off their initial values
    other.load_state_dict(method.state_dict())
    table = table_of(views)
    assert torch.equal(copy.deepcopy(method)(views, table)[0], other(views, table)[0])


@pytest.mark.parametrize("name", METHODS)
def test_features_are_the_backbones_and_come_without_the_projector(name):
    method = build(name).eval()
    x = two_views()[0]
    assert torch.equal(method.features(x), method.backbone(x))
    assert method.features(x).shape == (len(x), method.backbone.num_features)


@pytest.mark.parametrize("name", METHODS)
def test_chance_loss_is_the_loss_of_identical_embeddings(name):
    method = build(name)
    if not hasattr(method, "chance_loss"):
        pytest.skip("chance_loss is optional, and this method has none")
    same = torch.rand(1, 3, 16, 16).expand(6, -1, -1, -1)
    method.eval()  # batch normalisation would divide by the zero deviation of equal rows
    assert method((same, same), table_of((same, same)))[0].item() == pytest.approx(
        method.chance_loss(6), rel=1e-5
    )


@pytest.mark.parametrize("name", METHODS)
def test_wrong_numbers_or_shapes_of_views_are_refused(name):
    method = build(name)
    view = two_views()[0]
    for views in [(view,), (view, view[:, :, :8, :8])]:
        with pytest.raises(ValueError, match=f"{name}: expected"):
            method(views, table_of(views))


@pytest.mark.parametrize("name", METHODS)
def test_forward_is_one_graph_and_is_compiled_once(name):
    """fullgraph refuses graph breaks; the counting backend sees one forward and no recompile."""
    torch._dynamo.reset()
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    method = build(name)
    step = torch.compile(method.forward, fullgraph=True, dynamic=False, backend=counting)
    for seed in range(3):
        views = two_views(seed=seed)
        reference = copy.deepcopy(method)(views, table_of(views))[0]
        loss, _ = step(views, table_of(views, seed))
        torch.testing.assert_close(loss, reference)
        loss.backward()
    assert len(graphs) == 1
