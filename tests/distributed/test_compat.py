"""``fastssl.compat`` over two ranks beside the originals: values, and the gradients ranks get."""

# shapes: N rows, D features
from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from tests.distributed import compat_calls

# both are float64 and add 2N numbers in another order
CLOSE = {"rtol": 1e-10, "atol": 1e-12}
SWITCHES = [
    {"local_loss": local, "gather_with_grad": gathered}
    for local, gathered in itertools.product([False, True], repeat=2)
]


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def needs(peer):
    pytest.importorskip(peer, reason=f"{peer} is not installed: pip install fastssl[test]")


def assert_same(ranks, **close):
    for ours, theirs in ranks:
        for mine, peer in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, peer, **(close or CLOSE))


@pytest.mark.parametrize("name", ["NTXentLoss", "DCLLoss", "DCLWLoss"])
@pytest.mark.parametrize(("num_rows", "width", "temperature"), [(2, 3, 0.5), (14, 5, 0.1)])
def test_lightly_gathers_negatives(two, name, num_rows, width, temperature):
    needs("lightly")
    views = [drawn(num_rows, width, seed=s) for s in range(2)]
    assert_same(two.run(compat_calls.lightly_pair, name, {"temperature": temperature}, views))


def test_lightlys_bank_takes_the_keys_of_all_ranks(two):
    needs("lightly")
    steps = [[drawn(8, 4, seed=s, dtype=torch.float32) for s in (i, i + 9)] for i in range(3)]
    ranks = two.run(compat_calls.lightly_banks, steps)
    assert_same(ranks, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ranks[0][0][-2], ranks[1][0][-2])


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(k for k in s if s[k]) or "no")
@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_clip_over_ranks_in_every_mode(two, switches, scale):
    needs("open_clip")
    image, text = (F.normalize(drawn(10, 6, seed=s)) for s in range(2))
    scale = torch.tensor(scale, dtype=torch.float64)
    ranks = two.run(compat_calls.clip_pair, switches, image, text, scale)
    if switches == {"local_loss": True, "gather_with_grad": True}:
        # what ranks add to the scale's gradient is shared out differently; DDP averages it
        total = [sum(rank[side][3] for rank in ranks) for side in range(2)]
        torch.testing.assert_close(*total, **CLOSE)
        ranks = [(ours[:3], theirs[:3]) for ours, theirs in ranks]
    assert_same(ranks)


@pytest.mark.parametrize("id_dtype", [torch.int64, torch.float32])
def test_solo_computes_the_loss_of_all_rows_on_every_rank(two, id_dtype):
    ids = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 1, 0]).to(id_dtype)
    assert_same(two.run(compat_calls.solo_pair, drawn(10, 5), ids, 0.2))


def test_a_row_without_a_positive_on_any_rank_makes_solos_loss_infinite(two):
    ranks = two.run(compat_calls.solo_pair, drawn(4, 3), torch.tensor([0, 1, 1, 2]), 0.2)
    for (value, gradient), (expected, _) in ranks:
        assert value == expected == torch.inf
        assert torch.isfinite(gradient).all()


def test_a_world_of_another_size_is_refused(two):
    for size, horovod in two.run(compat_calls.wrong_worlds):
        assert "world_size must be the number of processes" in size and "2 here; received 7" in size
        assert "use_horovod must be False" in horovod
