"""``fastssl.compat.lightly`` beside lightly: values, gradients, memory bank, refusals."""

# shapes: N samples, K bank rows, D features
from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed as torch_dist

from fastssl.compat import lightly as ours
from tests.compat.compare import assert_close_to, assert_same, drawn, dtypes, seeds, temperatures

theirs = pytest.importorskip("lightly.loss", reason="lightly is not installed: pip install lightly")

signed = st.builds(lambda tau, sign: tau * sign, temperatures, st.sampled_from([1, -1]))
widths = st.integers(1, 40)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 24), widths, signed, dtypes, seeds)
def test_ntxent_without_a_bank(num_samples, width, temperature, dtype, seed):
    inputs = drawn(seed, *[(num_samples, width)] * 2)
    mine, peer = ours.NTXentLoss(temperature), theirs.NTXentLoss(temperature)
    assert_same(mine, peer, inputs, dtype, 1 / abs(temperature))


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")  # the original's own
@pytest.mark.parametrize("name", ["DCLLoss", "DCLWLoss"])
@settings(max_examples=40, deadline=None)
@given(st.integers(2, 24), widths, signed, dtypes, seeds)
def test_decoupled_losses(name, num_samples, width, temperature, dtype, seed):
    inputs = drawn(seed, *[(num_samples, width)] * 2)
    mine, peer = getattr(ours, name)(temperature), getattr(theirs, name)(temperature)
    assert_same(mine, peer, inputs, dtype, 1 / abs(temperature))


def test_a_weight_function_with_a_gradient():
    def weight(z0_ND, z1_ND):
        return (z0_ND - z1_ND).pow(2).sum(dim=1) + z0_ND[:, 0]

    inputs = drawn(0, (7, 5), (7, 5))
    pair = [library.DCLLoss(0.3, weight_fn=weight) for library in (ours, theirs)]
    assert_same(*pair, inputs, torch.float64, 4.0)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_the_weights_are_the_originals():
    from lightly.loss.dcl_loss import negative_mises_fisher_weights

    out0, out1 = drawn(0, (6, 4), (6, 4))
    found_N = ours.negative_mises_fisher_weights(out0.requires_grad_(), out1, 0.3)
    torch.testing.assert_close(found_N, negative_mises_fisher_weights(out0, out1, 0.3))
    assert not found_N.requires_grad


def test_one_sample_alone():
    z0, z1 = drawn(0, (1, 4), (1, 4))
    assert ours.NTXentLoss()(z0, z1) == theirs.NTXentLoss()(z0, z1) == 0
    assert ours.DCLLoss()(z0, z1) == theirs.DCLLoss()(z0, z1) == -torch.inf


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 17),
    st.lists(st.tuples(st.integers(1, 20), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 12),
    signed,
    st.sampled_from([torch.float32, torch.float64]),
    seeds,
)
def test_consecutive_calls_with_a_bank(bank_size, calls, width, temperature, dtype, seed):
    """Batches smaller and larger than the bank, with and without an update, wrap included."""
    pair = []
    for library in (ours, theirs):
        torch.manual_seed(seed)
        pair.append(library.NTXentLoss(temperature, memory_bank_size=(bank_size, width)).to(dtype))
    mine, peer = pair
    for number, (num_samples, updates) in enumerate(calls):
        inputs = [x.to(dtype) for x in drawn(seed + number, *[(num_samples, width)] * 2)]
        truth = copy.deepcopy(peer).double()
        call = step if updates else value
        exact = call(truth, [x.double() for x in inputs])
        assert_close_to(
            exact, *[call(loss, inputs) for loss in (mine, peer)], inputs, 1 / abs(temperature)
        )
        torch.testing.assert_close(mine.memory_bank.bank, peer.memory_bank.bank)
        assert mine.memory_bank.bank_ptr.tolist() == peer.memory_bank.bank_ptr.tolist()
        assert mine.memory_bank.bank.dtype == dtype


