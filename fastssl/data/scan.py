"""Which files of a folder are images, in a stable order, with what their headers say.

Verdicts are cached as JSON lines keyed by path, size and modification time, so that a large folder
is checked once per run; a damaged cache is ignored line by line.
"""

from __future__ import annotations

import json
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

from fastssl.data.headers import BadFile, Header, check

EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp")
_CACHE_NAME = "image-headers.jsonl"
_UNDECODABLE_NAME = "undecodable.jsonl"
_AT_A_TIME = 256  # headers between two looks at the clock
_UNCHECKED = Header(1, 1)


@dataclass(frozen=True)
class Scan:
    """Usable files, relative to the root and sorted, with their headers; and the others."""

    root: str
    paths: tuple[str, ...]
    headers: tuple[Header, ...]
    skipped: tuple[tuple[str, str], ...]  # (relative path, reason)
    unchecked: int = 0  # of the paths: taken for good without a look at their headers
    complete: bool = True  # whether every folder was listed

    @property
    def num_files(self) -> int:
        return len(self.paths) + len(self.skipped)

    def full(self, index: int) -> str:
        return os.path.join(self.root, self.paths[index])


def scan(
    root: Path, *, workers: int, cache_dir: Path | None, budget_s: float | None = None
) -> Scan:
    """Checks the header of every file below ``root`` that is named like an image.

    With ``budget_s`` it only looks around: that long at most for the names, half of it for headers.
    """
    folder = os.fspath(root)
    candidates, closed, complete = find_files(folder, EXTENSIONS, until=_deadline(budget_s))
    known = _read_cache(cache_dir)
    verdicts: list[Header | str] = []
    until = _deadline(budget_s and budget_s / 2)
    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        while len(verdicts) < len(candidates) and time.monotonic() < until:
            some = candidates[len(verdicts) : len(verdicts) + _AT_A_TIME]
            verdicts += pool.map(lambda path: _verdict(folder, path, known), some)
    unchecked = len(candidates) - len(verdicts)
    if cache_dir is not None:
        _write_cache(cache_dir, folder, candidates[: len(verdicts)], verdicts)
    verdicts += [_UNCHECKED] * unchecked
    good = [(p, v) for p, v in zip(candidates, verdicts, strict=True) if isinstance(v, Header)]
    bad = [(p, v) for p, v in zip(candidates, verdicts, strict=True) if isinstance(v, str)]
    return Scan(
        root=folder,
        paths=tuple(p for p, _ in good),
        headers=tuple(v for _, v in good),
        skipped=tuple(sorted([*bad, *closed])),
        unchecked=unchecked,
        complete=complete,
    )


def find_files(
    root: str, extensions: tuple[str, ...], *, until: float = math.inf
) -> tuple[list[str], list[tuple[str, str]], bool]:
    """Paths below ``root`` so named (case ignored), sorted; (folder, reason) of those that cannot
    be opened; and whether all was seen before the monotonic time ``until``. Links are followed,
    each folder once; hidden entries are left out."""
    found: list[str] = []
    closed: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()

    def refused(error: OSError) -> None:
        reason = f"the folder cannot be opened: {error.strerror}"
        closed.append((os.path.relpath(error.filename, root), reason))

    for folder, subfolders, files in os.walk(root, onerror=refused, followlinks=True):
        if time.monotonic() > until:
            return sorted(found), closed, False
        identity = os.stat(folder)
        if (identity.st_dev, identity.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        below = os.path.relpath(folder, root)
        for name in (*files, *subfolders):
            if name.lower().endswith(extensions) and not name.startswith("."):
                found.append(name if below == os.curdir else os.path.join(below, name))
    return sorted(found), closed, True


def _deadline(budget_s: float | None) -> float:
    return math.inf if budget_s is None else time.monotonic() + budget_s


def printable(path: str) -> str:
    """The path as text that any terminal and file can take (names need not be UTF-8)."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _key(folder: str, path: str) -> str | None:
    try:
        status = os.stat(os.path.join(folder, path))
    except OSError:
        return None
    return json.dumps([path, status.st_size, status.st_mtime_ns])


def _verdict(folder: str, path: str, known: dict[str, Header]) -> Header | str:
    key = _key(folder, path)
    if key in known:
        return known[key]
    try:
        return check(os.path.join(folder, path))
    except BadFile as bad:
        return str(bad)


def _read_cache(cache_dir: Path | None) -> dict[str, Header]:
    known: dict[str, Header] = {}
    for line in _lines(cache_dir, _CACHE_NAME):
        try:
            path, size, modified, width, height, orientation, plain = json.loads(line)
            fields = (width, height, orientation)
        except (ValueError, TypeError):
            continue
        if all(type(value) is int for value in fields) and type(plain) is bool:
            known[json.dumps([path, size, modified])] = Header(*fields, plain)
    return known


def _write_cache(
    cache_dir: Path, folder: str, paths: list[str], verdicts: list[Header | str]
) -> None:
    lines = []
    for path, verdict in zip(paths, verdicts, strict=True):
        key = _key(folder, path)
        if key is not None and isinstance(verdict, Header):
            lines.append(json.dumps([*json.loads(key), *astuple(verdict)]))
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = cache_dir / f".{_CACHE_NAME}-{os.getpid()}"
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        temporary.replace(cache_dir / _CACHE_NAME)
    except OSError:
        return  # a full disk costs the next start some seconds, nothing else


def note_undecodable(found: Scan, index: int, reason: str, cache_dir: Path | None) -> None:
    """Keeps for a resumed run that ``found.paths[index]`` has a good header and bad contents."""
    key = _key(found.root, found.paths[index])
    if cache_dir is None or key is None:
        return
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with open(cache_dir / _UNDECODABLE_NAME, "a", encoding="utf-8") as file:
            file.write(json.dumps([*json.loads(key), reason]) + "\n")
    except OSError:
        return  # the next start finds it out again


def known_undecodable(found: Scan, cache_dir: Path | None) -> dict[int, str]:
    """Index into ``found.paths`` -> reason, as an earlier start noted it of the same files."""
    noted: dict[str, str] = {}
    for line in _lines(cache_dir, _UNDECODABLE_NAME):
        try:
            path, size, modified, reason = json.loads(line)
        except (ValueError, TypeError):
            continue
        noted[json.dumps([path, size, modified])] = str(reason)
    if not noted:
        return {}
    keys = [_key(found.root, path) for path in found.paths]
    return {index: noted[key] for index, key in enumerate(keys) if key in noted}


def _lines(cache_dir: Path | None, name: str) -> list[str]:
    if cache_dir is None:
        return []
    try:
        return (cache_dir / name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
