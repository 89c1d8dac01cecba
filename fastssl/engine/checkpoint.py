"""Checkpoints on disk: whole and checksummed, or not there. No pickle in either direction.

    step-00000400/  model.safetensors  optim.safetensors  state.json  MANIFEST.json

Written to ``.tmp-...``, every file fsynced, MANIFEST.json (SHA-256 and size of the others) last,
folder fsynced, renamed, parent fsynced, read back and verified; only then are older ones pruned.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fastssl.engine.faults import fault
from fastssl.engine.files import TEMPORARY, fsync_folder, naming, read_json

_FILES = ("model.safetensors", "optim.safetensors", "state.json")
_MANIFEST = "MANIFEST.json"
_FORMAT = 1
_MOST_MANIFEST_BYTES = 1 << 16
_NAME = re.compile(r"step-(\d{8,12})")
_REFUSED = "refused-"


class CheckpointError(ValueError):
    """A checkpoint that is damaged, hostile, or made for something else."""


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds: two sets of named CPU tensors and JSON-able state."""

    model: dict[str, Tensor]
    optim: dict[str, Tensor]
    state: dict


def save(folder: Path, snapshot: Snapshot, *, step: int, keep: int) -> Path:
    """Write ``folder/step-XXXXXXXX`` and prune all but the newest ``max(2, keep)``.

    Raises:
        OSError: disk full, read-only, ...; the older checkpoints are untouched, nothing is left.
        CheckpointError: what was read back is not what was written.
    """
    final = folder / f"step-{step:08d}"
    temporary = folder / f"{TEMPORARY}{step:08d}-{os.getpid()}"
    try:
        temporary.mkdir()
        fault("checkpoint.begin")
        _write_all(temporary, snapshot)
        fault("checkpoint.before_rename")
        os.rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fault("checkpoint.after_rename")
    fsync_folder(folder)
    try:
        verify(final)
    except CheckpointError:
        set_aside(final)
        raise
    fault("checkpoint.before_prune")
    for _, old in newest_first(folder)[max(2, keep) :]:
        _delete(old)
    return final


def newest_first(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of everything that is named like a checkpoint."""
    if not folder.is_dir():
        return []
    named = ((_NAME.fullmatch(entry.name), entry) for entry in folder.iterdir())
    return sorted(((int(m[1]), entry) for m, entry in named if m), reverse=True)


def clean(folder: Path) -> None:
    """Remove what a killed save or prune left behind."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def set_aside(path: Path) -> None:
    """Rename a refused checkpoint, so that the run may write its step again. Kept as evidence."""
    aside, number = path.with_name(f"{_REFUSED}{path.name}"), 1
    while os.path.lexists(aside):
        aside, number = path.with_name(f"{_REFUSED}{path.name}-{number}"), number + 1
    os.rename(path, aside)


def verify(path: Path) -> None:
    """Check names, kinds, sizes and SHA-256 of all files. Raises CheckpointError."""
    if path.is_symlink() or not path.is_dir():
        raise CheckpointError(f"{path.name}: not a folder")
    found = sorted(entry.name for entry in path.iterdir())
    if found != sorted((*_FILES, _MANIFEST)):
        raise CheckpointError(f"{path.name}: expected {(*_FILES, _MANIFEST)}, found {found[:8]}")
    manifest = _read_manifest(path)
    for name in _FILES:
        try:
            actual = _measure(path / name)
        except OSError as error:
            raise CheckpointError(f"{path.name}/{name}: {error.strerror}") from error
        if actual != manifest[name]:
            raise CheckpointError(f"{path.name}/{name}: size or SHA-256 differs from the manifest")


def read(path: Path) -> Snapshot:
    """Verify and load a checkpoint. Runs nothing that the files contain. Raises CheckpointError."""
    verify(path)
    try:
        state = read_json(path / "state.json")
        tensors = [safetensors.torch.load_file(path / name) for name in _FILES[:2]]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path.name}: {str(error)[:200]}") from error
    match = _NAME.fullmatch(path.name)
    if match is None or not isinstance(state, dict) or state.get("step") != int(match[1]):
        raise CheckpointError(f"{path.name}: state.json is of another step")
    return Snapshot(model=tensors[0], optim=tensors[1], state=state)


def _write_all(temporary: Path, snapshot: Snapshot) -> None:
    manifest = {}
    for name, content in _contents(snapshot):
        _write_synced(temporary / name, content)
        digest = hashlib.sha256(content).hexdigest()
        manifest[name] = {"bytes": len(content), "sha256": digest}
        fault("checkpoint.after_file")
    _write_synced(temporary / _MANIFEST, _canonical({"files": manifest, "format": _FORMAT}))
    fault("checkpoint.after_manifest")
    fsync_folder(temporary)


def _contents(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    yield _FILES[0], safetensors.torch.save(snapshot.model)
    yield _FILES[1], safetensors.torch.save(snapshot.optim)
    yield _FILES[2], _canonical(snapshot.state)


def _write_synced(path: Path, content: bytes) -> None:
    half = len(content) // 2
    with naming(path), open(path, "wb") as file:
        file.write(content[:half])
        file.flush()
        fault("checkpoint.mid_file")
        file.write(content[half:])
        file.flush()
        os.fsync(file.fileno())


def _canonical(content: object) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _read_manifest(path: Path) -> dict[str, dict]:
    try:
        manifest = read_json(path / _MANIFEST, most_bytes=_MOST_MANIFEST_BYTES)
        # One spelling only: any changed bit is then either a changed value or refused here.
        same = (path / _MANIFEST).read_bytes() == _canonical(manifest)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name}/{_MANIFEST}: {str(error)[:200]}") from error
    if not same or not isinstance(manifest, dict) or manifest.keys() != {"files", "format"}:
        raise CheckpointError(f"{path.name}/{_MANIFEST}: not a manifest of this program")
    files = manifest["files"]
    if manifest["format"] != _FORMAT or not isinstance(files, dict) or {*files} != {*_FILES}:
        raise CheckpointError(f"{path.name}/{_MANIFEST}: not a manifest of format {_FORMAT}")
    return files


def _measure(path: Path) -> dict:
    """Size and SHA-256 of a regular file; a symbolic link or a device is an OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(0, "not a regular file")
        digest, size = hashlib.sha256(), 0
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _delete(path: Path) -> None:
    """Rename first: a half-deleted folder must not be taken for a damaged checkpoint."""
    doomed = path.with_name(f"{TEMPORARY}old-{path.name}")
    with contextlib.suppress(OSError):
        os.rename(path, doomed)
        fault("checkpoint.mid_prune")
        shutil.rmtree(doomed)
