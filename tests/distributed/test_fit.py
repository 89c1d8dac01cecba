"""The loop over ranks: the weights of one process, one folder, one end, exact resumption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from fastssl.engine import checkpoint
from fastssl.engine.plan import total_steps
from fastssl.engine.ranks import ALONE
from fastssl.methods import METHODS
from tests.distributed import fitting
from tests.methods import fitted

# Six float64 steps through four convolutions and batch norms, whose sums run in another order:
# 1e-16 at the start, ten times that after each step or two.
RELATIVE = 1e-12
ABSOLUTE = 1e-15  # of what is zero but for rounding: running means behind a norm without a shift


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_end_with_the_weights_of_one_process(two, tmp_path, accumulate):
    one = fitting.simclr(str(tmp_path / "one"), accumulate, ALONE)
    for rank in two.run(fitting.simclr, str(tmp_path / "two"), accumulate):
        for name, expected in one["state"].items():
            error = (rank["state"][name] - expected).double().norm() / expected.double().norm()
            assert error <= RELATIVE, f"{name}: {error:.1e}"


@pytest.mark.parametrize("name", ["swav", "amortised"])
def test_a_queue_over_ranks_is_the_queue_of_one_process(two, tmp_path, name):
    one = fitting.queued(str(tmp_path / "one"), name, ALONE)
    for rank in two.run(fitting.queued, str(tmp_path / "two"), name):
        for key, expected in one["state"].items():
            error = (rank["state"][key] - expected).double().norm()
            assert error <= RELATIVE * expected.double().norm(), f"{key}: {error:.1e}"


@pytest.mark.parametrize("name", METHODS)
def test_two_ranks_train_every_method_as_one_process(two, tmp_path, name):
    """With batch norms over the ranks; the key encoders' are not split, for a rank splits its own
    rows. Numbers that a method draws in its forward are replaced by one number."""
    one = fitted.on_a_rank(str(tmp_path / "one"), name, ALONE)
    for rank in two.run(fitted.on_a_rank, str(tmp_path / "two"), name):
        for key, expected in one["state"].items():
            error = (rank["state"][key] - expected).double().norm()
            bound = RELATIVE * expected.double().norm() + ABSOLUTE
            assert error <= bound, f"{key}: {error:.1e}"


def final(folder: Path) -> dict:
    """The newest checkpoint and the log, wall time left out."""
    _, path = checkpoint.newest_first(folder / "checkpoints")[0]
    state = json.loads((path / "state.json").read_text())
    del state["wall"]
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    tensors = [(path / f"{kind}.safetensors").read_bytes() for kind in ("model", "optim")]
    return {
        "step": path.name,
        "state": state,
        "tensors": tensors,
        "log": [{k: v for k, v in line.items() if k != "wall"} for line in logged],
    }


def test_a_signal_to_any_rank_stops_all_and_the_run_resumes_to_the_same_bytes(two, tmp_path):
    straight, halved = tmp_path / "straight", tmp_path / "halved"
    two.run(fitting.toy, str(straight), {}, {})
    stopped = two.run(fitting.toy, str(halved), {}, {"signal_at": 2})
    assert [rank["code"] for rank in stopped] == [143, 143]
    assert [rank["steps"] for rank in stopped] == [3, 3]
    assert "stopped by SIGTERM at step 3/6" in stopped[0]["said"]
    resumed = two.run(fitting.toy, str(halved), {"resume": True}, {})
    assert [rank["code"] for rank in resumed] == [0, 0]
    assert "resumed from step 3 of 6" in resumed[0]["said"]
    expected, found = final(straight), final(halved)
    assert len(expected["state"]["ranks"]) == 2
    assert expected["state"]["ranks"][0] != expected["state"]["ranks"][1]
    assert found == expected


def test_another_number_of_ranks_is_refused_with_the_reason(two, tmp_path):
    run, resume = str(tmp_path / "run"), {"resume": True}
    fitting.toy(run, {}, {}, ALONE)
    before = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    leader, other = two.run(fitting.toy, run, resume, {})
    assert "made by 1 ranks, now 2" in leader["error"]
    assert "LeaderFailed" in other["error"]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == before
    two.run(fitting.toy, str(tmp_path / "pair"), {}, {})
    refused = fitting.toy(str(tmp_path / "pair"), resume, {}, ALONE)
    assert "made by 2 ranks, now 1" in refused["error"]
    assert "--nproc-per-node 2" in refused["error"]


def test_a_rank_whose_data_fail_ends_all_of_them_saved(two, tmp_path):
    leader, failed = two.run(fitting.toy, str(tmp_path / "run"), {}, {"fails_at": 3})
    assert "the disk went away" in failed["error"]
    assert "another rank" in leader["error"]
    assert checkpoint.newest_first(tmp_path / "run" / "checkpoints")[0][0] == 3


def test_only_the_leader_writes(two, tmp_path):
    two.run(fitting.toy, str(tmp_path / "run"), {}, {})
    logged = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in logged]
    assert steps == sorted(steps) and set(steps) == set(range(1, 7))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not (tmp_path / "run" / "never").exists()


def test_a_batch_that_cannot_be_shared_evenly_is_refused():
    with pytest.raises(ValueError, match=r"batch_size: 16 .* by 3 ranks; give --batch-size 18"):
        total_steps(fitting.Doubles(), fitting.CONFIG, num_ranks=3)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(8, 5), (8, 5, 3, 2)])
def test_batch_norm_over_ranks_is_batch_norm_of_the_whole_batch(two, shape, momentum):
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    norm = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(5, momentum=momentum).double()
    x.requires_grad_()
    (norm(x) * g).sum().backward()
    norm(x.detach() * 3 + 1)
    expected = [norm.eval()(x).detach(), norm.running_mean, norm.running_var]
    gradients = [p.grad for p in norm.parameters()]
    ranks = two.run(fitting.normed, x.detach(), g, momentum, [5, 3])
    torch.testing.assert_close(torch.cat([r["dx"] for r in ranks]), x.grad, rtol=0, atol=1e-12)
    for position, gradient in enumerate(gradients):
        found = sum(r["gradients"][position] for r in ranks)
        torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([r["out"] for r in ranks]), expected[0])
    for rank in ranks:
        torch.testing.assert_close(rank["running"], expected[1:], rtol=1e-12, atol=1e-12)
        assert rank["keys"] == list(norm.state_dict())


def test_batch_norm_over_ranks_has_a_second_derivative(two):
    generator = torch.Generator().manual_seed(0)
    x, g = torch.randn(2, 8, 5, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(
        (nn.BatchNorm1d(5).double()(x) * g).sum(), x, create_graph=True
    )
    gradient.square().sum().backward()
    found = torch.cat(two.run(fitting.bent, x.detach(), g, [5, 3]))
    torch.testing.assert_close(found, x.grad, rtol=1e-10, atol=1e-12)
