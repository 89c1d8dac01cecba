"""The promises of the ``enqueue`` operator on CPU: a ring of unit keys, whatever the batch size."""

# shapes: N keys of a batch, K rows of the ring, D features
from __future__ import annotations

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastssl.kernels import native as compiled
from fastssl.kernels.enqueue import reference, spec
from fastssl.kernels.enqueue.op import enqueue


def fresh(capacity: int, width: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.full((capacity, width), 7.0, dtype=dtype), torch.tensor(0)


def unit_rows(keys: Tensor) -> list[Tensor]:
    """Key by key in float64; shares no code with the package."""
    rows = []
    for key in keys.double():
        norm = sum(float(x) ** 2 for x in key) ** 0.5
        rows.append(key / max(norm, 1e-12))
    return rows


def oldest_first(rows: Tensor, pointer: Tensor) -> Tensor:
    return torch.cat([rows[pointer.item() :], rows[: pointer.item()]])


@settings(max_examples=80, deadline=None)
@given(
    capacity=st.integers(1, 12),
    width=st.integers(1, 40),
    batches=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_it_is_a_deque_of_the_last_keys(capacity, width, batches, dtype):
    rows, pointer = fresh(capacity, width, dtype)
    model = deque(rows.double(), maxlen=capacity)
    for seed, size in enumerate(batches):
        keys = spec.sample(size, width, dtype, seed=seed)
        enqueue(rows, pointer, keys)
        model.extend(unit_rows(keys))
    tolerance = 2 * torch.finfo(dtype).eps
    expected = torch.stack(list(model))
    found = oldest_first(rows, pointer).double()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert pointer.item() == sum(batches) % capacity


@pytest.mark.parametrize("rows_dtype", spec.DTYPES, ids=str)
@pytest.mark.parametrize("keys_dtype", spec.DTYPES, ids=str)
def test_rows_are_the_rounded_unit_keys(keys_dtype, rows_dtype):
    rows, pointer = fresh(11, 37, rows_dtype)
    keys = spec.sample(7, 37, keys_dtype)
    enqueue(rows, pointer, keys)
    truth = torch.stack(unit_rows(keys))
    wide = torch.finfo(reference.accumulate_dtype(keys_dtype)).eps
    rounding = torch.finfo(rows_dtype).eps / 2
    # a half unit in the last place, of the exact value or of one that float32 cannot tell from it
    error = (rows[:7].double() - truth).abs()
    smallest = torch.finfo(rows_dtype).smallest_normal
    limit = truth.abs() * (rounding + 2 * wide) + smallest * rounding
    assert (error <= limit).all()
    assert (rows[7:] == 7).all()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded", "strided"])
def test_keys_may_have_any_strides(layout):
    keys = spec.sample(6, 10, torch.float32)
    given_keys = {
        "transposed": keys.T.contiguous().T,
        "sliced": torch.cat([keys, keys], 1)[:, :10],
        "expanded": keys[:1].expand(6, 10),
        "strided": torch.stack([keys, keys], -1)[..., 0],
    }[layout]
    rows, pointer = fresh(4, 10)
    enqueue(rows, pointer, given_keys)
    expected, at = fresh(4, 10)
    enqueue(expected, at, given_keys.contiguous())
    assert torch.equal(rows, expected)


def test_zero_huge_and_broken_keys():
    keys = torch.ones(4, 3)
    keys[0], keys[1], keys[2, 1] = 0, 1e30, torch.nan
    rows, pointer = fresh(4, 3)
    enqueue(rows, pointer, keys)
    assert torch.equal(rows[0], torch.zeros(3))
    torch.testing.assert_close(rows[1], torch.full((3,), 3**-0.5))
    assert rows[2].isnan().any() and torch.isfinite(rows[3]).all()


def test_a_large_batch_over_several_threads_is_the_reference():
    keys = spec.sample(5000, 64, torch.float32)
    for capacity in (4096, 5000, 8191):
        rows, pointer = fresh(capacity, 64)
        pointer += 1234
        expected, at = rows.clone(), pointer.clone()
        enqueue(rows, pointer, keys)
        reference.enqueue(expected, at, keys)
        torch.testing.assert_close(rows, expected, rtol=1e-6, atol=1e-7)
        assert pointer == at


@pytest.mark.parametrize("isa", compiled.instruction_sets())
def test_every_instruction_set_agrees(isa):
    keys = spec.sample(9, 45, torch.float32)
    rows, pointer = fresh(7, 45, torch.bfloat16)
    compiled.select_isa(isa)
    try:
        enqueue(rows, pointer, keys)
    finally:
        compiled.select_isa(compiled.instruction_sets()[0])
    expected, at = fresh(7, 45, torch.bfloat16)
    reference.enqueue(expected, at, keys.double())
    torch.testing.assert_close(rows, expected)


@pytest.mark.parametrize("bad", list(spec.bad_calls()), ids=lambda b: b.name)
def test_a_bad_call_is_refused_by_name(bad):
    with pytest.raises(ValueError, match="^enqueue: ") as refusal:
        enqueue(bad.rows, bad.pointer, bad.keys)
    for word in bad.mentions:
        assert word in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_passes_all_four(dtype):
    rows, pointer = fresh(6, 5, dtype)
    call = (rows, pointer, spec.sample(4, 5, torch.float32))
    found = torch.library.opcheck(torch.ops.fastssl.enqueue.default, call)
    assert set(found.values()) == {"SUCCESS"} and len(found) == 4


def test_compiles_to_one_graph_that_writes_in_place():
    def step(rows, pointer, keys):
        enqueue(rows, pointer, keys * 2)
        return rows.sum() + pointer

    fast = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    (rows, pointer), (expected, at) = fresh(8, 5), fresh(8, 5)
    for size in (3, 7, 20):
        keys = spec.sample(size, 5, torch.float32)
        assert fast(rows, pointer, keys) == step(expected, at, keys)
        assert torch.equal(rows, expected) and pointer == at


def test_a_gradient_that_needs_the_old_rows_notices_the_write():
    rows, pointer = fresh(6, 5)
    z = torch.randn(3, 5, requires_grad=True)
    logits = z @ rows.T
    enqueue(rows, pointer, z)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


def test_without_gradient_and_in_inference_mode():
    keys = spec.sample(4, 5, torch.float32).requires_grad_()
    rows, pointer = fresh(6, 5)
    enqueue(rows, pointer, keys)
    assert not rows.requires_grad
    with torch.inference_mode():
        enqueue(rows, pointer, keys)
        inside, at = fresh(6, 5)
        enqueue(inside, at, keys)
    assert pointer == 2 and at == 4
    assert torch.equal(rows[4:], inside[:2])


def test_the_reference_answers_where_there_is_no_library(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "LIBRARY_PATH", tmp_path / "missing.so")
    compiled.library.cache_clear()
    rows, pointer = fresh(6, 5)
    try:
        with pytest.warns(RuntimeWarning, match="not usable"):
            enqueue(rows, pointer, spec.sample(9, 5, torch.float32))
    finally:
        compiled.library.cache_clear()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(6))
    assert pointer == 3
