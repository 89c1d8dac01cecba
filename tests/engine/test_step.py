"""One step: bad ones leave no trace, accumulation averages, autocast, compile in place."""

from __future__ import annotations

import copy
import dataclasses
import os
import random
import tempfile

import pytest
import safetensors.torch
import torch
from torch import nn

from fastssl.engine import checkpoint, compiling
from fastssl.engine.compiling import compile_caches, missing_for_compile
from fastssl.engine.config import TrainConfig
from fastssl.engine.guard import Guard, TrainingDiverged
from fastssl.engine.optim import build_optimizer, named_state
from fastssl.engine.step import Placed, TrainStep, place, place_batch

CPU = torch.device("cpu")


def build(method, optimizer="adamw", precision="fp32"):
    place(method, CPU)
    method.train()
    config = TrainConfig(optimizer=optimizer, lr=0.1, batch_size=4)
    built = build_optimizer(method, config)
    guard = Guard(method, CPU)
    return TrainStep(method, built, guard, device=CPU, precision=precision, total=100), built, guard


def views(toy, step: int, **source):
    batch = next(toy.ToySource(**source).batches(batch_size=4, seed=0, start_step=step, device=CPU))
    return place_batch(batch, CPU)


def bytes_of(method, optimizer) -> dict[str, bytes]:
    tensors = {k: v for k, v in method.state_dict().items() if isinstance(v, torch.Tensor)}
    tensors |= named_state(optimizer, method)
    return {k: t.detach().contiguous().numpy().tobytes() for k, t in tensors.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_bad_data_at_random_steps_leave_every_byte_as_it_was(toy, optimizer, value):
    torch.manual_seed(0)
    method = toy.ToyMethod()
    train, built, guard = build(method, optimizer)
    bad_steps = set(random.Random(1).sample(range(30), 20))
    for step in range(30):
        before = bytes_of(method, built)
        bad = {"bad_steps": bad_steps, "bad_value": value}
        result = train([views(toy, step, **bad)], step=step, lr=0.01)
        assert torch.isfinite(result.loss) == (step not in bad_steps)
        assert (bytes_of(method, built) == before) == (step in bad_steps), step
    assert guard.counters()["skipped"] == 20


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_a_single_bad_gradient_with_a_finite_loss_leaves_no_trace(toy, optimizer):
    method = toy.ToyMethod()
    train, built, guard = build(method, optimizer)
    train([views(toy, 0)], step=0, lr=0.01)
    before = bytes_of(method, built)
    hook = method.head[1].weight.register_hook(
        lambda g: g.index_fill(0, torch.tensor([2]), torch.nan)
    )
    result = train([views(toy, 1)], step=1, lr=0.01)
    assert torch.isfinite(result.loss) and not torch.isfinite(result.grad_norm)
    assert bytes_of(method, built) == before
    hook.remove()
    train([views(toy, 1)], step=1, lr=0.01)
    assert bytes_of(method, built) != before
    assert guard.counters() == {"skipped": 1, "in_a_row": 0, "longest": 1}


def test_one_bad_micro_batch_skips_the_whole_step(toy):
    method = toy.ToyMethod()
    train, built, _ = build(method)
    before = bytes_of(method, built)
    train([views(toy, 0), views(toy, 1, bad_steps=[1])], step=0, lr=0.01)
    assert bytes_of(method, built) == before


def test_the_device_side_of_the_guard_needs_no_answer_from_the_device(toy):
    """What CUDA does, on the CPU: undo by selection, without looking at the flag."""
    method = toy.ToyMethod()
    train, built, guard = build(method)
    guard._waits = False
    good = bytes_of(method, built)
    train([views(toy, 0, bad_steps=[0])], step=0, lr=0.01)
    assert bytes_of(method, built) == good
    train([views(toy, 0)], step=0, lr=0.01)
    assert bytes_of(method, built) != good


def test_the_guard_is_what_protects_the_buffers(toy, monkeypatch):
    """The alarm's own test."""
    method = toy.ToyMethod()
    train, built, _ = build(method)
    monkeypatch.setattr(Guard, "undo", lambda self, bad: None)
    before = bytes_of(method, built)
    train([views(toy, 0, bad_steps=[0])], step=0, lr=0.01)
    assert bytes_of(method, built) != before


def test_a_run_with_bad_steps_goes_on_and_counts_them(toy, tmp_path):
    source = toy.ToySource(bad_steps=[3, 4, 9])
    result, _ = toy.train(tmp_path / "run", source=source)
    assert result.finished and result.skipped_steps == 3
    assert toy.final_bytes(tmp_path / "run")["metrics"][-1]["step"] == 24


def test_a_loss_that_is_not_finite_is_null_in_the_log(toy, tmp_path):
    toy.train(tmp_path / "run", source=toy.ToySource(bad_steps=[3]))
    lines = toy.final_bytes(tmp_path / "run")["metrics"]
    fourth = next(line for line in lines if line["step"] == 4 and "loss" in line)
    assert fourth["loss"] is None and fourth["skipped"] == 1


def test_too_many_bad_steps_in_a_row_stop_the_run_with_the_last_good_checkpoint(toy, tmp_path):
    source = toy.ToySource(bad_steps=[7, 8, 9])
    with pytest.raises(TrainingDiverged, match="3 steps in a row.*lower --lr"):
        toy.train(tmp_path / "run", source=source)
    assert toy.final_bytes(tmp_path / "run")["step"] == "step-00000009"
    toy.train(tmp_path / "clean", source=toy.ToySource())
    result, _ = toy.train(tmp_path / "run", resume=True)
    assert result.finished and result.skipped_steps == 2


class Linear(nn.Module):
    """Loss linear in nothing random: gradients of micro-batches can be added by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(108, 4))

    def forward(self, views, table):
        f = self.backbone(views[0])
        return f.square().mean(), {"size": f.detach().abs().mean()}

    def features(self, x):
        return self.backbone(x)


class Travelling:
    """A table that says where it has been moved to."""

    def __init__(self, name, device=None):
        self.name, self.device = name, device

    def to(self, device):
        return Travelling(self.name, device)


def test_a_method_gets_the_table_of_its_own_micro_batch(toy):
    seen = []

    class Reading(Linear):
        def forward(self, views, table):
            seen.append((table.name, table.device))
            return super().forward(views, table)

    train, _, _ = build(Reading(), "sgd")
    batch = toy.ToyBatch(views(toy, 0).views, torch.arange(4))
    batches = [dataclasses.replace(batch, table=Travelling(name)) for name in "ab"]
    train([place_batch(b, CPU) for b in batches], step=0, lr=0.1)
    assert seen == [("a", CPU), ("b", CPU)]


def test_accumulation_averages_gradients_loss_and_metrics(toy):
    method, whole = Linear(), Linear()
    train, _, _ = build(method, "sgd")
    train_whole, _, _ = build(whole, "sgd")
    parts = [views(toy, step) for step in range(3)]
    result = train(parts, step=0, lr=0.1)
    joined = tuple(torch.cat(group) for group in zip(*(part.views for part in parts), strict=True))
    expected = train_whole([Placed(joined, None)], step=0, lr=0.1)
    torch.testing.assert_close(result.loss, expected.loss)
    torch.testing.assert_close(result.metrics["size"], expected.metrics["size"])
    for a, b in zip(method.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_accumulation_consumes_consecutive_batches_and_resumes_exactly(toy, tmp_path):
    whole, _ = toy.train(tmp_path / "whole", accumulate=3, max_steps=8)
    assert toy.final_bytes(tmp_path / "whole")["state"]["next_batch"] == 24
    source = toy.ToySource(fails_at=13)
    with pytest.raises(RuntimeError, match="went away"):
        toy.train(tmp_path / "cut", accumulate=3, max_steps=8, source=source)
    toy.train(tmp_path / "cut", accumulate=3, max_steps=8, resume=True)
    assert toy.final_bytes(tmp_path / "cut") == toy.final_bytes(tmp_path / "whole")
    assert whole.steps == 8


def test_bf16_autocast_keeps_fp32_weights(toy):
    method = Linear()
    seen = []
    method.backbone[1].register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    train, _, _ = build(method, precision="bf16")
    train([views(toy, 0)], step=0, lr=0.1)
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in method.parameters()} == {torch.float32}


def test_kernels_and_images_are_channels_last_and_keys_are_unchanged(toy):
    method = toy.ToyMethod()
    keys = list(method.state_dict())
    place(method, CPU)
    assert method.backbone[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert views(toy, 0).views[0].is_contiguous(memory_format=torch.channels_last)
    assert list(method.state_dict()) == keys


def test_a_machine_that_cannot_compile_trains_without(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    assert missing_for_compile() == "a C++ compiler"
    toy.train(tmp_path / "run", compile=True, max_steps=2)
    log = (tmp_path / "run/train.log").read_text()
    assert "warning: --compile needs a C++ compiler; going on without it" in log


def test_compile_caches_lie_in_the_run_unless_the_user_chose(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_torch")
    monkeypatch.setenv("TRITON_CACHE_DIR", "/chosen")
    with compile_caches(tmp_path / "cache", compiling=False):
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache/inductor")
        assert os.environ["TRITON_CACHE_DIR"] == "/chosen"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith("torchinductor_torch")


@pytest.mark.skipif(missing_for_compile() is not None, reason=f"needs {missing_for_compile()}")
def test_a_compiled_run_is_exact_on_resume_keeps_its_keys_and_its_folder(forks, toy, tmp_path):
    same = {"config": {"compile": True, "resume": True}, "watch": True}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    answer = forks.run(whole, **same)
    assert answer["code"] == 0, answer["text"]
    heard = [line.split()[-1] for line in answer["text"].splitlines() if "audit open" in line]
    left = {path for path in heard if os.path.exists(path)}
    assert left == {str(tmp_path / "canary"), "/dev/null"}, "files outside the run folder"
    assert "audit socket" not in answer["text"]
    assert not (whole / "cache/inductor/precompiled_headers").exists(), "150 MB of no more use"
    # The second run may read the first one's compiled code: what is tested is the state.
    env = {"TORCHINDUCTOR_CACHE_DIR": str(whole / "cache/inductor")}
    killed = forks.run(cut, **same | {"env": {**env, "FASTSSL_FAULT": "loop.after_step:kill:11"}})
    assert killed["code"] == -9, killed["text"]
    assert forks.run(cut, **same | {"env": env})["code"] == 0
    assert toy.final_bytes(cut) == toy.final_bytes(whole)
    toy.train(tmp_path / "eager", max_steps=1)
    keys = [
        safetensors.torch.load_file(
            checkpoint.newest_first(out / "checkpoints")[0][1] / "model.safetensors"
        ).keys()
        for out in (whole, tmp_path / "eager")
    ]
    assert keys[0] == keys[1]
    assert not (cut / "cache").exists(), "a chosen cache is used instead"


def test_a_copy_of_the_method_trains_to_the_same_bytes(toy):
    torch.manual_seed(0)
    first = toy.ToyMethod()
    second = copy.deepcopy(first)
    results = []
    for method in (first, second):
        torch.manual_seed(5)
        train, built, _ = build(method)
        for step in range(5):
            train([views(toy, step)], step=step, lr=0.05)
        results.append(bytes_of(method, built))
    assert results[0] == results[1]
