"""A method, a source and a training command small enough to be killed a hundred times.

The method has everything that a resume can forget: batch norm, dropout (torch's generator), a queue
with a pointer, a momentum encoder and JSON-able extra state. Batch t of the source is a pure
function of (seed, t).

``python toy.py serve`` imports torch once and then forks one child per request, so that a kill
costs a fraction of a second instead of an import.
"""

# shapes: N batch, F features, Q queue
from __future__ import annotations

import importlib
import io
import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fastssl.engine import checkpoint, loop, seeding, state
from fastssl.engine.config import TrainConfig
from fastssl.engine.console import Console
from fastssl.engine.run_folder import open_run
from fastssl.engine.signals import StopSignals


@dataclass
class ToyBatch:
    views: tuple[Tensor, ...]
    index_N: Tensor
    table: object = None


class ToyBatches:
    def __init__(self, source: ToySource, batch_size: int, seed: int, step: int) -> None:
        self.source, self.batch_size, self.seed, self.step = source, batch_size, seed, step
        self.closed = False

    def __iter__(self):
        return self

    def __next__(self) -> ToyBatch:
        if self.step == self.source.fails_at:
            raise RuntimeError("toy source: the disk with the images went away")
        if self.source.delay:
            time.sleep(self.source.delay)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.step)
        shape = (self.batch_size, *self.source.image_shape)
        base = torch.randn(shape, generator=generator)
        views = tuple(base + 0.1 * torch.randn(shape, generator=generator) for _ in range(2))
        if self.step in self.source.bad_steps:
            views[0][0, 0, 0, 0] = self.source.bad_value
        self.step += 1
        return ToyBatch(views=views, index_N=torch.arange(self.batch_size))

    def close(self) -> None:
        self.closed = True


class ToySource:
    name = "toy"
    kind = "toy"
    num_samples = 64
    num_views = 2
    image_shape = (3, 6, 6)

    def __init__(self, *, bad_steps=(), bad_value=float("nan"), delay=0.0, fails_at=None) -> None:
        self.bad_steps, self.bad_value = frozenset(bad_steps), bad_value
        self.delay, self.fails_at = delay, fails_at

    def steps_per_epoch(self, batch_size: int) -> int:
        return self.num_samples // batch_size

    def batches(self, *, batch_size, seed, start_step, device, shard=(0, 1)) -> ToyBatches:
        return ToyBatches(self, batch_size, seed, start_step)

    def rehearsal(self, num_samples: int) -> ToyBatch:
        return next(self.batches(batch_size=num_samples, seed=0, start_step=0, device=None))

    def report(self) -> dict:
        return {"skipped": []}

    def labelled(self, split, limit):
        return None


