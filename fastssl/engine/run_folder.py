"""The run folder: everything a run writes, in one place, used by one process at a time.

    config.yaml  metrics.jsonl  train.log  environment.json  checkpoints/  export/  cache/

A folder that holds a run is refused unless resumed or overwritten; one that holds anything else is
never touched. ``open_run`` locks the folder; ``begin`` writes config.yaml, which marks a run; a
start that fails in between leaves everything as it was.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import yaml

from fastssl.engine.config import TrainConfig, as_plain
from fastssl.engine.environment import describe
from fastssl.engine.files import TEMPORARY, write_json, write_text
from fastssl.engine.same_data import RESOLVED, kept_of_data, refuse_other_data

_MARK = "# fastssl run\n"
_MOST_CONFIG_BYTES = 1 << 20
_DEEPEST_CONFIG = 16
_LOCK = ".lock"
# config.yaml last: it is what marks the folder as a run, should deleting be interrupted.
_OURS = (
    *("metrics.jsonl", "train.log", "environment.json", "checkpoints", "export", "evaluation"),
    *("tensorboard", "wandb", "trackio", "cache", "config.yaml"),
)
_MAY_CHANGE = frozenset(
    f"train.{key}"
    for key in (
        "out resume overwrite dry_run preview workers device save_every log_every readout_every "
        "keep_checkpoints tensorboard wandb trackio max_bad_files max_bad_steps"
    ).split()
)
# Checkpoints from before them are still to be known: at their defaults they do not count.
_CAME_LATER = {
    "train.front": "logmel",
    "train.schedule": "cosine",
    "train.half_period": 1000,
    "method.bound": "mean",
}
_SCHEDULE = {"train.epochs", "train.max_steps", "train.warmup_steps"}


class RunFolder:
    """An open, locked run folder. Made by ``open_run``; a context manager.

    Attributes:
        path: the folder. settings: the resolved configuration as plain values.
        resuming: whether a run was here before and is being continued.
    """

    def __init__(
        self, path: Path, *, settings: dict, resuming: bool, lock: int, made: list[Path]
    ) -> None:
        self.path = path
        self.settings = settings
        self.resuming = resuming
        self._lock = lock
        self._given_as: str | None = None  # the data when the run began; they may have moved
        self._made = made  # folders that did not exist before, innermost first
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.log_file = path / "train.log"
        self.checkpoints = path / "checkpoints"
        self.export = path / "export"
        self.cache = path / "cache"

    def identity(self) -> dict:
        """The settings that may not change within one run."""
        flat = _flat(self.settings)
        if self._given_as is not None:
            flat["train.data"] = self._given_as
        later = {k for k, usual in _CAME_LATER.items() if flat.get(k) == usual}
        return {k: v for k, v in flat.items() if k not in _MAY_CHANGE and k not in later}

    def begin(self, resolved: dict) -> None:
        """Everything has been validated: replace what --overwrite gives up, write config.yaml.

        ``resolved``: plain values that this start makes of the settings; a resume may differ, but
        for its ``data`` (see ``same_data``): ValueError.
        """
        before = kept_of_data(read_settings(self.path)) if self.resuming else None
        refuse_other_data(before, resolved.get("data"))
        if not self.resuming:
            _delete_run(self.path)
        if "data" in resolved:
            self._given_as = (before or {}).get("given_as", self.settings["train"]["data"])
            resolved = {**resolved, "data": {**resolved["data"], "given_as": self._given_as}}
        # config.yaml first: a process killed between these lines leaves a folder known as a run.
        text = yaml.safe_dump({**self.settings, RESOLVED: resolved}, sort_keys=False)
        write_text(self.config_file, _MARK + text)
        for folder in (self.checkpoints, self.export):
            folder.mkdir(exist_ok=True)
        if not (self.path / "environment.json").exists():
            write_json(self.path / "environment.json", describe())

    def close(self) -> None:
        """Give the folder free for another process; without ``begin``, as it was before."""
        if not _holds_run(self.path):
            _take_back(self.path, self._made)
        os.close(self._lock)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_run(settings: dict, *, name: str) -> RunFolder:
    """Lock the folder ``settings["train"]["out"]`` for a run to create, continue or replace.

    Args:
        settings: the whole configuration as plain values, with a ``train`` entry (TrainConfig).
        name: METHOD-DATA, for the default folder runs/METHOD-DATA-N.

    Raises:
        ValueError: the folder holds a run or something else, is in use, or holds a run made with
            other settings; the message says what to do.
    """
    settings = json.loads(json.dumps(settings))  # fresh plain objects: YAML without aliases
    train = settings["train"]
    _refuse_contradictions(train)
    if train["out"] is None:
        path, made = _next_free(Path("runs"), name)
    else:
        path = Path(train["out"])
        _refuse_foreign(path)
        made = _make(path)
    train["out"] = str(path)
    try:
        lock = _locked(path)
    except OSError:
        _remove(made)
        raise
    try:
        resuming = _claim(path, settings)
    except BaseException:
        os.close(lock)
        raise
    return RunFolder(path, settings=settings, resuming=resuming, lock=lock, made=made)


def check_out(settings: dict) -> None:
    """What ``open_run`` would refuse, found out without touching anything; and a resume of nothing.

    A folder in which a start was killed is no such nothing: the same command may be repeated.
    """
    train = settings["train"]
    _refuse_contradictions(train)
    if train["out"] is None:
        _refuse_closed(Path("runs"))
        return
    path = Path(train["out"])
    _refuse_foreign(path)
    if train["resume"] and not (path.exists() and any(path.iterdir())):
        raise ValueError(f"resume: there is no run in {path}; leave out --resume to start one")
    _refuse_closed(path)
    if _holds_run(path):
        _refuse_occupied(path, json.loads(json.dumps(settings)))


def read_settings(path: Path) -> dict:
    """config.yaml of the run in ``path``, as plain values. Raises ValueError if there is none."""
    file = path / "config.yaml"
    if not _holds_run(path):
        _refuse_damaged(path)
        raise ValueError(f"run: {path} holds no fastssl run (no config.yaml made by fastssl.train)")
    try:
        text = file.read_text(encoding="utf-8")
        _refuse_bombs(text)
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        why = str(error)[:200]
        raise ValueError(f"run: {file} is damaged: {why}{_still_there(path)}") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("train"), dict):
        raise ValueError(f"run: {file} is damaged: no `train` section{_still_there(path)}")
    return settings


def _refuse_bombs(text: str) -> None:
    """References and deep nesting make a small file cost gigabytes or hours; we write neither."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _DEEPEST_CONFIG:
            raise ValueError("it contains references or deep nesting")