def step(loss, inputs):
    leaves = [x.detach().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def value(loss, inputs):
    with torch.no_grad():
        return [loss(*inputs)]


def test_the_bank_is_written_only_where_the_query_requires_a_gradient():
    loss_fn = ours.NTXentLoss(memory_bank_size=(8, 4))
    before = loss_fn.memory_bank.bank.clone()
    query, key = (x.float() for x in drawn(0, (3, 4), (3, 4)))
    loss_fn(query, key.requires_grad_()).backward()
    assert torch.equal(loss_fn.memory_bank.bank, before)
    loss_fn(query.requires_grad_(), key)
    assert not torch.equal(loss_fn.memory_bank.bank[:3], before[:3])
    assert torch.equal(loss_fn.memory_bank.bank[3:], before[3:])


def test_a_width_taken_from_the_first_batch():
    loss_fn = ours.NTXentLoss(memory_bank_size=8)
    torch.manual_seed(3)
    query, key = (x.float().requires_grad_() for x in drawn(0, (3, 4), (3, 4)))
    value = loss_fn(query, key)
    torch.manual_seed(3)
    expected = theirs.NTXentLoss(memory_bank_size=(8, 4))
    torch.testing.assert_close(value, expected(query, key))
    torch.testing.assert_close(loss_fn.memory_bank.bank, expected.memory_bank.bank)


@pytest.mark.parametrize("size", [0, (8, 4)])
def test_state_and_copies_are_the_originals(size):
    mine, peer = (library.NTXentLoss(memory_bank_size=size) for library in (ours, theirs))
    assert list(mine.state_dict()) == list(peer.state_dict())
    names = [name for name, _ in peer.named_buffers()]
    assert [name for name, _ in mine.named_buffers()] == names
    twin = copy.deepcopy(mine)
    assert twin.memory_bank.bank.data_ptr() != mine.memory_bank.bank.data_ptr() or not size
    assert torch.equal(twin.memory_bank.bank, mine.memory_bank.bank) or not size
    mine.load_state_dict(peer.state_dict())


def test_the_bank_as_a_module_returns_what_was_there_before():
    mine = ours.MemoryBankModule((5, 2))
    output, before = mine(torch.ones(3, 2), update=True)
    assert output.shape == (3, 2)
    assert before.shape == (2, 5)
    assert not torch.equal(before, mine.bank.T)
    assert ours.MemoryBankModule(0)(output)[1] is None


@pytest.mark.parametrize("temperature", [0.0, 1e-9, -1e-9])
def test_a_temperature_of_nothing_is_refused(temperature):
    for library in (ours, theirs):
        with pytest.raises(ValueError, match="Illegal temperature"):
            library.NTXentLoss(temperature)
    if temperature == 0:
        with pytest.raises(ValueError, match="DCLLoss: temperature"):
            ours.DCLLoss(temperature)


@pytest.mark.parametrize("size", [-1, (10, -1), (1, 2, 3), (7,)])
def test_a_bad_bank_size_is_refused(size):
    for library in (ours, theirs):
        with pytest.raises(ValueError, match="Illegal memory bank size"):
            library.NTXentLoss(memory_bank_size=size)


@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss"])
def test_gathering_in_one_process_is_not_gathering(name, monkeypatch):
    z0, z1 = drawn(0, (4, 3), (4, 3))
    assert getattr(ours, name)(gather_distributed=True)(z0, z1) == getattr(ours, name)()(z0, z1)
    monkeypatch.setattr(torch_dist, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch.distributed is not available"):
        getattr(ours, name)(gather_distributed=True)


def _bad_views():
    z = torch.randn(3, 4)
    return {
        "another width": ((z, torch.randn(3, 5)), r"out1 .* \(3, 4\) of out0; received \(3, 5\)"),
        "another N": ((z, z[:2]), r"out1 .* of out0; received \(2, 4\)"),
        "one dimension": ((z[0], z[0]), r"out0 must be 2-D.* received shape \(4,\)"),
        "integers": ((z.long(), z.long()), "out0 must be float16.* received torch.int64"),
        "numpy": ((z.numpy(), z.numpy()), "out0 must be a tensor .* received ndarray"),
        "empty": ((z[:0], z[:0]), r"out0 must be 2-D.* received shape \(0, 4\)"),
        "None": ((z, None), "out1 must be a tensor .* received NoneType"),
    }


@pytest.mark.parametrize("kind", _bad_views())
def test_bad_views_are_refused_by_name(kind):
    inputs, message = _bad_views()[kind]
    built = [ours.NTXentLoss(), ours.NTXentLoss(memory_bank_size=(8, 4))]
    for loss in (*built, ours.DCLLoss(), ours.DCLWLoss()):
        with pytest.raises(ValueError, match=f"^{type(loss).__name__}: {message}"):
            loss(*inputs)


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (64, 128)], ids=str)
def test_dcl_errs_no_more_than_the_original_does(shape):
    """A loss of 0.3 is the difference of two terms of 10."""
    mine = peer = 0.0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        views = [torch.rand(shape, generator=generator) for _ in range(2)]
        exact = theirs.DCLLoss()(*(z.double() for z in views)).item()
        mine = max(mine, abs(ours.DCLLoss()(*views).item() - exact))
        peer = max(peer, abs(theirs.DCLLoss()(*views).item() - exact))
    assert mine <= peer


def test_attributes_have_the_originals_names():
    mine, peer = ours.NTXentLoss(0.3), theirs.NTXentLoss(0.3)
    assert mine.eps == peer.eps
    # the original keeps a criterion that is not needed here
    assert set(vars(peer)) - set(vars(mine)) == set()
    assert set(dict(peer.named_children())) - set(dict(mine.named_children())) == {"cross_entropy"}
