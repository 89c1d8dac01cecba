"""Builds the parts of a run, trains, exports and reports. The one place that knows all rooms."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastssl.data.sources import open_source
from fastssl.engine.config import as_plain
from fastssl.engine.console import Console
from fastssl.engine.device import resolve_device
from fastssl.engine.export import Card, Score, export_backbone
from fastssl.engine.guard import TrainingDiverged
from fastssl.engine.loop import fit
from fastssl.engine.plan import plan_lines
from fastssl.engine.ranks import LeaderFailed, Ranks, joined
from fastssl.engine.readout import run_readouts
from fastssl.engine.run_folder import RunFolder, open_run
from fastssl.engine.seeding import seed_everything
from fastssl.kernels import native
from fastssl.methods import METHODS
from fastssl.nn.backbones import build_backbone
from fastssl.nn.snippet import loading_snippet
from fastssl.recipes.assess import append_record, make_record
from fastssl.recipes.catalogue import data_kind
from fastssl.recipes.readouts import Readout, make_readout, pixels, usual_kind
from fastssl.recipes.run import Run

LIVE = {"train_limit": 2000, "test_limit": 500}
FINAL = {"train_limit": 6000, "test_limit": 2000}
MOST_SKIPPED = 20  # files named at the end of a run


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a Run turns into."""

    run: Run
    device: torch.device
    source: Any
    method: nn.Module
    final: Readout | None = None  # what the run is scored by; None without labels


def plan(run: Run) -> list[str]:
    """What ``train`` would do, line by line. Writes nothing."""
    parts = build(run, cache_dir=None)
    lines = plan_lines(
        run.train,
        source=parts.source,
        method=parts.method,
        device=parts.device,
        backends=backends(parts),
    )
    loader = getattr(parts.source, "backend", "PyTorch, vectorised")
    readout = usual_kind(parts.source) or "none: the data has no labels"
    return [*lines, f"{'data loader':<18}{loader}", f"{'scored by':<18}{readout}"]


def train(run: Run) -> int:
    """Train, export, score and report; returns the exit status. Under torchrun, with all ranks."""
    with joined(resolve_device(run.train.device)) as ranks:
        return _lead(run, ranks) if ranks.leads else _follow(run, ranks)


def _lead(run: Run, ranks: Ranks) -> int:
    """The whole run, or rank 0 of it: what is written, shown and scored happens here."""
    console = Console()
    name = f"{run.train.method}-{data_kind(run.train.data)}"
    with contextlib.ExitStack() as stack:
        with ranks.leading():
            folder = stack.enter_context(open_run(as_plain(run), name=name))
            console.attach(folder.log_file)
            parts = with_readout(build(run, cache_dir=folder.cache))
            live = [parts.final.first(**LIVE)] if parts.final else []
            untrained = score(parts)
        ranks.tell(folder.settings)
        try:
            result = fit(
                parts.method,
                parts.source,
                run.train,
                run=folder,
                device=parts.device,
                readouts=live,
                console=console,
                ranks=ranks,
            )
        except TrainingDiverged as error:
            raise ValueError(str(error)) from error
        if result.finished:
            report(parts, folder, result.steps, untrained=untrained, console=console)
        return result.exit_code


