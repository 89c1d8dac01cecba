"""``fastssl.compat.pytorch_metric_learning`` beside the original: pairs, references, reducers."""

# shapes: N anchors, K references, D features
from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastssl.compat import metric_pairs
from fastssl.compat import pytorch_metric_learning as ours
from tests.compat.compare import assert_same, drawn, dtypes, seeds, temperatures

pml = pytest.importorskip(
    "pytorch_metric_learning",
    reason="not installed: pip install pytorch-metric-learning",
)
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers  # noqa: E402

NAMES = ["NTXentLoss", "SupConLoss"]
every_loss = pytest.mark.parametrize("name", NAMES)
widths = st.integers(2, 24)


def both(name, *args, **kwargs):
    return getattr(ours, name)(*args, **kwargs), getattr(losses, name)(*args, **kwargs)


def labels_of(seed, num_rows, num_labels):
    return torch.randint(num_labels, (num_rows,), generator=torch.Generator().manual_seed(seed))


def calling(loss_fn, *args, **kwargs):
    return lambda embeddings, *refs: loss_fn(
        embeddings, *args, **kwargs, **({"ref_emb": refs[0]} if refs else {})
    )


def compare(pair, inputs, dtype, temperature, *args, **kwargs):
    mine, peer = (calling(loss_fn, *args, **kwargs) for loss_fn in pair)
    assert_same(mine, peer, inputs, dtype, 1 / abs(temperature))


@every_loss
@settings(max_examples=40, deadline=None)
@given(st.integers(2, 24), st.integers(1, 6), widths, temperatures, dtypes, seeds)
def test_pairs_by_label(name, num_rows, num_labels, width, temperature, dtype, seed):
    labels = labels_of(seed, num_rows, num_labels)
    compare(
        both(name, temperature), drawn(seed, (num_rows, width)), dtype, temperature, labels=labels
    )


@every_loss
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 16), widths, temperatures, dtypes, seeds)
def test_references(name, num_anchors, num_refs, width, temperature, dtype, seed):
    inputs = drawn(seed, (num_anchors, width), (num_refs, width))
    labels, ref_labels = labels_of(seed, num_anchors, 4), labels_of(seed + 1, num_refs, 4)
    pair = both(name, temperature)
    compare(pair, inputs, dtype, temperature, labels=labels, ref_labels=ref_labels)


@every_loss
@pytest.mark.parametrize("ref_labels", ["absent", "the same object", "a copy"])
def test_a_reference_with_the_labels_themselves(name, ref_labels):
    """The original leaves out the pairs (i, i) unless the reference labels are another object."""
    inputs, labels = drawn(0, (9, 5), (9, 5)), labels_of(0, 9, 4)
    given_labels = {"absent": None, "the same object": labels, "a copy": labels.clone()}[ref_labels]
    compare(both(name), inputs, torch.float64, 0.07, labels=labels, ref_labels=given_labels)


@every_loss
@pytest.mark.parametrize("kind", [torch.float32, torch.int32, torch.uint8, torch.bool])
def test_labels_of_any_dtype(name, kind):
    labels = labels_of(0, 9, 3)
    labels = labels / 4 if kind.is_floating_point else labels.to(kind)
    compare(both(name), drawn(0, (9, 5)), torch.float64, 0.07, labels=labels)


def lists(seed, num_anchors, num_refs, num_pairs):
    generator = torch.Generator().manual_seed(seed)
    highs = (num_anchors, num_refs, num_anchors, num_refs)
    return tuple(torch.randint(high, (num_pairs,), generator=generator) for high in highs)


@every_loss
@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(0, 30), temperatures, dtypes, seeds)
def test_pairs_of_a_list(name, num_anchors, num_refs, num_pairs, temperature, dtype, seed):
    """Repeated pairs and anchors with pairs of one kind included."""
    pairs = lists(seed, num_anchors, num_refs, num_pairs)
    if name == "SupConLoss":
        positive = set(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))
        keep = [n not in positive for n in zip(pairs[2].tolist(), pairs[3].tolist(), strict=True)]
        pairs = (*pairs[:2], pairs[2][keep], pairs[3][keep])
    inputs = drawn(seed, (num_anchors, 6), (num_refs, 6))
    assume(num_pairs > 0)
    compare(both(name, temperature), inputs, dtype, temperature, indices_tuple=pairs)