def _holds_run(path: Path) -> bool:
    file = path / "config.yaml"
    if file.is_symlink() or not file.is_file() or file.stat().st_size > _MOST_CONFIG_BYTES:
        return False
    with open(file, "rb") as stream:
        return stream.read(len(_MARK)) == _MARK.encode()


def _refuse_contradictions(train: dict) -> None:
    if train["resume"] and train["overwrite"]:
        raise ValueError("resume, overwrite: choose one of --resume and --overwrite")
    if train["out"] is None and train["resume"]:
        raise ValueError("resume: say which run with --out DIR")


def _refuse_closed(path: Path) -> None:
    """``path``, or the nearest folder above it that exists, must be one that can be written."""
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise ValueError(f"out: {path} cannot be made: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"out: {path} cannot be written: no permission in {nearest}")


def _refuse_foreign(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ValueError(f"out: {path} is a file; give a folder")
    if not path.exists() or _holds_run(path):
        return
    _refuse_damaged(path)
    names = [entry.name for entry in path.iterdir()]
    # A start that was killed before it wrote config.yaml leaves its lock and perhaps its cache.
    ours = {_LOCK, "cache"} if _LOCK in names else set()
    foreign = [n for n in names if n not in ours and not n.startswith(TEMPORARY)]
    if foreign:
        raise ValueError(
            f"out: {path} is not empty and holds no fastssl run (found {', '.join(foreign[:3])}); "
            "give a new folder. Nothing was touched."
        )


def _refuse_damaged(path: Path) -> None:
    """A folder with checkpoints or an export was a run, whatever has become of config.yaml."""
    left = _still_there(path)
    if not left or not any((path / name).exists() for name in (_LOCK, "metrics.jsonl")):
        return
    state = "damaged" if (path / "config.yaml").exists() else "missing"
    raise ValueError(f"run: {path / 'config.yaml'} is {state}{left}")


def _still_there(path: Path) -> str:
    """The end of a message about a lost config.yaml; empty where nothing else is left."""
    found = [sorted(path.glob(of)) for of in ("checkpoints/[!.]*", "export/*.safetensors")]
    left = [str(entries[-1].relative_to(path)) for entries in found if entries]
    if not left:
        return ""
    left += [name for name in ("metrics.jsonl", "train.log") if (path / name).is_file()]
    return (
        f"; still there: {', '.join(left)}. Put a copy of config.yaml back to go on, or start "
        "anew in another folder. Nothing was touched"
    )


def _locked(path: Path) -> int:
    """The kernel frees this lock when the process ends, however it ends."""
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise ValueError(f"out: {path} is in use by another fastssl process ({owner})") from error
    if not _is_current(lock, path / _LOCK):  # the other process gave up its start just now
        os.close(lock)
        raise ValueError(f"out: {path} is in use by another fastssl process; try again")
    with contextlib.suppress(OSError):  # a full disk; the name is for messages alone
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"pid {os.getpid()}".encode(), 0)
    return lock


def _is_current(lock: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), os.stat(file, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _claim(path: Path, settings: dict) -> bool:
    """Refuse or accept what is in the (locked) folder; True if a run is continued."""
    for leftover in path.glob(f"{TEMPORARY}*"):
        leftover.unlink()
    if not _holds_run(path):
        return False
    _refuse_occupied(path, settings)
    return bool(settings["train"]["resume"])


def _refuse_occupied(path: Path, settings: dict) -> None:
    train = settings["train"]
    if train["resume"]:
        _refuse_changes(path, settings)
    elif not train["overwrite"]:
        raise ValueError(
            f"out: {path} already holds a run; continue it with --resume, replace it with "
            "--overwrite, or give another --out"
        )


def _delete_run(path: Path) -> None:
    """All of a run but the cache, which tells of the data and which this start has filled."""
    for name in _OURS:
        entry = path / name
        if not entry.is_dir() or entry.is_symlink():
            entry.unlink(missing_ok=True)
        elif name != "cache":
            shutil.rmtree(entry)


def _take_back(path: Path, made: list[Path]) -> None:
    """What a start that came to nothing left: its cache, its lock, the folders it made."""
    if not (path / "cache").is_symlink():
        shutil.rmtree(path / "cache", ignore_errors=True)
    (path / _LOCK).unlink(missing_ok=True)
    _remove(made)


def _remove(made: list[Path]) -> None:
    with contextlib.suppress(OSError):  # someone else's files may be there by now
        for folder in made:
            folder.rmdir()


def _refuse_changes(path: Path, settings: dict) -> None:
    whole = read_settings(path)
    stored = {key: value for key, value in whole.items() if key != RESOLVED}
    before, now = _flat(stored), _flat(settings)
    for key, default in _flat({"train": as_plain(TrainConfig())}).items():
        if key in now:  # perhaps a setting that came after the run was begun
            before.setdefault(key, default)
    if kept_of_data(whole) is not None:  # data that moved; whether they are the same is seen later
        before["train.data"] = now["train.data"]
    changed = [
        key
        for key in sorted(before.keys() | now.keys())
        if key not in _MAY_CHANGE and before.get(key, "absent") != now.get(key, "absent")
    ]
    if not changed:
        return
    told = "; ".join(
        f"{key.split('.', 1)[-1]} was {before.get(key, 'absent')!r}, now {now.get(key, 'absent')!r}"
        for key in changed
    )
    why = " (the learning rate follows the planned length)" if _SCHEDULE & set(changed) else ""
    raise ValueError(
        f"resume: {path} was made with other settings: {told}{why}. Repeat the original settings, "
        "or start anew with another --out"
    )


def _flat(settings: dict, prefix: str = "") -> dict:
    flat: dict = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _make(path: Path) -> list[Path]:
    """Make the folder and its parents; those that did not exist, innermost first."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove(made)
        raise ValueError(
            f"out: {path} cannot be made: {error.strerror}; give another --out"
        ) from error
    return made


def _next_free(parent: Path, name: str) -> tuple[Path, list[Path]]:
    """parent/name-N with the next free N, and what was made; making it is what claims it."""
    made = _make(parent)
    number = 1
    while True:
        path = parent / f"{name}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path, [path, *made]
