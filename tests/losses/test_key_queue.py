"""``KeyQueue``: what it starts with, keeps, saves and gathers."""

# shapes: N keys of a batch, K rows of a queue, D features, Q queues
from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from fastssl.losses import KeyQueue


def test_it_starts_with_random_unit_rows_of_its_seed():
    queue = KeyQueue(50, 8, dtype=torch.float32)
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(50))
    assert torch.equal(queue.rows, KeyQueue(50, 8, dtype=torch.float32).rows)
    assert not torch.equal(queue.rows, KeyQueue(50, 8, dtype=torch.float32, seed=1).rows)
    assert queue.rows.std(dim=0).min() > 0.1
    assert KeyQueue(50, 8).rows.dtype == torch.bfloat16


@pytest.mark.parametrize("size", [1, 3, 7, 10, 11, 25])
def test_the_last_keys_are_there_oldest_at_the_pointer(size):
    queue = KeyQueue(10, 4, dtype=torch.float32)
    everything = F.normalize(torch.randn(5 * size, 4), dim=1)
    history = torch.cat([queue.rows.clone(), everything])[-10:]
    for keys in everything.split(size):
        queue.enqueue(keys * 3)
    found = queue.rows.roll(-int(queue.pointer), dims=0)
    torch.testing.assert_close(found, history)


def test_queues_side_by_side_are_separate_queues():
    torch.manual_seed(0)
    stacked = KeyQueue(6, 4, num_queues=3, dtype=torch.float32)
    single = [KeyQueue(6, 4, dtype=torch.float32) for _ in range(3)]
    for one, rows in zip(single, stacked.rows, strict=True):
        one.rows.copy_(rows)
    keys = torch.randn(3, 4, 4)
    stacked.enqueue(keys)
    stacked.enqueue(keys[0], queue=2)
    for q, one in enumerate(single):
        one.enqueue(keys[q])
    single[2].enqueue(keys[0])
    for q, one in enumerate(single):
        assert torch.equal(stacked.rows[q], one.rows)
        assert stacked.pointer[q] == one.pointer


