"""Experiment trackers as sinks beside metrics.jsonl: TensorBoard, Weights & Biases, trackio.

All are off by default. They need no account and no network and write into the run folder, unless
the tracker's own environment variables say otherwise; their temporary files go when the run ends.
What a tracker raises while training is an OSError: told, never the end of a run. Steps that a
resumed run repeats are replaced in TensorBoard; the other two keep what they saw first, or both.
"""

from __future__ import annotations

import contextlib
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastssl import _extras
from fastssl.engine.config import TrainConfig
from fastssl.engine.run_folder import RunFolder
from fastssl.engine.sinks import Sink

_PROJECT = "fastssl"


def check_trackers(config: TrainConfig) -> None:
    """Raise where a tracker that was asked for is not installed; says which extra brings it.

    ValueError (TensorBoard) or MissingExtra (the others). Nothing is written.
    """
    if config.tensorboard:
        _summary_writer()
    for name in ("wandb", "trackio"):
        if getattr(config, name):
            _extras.check(name, extra=name)


def open_trackers(config: TrainConfig, run: RunFolder, *, keep_through: int) -> list[Sink]:
    """The sinks that were asked for. ``keep_through``: step that the run continues from, or 0."""
    check_trackers(config)
    sinks: list[Sink] = []
    if config.tensorboard:
        sinks.append(TensorBoard(run.path / "tensorboard", keep_through=keep_through))
    if config.wandb:
        sinks.append(Wandb(run))
    if config.trackio:
        sinks.append(Trackio(run))
    return sinks


class TensorBoard:
    """TensorBoard event files in ``folder``. Raises ValueError where the package is missing."""

    def __init__(self, folder: Path, *, keep_through: int) -> None:
        self._writer = _summary_writer()(str(folder), purge_step=keep_through + 1)

    def write(self, step: int, values: dict) -> None:
        """One scalar per number; nested names are joined by a slash."""
        with _as_oserror("tensorboard"):
            for name, value in _flat(values).items():
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write what is buffered."""
        with _as_oserror("tensorboard"):
            self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        _ended("tensorboard", self._writer.close)


class Wandb:
    """Weights & Biases, offline in RUN/wandb unless WANDB_MODE or WANDB_DIR are set.

    ``wandb sync RUN/wandb/offline-run-*`` uploads later. A resumed run has the same id.
    """

    def __init__(self, run: RunFolder) -> None:
        folder = run.path.absolute() / "wandb"
        folder.mkdir(exist_ok=True)
        kept = {f"WANDB_{name}_DIR": folder / name.lower() for name in ("CACHE", "CONFIG", "DATA")}
        self._restore = _environment({"WANDB_MODE": "offline", "WANDB_DIR": folder.parent, **kept})
        wandb = _extras.require("wandb", extra="wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.path.name,
            id=_stored_id(folder / "run-id"),
            resume="allow",
            config=run.settings,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )

    def write(self, step: int, values: dict) -> None:
        """All numbers of the step; nested names are joined by a slash."""
        with _as_oserror("wandb"):
            self._run.log(_flat(values), step=step)

    def flush(self) -> None:
        """Nothing to do: its own process writes."""

    def close(self) -> None:
        """Wait until everything is written."""
        _ended("wandb", self._run.finish)
        self._restore()


class Trackio:
    """trackio's database in RUN/trackio unless TRACKIO_DIR is set; no server, no upload.

    ``TRACKIO_DIR=RUN/trackio trackio show`` shows it. trackio reads the variable once per process.
    """

    def __init__(self, run: RunFolder) -> None:
        self._restore = _environment({"TRACKIO_DIR": run.path.absolute() / "trackio"})
        trackio = _extras.require("trackio", extra="trackio")
        self._run = trackio.init(
            project=_PROJECT, name=run.path.name, config=run.settings, resume="allow", embed=False
        )

    def write(self, step: int, values: dict) -> None:
        """All numbers of the step; nested names are joined by a slash."""
        with _as_oserror("trackio"):
            self._run.log(_flat(values), step=step)

    def flush(self) -> None:
        """Nothing to do: its own thread writes."""

    def close(self) -> None:
        """Wait until everything is written."""
        _ended("trackio", self._run.finish)
        self._restore()


def _summary_writer() -> Callable[..., Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "tensorboard: the package is not installed; pip install 'fastssl[tensorboard]' "
            "or leave out --tensorboard"
        ) from error
    return SummaryWriter


def _stored_id(file: Path) -> str:
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return file.read_text(encoding="utf-8")


def _environment(wanted: dict[str, Any]) -> Callable[[], None]:
    """Set what the user has not set; returns what takes it back."""
    ours = {name: str(value) for name, value in wanted.items() if name not in os.environ}
    os.environ.update(ours)

    def take_back() -> None:
        for name in ours:
            os.environ.pop(name, None)

    return take_back


@contextlib.contextmanager
def _as_oserror(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise OSError(f"{name}: {error}") from error


def _ended(name: str, close: Callable[[], object]) -> None:
    try:
        close()
    except Exception as error:
        logging.getLogger("fastssl").warning("%s did not end well: %s", name, error)


def _flat(values: dict, prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            flat.update(_flat(value, f"{name}/"))
        elif isinstance(value, int | float):
            flat[name] = value
    return flat