def _follow(run: Run, ranks: Ranks) -> int:
    """Any other rank: trains on its part, writes nothing and says nothing."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        silent = Console(stack.enter_context(open(os.devnull, "w", encoding="utf-8")))
        try:
            settings = ranks.told()
            lock = os.open(os.devnull, os.O_RDONLY)
            folder = RunFolder(scratch, settings=settings, resuming=False, lock=lock)
            parts = build(run, cache_dir=None)
            result = fit(
                parts.method,
                parts.source,
                run.train,
                run=stack.enter_context(folder),
                device=parts.device,
                console=silent,
                ranks=ranks,
            )
        except (LeaderFailed, TrainingDiverged):
            return 2  # rank 0 has said why
        return result.exit_code


def build(run: Run, *, cache_dir: Path | None) -> Parts:
    """Open the data and make the method."""
    config = run.train
    device = resolve_device(config.device)
    source = open_source(
        config.data,
        image_size=config.image_size,
        seed=config.seed,
        workers=config.workers,
        device=device,
        cache_dir=cache_dir,
        max_bad=config.max_bad_files,
    )
    return Parts(run=run, device=device, source=source, method=build_method(run))


def with_readout(parts: Parts) -> Parts:
    """The same, with the readout that its labels allow; it checks that the images decode."""
    kind = usual_kind(parts.source)
    return replace(parts, final=make_readout(parts.source, kind, **FINAL)) if kind else parts


def build_method(run: Run) -> nn.Module:
    """The method on a fresh encoder; the weights depend on the seed alone."""
    seed_everything(run.train.seed)
    module, _, name = METHODS[run.train.method][1].partition(":")
    method_class: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
    return method_class(build_backbone(run.train.backbone, run.train.image_size), run.method)


def backends(parts: Parts) -> dict[str, str]:
    """Which implementation answers each op here."""
    chosen = "plain PyTorch"
    if parts.device.type == "cuda":
        chosen = "Triton"
    elif parts.device.type == "cpu" and native.library() is not None:
        isa = os.environ.get("FASTSSL_ISA") or native.instruction_sets()[0]
        chosen = f"C++ ({isa})"
    return {"ntxent": chosen}


def score(parts: Parts) -> dict[str, float]:
    """All metrics of the final readout on the encoder as it is now; empty without labels."""
    if parts.final is None:
        return {}
    return run_readouts(parts.method, [parts.final], device=parts.device, precision="fp32")


def report(
    parts: Parts, folder: RunFolder, steps: int, *, untrained: dict[str, float], console: Console
) -> None:
    """Score, export, and tell how good it is, where it lies and what to type next."""
    config = parts.run.train
    metrics = score(parts)
    scores = []
    if parts.final is not None:
        record = make_record(parts.final, metrics, run=parts.run, data=config.data)
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
        snippet=loading_snippet(config.backbone, config.image_size),
        scores=scores,
    )
    export_backbone(folder, parts.method.backbone, card=card)  # type: ignore[arg-type]
    for line in [
        *_skipped(parts.source.report()["skipped"]),
        *_scores(parts.final, metrics, untrained),
        *_next(folder, parts.final),
    ]:
        console.line(line)


def _scores(
    final: Readout | None, metrics: dict[str, float], untrained: dict[str, float]
) -> list[str]:
    if final is None:
        return ["score      none: the data has no labels (one folder per class would give them)"]
    name = final.score_name
    counts = f"{len(final.train.target)} train, {len(final.test.target)} test images"
    better = "lower is better" if final.kind == "ridge" else "higher is better"
    yardsticks = {
        "mean predictor" if final.kind == "ridge" else "commonest class": final.ignorance(),
        "raw pixels": final.score(pixels),
        "untrained encoder": untrained[name],
    }
    rows = [f"score      {name} {metrics[name]:.4f}  ({final.kind} on {counts}; {better})"]
    rows += [f"           {value:.4f}  {label}" for label, value in yardsticks.items()]
    per_target = [f"{key[4:]} {metrics[key]:.4f}" for key in metrics if key.startswith("mse/")]
    return rows + ([f"           per target: {', '.join(per_target)}"] if per_target else [])


def _skipped(skipped: list[dict[str, str]]) -> list[str]:
    lines = [f"skipped    {item['path']}: {item['reason']}" for item in skipped[:MOST_SKIPPED]]
    more = len(skipped) - len(lines)
    return lines + ([f"skipped    and {more} more files, all in train.log"] if more > 0 else [])


def _next(folder: RunFolder, final: Readout | None) -> list[str]:
    kind = "ridge" if final is not None and final.kind == "ridge" else "knn"
    data = "" if final is not None else " --data FOLDER_WITH_CLASSES"
    return [
        f"run        {folder.path}",
        f"encoder    {folder.export / 'backbone.safetensors'}  (README.md beside it loads it)",
        f"next       python -m fastssl.evaluate {kind} --run {folder.path}{data}",
    ]