@pytest.mark.parametrize("num_queues", [None, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_a_saved_queue_goes_on_where_it_was(num_queues, dtype):
    queue = KeyQueue(7, 4, num_queues=num_queues, dtype=dtype)
    shape = (5, 4) if num_queues is None else (2, 5, 4)
    queue.enqueue(torch.randn(shape))
    other = KeyQueue(7, 4, num_queues=num_queues, dtype=dtype, seed=9)
    assert set(queue.state_dict()) == {"rows", "pointer"}
    other.load_state_dict(queue.state_dict())
    keys = torch.randn(shape)
    queue.enqueue(keys)
    other.enqueue(keys)
    assert torch.equal(queue.rows, other.rows) and torch.equal(queue.pointer, other.pointer)
    with pytest.raises(RuntimeError, match="size mismatch"):
        KeyQueue(8, 4, num_queues=num_queues).load_state_dict(queue.state_dict())


def test_compiles_into_the_step_that_uses_it():
    eager = KeyQueue(9, 4, num_queues=2, dtype=torch.float32)
    traced = KeyQueue(9, 4, num_queues=2, dtype=torch.float32)

    def step(queue, keys):
        loss = (keys @ queue.rows[1].T).sum()
        queue.enqueue(keys, queue=1)
        queue.enqueue(torch.stack([keys, keys]))
        return loss

    fast = torch.compile(lambda keys: step(traced, keys), fullgraph=True, backend="aot_eager")
    for _ in range(3):
        keys = torch.randn(4, 4)
        torch.testing.assert_close(fast(keys), step(eager, keys))
        assert torch.equal(traced.rows, eager.rows) and torch.equal(traced.pointer, eager.pointer)


@pytest.mark.parametrize("size", [4, 9, 20])
@pytest.mark.parametrize("how", [torch.compile, lambda f, **_: f], ids=["compiled", "eager"])
def test_a_tensor_names_a_queue_as_a_number_does(size, how):
    by_number, by_tensor = (KeyQueue(9, 4, num_queues=3, dtype=torch.float32) for _ in range(2))
    write = how(lambda k, q: by_tensor.enqueue(k, queue=q), fullgraph=True, backend="aot_eager")
    for q in (1, 2, 1, 1, 0):
        keys = torch.randn(size, 4)
        by_number.enqueue(keys, queue=q)
        write(keys, torch.tensor(q))
    torch.testing.assert_close(by_tensor.rows, by_number.rows, rtol=0, atol=1e-6)
    assert torch.equal(by_tensor.pointer, by_number.pointer)


def test_works_in_inference_mode_and_without_gradient():
    queue = KeyQueue(6, 4)
    keys = torch.randn(4, 4, requires_grad=True)
    with torch.inference_mode():
        queue.enqueue(keys)
    queue.enqueue(keys)
    assert queue.pointer == 2 and not queue.rows.requires_grad


def _into(queue, keys=None):
    """Keys into one of two queues."""
    keys = torch.ones(2, 4) if keys is None else keys
    KeyQueue(4, 4, num_queues=2).enqueue(keys, queue=queue)


@pytest.mark.parametrize("size", [1e30, 1e-30, 0.0])
def test_keys_of_any_size_arrive_alike_by_number_and_by_tensor(size):
    queue = KeyQueue(5, 3, num_queues=3, dtype=torch.float32)
    keys = torch.randn(2, 3) * size
    queue.enqueue(keys, queue=0)
    queue.enqueue(keys, queue=np.int64(1))
    queue.enqueue(keys, queue=torch.tensor(2))
    assert torch.equal(queue.rows[0, :2], queue.rows[1, :2])
    torch.testing.assert_close(queue.rows[2, :2], queue.rows[0, :2], rtol=1e-6, atol=1e-7)
    if size > 1:
        torch.testing.assert_close(queue.rows[:, :2].norm(dim=2), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KeyQueue(0, 4), "KeyQueue: num_keys"),
        (lambda: KeyQueue(4, 0), "KeyQueue: width"),
        (lambda: KeyQueue(4, 4, num_queues=0), "KeyQueue: num_queues"),
        (lambda: KeyQueue(4, 4, dtype=torch.int8), "KeyQueue: dtype"),
        (
            lambda: KeyQueue(4, 4).enqueue(torch.ones(4)),
            r"KeyQueue: keys must be a tensor \(N, D\)",
        ),
        (lambda: KeyQueue(4, 4).enqueue(None), "KeyQueue: keys .* NoneType"),
        (lambda: KeyQueue(4, 4).enqueue(torch.ones(2, 4), queue=0), "KeyQueue: queue must be None"),
        (
            lambda: KeyQueue(4, 4).enqueue(torch.ones(2, 4), queue=torch.tensor(0)),
            "KeyQueue: queue must be a tensor of one integer",
        ),
        (
            lambda: KeyQueue(4, 4, num_queues=2).enqueue(torch.ones(2, 3), queue=torch.tensor(0)),
            "KeyQueue: keys must be of width 4",
        ),
        (lambda: KeyQueue(4, 4).enqueue(torch.ones(2, 3)), "enqueue: keys must be of width 4"),
        (
            lambda: KeyQueue(4, 4, num_queues=2).enqueue(torch.ones(2, 4), queue=2),
            "KeyQueue: queue must be an integer between 0 and 1",
        ),
        (
            lambda: KeyQueue(4, 4, num_queues=2).enqueue(torch.ones(3, 2, 4)),
            r"KeyQueue: keys .*\(2",
        ),
        (lambda: KeyQueue(4, 4, num_queues=2).enqueue(torch.ones(2, 4)), r"KeyQueue: keys .*\(2"),
        (lambda: KeyQueue(4.5, 3), r"KeyQueue: num_keys must be an integer .*4\.5"),
        (lambda: KeyQueue("4", 3), "KeyQueue: num_keys must be an integer .*'4'"),
        (lambda: KeyQueue(None, 3), "KeyQueue: num_keys must be an integer .*None"),
        (lambda: _into(1.0), "KeyQueue: queue must be an integer between 0 and 1"),
        (lambda: _into(True), "KeyQueue: queue must be an integer between 0 and 1"),
        (lambda: _into("1"), "KeyQueue: queue must be an integer between 0 and 1"),
        (lambda: _into(torch.tensor(True)), "KeyQueue: queue must be a tensor of one integer"),
        (lambda: _into(torch.tensor(1), torch.ones(0, 4)), "enqueue: keys must be non-empty"),
        (lambda: _into(1, torch.ones(0, 4)), "enqueue: keys must be non-empty"),
        (lambda: _into(torch.tensor(1), torch.ones(2, 4).long()), "enqueue: keys .*int64"),
        (lambda: _into(1, torch.ones(2, 4).long()), "enqueue: keys .*int64"),
    ],
)
def test_a_bad_call_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def write_on_rank(rank: int, folder: str) -> None:
    """One of two processes; what it ends with is written beside the other's."""
    where = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    queue = KeyQueue(10, 4, dtype=torch.float32, group=dist.group.WORLD)
    many = KeyQueue(10, 4, num_queues=2, dtype=torch.float32, group=dist.group.WORLD)
    many.rows[1] = queue.rows
    for step in range(3):
        queue.enqueue(keys_of(rank, step))
        many.enqueue(keys_of(rank, step), queue=torch.tensor(1))
    torch.testing.assert_close(many.rows[1], queue.rows, rtol=0, atol=1e-6)
    assert torch.equal(queue.share(), queue.rows[rank::2])
    queue.rows.numpy().tofile(f"{folder}/rows{rank}")
    dist.destroy_process_group()


def keys_of(rank: int, step: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(10 * step + rank)
    return torch.randn(2, 4, generator=generator)


def test_a_group_writes_everybodys_keys_in_the_order_of_the_ranks(tmp_path):
    mp.spawn(write_on_rank, (str(tmp_path),), nprocs=2)
    alone = KeyQueue(10, 4, dtype=torch.float32)
    for step in range(3):
        alone.enqueue(torch.cat([keys_of(rank, step) for rank in range(2)]))
    for rank in range(2):
        rows = torch.from_file(str(tmp_path / f"rows{rank}"), size=40).view(10, 4)
        assert torch.equal(rows, alone.rows)


def test_the_modules_repr_names_its_size():
    assert repr(KeyQueue(6, 4)) == "KeyQueue(rows=(6, 4), dtype=torch.bfloat16)"
