"""The one training loop. Read ``fit`` from top to bottom; everything else is a step of it.

At every step the order is: data, step, guard, log, monitors, readouts, checkpoint. A checkpoint is
thus written after everything that its step logs; a resumed run repeats nothing, skips nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastssl.engine import checkpoint, monitors
from fastssl.engine.checkpoint import CheckpointError
from fastssl.engine.compiling import compile_caches, compile_method
from fastssl.engine.config import TrainConfig
from fastssl.engine.console import Console
from fastssl.engine.environment import arithmetic
from fastssl.engine.faults import fault
from fastssl.engine.guard import Guard
from fastssl.engine.optim import build_optimizer, named_state, scheduled_rate
from fastssl.engine.pace import slow_folder_hint
from fastssl.engine.plan import accumulation_note, readout_interval, total_steps, warmup_steps
from fastssl.engine.progress import Progress, Stopwatch
from fastssl.engine.protocols import BatchIterator, Readout, Source
from fastssl.engine.ranks import ALONE, Ranks, prepare
from fastssl.engine.readout import features_fn, observing, run_readouts
from fastssl.engine.result import FitResult, saved_text
from fastssl.engine.resume import newest_usable, refuse_other_world, tell_other_arithmetic
from fastssl.engine.run_folder import RunFolder
from fastssl.engine.seeding import rng_state, set_rng_state
from fastssl.engine.signals import StopSignals
from fastssl.engine.sinks import JsonLines, Sink, last_values
from fastssl.engine.state import capture, fingerprint, restore, set_extra
from fastssl.engine.step import Placed, StepResult, TrainStep, place, place_batch
from fastssl.engine.trackers import open_trackers

_MONITORS_PER_RUN = 20
_MONITORED_SAMPLES = 256
# Early numbers say nothing: warnings start after this share of the run.
_WARN_AFTER = 0.1
_STUCK_AFTER = 300  # steps: a healthy loss leaves its start late in a short run
_SEEDS_APART = 1_000_003  # between the ranks' generators; data are keyed and do not use them


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
    ranks: Ranks = ALONE,
) -> FitResult:
    """Train ``method`` on ``source`` in place, from scratch or from the run's newest checkpoint.

    ``stop`` (entered by the caller) ends it after the step in which a signal arrives. Each of
    ``ranks`` calls it; ``run``, ``readouts`` and what ``console`` shows are the leader's.

    Raises:
        ValueError: settings that cannot be run, or a run whose checkpoints are all unusable.
        TrainingDiverged: ``max_bad_steps`` steps in a row were not finite.
        Exception: whatever the source raises, after the state was saved.
    """
    total = total_steps(source, config, num_ranks=ranks.size)
    with contextlib.ExitStack() as stack:
        stack.enter_context(compile_caches(run.cache, compiling=config.compile))
        training = _Training(method, source, config, total, run, device, readouts, console, ranks)
        stack.callback(training.close)
        training.start()
        stopped_by = ranks.any_of(stop.requested)
        progress = stack.enter_context(Progress(console, total=total, watch=training.watch))
        while training.step < total and stopped_by is None:
            result = training.advance()
            training.log(result)
            training.monitor()
            training.read_out()
            training.save_if_due()
            progress.show(training.step, training.loss, of_step=training.loss_step)
            fault("loop.after_step")
            stopped_by = ranks.any_of(stop.requested)
        training.save()
        return training.finish(stopped_by or "end")


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
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.method, self.source, self.config, self.total = method, source, config, total
        self.run, self.device, self.readouts, self.console = run, device, readouts, console
        self.watch = Stopwatch()
        self.began = time.perf_counter()
        self.warmup = warmup_steps(config, total)
        self.seconds_before = 0.0
        self.step = 0
        self.saved_at = 0
        self.loss: float | None = None
        self.loss_step = 0
        self.metrics: dict[str, float] = {}
        self.scores: dict[str, float] = {}
        self.views: tuple[Tensor, ...] = ()
        self.warned: set[str] = set()
        self.sinks: list[Sink] = []
        self.batches: BatchIterator | None = None
        self.each_rng: list[dict] | None = None

    def start(self) -> None:
        """Build everything, go back to the newest checkpoint, open the data and the logs."""
        config = self.config
        prepare(self.method, self.ranks, sync_bn=config.sync_bn, compiling=config.compile)
        place(self.method, self.device)
        self.method.train()
        self.optimizer = build_optimizer(self.method, config)
        self.guard = Guard(self.method, self.device)
        # Own seed, so that what the caller drew before (yardsticks, probes) does not matter.
        torch.manual_seed(config.seed + 1 + _SEEDS_APART * self.ranks.rank)
        if self.ranks.leads:
            with self.ranks.leading():
                self._snapshot()  # refuses what cannot be saved before time is spent
                self._resume()
        if self.ranks.size > 1:
            self._start_alike()
        if config.compile:
            compile_method(self.method, self.console, whole=self.ranks.size == 1)
        self.train_step = TrainStep(
            self.method, self.optimizer, self.guard,
            device=self.device, precision=config.precision, total=self.total, ranks=self.ranks,
        )  # fmt: skip
        if self.warmup != config.warmup_steps:
            self.console.line(f"warm-up shortened to {self.warmup} of {self.total} steps")
        if config.accumulate > 1:
            self.console.line(f"negatives come {accumulation_note(config)}")
        if self.ranks.leads:
            self._open_logs()
        if self.step < self.total:
            self.batches = self.source.batches(
                batch_size=config.batch_size,
                seed=config.seed,
                start_step=self.step * config.accumulate,
                device=self.device,
                shard=(self.ranks.rank, self.ranks.size),
            )

    def _open_logs(self) -> None:
        self.sinks.append(JsonLines(self.run.metrics_file, keep_through=self.step))
        self.metrics, self.scores = last_values(self.run.metrics_file)
        self.sinks += open_trackers(self.config, self.run, keep_through=self.step)

    def advance(self) -> StepResult:
        """Fetch the data of one step and train on it."""
        config = self.config
        self.views = ()  # the last batch need not live beside this one
        with self.watch.training():
            micro = self._fetch()
            lr = scheduled_rate(config, self.step, total=self.total, warmup=self.warmup)
            result = self.train_step(micro, step=self.step, lr=lr)
            self.lr = lr
            self.views = micro[-1].views
            self.watch.views += self.ranks.size * sum(len(v) for m in micro for v in m.views)
            self.step += 1
            # On the CPU reading the counters is free; on CUDA it would make every step wait.
            if self.device.type == "cpu" or self._due(config.log_every):
                self.guard.stop_if_diverged(config.max_bad_steps)
        return result

    def log(self, result: StepResult) -> None:
        """At step 1, every ``log_every`` steps and at the end: one line of numbers."""
        self._tell_pace()
        due = self.step == 1 or self._due(self.config.log_every)
        if due or self.device.type == "cpu":  # free there; on CUDA every step would wait
            self.loss, self.loss_step = float(result.loss), self.step
        if not due or self.loss is None:
            return
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

    def _tell_pace(self) -> None:
        hint = slow_folder_hint(self.source.kind, self.device.type, self.watch, self.config)
        if hint is not None and "pace" not in self.warned:
            self.warned.add("pace")
            self.console.line(hint)

    def monitor(self) -> None:
        """Twenty times per run: collapse monitors on the current batch."""
        if not self.ranks.leads or not self._due(max(1, self.total // _MONITORS_PER_RUN)):
            return
        with observing(self.method, self.device):
            look = features_fn(self.method, device=self.device, precision=self.config.precision)
            features = tuple(look(v[:_MONITORED_SAMPLES]) for v in self.views[:2])
        values = monitors.measure(features)
        self._write({"monitor": values})
        if self.step < _WARN_AFTER * self.total:
            return
        ratio = {k: v for k, v in self.metrics.items() if k == "loss_over_chance"}
        ratio = ratio if self.step >= _STUCK_AFTER else {}
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
        """A checkpoint now, unless this step has one. A failure is told and survived.

        All ranks call it together: each gives its random state, the leader writes.
        """
        each = self.ranks.gather(rng_state(self.device)) if self.ranks.size > 1 else None
        if self.step == self.saved_at or not self.ranks.leads:
            return
        try:
            for sink in self.sinks:
                sink.flush()
            checkpoint.save(
                self.run.checkpoints,
                self._snapshot(each),
                step=self.step,
                keep=self.config.keep_checkpoints,
            )
            self.saved_at = self.step
        except (OSError, CheckpointError) as error:
            older = f"older checkpoints (newest: step {self.saved_at}) are intact"
            self.console.warn(
                f"step {self.step}: checkpoint not saved ({error}); the run goes on, "
                f"{older if self.saved_at else 'there is no older one: make room for the next'}"
            )

    def finish(self, stopped_by: str) -> FitResult:
        """Say how it ended."""
        if self.step < self.total:
            self.console.line(
                f"stopped by {stopped_by} at step {self.step}/{self.total}, "
                f"{saved_text(self.saved_at)}; repeat the command with --out {self.run.path} "
                "--resume"
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
            saved_at=self.saved_at,
            metrics=self.metrics,
            readouts=self.scores,
        )

    def close(self) -> None:
        """Stop the loader's threads, close the logs."""
        if self.batches is not None:
            self.batches.close()
        for sink in self.sinks:
            sink.close()

    def _fetch(self) -> list[Placed]:
        """The micro-batches of one step. Where a rank's data fail all ranks save and stop."""
        assert self.batches is not None
        failure: Exception | None = None
        micro = []
        try:
            for _ in range(self.config.accumulate):
                with self.watch.waiting():
                    micro.append(next(self.batches))
        except Exception as error:
            failure = error
        if not self.ranks.any(failure is not None):
            return [place_batch(batch, self.device) for batch in micro]
        self.save()
        failure = failure or RuntimeError("that of another rank")
        self.console.warn(
            f"the data source failed at step {self.step}: {failure}; "
            f"{saved_text(self.saved_at)}, continue with --out {self.run.path} --resume"
        )
        raise failure

    def _resume(self) -> None:
        if newest_usable(self.run.checkpoints, self._load, self.console) is not None:
            self.console.line(f"resumed from step {self.step} of {self.total}")
        elif self.config.resume:
            self.console.line("nothing to resume yet: starting at step 0")

    def _load(self, step: int, path: Path) -> None:
        snapshot = checkpoint.read(path)
        state = snapshot.state
        if state.get("settings") != fingerprint(self.run.identity()) or step > self.total:
            raise CheckpointError(f"{path.name}: made with other settings than config.yaml")
        refuse_other_world(state, self.ranks.size)
        counters = state.get("guard")
        if not isinstance(counters, dict) or counters.keys() != self.guard.counters().keys():
            raise CheckpointError(f"{path.name}: state.json has no guard counters")
        restore(snapshot, self.method, self.optimizer, device=self.device)
        self.guard.set_counters(counters)
        self.seconds_before = float(state["wall"]["seconds"])
        self.step = self.saved_at = step
        self.each_rng = state.get("ranks")
        tell_other_arithmetic(state["arithmetic"], self.device, self.console)

    def _start_alike(self) -> None:
        """All ranks where the leader is: tensors, counters, each with its own random state."""
        if self.ranks.leads:
            snapshot = self._snapshot()
            facts = {"step": self.step, "guard": snapshot.state["guard"], "rng": self.each_rng}
            self.ranks.tell({**facts, "extra": snapshot.state["extra"]})
        else:
            facts = self.ranks.told()
            self.step = self.saved_at = facts["step"]
            self.guard.set_counters(facts["guard"])
            set_extra(self.method, facts["extra"])
            if facts["rng"] is not None:
                set_rng_state(facts["rng"][self.ranks.rank], self.device)
        self.ranks.share({k: v for k, v in self.method.state_dict().items() if torch.is_tensor(v)})
        self.ranks.share(named_state(self.optimizer, self.method))

    def _snapshot(self, each_rng: list[dict] | None = None) -> checkpoint.Snapshot:
        state = {
            "step": self.step,
            "total_steps": self.total,
            "next_batch": self.step * self.config.accumulate,
            "settings": fingerprint(self.run.identity()),
            "guard": self.guard.counters(),
            "arithmetic": arithmetic(self.device),
            "wall": {"seconds": self._seconds()},
            **({} if each_rng is None else {"ranks": each_rng}),
        }
        return capture(self.method, self.optimizer, device=self.device, state=state)

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
