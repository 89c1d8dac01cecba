"""Builds the parts of a run, trains, exports and reports. The one place that knows all rooms."""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastssl.data.sources import open_source
from fastssl.engine.config import TrainConfig, as_plain
from fastssl.engine.console import Console
from fastssl.engine.device import resolve_device
from fastssl.engine.export import Card, Score, export_backbone
from fastssl.engine.guard import TrainingDiverged
from fastssl.engine.loop import fit
from fastssl.engine.plan import check, plan_lines, rehearse, resolved, seen_of, total_steps
from fastssl.engine.ranks import LeaderFailed, Ranks, joined
from fastssl.engine.readout import run_readouts
from fastssl.engine.result import FitResult
from fastssl.engine.run_folder import RunFolder, check_out, open_run, read_settings
from fastssl.engine.same_data import kept_of_data, refuse_other_data
from fastssl.engine.signals import EXIT_CODES, Stopped, StopSignals
from fastssl.engine.trackers import check_trackers
from fastssl.recipes.agreement import check_agreement
from fastssl.recipes.assess import append_record, make_record, recorded_by, split_name
from fastssl.recipes.catalogue import default_run, short_name
from fastssl.recipes.encoders import build_method, hears, snippet_of
from fastssl.recipes.ops import backends
from fastssl.recipes.readouts import FeaturesFn, Readout, make_readout, pixels, usual_kind
from fastssl.recipes.run import Run, own_data, read_run

LIVE = {"train_limit": 2000, "test_limit": 500}
FINAL = {"train_limit": 6000, "test_limit": 2000}
RENDERED = {"train_limit": 2000, "test_limit": 1000}  # Tones are made, not read: fewer of them
MOST_SKIPPED = 20  # files named at the end of a run
GLANCE_S = 0.7  # what a dry run spends on the names in a folder; half as long on their headers
BY = "fastssl.train"
_RAW = {"logmel": "log-mel", "mel-magnitude-phase": "mel, magnitude and phase"}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a Run turns into."""

    run: Run
    device: torch.device
    source: Any
    method: nn.Module
    final: Readout | None = None  # what the run is scored by; None without labels


def plan(run: Run) -> list[str]:
    """What ``train`` would do, line by line. Writes nothing, and only glances at a large folder."""
    check_out(as_plain(run))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    parts = validated(run, cache_dir=None, num_ranks=size, scan_budget_s=GLANCE_S)
    if run.train.resume and run.train.out and (seen := seen_of(parts.source)) is not None:
        refuse_other_data(kept_of_data(read_settings(run.train.out)), seen)
    ops = backends(
        parts.method,
        parts.source,
        device=parts.device,
        batch_size=run.train.batch_size // size,
    )
    lines = plan_lines(
        run.train,
        source=parts.source,
        method=parts.method,
        device=parts.device,
        backends=ops,
    )
    lines += [] if ops else [f"{'ops':<18}PyTorch's own"]
    loader = getattr(parts.source, "loading", "PyTorch, vectorised")
    readout = usual_kind(parts.source) or "none: the data has no labels"
    lines += [f"{'data loader':<18}{loader}", f"{'scored by':<18}{readout}"]
    found = parts.source.report()
    if found.get("unchecked"):
        seen = found["num_files"] - found["unchecked"]
        lines.append(f"{'files':<18}the first {seen:,} were looked at; training looks at all")
    return lines


def train(run: Run) -> int:
    """Train, export, score and report; returns the exit status. Under torchrun, with all ranks."""
    with joined(resolve_device(run.train.device)) as ranks:
        return _lead(run, ranks) if ranks.leads else _follow(run, ranks)


def _lead(run: Run, ranks: Ranks) -> int:
    """The whole run, or rank 0 of it: what is written, shown and scored happens here."""
    console = Console()
    name = f"{run.train.method}-{short_name(run.train.data)}"
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals(launched=ranks.size > 1))
        stack.enter_context(console.hearing("fastssl"))
        with ranks.leading():
            check_out(as_plain(run))
            folder = stack.enter_context(open_run(as_plain(run), name=name))
        try:
            return _train(run, folder, console, stop, ranks)
        except TrainingDiverged as error:
            raise ValueError(str(error)) from error
        except Stopped as stopped:
            console.line(f"stopped by {stopped}; {_how_to_go_on(folder)}")
            return EXIT_CODES[str(stopped)]


def _train(run: Run, folder: RunFolder, console: Console, stop: StopSignals, ranks: Ranks) -> int:
    with ranks.leading():
        parts = validated(run, cache_dir=folder.cache, num_ranks=ranks.size)
        stop.check()
        folder.begin(resolved(run.train, source=parts.source, device=parts.device))
        console.attach(folder.log_file)
        parts = with_readout(parts, console)
        live = [parts.final.first(**LIVE)] if parts.final else []
        untrained = score(parts, stop)
    ranks.tell(folder.settings)
    result = fit(
        parts.method,
        parts.source,
        run.train,
        run=folder,
        device=parts.device,
        readouts=live,
        console=console,
        stop=stop,
        ranks=ranks,
    )
    if result.finished:
        report(parts, folder, result, untrained=untrained, console=console, stop=stop)
    return result.exit_code


def _follow(run: Run, ranks: Ranks) -> int:
    """Any other rank: trains on its part, writes nothing and says nothing."""
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(StopSignals(launched=True))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        silent = Console(stack.enter_context(open(os.devnull, "w", encoding="utf-8")))
        stack.enter_context(silent.hearing("fastssl"))
        try:
            settings = ranks.told()
            lock = os.open(os.devnull, os.O_RDONLY)
            folder = RunFolder(scratch, settings=settings, resuming=False, lock=lock, made=[])
            parts = build(run, cache_dir=None)
            result = fit(
                parts.method,
                parts.source,
                run.train,
                run=stack.enter_context(folder),
                device=parts.device,
                console=silent,
                stop=stop,
                ranks=ranks,
            )
        except (LeaderFailed, TrainingDiverged):
            return EXIT_CODES[stop.requested] if stop.requested else 2  # rank 0 has said why
        return result.exit_code


def validated(
    run: Run, *, cache_dir: Path | None, num_ranks: int, scan_budget_s: float | None = None
) -> Parts:
    """``build``, and everything else that can be refused before anything is written."""
    check(run.train)
    check_trackers(run.train)
    if run.train.front != "logmel" and not hears(run.train):
        raise ValueError(f"--front {run.train.front}: is for sounds (--data tones, or a folder)")
    check_agreement(run)
    parts = build(run, cache_dir=cache_dir, scan_budget_s=scan_budget_s)
    _refuse_long_warmup(run.train, total_steps(parts.source, run.train, num_ranks=num_ranks))
    rehearse(parts.method, parts.source, batch_size=run.train.batch_size // num_ranks)
    return parts


def _refuse_long_warmup(config: TrainConfig, steps: int) -> None:
    """The recipe's own warm-up is shortened with the run; one that was asked for is not."""
    usual = default_run(config.method, config.data, config.recipe).train.warmup_steps
    if config.warmup_steps not in (0, usual) and config.warmup_steps >= steps:
        raise ValueError(
            f"warmup_steps: expected 0 to {steps - 1} for a run of {steps} steps, received "
            f"{config.warmup_steps}"
        )


