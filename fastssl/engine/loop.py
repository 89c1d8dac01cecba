"""The one training loop. Read ``fit`` from top to bottom; everything else is a step of it.

At every step the order is: data, step, guard, log, monitors, readouts, checkpoint. A checkpoint is
thus written after everything that its step logs; a resumed run repeats nothing, skips nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from fastssl.engine import checkpoint, monitors
from fastssl.engine.checkpoint import CheckpointError
from fastssl.engine.compiling import compile_caches, missing_for_compile
from fastssl.engine.config import TrainConfig, scaled_lr
from fastssl.engine.console import Console
from fastssl.engine.environment import arithmetic
from fastssl.engine.faults import fault
from fastssl.engine.guard import Guard
from fastssl.engine.optim import build_optimizer, learning_rate
from fastssl.engine.plan import accumulation_note, readout_interval, total_steps
from fastssl.engine.progress import Progress, Stopwatch
from fastssl.engine.protocols import BatchIterator, Readout, Source
from fastssl.engine.readout import features_fn, observing, run_readouts
from fastssl.engine.run_folder import RunFolder
from fastssl.engine.signals import EXIT_CODES, StopSignals
from fastssl.engine.sinks import JsonLines, Sink, last_values
from fastssl.engine.state import capture, fingerprint, restore
from fastssl.engine.step import StepResult, TrainStep, place, place_views
from fastssl.engine.trackers import open_trackers

_MONITORS_PER_RUN = 20
_MONITORED_SAMPLES = 256
# Early numbers say nothing: warnings start after this share of the run.
_WARN_AFTER = 0.1


@dataclass(frozen=True)
class FitResult:
    """What a training came to. ``data_wait`` is a share, 0 to 1; throughput excludes step one."""

    steps: int
    total_steps: int
    seconds: float
    views_per_second: float
    data_wait: float
    skipped_steps: int
    stopped_by: str
    metrics: dict[str, float] = field(default_factory=dict)
    readouts: dict[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether all planned steps were done."""
        return self.steps == self.total_steps

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal that stopped the run."""
        return EXIT_CODES[self.stopped_by]


def fit(
    method: nn.Module,
    source: Source,
    config: TrainConfig,
    *,
    run: RunFolder,
    device: torch.device,
    readouts: Sequence[Readout] = (),
    console: Console,
    stop: StopSignals,
) -> FitResult:
    """Train ``method`` on ``source`` in place, from scratch or from the run's newest checkpoint.

    ``stop`` (entered by the caller) ends it after the step in which a signal arrives.

    Raises:
        ValueError: settings that cannot be run, or a run whose checkpoints are all unusable.
        TrainingDiverged: ``max_bad_steps`` steps in a row were not finite.
        Exception: whatever the source raises, after the state was saved.
    """
    total = total_steps(source, config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(compile_caches(run.cache, compiling=config.compile))
        training = _Training(method, source, config, total, run, device, readouts, console)
        stack.callback(training.close)
        training.start()
        progress = stack.enter_context(Progress(console, total=total, watch=training.watch))
        while training.step < total and stop.requested is None:
            result = training.advance()
            training.log(result)
            training.monitor()
            training.read_out()
            training.save_if_due()
            progress.show(training.step, training.loss)
            fault("loop.after_step")
        training.save()
        return training.finish(stop.requested or "end")


class _Training:
    """The moving parts of one ``fit``."""

    def __init__(
        self,
        method: nn.Module,
        source: Source,
        config: TrainConfig,
        total: int,
        run: RunFolder,
        device: torch.device,
        readouts: Sequence[Readout],
        console: Console,
    ) -> None:
        self.method, self.source, self.config, self.total = method, source, config, total
        self.run, self.device, self.readouts, self.console = run, device, readouts, console
        self.watch = Stopwatch()
        self.began = time.perf_counter()
        self.seconds_before = 0.0
        self.step = 0
        self.saved_at = 0
        self.loss: float | None = None
        self.metrics: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.views: tuple[Tensor, ...] = ()
        self.warned: set[str] = set()
        self.sinks: list[Sink] = []
        self.batches: BatchIterator | None = None

    def start(self) -> None:
        """Build everything, go back to the newest checkpoint, open the data and the logs."""
        config = self.config
        place(self.method, self.device)
        self.method.train()
        self.optimizer = build_optimizer(self.method, config)
        self.guard = Guard(self.method, self.device)
        # Own seed, so that what the caller drew before (yardsticks, probes) does not matter.
        torch.manual_seed(config.seed + 1)
        self._snapshot()  # refuses a method whose state cannot be saved before time is spent
        self._resume()
        self._compile()
        self.train_step = TrainStep(
            self.method, self.optimizer, self.guard, device=self.device, precision=config.precision
        )
        if config.accumulate > 1:
            self.console.line(f"negatives come {accumulation_note(config)}")
        self.sinks.append(JsonLines(self.run.metrics_file, keep_through=self.step))
        self.metrics, self.scores = last_values(self.run.metrics_file)
        self.sinks += open_trackers(config, self.run, keep_through=self.step)
        if self.step < self.total:
            self.batches = self.source.batches(
                batch_size=config.batch_size,
                seed=config.seed,
                start_step=self.step * config.accumulate,
                device=self.device,
            )

    def advance(self) -> StepResult:
        """Fetch the data of one step and train on it."""
        config = self.config
        self.views = ()  # the last batch need not live beside this one
        with self.watch.training():
            micro = [self._fetch() for _ in range(config.accumulate)]
            lr = learning_rate(
                self.step, peak=scaled_lr(config), total=self.total, warmup=config.warmup_steps
            )
            result = self.train_step(micro, step=self.step, lr=lr)
            self.lr = lr
            self.views = micro[-1]
            self.watch.views += sum(len(v) for views in micro for v in views)
            self.step += 1
            # On the CPU reading the counters is free; on CUDA it would make every step wait.
            if self.device.type == "cpu" or self._due(config.log_every):
                self.guard.stop_if_diverged(config.max_bad_steps)
        return result

    def log(self, result: StepResult) -> None:
        """Every ``log_every`` steps and at the end: one line of numbers."""
        if not self._due(self.config.log_every):
            return
        self.loss = float(result.loss)
        values = {"loss": self.loss, "lr": self.lr, "grad_norm": float(result.grad_norm)}
        values |= {name: float(value) for name, value in result.metrics.items()}
        values |= {"skipped": self.guard.counters()["skipped"]}
        if values["skipped"] > self.metrics.get("skipped", 0):
            self.console.warn(
                f"step {self.step}: {values['skipped']} steps so far had a loss or gradient that "
                "is not finite; they were skipped and changed nothing"
            )
        values |= {"epoch": self._epochs()}
        chance = getattr(self.method, "chance_loss", None)
        if chance is not None:
            values["loss_over_chance"] = self.loss / chance(self.config.batch_size)
        self.metrics = values
        wall = {
            "seconds": self._seconds(),
            "views_per_second": self.watch.views_per_second,
            "data_wait": self.watch.data_wait,
        }
        self._write({**values, "wall": wall})

    def monitor(self) -> None:
        """Twenty times per run: collapse monitors on the current batch."""
        if not self._due(max(1, self.total // _MONITORS_PER_RUN)):
            return
        with observing(self.method, self.device):
            look = features_fn(self.method, device=self.device, precision=self.config.precision)
            features = tuple(look(v[:_MONITORED_SAMPLES]) for v in self.views[:2])
        values = monitors.measure(features)
        self._write({"monitor": values})
        if self.step < _WARN_AFTER * self.total:
            return
        ratio = {k: v for k, v in self.metrics.items() if k == "loss_over_chance"}
        for name, advice in monitors.warnings(values | ratio).items():
            if name not in self.warned:
                self.warned.add(name)
                self.console.warn(f"step {self.step}: {advice}")

    def read_out(self) -> None:
        """The caller's readouts, ``readout_every`` steps apart and at the end."""
        if not self.readouts or not self._due(readout_interval(self.config, self.total)):
            return
        self.scores = run_readouts(
            self.method, self.readouts, device=self.device, precision=self.config.precision
        )
        self._write({"readout": self.scores})
        told = "  ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        self.console.line(f"step {self.step}/{self.total}  readout: {told}")

    def save_if_due(self) -> None:
        """A checkpoint every ``save_every`` steps."""
        if self.step % self.config.save_every == 0:
            self.save()

    def save(self) -> None:
        """A checkpoint now, unless this step has one. A failure is told and survived."""
        if self.step == self.saved_at:
            return
        try:
            for sink in self.sinks:
                sink.flush()
            checkpoint.save(
                self.run.checkpoints,
                self._snapshot(),
                step=self.step,
                keep=self.config.keep_checkpoints,
            )
            self.saved_at = self.step
        except (OSError, CheckpointError) as error:
            self.console.warn(
                f"step {self.step}: checkpoint not saved ({error}); the run goes on, older "
                f"checkpoints (newest: step {self.saved_at}) are intact"
            )

    def finish(self, stopped_by: str) -> FitResult:
        """Say how it ended."""
        if self.step < self.total:
            self.console.line(
                f"stopped by {stopped_by} at step {self.step}/{self.total}, saved at step "
                f"{self.saved_at}; repeat the command with --out {self.run.path} --resume"
            )
        else:
            stopped_by = "end"
        return FitResult(
            steps=self.step,
            total_steps=self.total,
            seconds=self._seconds(),
            views_per_second=self.watch.views_per_second,
            data_wait=self.watch.data_wait,
            skipped_steps=self.guard.counters()["skipped"],
            stopped_by=stopped_by,
            metrics=self.metrics,
            readouts=self.scores,
        )

    def close(self) -> None:
        """Stop the loader's threads, close the logs."""
        if self.batches is not None:
            self.batches.close()
        for sink in self.sinks:
            sink.close()

    def _fetch(self) -> tuple[Tensor, ...]:
        assert self.batches is not None
        try:
            with self.watch.waiting():
                batch = next(self.batches)
        except Exception as error:
            self.save()
            self.console.warn(
                f"the data source failed at step {self.step}: {error}; the state is saved at step "
                f"{self.saved_at}, continue with --out {self.run.path} --resume"
            )
            raise
        return place_views(tuple(batch.views), self.device)

    def _resume(self) -> None:
        """Go back to the newest checkpoint that is intact and fits; name each that does not."""
        folder = self.run.checkpoints
        checkpoint.clean(folder)
        refused = 0
        for step, path in checkpoint.newest_first(folder):
            try:
                self._load(step, path)
                self.console.line(f"resumed from step {step} of {self.total}")
                return
            except CheckpointError as error:
                refused += 1
                self.console.warn(f"checkpoint refused: {error}; trying the one before it")
                checkpoint.set_aside(path)
        if refused:
            raise CheckpointError(
                f"resume: none of the {refused} checkpoints in {folder} could be used (kept there "
                "as refused-*); start anew with --overwrite"
            )
        if self.config.resume:
            self.console.line("nothing to resume yet: starting at step 0")

    def _load(self, step: int, path: Path) -> None:
        snapshot = checkpoint.read(path)
        state = snapshot.state
        if state.get("settings") != fingerprint(self.run.identity()) or step > self.total:
            raise CheckpointError(f"{path.name}: made with other settings than config.yaml")
        counters = state.get("guard")
        if not isinstance(counters, dict) or counters.keys() != self.guard.counters().keys():
            raise CheckpointError(f"{path.name}: state.json has no guard counters")
        restore(snapshot, self.method, self.optimizer, device=self.device)
        self.guard.set_counters(counters)
        self.seconds_before = float(state["wall"]["seconds"])
        self.step = self.saved_at = step
        before, now = state["arithmetic"], arithmetic(self.device)
        for name in now:
            if before.get(name) != now[name]:
                self.console.warn(
                    f"resume: {name} was {before.get(name)}, is {now[name]}: the run continues, "
                    "but not bit for bit as it would have"
                )

    def _snapshot(self) -> checkpoint.Snapshot:
        state = {
            "step": self.step,
            "total_steps": self.total,
            "next_batch": self.step * self.config.accumulate,
            "settings": fingerprint(self.run.identity()),
            "guard": self.guard.counters(),
            "arithmetic": arithmetic(self.device),
            "wall": {"seconds": self._seconds()},
        }
        return capture(self.method, self.optimizer, device=self.device, state=state)

    def _compile(self) -> None:
        if not self.config.compile:
            return
        missing = missing_for_compile()
        if missing is not None:
            self.console.warn(f"--compile needs {missing}; going on without it, slower")
            return
        self.method.compile(fullgraph=True, dynamic=False)

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.total

    def _epochs(self) -> float:
        per_epoch = self.source.steps_per_epoch(self.config.batch_size)
        return self.step * self.config.accumulate / per_epoch

    def _seconds(self) -> float:
        return self.seconds_before + time.perf_counter() - self.began

    def _write(self, values: dict) -> None:
        for sink in self.sinks:
            try:
                sink.write(self.step, values)
            except OSError as error:
                self.console.warn(f"step {self.step}: metrics not written ({error})")
