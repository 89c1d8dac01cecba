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
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from fastssl.data.headers import BadFile, Header, check
from fastssl.data.store import read_file
from fastssl.data.suffixes import IMAGES

_CACHE_NAME = "image-headers.jsonl"
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

    def read(self, index: int) -> bytes:
        """The bytes of file ``index``; BadFile where they cannot be read any more."""
        return read_file(os.path.join(self.root, self.paths[index]))

    def stamp(self, index: int) -> str | None:
        """JSON of path, size and modification time; None where the file is gone."""
        return _key(self.root, self.paths[index])


def scan(
    root: Path, *, workers: int, cache_dir: Path | None, budget_s: float | None = None
) -> Scan:
    """Checks the header of every file below ``root`` that is named like an image.

    With ``budget_s`` it only looks around: that long at most for the names, half of it for headers.
    """
    folder = os.fspath(root)
    candidates, closed, complete = find_files(folder, IMAGES, until=_deadline(budget_s))
    found = check_all(
        folder, candidates, workers=workers, cache_dir=cache_dir, budget_s=budget_s and budget_s / 2
    )
    return replace(found, skipped=tuple(sorted([*found.skipped, *closed])), complete=complete)


def check_all(
    folder: str,
    candidates: list[str],
    *,
    workers: int,
    cache_dir: Path | None,
    budget_s: float | None = None,
) -> Scan:
    """Checks the headers of ``candidates``, paths relative to ``folder``, in that order."""
    known = _read_cache(cache_dir)
    verdicts: list[Header | str] = []
    until = _deadline(budget_s)
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
        skipped=tuple(bad),
        unchecked=unchecked,
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
    for line in cached_lines(cache_dir, _CACHE_NAME):
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
    keep_lines(cache_dir, _CACHE_NAME, lines)


def keep_lines(cache_dir: Path | None, name: str, lines: list[str]) -> None:
    """Writes a file of the cache as a whole, if it can."""
    if cache_dir is None:
        return
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        temporary = cache_dir / f".{name}-{os.getpid()}"
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        temporary.replace(cache_dir / name)
    except OSError:
        return  # a full disk costs the next start some seconds, nothing else


def cached_lines(cache_dir: Path | None, name: str) -> list[str]:
    """Lines of a file in the cache; none where it is missing or not text."""
    if cache_dir is None:
        return []
    try:
        return (cache_dir / name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