@every_loss
@pytest.mark.parametrize("miner", [miners.MultiSimilarityMiner(), miners.TripletMarginMiner(0.5)])
def test_a_miners_pairs_and_triplets(name, miner):
    inputs, labels = drawn(0, (20, 6)), labels_of(0, 20, 4)
    found = miner(inputs[0], labels)
    assert len(found[0]) > 5
    compare(both(name), inputs, torch.float64, 0.07, labels=labels, indices_tuple=found)
    compare(both(name), inputs, torch.float64, 0.07, indices_tuple=found)


@every_loss
@pytest.mark.parametrize(
    "distance",
    [
        distances.LpDistance(),
        distances.LpDistance(normalize_embeddings=False, p=1, power=2),
        distances.DotProductSimilarity(normalize_embeddings=False),
        distances.CosineSimilarity(),
    ],
    ids=lambda d: type(d).__name__,
)
def test_another_distance(name, distance):
    labels = labels_of(0, 12, 3)
    pair = both(name, 0.5, distance=distance)
    compare(pair, drawn(0, (12, 6)), torch.float64, 0.01, labels=labels)
    inputs, refs = drawn(1, (12, 6), (5, 6)), labels_of(1, 5, 3)
    compare(pair, inputs, torch.float64, 0.01, labels=labels, ref_labels=refs)


@every_loss
@pytest.mark.parametrize(
    "reducer",
    [
        reducers.MeanReducer(),
        reducers.AvgNonZeroReducer(),
        reducers.PerAnchorReducer(reducers.AvgNonZeroReducer()),
        reducers.ThresholdReducer(low=0.1, high=3.0),
    ],
    ids=lambda r: type(r).__name__,
)
def test_another_reducer(name, reducer):
    pair = both(name, 0.2, reducer=reducer)
    compare(pair, drawn(0, (12, 6)), torch.float64, 0.2, labels=labels_of(0, 12, 7))


@every_loss
def test_a_regulariser_of_the_embeddings(name):
    options = dict(embedding_regularizer=regularizers.LpRegularizer(), embedding_reg_weight=0.3)
    pair = both(name, **options)
    compare(pair, drawn(0, (12, 6)), torch.float64, 0.07, labels=labels_of(0, 12, 4))


@every_loss
@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [1, 2, 3]], ids=str)
def test_without_a_valid_pair_the_loss_is_zero_and_has_a_gradient(name, labels):
    inputs = drawn(0, (len(labels), 4))
    compare(both(name), inputs, torch.float32, 0.07, labels=torch.tensor(labels))
    embeddings = inputs[0].requires_grad_()
    loss = getattr(ours, name)()(embeddings, torch.tensor(labels))
    loss.backward()
    assert loss == 0
    assert torch.equal(embeddings.grad, torch.zeros_like(embeddings))


@every_loss
@pytest.mark.parametrize(
    "reducer", [reducers.DoNothingReducer(), reducers.MeanReducer()], ids=lambda r: type(r).__name__
)
def test_the_reducer_is_asked_also_without_a_valid_pair(name, reducer):
    embeddings, labels = drawn(0, (3, 4))[0], torch.arange(3)
    mine, peer = (loss_fn(embeddings, labels) for loss_fn in both(name, reducer=reducer))
    if isinstance(peer, dict):
        assert {k: mine["loss"][k] for k in peer["loss"]} == peer["loss"]
    else:
        assert mine == peer == 0


@every_loss
def test_one_pair_of_each_kind_is_zero_as_in_the_original(name):
    labels, ref_labels = torch.tensor([0]), torch.tensor([0, 1])
    inputs = drawn(0, (1, 4), (2, 4))
    compare(both(name), inputs, torch.float64, 0.07, labels=labels, ref_labels=ref_labels)


@every_loss
@pytest.mark.parametrize("wrapper", ["CrossBatchMemory", "SelfSupervisedLoss"])
def test_the_originals_wrappers_take_it(name, wrapper):
    labels = labels_of(0, 8, 3)
    found = []
    for loss_fn in both(name):
        batch = [z.requires_grad_() for z in drawn(0, (8, 5), (8, 5))]
        if wrapper == "CrossBatchMemory":
            memory = losses.CrossBatchMemory(loss_fn, embedding_size=5, memory_size=20)
            value = sum(memory(z, labels) for z in (*batch, batch[0] * 2))
        else:
            value = losses.SelfSupervisedLoss(loss_fn, symmetric=False)(*batch)
        found.append([value, *torch.autograd.grad(value, batch)])
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_temperatures_by_default_are_the_originals():
    for name in NAMES:
        mine, peer = both(name)
        assert mine.temperature == peer.temperature
        assert list(mine.state_dict()) == list(peer.state_dict())
        assert copy.deepcopy(mine).temperature == peer.temperature