def _how_to_go_on(folder: RunFolder) -> str:
    if not folder.config_file.is_file():
        return "nothing was done yet, and nothing is left behind"
    return f"repeat the command with --out {folder.path} --resume"


def build(run: Run, *, cache_dir: Path | None, scan_budget_s: float | None = None) -> Parts:
    """Open the data and make the method."""
    device = resolve_device(run.train.device)
    source = open_data(run, device=device, cache_dir=cache_dir, scan_budget_s=scan_budget_s)
    return Parts(run=run, device=device, source=source, method=build_method(run))


def open_data(
    run: Run, *, device: torch.device, cache_dir: Path | None, scan_budget_s: float | None = None
) -> Any:
    """The source that the run trains on."""
    config = run.train
    with own_data(config.data) if _as_begun(config) else contextlib.nullcontext():
        return open_source(
            config.data,
            image_size=config.image_size,
            seed=config.seed,
            augment=config.augment,
            factor=config.factor,
            front=config.front,
            workers=config.workers,
            device=device,
            cache_dir=cache_dir,
            max_bad=config.max_bad_files,
            scan_budget_s=scan_budget_s,
        )


def _as_begun(config: TrainConfig) -> bool:
    """Whether a run is resumed on the data that its folder names."""
    if not (config.resume and config.out and (config.out / "config.yaml").is_file()):
        return False
    return read_run(config.out).train.data == config.data


def with_readout(parts: Parts, console: Console) -> Parts:
    """The same, with the readout that its labels allow; it checks that the images decode."""
    kind = usual_kind(parts.source)
    if kind is None:
        return parts
    final = make_readout(
        parts.source, kind, **(RENDERED if parts.source.kind == "tones" else FINAL)
    )
    if not len(final.train.target) or not len(final.test.target):
        console.warn("too few labelled images can be used: the run is not scored")
        return parts
    return replace(parts, final=final)


def score(parts: Parts, stop: StopSignals) -> dict[str, float]:
    """All metrics of the final readout on the encoder as it is now; empty without labels.

    Raises Stopped between two chunks of images once a signal has arrived.
    """
    if parts.final is None:
        return {}
    final = parts.final
    return run_readouts(
        parts.method,
        [lambda encode: final(pausing(encode, stop))],
        device=parts.device,
        precision="fp32",
    )


