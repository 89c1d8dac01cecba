"""Over ranks: metrics average to one process's, queues hold everybody's keys, one rounding."""

# shapes: N samples, Q queues, D embedding
from __future__ import annotations

import pytest
import torch

from fastssl.losses import KeyQueue
from tests.distributed import metric_calls

EXCHANGES = pytest.mark.parametrize("exchange", ["gather", "ring"])


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@EXCHANGES
def test_metrics_of_equal_parts_average_to_those_of_the_batch(two, exchange):
    """Rows of a label are on both ranks; each rank's top-1 looks at the keys of both."""
    q_ND = drawn(24, 5)
    batch = (q_ND, q_ND + 0.8 * drawn(24, 5, seed=1), torch.arange(24) % 7)
    ranks = two.run(metric_calls.metrics_of_rank, exchange, batch)
    for name in metric_calls.LOSSES:
        whole = metric_calls.told(name, batch)
        if name.startswith(("SupCon", "MultiCrop")):
            assert 0 < whole.top1 < 1
        weights = negatives(name, batch[2])
        for metric, expected in whole._asdict().items():
            values = torch.stack([rank[name][metric] for rank in ranks])
            weight = weights if metric == "negative_similarity" else torch.ones(2)
            found = (values * weight).sum() / weight.sum()
            torch.testing.assert_close(
                found, expected.to(found.dtype), rtol=1e-11, atol=1e-12, msg=f"{name} {metric}"
            )


def negatives(name, ids_N):
    """How many (row, negative) pairs the two ranks have."""
    if not name.startswith(("SupCon", "MultiCrop")):
        return torch.ones(2)
    different = (ids_N[:, None] != ids_N).sum(1)
    return torch.stack([half.sum() for half in different.chunk(2)]).double()


@EXCHANGES
def test_queues_side_by_side_take_the_keys_of_all_ranks(two, exchange):
    batches = [drawn(3, 7, 4, seed=step).float() for step in range(5)]
    alone = KeyQueue(10, 4, num_queues=3, dtype=torch.float32)
    for step, keys_QND in enumerate(batches):
        if step % 2:
            alone.enqueue(keys_QND[1], queue=1)
        else:
            alone.enqueue(keys_QND)
    assert len(set(alone.pointer.tolist())) == 2
    for found in two.run(metric_calls.queue_of_rank, exchange, batches, [5, 2]):
        assert torch.equal(found["rows"], alone.rows)
        assert torch.equal(found["pointer"], alone.pointer)


@EXCHANGES
@pytest.mark.parametrize(("digits", "least"), [("float16", 2.0**-14), ("bfloat16", 2.0**-126)])
def test_gradients_of_16_bit_rows_are_rounded_once(two, exchange, digits, least):
    """Half a unit in the last place of float64's; float32 on the way adds a hundredth."""
    dtype = getattr(torch, digits)
    views = [drawn(32, 16, seed=s).to(dtype).float() for s in range(2)]
    for found, exact in two.run(metric_calls.gradients_of, exchange, digits, views):
        unit = torch.finfo(dtype).eps * 2 ** exact.abs().clamp_min(least).log2().floor()
        near_zero = exact.abs().max() * 2e-7
        assert ((found - exact).abs() <= 0.51 * unit + near_zero).all()