class Counting(nn.Module):
    """Extra state that is not a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def get_extra_state(self) -> dict:
        return {"calls": self.calls}

    def set_extra_state(self, value: dict) -> None:
        self.calls = value["calls"]

    def forward(self, x: Tensor) -> Tensor:
        return x


class ToyMethod(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten()
        )
        features = width * 16
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(features, 8))
        self.teacher = nn.Linear(features, 8).requires_grad_(False)
        self.counting = Counting()
        self.register_buffer("queue_QF", torch.randn(12, 8))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def forward(self, views: tuple[Tensor, ...], table) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = self.backbone(views[0]), self.backbone(views[1])
        q_NF = nn.functional.normalize(self.head(first), dim=1)
        with torch.no_grad():
            k_NF = nn.functional.normalize(self.teacher(second), dim=1)
        negatives = q_NF @ self.queue_QF.clone().T
        logits = torch.cat([(q_NF * k_NF).sum(1, keepdim=True), negatives], dim=1) / 0.2
        loss = nn.functional.cross_entropy(logits, logits.new_zeros(len(q_NF), dtype=torch.int64))
        with torch.no_grad():
            index = (self.pointer + torch.arange(len(k_NF))) % len(self.queue_QF)
            self.queue_QF[index] = k_NF
            self.pointer += len(k_NF)
        return loss, {"positive": logits[:, 0].mean()}

    def features(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def after_step(self, step: int, total: int) -> None:
        self.counting.calls += 1
        with torch.no_grad():
            for slow, fast in zip(
                self.teacher.parameters(), self.head[1].parameters(), strict=True
            ):
                slow.lerp_(fast, 0.05)


CONFIG = TrainConfig(
    method="toy", data="toy", max_steps=24, batch_size=4, lr=0.1, save_every=3, log_every=2,
    warmup_steps=4, max_bad_steps=3, device="cpu",
)  # fmt: skip


def noisy_readout(features_fn):
    """A readout that draws random numbers, as probes do."""
    noise = torch.randn(4, 3, 6, 6)
    yield "norm", float(features_fn(torch.ones(4, 3, 6, 6)).norm())
    yield "noise", float(noise.norm() * 0)


def settings(config: TrainConfig) -> dict:
    return {
        "train": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()},
        "method": {"width": 6},
    }


def train(out, *, source=None, method=None, readouts=(noisy_readout,), console=None, **changes):
    """One whole run in this process; returns (FitResult, method)."""
    config = replace(CONFIG, out=Path(out), **changes)
    seeding.seed_everything(config.seed)
    method = ToyMethod() if method is None else method
    source = ToySource() if source is None else source
    console = Console(io.StringIO()) if console is None else console
    with open_run(settings(config), name="toy") as run, StopSignals() as stop:
        run.begin({})
        console.attach(run.log_file)
        device = torch.device("cpu")
        result = loop.fit(
            method, source, config,
            run=run, device=device, readouts=readouts, console=console, stop=stop,
        )  # fmt: skip
    return result, method


def final_bytes(out) -> dict[str, object]:
    """All that must be equal between two runs: newest checkpoint and log, wall time left out."""
    _, path = checkpoint.newest_first(Path(out) / "checkpoints")[0]
    state_json = json.loads((path / "state.json").read_text())
    del state_json["wall"]
    lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("wall", None)
    return {
        "step": path.name,
        "model": (path / "model.safetensors").read_bytes(),
        "optim": (path / "optim.safetensors").read_bytes(),
        "state": state_json,
        "metrics": lines,
    }


def plant(bug: str) -> None:
    """Break the engine on purpose; the kill test must notice."""
    if bug == "saves in place, keeping one":

        def save(folder, snapshot, *, step, keep):  # fmt: skip
            for _, old in checkpoint.newest_first(folder):
                checkpoint._delete(old)
            final = folder / f"step-{step:08d}"
            final.mkdir()
            checkpoint._write_all(final, snapshot)
            return final

        checkpoint.save = save
    elif bug == "forgets the random state":
        state.set_rng_state = lambda *_: None
    elif bug == "starts the data anew":
        batches = ToySource.batches
        ToySource.batches = lambda self, **kw: batches(self, **{**kw, "start_step": 0})
    elif bug == "keeps the log as it was":
        from fastssl.engine import sinks

        sinks._truncate = lambda *_: None
    elif bug == "forgets the optimiser":
        state.named_state = lambda *_: {}
    else:
        assert not bug, bug


def watch(out: Path, stream) -> None:
    """Report sockets, and files opened for writing outside the run folder; a canary proves it."""

    def hear(event: str, arguments: tuple) -> None:
        if event.startswith("socket."):
            print("audit", event, file=stream)
        elif event == "open" and isinstance(arguments[0], str | os.PathLike):
            path, _, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not Path(path).absolute().is_relative_to(out):
                print("audit open", path, file=stream)

    tempfile.gettempdir()  # its first call tries which folder can be written
    sys.addaudithook(hear)
    (out.parent / "canary").touch()


def command(request: dict) -> int:
    """What one process does: train, print why not, return the exit code."""
    for name, value in request.get("env", {}).items():
        os.environ[name] = value
    plant(request.get("plant", ""))
    if "file_limit" in request:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    changes = dict(request.get("config", {}))
    with open(request["log"], "a") as stream:
        if request.get("watch"):
            watch(Path(request["out"]), stream)
        try:
            source = ToySource(delay=request.get("delay", 0.0))
            result, _ = train(request["out"], source=source, console=Console(stream), **changes)
            return result.exit_code
        except BaseException:
            traceback.print_exc(file=stream)
            return 1


def _child(request: dict) -> dict:
    """Fork, run, perhaps send a signal after a while; how the child ended."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os._exit(command(request))
    timers = [
        threading.Timer(after, os.kill, (child, getattr(signal, name)))
        for after, name in request.get("signals", [])
    ]
    for timer in timers:
        timer.start()
    _, status = os.waitpid(child, 0)
    for timer in timers:
        timer.cancel()
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": time.monotonic() - started}


def serve() -> None:
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # the first optimiser step imports it: three seconds
    for line in sys.stdin:
        print(json.dumps(_child(json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