def pausing(encode: FeaturesFn, stop: StopSignals) -> FeaturesFn:
    """``encode``, with the chance to stop before each call."""

    def checked(x_NCSS: torch.Tensor) -> torch.Tensor:
        stop.check()
        return encode(x_NCSS)

    return checked


def report(
    parts: Parts,
    folder: RunFolder,
    result: FitResult,
    *,
    untrained: dict[str, float],
    console: Console,
    stop: StopSignals,
) -> None:
    """Score, export, and tell how good it is, where it lies and what to type next."""
    metrics = score(parts, stop)
    told = _scores(parts, metrics, untrained, stop)
    try:
        _keep(parts, folder, result.steps, metrics)
    except OSError as error:
        file = error.filename or folder.export
        raise OSError(
            f"step {result.steps}: the training is done ({_saved(result)}), but {file} could not "
            f"be written "
            f"({error.strerror or error}); make room and {_how_to_go_on(folder)}"
        ) from error
    _tell_skipped(parts.source.report()["skipped"], console)
    for line in [*told, *_next(folder, parts.final)]:
        console.line(line)
    if result.saved_at < result.steps:
        console.warn(f"{_saved(result)}: --resume would train again from there")


def _saved(result: FitResult) -> str:
    """What a repeated command could go on from."""
    if result.saved_at == result.steps:
        return "and saved"
    last = f"the newest checkpoint is of step {result.saved_at} of {result.steps}"
    return last if result.saved_at else "no checkpoint could be saved"


def _keep(parts: Parts, folder: RunFolder, steps: int, metrics: dict[str, float]) -> None:
    """The record of the score and the exported encoder with its card."""
    config = parts.run.train
    scores = []
    if parts.final is not None:
        record = make_record(
            parts.final,
            metrics,
            run=parts.run,
            data=config.data,
            test_split=split_name(parts.source, own=True),
            by=BY,
        )
        if not recorded_by(folder.path, BY):  # a finished run that is resumed is not scored twice
            append_record(folder.path, record)
        name = parts.final.score_name
        how = "; ".join(f"{key}: {value}" for key, value in record["protocol"].items())
        scores = [Score(name, metrics[name], how)]
    card = Card(
        method=config.method,
        data=config.data,
        steps=steps,
        backbone=config.backbone,
        image_size=config.image_size,
        snippet=snippet_of(parts.run, parts.method.backbone),  # type: ignore[arg-type]
        front=config.front if hears(config) else None,
        scores=scores,
    )
    export_backbone(folder, parts.method.backbone, card=card)  # type: ignore[arg-type]


def _scores(
    parts: Parts,
    metrics: dict[str, float],
    untrained: dict[str, float],
    stop: StopSignals,
) -> list[str]:
    final = parts.final
    if final is None:
        return ["score      none: the data has no labels (one folder per class would give them)"]
    name, sound = final.score_name, hears(parts.run.train)
    things = "sounds" if sound else "images"
    counts = f"{len(final.train.target)} train, {len(final.test.target)} test {things}"
    better = "lower is better" if final.kind == "ridge" else "higher is better"
    yardsticks = {
        "mean predictor" if final.kind == "ridge" else "commonest class": final.ignorance(),
        f"raw {_RAW[parts.run.train.front]}" if sound else "raw pixels": final.score(
            pausing(pixels, stop)
        ),
        "untrained encoder": untrained[name],
    }
    rows = [f"score      {name} {metrics[name]:.4f}  ({_asked(parts)} on {counts}; {better})"]
    rows += [f"           {value:.4f}  {label}" for label, value in yardsticks.items()]
    per_target = [f"{key[4:]} {metrics[key]:.4f}" for key in metrics if key.startswith("mse/")]
    return rows + ([f"           per target: {', '.join(per_target)}"] if per_target else [])


def _asked(parts: Parts) -> str:
    """The readout, and which label of tones it reads."""
    assert parts.final is not None
    factor = getattr(parts.source, "factor", None)
    return f"{parts.final.kind} of {factor}" if factor else parts.final.kind


def _tell_skipped(skipped: list[dict[str, str]], console: Console) -> None:
    if skipped:
        console.line(f"skipped    {len(skipped)} files in all")
    for number, item in enumerate(skipped):
        say = console.line if number < MOST_SKIPPED else console.log
        say(f"skipped    {item['path']}: {item['reason']}")
    if len(skipped) > MOST_SKIPPED:
        console.line(f"skipped    and {len(skipped) - MOST_SKIPPED} more, all in train.log")


def _next(folder: RunFolder, final: Readout | None) -> list[str]:
    kind = "ridge" if final is not None and final.kind == "ridge" else "knn"
    data = "" if final is not None else " --data FOLDER_WITH_CLASSES"
    return [
        f"run        {folder.path}",
        f"encoder    {folder.export / 'backbone.safetensors'}  (README.md beside it loads it)",
        f"next       python -m fastssl.evaluate {kind} --run {folder.path}{data}",
    ]