def test_ntxent_is_exact_where_the_original_stops():
    """exp(-200) is beyond float32: the original returns -log(tiny), 87.3, and no gradient."""
    embeddings = torch.tensor([[1.0, 0.0], [-1.0, 1e-3], [1.0, 1e-3]], requires_grad=True)
    labels = torch.tensor([0, 0, 1])
    mine, peer = (loss_fn(embeddings, labels) for loss_fn in both("NTXentLoss", 0.01))
    exact = losses.NTXentLoss(0.01)(embeddings.double(), labels)
    assert peer < 90
    torch.testing.assert_close(mine.double(), exact, rtol=1e-4, atol=0)
    assert torch.autograd.grad(mine, embeddings)[0].abs().max() > 0


def test_pairs_in_parts_are_pairs(monkeypatch):
    monkeypatch.setattr(metric_pairs, "GATHERED_ELEMENTS", 7 * 5)
    labels = labels_of(0, 24, 3)
    compare(both("NTXentLoss"), drawn(0, (24, 5)), torch.float64, 0.07, labels=labels)
    query, key = (z[:4].requires_grad_() for z in drawn(0, (4, 5), (4, 5)))
    index = torch.tensor([0, 0, 1, 2, 3, 1, 1, 2, 0])
    pairs = (index, index.flip(0))
    assert torch.autograd.gradcheck(metric_pairs.pair_dots, (query, key, *pairs))
    assert torch.autograd.gradgradcheck(metric_pairs.pair_dots, (query, key, *pairs))


@every_loss
def test_bad_calls_are_refused(name):
    (z,), labels = drawn(0, (6, 3)), labels_of(0, 6, 2)
    loss_fn = getattr(ours, name)()
    with pytest.raises(ValueError, match="cannot both be None"):
        loss_fn(z)
    with pytest.raises(ValueError, match="Number of embeddings must equal number of labels"):
        loss_fn(z, labels[:5])
    with pytest.raises(ValueError, match="Number of embeddings must equal number of labels"):
        loss_fn(z, labels, ref_emb=z[:4], ref_labels=labels)
    with pytest.raises(ValueError, match="labels must be a 1D tensor"):
        loss_fn(z, labels[:, None])
    with pytest.raises(ValueError, match="embeddings must be a 2D tensor"):
        loss_fn(z[0], labels)
    with pytest.raises(ValueError, match=r"indices_tuple must be triplets .* received 2 entries"):
        loss_fn(z, labels, (labels, labels))
    with pytest.raises(ValueError, match=r"received lengths \[6, 5, 6, 6\]"):
        loss_fn(z, labels, (labels, labels[:5], labels, labels))
    with pytest.raises(ValueError, match=f"{name}: collect_stats"):
        getattr(ours, name)(collect_stats=True)
    with pytest.raises(ValueError, match=f"{name}: temperature"):
        getattr(ours, name)(0.0)


def test_a_pair_that_is_both_is_refused():
    index = torch.tensor([0, 1, 2])
    with pytest.raises(ValueError, match="pairs that are both"):
        ours.SupConLoss()(*drawn(0, (6, 3)), indices_tuple=(index, index + 1, index, index + 1))


@every_loss
@pytest.mark.parametrize("where", ["embeddings", "one label", "all labels"])
def test_nan_does_what_it_does_in_the_original(name, where):
    (z,), labels = drawn(0, (8, 3)), labels_of(0, 8, 2).double()
    if where == "embeddings":
        z[2] = torch.nan
    else:
        labels[2 if where == "one label" else slice(None)] = torch.nan
    mine, peer = (loss_fn(z, labels) for loss_fn in both(name))
    torch.testing.assert_close(mine, peer, equal_nan=True)


@every_loss
def test_what_is_no_tensor_of_floats_is_refused(name):
    z, labels = torch.ones(4, 3), torch.arange(4) % 2
    for wrong, received in ((z.long(), "torch.int64"), (z.numpy(), "ndarray")):
        with pytest.raises(ValueError, match=f"embeddings must be .* received {received}"):
            getattr(ours, name)()(wrong, labels)
